"""Tables 4 and 5: which rows belong to which method, and how they stand beside the published figures."""

import itertools

import pandas as pd
import pytest

from ddlib.errors import DDError
from ddlib.report.tables import caption, read_published, table, to_latex, to_markdown, wide
from ddlib.results import COLUMNS, TEXT, as_frame
from ddlib.study.profiles import get_profile

METHODS = {  # pool, protocol, teacher -> accuracy
    ("main", "ce", ""): 20.0,
    ("main_plus_similar", "ce", ""): 21.0,
    ("main", "kd", "ConvNet"): 22.0,
    ("main_plus_similar", "kd", "ConvNet"): 23.0,
    ("main", "authors-2023", ""): 10.0,
    ("main", "authors-2023", "ConvNet"): 11.0,
    ("random_real", "ce", ""): 15.0,
    ("total_random", "ce", ""): 12.0,
    ("main_plus_others", "ce", ""): 18.0,
}


def make_rows(dataset="cifar10", iterations=(1000,), nets=("ConvNet", "VGG11")):
    rows = []
    for ((pool, protocol, teacher), accuracy), k, net, d, e in itertools.product(
        METHODS.items(), iterations, nets, range(2), range(2)
    ):
        row = {c: "" if c in TEXT else None for c in COLUMNS} | {
            "dataset": dataset,
            "ipc": 1,
            "pool": pool,
            "net": net,
            "split": "test",
        }
        row |= {
            "iteration": 0 if pool == "random_real" else k,
            "distill_seed": d,
            "eval_seed": e,
            "protocol": protocol,
        }
        row |= {
            "teacher": teacher,
            "accuracy": accuracy + d,
            "diverged": False,
            "seconds": 1.0,
            "device": "a CPU",
        }
        rows.append(
            row
            | {
                "main_prob": 0.9,
                "torch": "2",
                "tau": 1.5 if teacher else None,
                "set_id": f"{pool} {k} {d}",
            }
        )
    return as_frame(rows).drop_duplicates()


def cell(cells, method, net, protocol="fair"):
    found = cells[
        (cells["method"] == method) & (cells["net"] == net) & (cells["protocol"] == protocol)
    ]
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize(
    ("method", "protocol", "mean"),
    [
        ("random real images", "fair", 15.5),
        ("baseline", "fair", 20.5),
        ("model pool", "fair", 21.5),
        ("KD", "fair", 22.5),
        ("model pool + KD", "fair", 23.5),
        ("baseline", "authors-2023", 10.5),
        ("KD", "authors-2023", 11.5),
    ],
)
def test_table_4_sorts_rows_into_methods(method, protocol, mean):
    found = cell(table(make_rows(), 4), method, "VGG11", protocol)
    assert (found["mean"], found["n"]) == (mean, "2×2")


def test_table_5_has_the_pools():
    cells = table(make_rows(), 5)
    assert cell(cells, "total random", "VGG11", "ce")["mean"] == 12.5
    assert list(dict.fromkeys(cells["method"])) == [
        "main model only",
        "total random",
        "main model",
        "main model + similar models",
    ]


def test_the_published_figure_and_the_difference_stand_beside_ours():
    found = cell(table(make_rows(), 4), "baseline", "VGG11")
    assert found["published"] == 26.53  # Table 4, ipc 1, iteration 1000, baseline, VGG11
    assert found["difference"] == pytest.approx(20.5 - 26.53)


def test_the_paper_s_nearest_iteration_is_taken_and_named():
    found = cell(table(make_rows(iterations=(2100,)), 4), "baseline", "VGG11")
    assert (found["published"], found["published_iteration"]) == (26.23, 2000)


def test_nothing_published_stands_beside_other_data():
    cells = table(make_rows("digits"), 4)
    assert cells["published"].isna().all()
    assert "published" not in to_markdown(wide(cells))


def test_cells_of_a_published_table_that_are_empty_stay_empty():
    assert pd.isna(cell(table(make_rows(), 4), "model pool", "ConvNet")["published"])


def test_other_probabilities_of_the_main_model_are_no_part_of_the_tables():
    rows = make_rows()
    rows.loc[(rows["pool"] == "main_plus_similar") & (rows["distill_seed"] == 1), "main_prob"] = 0.5
    assert cell(table(rows, 5), "main model + similar models", "VGG11", "ce")["n"] == "1×2"


def test_validation_rows_are_no_part_of_the_tables():
    rows = make_rows()
    rows.loc[rows["distill_seed"] == 1, "split"] = "val"
    assert set(table(rows, 4)["n"]) == {"1×2"}


def test_only_reported_iterations_are_shown():
    assert set(table(make_rows(iterations=(10, 1000)), 4, iterations=(1000,))["iteration"]) == {
        1000
    }


def test_missing_cells_leave_gaps():
    rows = make_rows()
    rows = rows[~((rows["net"] == "VGG11") & (rows["protocol"] == "kd"))]
    layout = wide(table(rows, 4)).set_index(["protocol", "method"])
    assert layout.loc[("fair", "KD"), "VGG11"] == ""
    assert layout.loc[("fair", "KD"), "ConvNet"] == "22.5 ± 0.5"


def test_diverged_cells_are_marked():
    rows = make_rows()
    rows.loc[(rows["pool"] == "total_random") & (rows["net"] == "VGG11"), "diverged"] = True
    assert wide(table(rows, 5)).set_index("method").loc["total random", "VGG11"].endswith("*")


def test_no_rows_is_an_error_that_says_what_to_run():
    with pytest.raises(DDError, match="no rows for Table 4; run notebooks 01 to 03 first"):
        table(make_rows().iloc[:0], 4)


def test_latex_and_markdown_have_a_line_per_row():
    layout = wide(table(make_rows(), 4))
    assert to_markdown(layout).count("\n") == len(layout) + 2
    latex = to_latex(layout, "50% _x_")
    assert latex.count(r"\\") == len(layout) + 1
    assert r"50\% \_x\_" in latex and "±" not in latex


def test_captions_say_scale_hardware_and_n():
    rows = make_rows()
    text = caption(table(rows, 4), rows, get_profile("cifar10-small"), 4)
    for part in (
        "cifar10",
        "width 32",
        "a CPU (torch 2)",
        "n = distillations × nets",
        "compare directions",
    ):
        assert part in text


@pytest.mark.parametrize("number", [4, 5])
def test_published_tables_have_a_method_per_line(number):
    published = read_published(number)
    assert len(published) in (18, 24) and published["VGG11"].between(5, 60).all()
