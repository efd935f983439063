"""Figures show the numbers they are given, and say n and what their bars are."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from conftest import make_data, study_rows

from ddlib.data import random_real
from ddlib.report import figures
from ddlib.report.audit import Scope, audit
from ddlib.report.selection import arms
from ddlib.report.tables import in_order, table
from ddlib.stats import paired_difference, summarise
from ddlib.view.look import nearest

mpl.use("Agg")
BASELINE, POOL = ("main", "CE"), ("main_plus_similar", "CE")


def rows_of(accuracies, nets=("VGG11", "MyNet", "ConvNet"), **changes):
    return arms(study_rows(accuracies, nets, **changes))


def title_of(figure):
    return figure.get_suptitle()


def labels_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_images_stand_under_their_class_names():
    data = make_data(classes=4)
    sets = {"a": random_real(data, 2, 0), "b": random_real(data, 1, 1)}
    figure = figures.image_rows(sets, "title")
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", "d"] + [""] * 4
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()] == ["a", "b"]
    shown = np.asarray(figure.axes[1].images[0].get_array())
    assert np.allclose(shown, sets["a"].images01()[2, 0].numpy())  # class b's first image


def test_logs_are_drawn_and_counted():
    data = make_data()
    sets = [random_real(data, 1, seed) for seed in (0, 1)]
    for i, synset in enumerate(sets):
        log = {"iteration": [1, 2, 3], "loss": [4.0, 2.0, i], "architecture": ["x", "x", "y"]}
        synset.log = pd.DataFrame(log)
    figure = figures.loss_curves({"MyMethod": sets}, window=3)
    assert labels_of(figure) == ["MyMethod, n = 2"]
    assert figure.axes[0].lines[-1].get_xydata().tolist() == [[2.0, pytest.approx(6.5 / 3)]]
    figure = figures.drawn_architectures(sets)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [2, 4]
    assert "n = 2 sets" in title_of(figure)


def test_losses_are_drawn_by_member():
    drawn = ["ConvNet", "ConvNet-relu-batch-max", "LeNet", "ConvNet"]
    log = pd.DataFrame({"iteration": [1, 2, 3, 4], "loss": [4.0, 1e9, 2.0, 3.0]})
    figure = figures.member_losses({"a": log.assign(architecture=drawn)}, "title")
    (axis,) = figure.axes
    points = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert points == {
        "main model": [[1, 4.0], [4, 3.0]],
        "other members, batch norm": [[2, 1e9]],
        "other members": [[3, 2.0]],
    }
    assert axis.get_yscale() == "log" and axis.get_title(loc="left") == "a"


def test_names_share_no_colour_and_leave_out_what_all_share():
    names = ["MyMethod", "baseline", "x", "model pool", "y", "random real images", "z", "w"]
    assert len(set(figures.palette(names).values())) == len(names)
    assert figures.palette(["x", "baseline"])["baseline"] == figures.COLOURS["baseline"]
    assert set(figures.line_names(rows_of({BASELINE: 20.0, POOL: 21.0}))) == {
        "baseline",
        "model pool",
    }
    assert set(figures.line_names(rows_of({BASELINE: 20.0, ("main", "KD"): 21.0}))) == {"CE", "KD"}


def test_bars_are_means_of_images_and_arms_and_diverged_nets_are_counted():
    good, bad = rows_of({BASELINE: 20.0}), rows_of({POOL: 30.0}, diverged=True)
    kd = rows_of({("main", "KD"): 25.0})
    figure = figures.bars(pd.concat([bad, good, kd]), "title", ["baseline, CE"])
    drawn = figure.axes[0].patches
    assert [bar.get_height() for bar in drawn] == pytest.approx(
        [20.55] * 3 + [30.55] * 3 + [25.55] * 3
    )
    assert drawn[0].get_facecolor() == drawn[6].get_facecolor() != drawn[3].get_facecolor()
    assert drawn[0].get_hatch() != drawn[6].get_hatch()  # the same images, another arm
    assert [t.get_text() for t in figure.axes[0].texts if t.get_text()] == ["✕4"] * 3
    assert {"baseline, CE", "baseline, KD", "model pool, CE", "chance"} == set(labels_of(figure))
    assert "n = 2×2 (sets × nets); whiskers: 95% interval; ✕ diverged" in title_of(figure)
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["ConvNet", "VGG11", "MyNet"]  # the paper's order, then others
    rows = pd.concat([kd, bad, rows_of({("random_real", "CE"): 15.0}), good])
    drawn = figures.bars(rows, "title").axes[0].patches[::3]  # free images first, arm by arm
    assert [bar.get_height() for bar in drawn] == pytest.approx([15.55, 20.55, 30.55, 25.55])
    figure = figures.bars(rows_of({BASELINE: lambda net, d, e: 50.0 + 40 * d}), "title")
    assert figure.axes[0].get_ylim()[1] == 100 and title_of(figure).endswith("cut at the frame")


def test_curves_go_through_the_means_and_two_points_are_none():
    at = {k: rows_of({BASELINE: 20.0 + k}, ("ConvNet",), iteration=k) for k in (1, 2, 3)}
    real = rows_of({("random_real", "CE"): 15.0}, ("ConvNet",))
    rows = pd.concat([*at.values(), real])
    figure = figures.accuracy_curves(rows, "iteration", "k", "title")
    level, curve = figure.axes[0].lines
    assert curve.get_xydata()[:, 1] == pytest.approx([21.55, 22.55, 23.55])
    assert set(level.get_ydata()) == {15.55}
    assert labels_of(figure) == ["random real images, n = 2×2", "baseline, n = 2×2"]
    assert figure.axes[0].get_ylabel() == "test accuracy (%)"
    assert figures.curves(rows, "title").axes[0].lines[1].get_xydata()[:, 0].tolist() == [1, 2, 3]
    both = pd.concat([rows, *(rows_of({POOL: 30.0 + k}, ("ConvNet",), iteration=k) for k in at)])
    both = pd.concat([both, rows_of({BASELINE: 0.0}, ("ConvNet",), iteration=0)])
    axis = figures.accuracy_curves(both, "iteration", "k", "title").axes[0]
    one, other = (line.get_xydata()[:, 0] for line in axis.lines[1:])
    assert one.tolist() == pytest.approx([k - 0.018 for k in range(4)])  # 0.6% of 0 to 3
    assert other.tolist() == pytest.approx([k + 0.018 for k in (1, 2, 3)])
    flat = [rows_of({BASELINE: 30.0 * (k > 0)}, ("ConvNet",), iteration=k) for k in (0, *at)]
    axis = figures.accuracy_curves(pd.concat([*flat, real]), "iteration", "k", "title").axes[0]
    assert 0.55 < axis.get_ylim()[0] < 15.55  # a level is seen; where curves begin, at 0, is not
    points = figures.accuracy_curves(pd.concat([at[1], at[2]]), "iteration", "k", "title")
    assert [line.get_linestyle() for line in points.axes[0].lines] == ["None"]
    assert figures.curves(at[1], "one iteration") is None
    rates = rows[rows["iteration"] > 0].assign(lr=lambda own: 0.0025 * 2 ** own["iteration"])
    axis = figures.accuracy_curves(rates, "lr", "learning rate", "title").axes[0]
    assert axis.get_xscale() == "log" and [*axis.xaxis.get_minorticklocs()] == []
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.005", "0.01", "0.02"]


def test_neighbours_are_drawn_below_the_first_image_of_each_class():
    data = make_data()
    synset = random_real(data, 2, 0)
    rows, _ = nearest(synset, data, 2)
    axes = np.reshape(figures.neighbours(synset, data, rows, "t").axes, (3, 3))
    assert [line[0].get_ylabel() for line in axes] == ["synthetic", "real, 1", "real, 2"]
    drawn = [[axis.images[0].get_array() for axis in line] for line in axes]
    for c in range(3):
        np.testing.assert_array_equal(drawn[0][c], drawn[1][c])  # a copy is its own neighbour
        assert not np.array_equal(drawn[0][c], drawn[2][c])


def test_dots_stand_at_their_means_beside_what_is_printed():
    values = {BASELINE: lambda net, d, e: 20.0, POOL: lambda net, d, e: 21.0 + d}
    rows = rows_of(values, ("MLP", "VGG11"), seeds=3)
    cells = summarise(rows, ["images", "net"])
    figure = figures.dots(cells, "title", {"VGG11": 25.0, "MLP": np.nan, "LeNet": 1.0}, "printed")
    (axis,) = figure.axes
    dots = {line.get_label(): line for line in axis.lines}
    assert dots["baseline"].get_ydata().tolist() == [20.0, 20.0]
    assert dots["model pool"].get_ydata().tolist() == [22.0, 22.0]
    assert [round(x) for x in dots["model pool"].get_xdata()] == [0, 1]
    printed = [lines for lines in axis.collections if lines.get_label() == "printed"]
    assert [lines.get_segments()[0][:, 1].tolist() for lines in printed] == [[25.0, 25.0]]
    assert round(printed[0].get_segments()[0][:, 0].mean()) == 1 and axis.get_ylim()[1] > 25
    assert set(labels_of(figure)) == {"baseline", "model pool", "printed"}
    assert [text.get_text() for text in axis.get_xticklabels()] == ["MLP", "VGG11"]
    assert "not measured" not in title_of(figure)
    assert title_of(figures.dots(cells.iloc[1:], "title")).endswith("no mark: not measured")


def test_without_an_interval_there_is_a_point_and_no_bar():
    few = rows_of({BASELINE: 20.0, POOL: 21.0}, seeds=1, n_eval=4)
    enough = rows_of({BASELINE: 20.0, POOL: 21.0}, seeds=1, n_eval=5)
    for rows, words in ((few, "too few for an interval"), (enough, "95% interval, given one set")):
        cells = paired_difference(
            rows[rows["images"] == "model pool"], rows[rows["images"] == "baseline"]
        )
        figure = figures.difference_plot({"pool": cells}, "title")
        assert words in title_of(figure)
        hollow = [c for c in figure.axes[0].collections if c.get_label().startswith("too few")]
        assert [len(one.get_offsets()) for one in hollow] == ([3] if rows is few else [])


def test_heat_map_colours_compare_within_a_net():
    def level(net, d, e):
        return {"ConvNet": 60.0, "VGG11": 20.0}.get(net, 30.0)

    rows = study_rows({BASELINE: level, POOL: lambda *at: level(*at) + 5.0}, ("VGG11", "ConvNet"))
    full = study_rows({("full_data", "CE"): 90.0}, ("VGG11", "ConvNet"))
    figure = figures.heat_map(table(pd.concat([rows, full]), 4), "title")
    colours = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    assert colours[:2].tolist() == [[0, 0], [1, 1]] and np.isnan(colours[2]).all()
    assert "65.0" in [text.get_text() for text in figure.axes[0].texts]
    near = study_rows({BASELINE: level, POOL: lambda *at: level(*at) + 1.0}, ("VGG11", "ConvNet"))
    colours = np.asarray(figures.heat_map(table(near, 4), "title").axes[0].images[0].get_array())
    assert colours == pytest.approx(np.array([[0.8, 0.8], [1, 1]]))  # a point is no contrast
    uneven = pd.concat([study_rows({BASELINE: level}, ("VGG11", "ConvNet")), rows_of({POOL: 1.0})])
    figure = figures.heat_map(table(uneven, 4), "title")
    assert [t.get_text() for t in figure.axes[0].texts].count("–") == 1
    assert title_of(figure).endswith("; –: not measured")


def test_differences_stand_at_their_means_filled_where_clear():
    pool, baseline = rows_of({POOL: 22.0}), rows_of({BASELINE: lambda net, d, e: 20.0 + d + e / 10})
    noisy = rows_of({POOL: lambda net, d, e: 20.0 + 30 * d})
    sides = {"a": (pool, baseline), "b": (noisy, baseline), "c": (baseline, pool)}
    pairs = {name: paired_difference(*side) for name, side in sides.items()}
    figure = figures.difference_plot(pairs, "title")
    clear, unclear, loss = ({c.get_label(): c for c in axis.collections} for axis in figure.axes)
    filled, hollow = "interval excludes 0", "interval holds 0"
    assert clear[filled].get_offsets()[:, 0].tolist() == pytest.approx([2.0] * 3)
    assert loss[filled].get_offsets()[:, 0].tolist() == pytest.approx([-2.0] * 3)
    assert filled not in unclear and len(unclear[hollow].get_offsets()) == 3
    assert labels_of(figure) == [filled, hollow]
    assert "cut at the frame" in title_of(figure) and figure.axes[0].get_xlim()[1] < 60
    assert figure.axes[0].get_title(loc="left").endswith("n\xa0=\xa02×2")


def test_a_difference_without_interval_or_of_diverged_nets_has_a_mark_of_its_own():
    pool, baseline = rows_of({POOL: lambda net, d, e: 22.0 + d}), rows_of({BASELINE: 20.0})
    cells = paired_difference(pool, baseline)
    cells.loc[0, ["low", "high"]] = np.nan
    cells["diverged"] = [0, 2, 0]
    (axis,) = figures.difference_plot({"a": cells}, "title").axes
    marks = {c.get_label(): c.get_offsets().tolist() for c in axis.collections if c.get_label()}
    places = [in_order(cells["net"]).index(net) for net in cells["net"]]
    assert [y for _, y in marks["too few for an interval"]] == [places[0]]
    assert "interval holds 0" not in marks
    assert [(text.get_text(), text.xy) for text in axis.texts] == [
        ("✕", (cells["mean"][1], places[1]))
    ]


def test_a_net_that_a_claim_does_not_ask_about_is_marked():
    """And a panel says of which claim it is."""
    names = {"comparison": ["pool", "pool", "real", "real"], "net": ["MLP", "LeNet"] * 2}
    lines = pd.DataFrame(names | {"claim": [2, 2, 1, 1], "ipc": 1, "n": "2×2", "diverged": 0})
    lines = lines.assign(mean=1.0, low=0.5, high=1.5, se=0.1, df=1, sets=2)
    two, one = figures.effects(lines.iloc[1:], "title").axes[:2][::-1]
    assert "Claim 1: real" in two.get_title(loc="left")
    assert "Claim 2: pool" in one.get_title(loc="left")
    asked = [[text.get_text() for text in axis.texts] for axis in (one, two)]
    assert asked == [["not asked"], []]


def test_where_nothing_differs_the_axis_is_a_point_wide_and_it_is_said():
    same = rows_of({BASELINE: 20.0})
    figure = figures.difference_plot({"same": paired_difference(same, same)}, "title")
    low, high = figure.axes[0].get_xlim()
    assert low < -1 and high > 1
    assert [text.get_text() for text in figure.axes[0].texts] == ["no difference"]


def test_half_a_cross_entropy_stands_beside_the_printed_gain_of_kd():
    rows = study_rows({("main", "CE"): 20.0, ("main", "½ CE"): 16.0}, ("VGG11", "ResNet18"))
    lines = audit(rows, Scope((1, 10), (1000,), ("ConvNet", "VGG11", "ResNet18")))
    figure = figures.half_ce(lines, "our sets")
    (axis,) = figure.axes  # ipc 10 and the pool's sets are not measured
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([-1.28, 4.39])  # Table 4
    dots = next(c for c in axis.collections if c.get_label() == "interval excludes 0")
    assert dots.get_offsets().tolist() == [[4.0, 0.0], [4.0, 1.0]]
    lacking = figures.half_ce(
        lines[lines["net"] != "VGG11"].replace({"n": {"2×2": ""}}), "our sets"
    )
    assert lacking is None and "published difference" in labels_of(figure)
    lines.loc[lines["net"] == "VGG11", "n"] = ""
    assert "no dot: not measured" in title_of(figures.half_ce(lines, "our sets"))
