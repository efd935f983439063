"""Tables 4 and 5: which rows belong to which line, and how they stand beside the published
figures.
"""

import itertools
from dataclasses import replace

import pandas as pd
import pytest
from conftest import study_rows

from ddlib.choose import choices
from ddlib.report.audit import Scope, claim_cells
from ddlib.report.publish import study_files
from ddlib.report.selection import arms, comparable
from ddlib.report.sentences import (
    free_sentence,
    free_table,
    half_ce_sentence,
    kd_sentence,
    loss_table,
    losses_sentences,
    other_pools_sentence,
)
from ddlib.report.tables import (
    FREE,
    caption,
    in_order,
    read_published,
    table,
    to_latex,
    to_markdown,
    wide,
)
from ddlib.study.profiles import get_profile
from ddlib.support.errors import DDError

ACCURACIES = {
    ("main", "CE"): 20.0,
    ("main_plus_similar", "CE"): 21.0,
    ("main", "KD"): 22.0,
    ("main_plus_similar", "KD"): 23.0,
    ("main", "½ CE"): 10.0,
    ("main", "released KD"): 11.0,
    ("random_real", "CE"): 15.0,
    ("total_random", "CE"): 12.0,
    ("main_plus_others", "CE"): 18.0,
}
NETS = ("ConvNet", "VGG11")


def make_rows(**options):
    return study_rows(ACCURACIES, NETS, **options)


def cell(cells, images, arm, net="VGG11"):
    found = cells[(cells["images"] == images) & (cells["net"] == net) & (cells["arm"] == arm)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize(
    ("images", "arm", "mean"),
    [
        ("random real images", "CE", 15.55),
        ("baseline", "CE", 20.55),
        ("model pool", "CE", 21.55),
        ("baseline", "KD", 22.55),
        ("model pool", "KD", 23.55),
        ("baseline", "½ CE", 10.55),
        ("baseline", "released KD", 11.55),
    ],
)
def test_table_4_sorts_rows_into_lines(images, arm, mean):
    found = cell(table(make_rows(), 4), images, arm)
    assert (found["mean"], found["n"]) == (pytest.approx(mean), "2×2")


def test_the_released_losses_have_their_names_at_the_released_weight_only():
    """The released KD at any temperature, and no half of a cross-entropy that is a quarter."""
    kinds = {("main", "½ CE"): 10.0, ("main", "released KD"): 11.0}
    found = [
        arms(study_rows(kinds, settings=s))["arm"] for s in ({}, {"tau": 4.0}, {"alpha": 0.75})
    ]
    assert [set(names) for names in found] == [{"½ CE", "released KD"}] * 2 + [{"released KD"}]


def test_table_5_has_the_pools():
    cells = table(make_rows(), 5)
    assert cell(cells, "total random", "CE")["mean"] == pytest.approx(12.55)
    expected = ["baseline", "total random", "main model + others", "model pool"]
    assert list(dict.fromkeys(cells["images"])) == expected


@pytest.mark.parametrize(
    ("images", "arm", "iteration", "published"),
    [
        ("baseline", "CE", 1000, (26.53, 1000)),  # Table 4, ipc 1, VGG11
        ("baseline", "½ CE", 1000, (26.53, 1000)),  # the paper has one row without KD
        ("baseline", "KD", 1000, (25.25, 1000)),
        ("baseline", "CE", 2100, (26.23, 2000)),  # its nearest iteration
    ],
)
def test_the_published_figure_and_the_difference_stand_beside_ours(
    images, arm, iteration, published
):
    found = cell(table(make_rows(iteration=iteration), 4), images, arm)
    assert tuple(found[["published", "published_iteration"]]) == published
    assert found["difference"] == pytest.approx(found["mean"] - published[0])


def test_nothing_published_stands_beside_other_data_or_in_empty_cells():
    cells = table(make_rows(dataset="digits"), 4)
    assert cells["published"].isna().all() and "published" not in to_markdown(wide(cells))
    assert pd.isna(cell(table(make_rows(), 4), "model pool", "CE", "ConvNet")["published"])


def test_other_pools_and_validation_rows_are_no_part_of_the_tables():
    pool = {("main_plus_similar", "CE"): 50.0}
    others = [
        study_rows(pool, NETS, set_settings=s)
        for s in ({"main_prob": 0.5}, {"warmup": 500, "similar_depth": 1})
    ]
    rows = pd.concat(
        [make_rows(), *others, make_rows(split="val", settings={"lr": 0.02})], ignore_index=True
    )
    for number in (4, 5):
        found = cell(table(rows, number), "model pool", "CE")
        assert (found["mean"], found["n"]) == (pytest.approx(21.55), "2×2")


def test_images_and_nets_that_the_paper_does_not_have_follow():
    own = study_rows({("mine", "CE"): 30.0}, ("TwoLayers",))
    cells = table(pd.concat([make_rows(), own], ignore_index=True), 4)
    assert cell(cells, "DC mine", "CE", "TwoLayers")["mean"] == pytest.approx(30.55)
    assert in_order(cells["net"]) == ["ConvNet", "VGG11", "TwoLayers"]


def test_only_reported_iterations_are_shown():
    rows = pd.concat([make_rows(), make_rows(iteration=10)], ignore_index=True)
    assert set(table(rows, 4, iterations=(1000,))["iteration"]) == {0, 1000}


def test_cells_say_interval_n_one_set_and_divergence():
    layout = wide(table(make_rows(), 4)).set_index(["images", "trained with"])
    assert (
        layout.loc[("baseline", "KD"), "ConvNet"] == "22.6 ± 6.4"
    )  # t(1) = 12.7, sets 1 point apart
    one = wide(table(make_rows(seeds=1, n_eval=5), 4)).set_index(["images", "trained with"])
    assert one.loc[("baseline", "KD"), "ConvNet"] == "22.2 ± 0.2†"
    few = wide(table(make_rows(seeds=1, n_eval=4), 4)).set_index(["images", "trained with"])
    assert few.loc[("baseline", "KD"), "ConvNet"] == "22.1"
    bad = wide(table(make_rows(diverged=True), 4)).set_index(["images", "trained with"])
    assert bad.loc[("baseline", "KD"), "ConvNet"].endswith("*")


def test_missing_cells_leave_gaps():
    rows = make_rows()
    rows = rows[~((rows["net"] == "VGG11") & (rows["protocol"] == "kd"))]
    layout = wide(table(rows, 4)).set_index(["images", "trained with"])
    assert (
        layout.loc[("baseline", "KD"), "VGG11"] == "" != layout.loc[("baseline", "KD"), "ConvNet"]
    )


def test_no_rows_is_an_error_that_says_what_to_run():
    with pytest.raises(DDError, match="no rows for Table 4; run notebooks 01 to 03 first"):
        table(make_rows().iloc[:0], 4)


def test_latex_and_markdown_have_a_line_per_row():
    layout = wide(table(make_rows(), 4))
    assert to_markdown(layout).count("\n") == len(layout) + 2
    latex = to_latex(layout, "50% _x_")
    assert latex.count(r"\\") == len(layout) + 1
    files = study_files(make_rows(iteration=300), get_profile("cifar10-small"))
    assert files["table4.md"].startswith("**Table 4.** Test accuracy")
    assert r"\caption{Test accuracy (\%) with and" in files["table4.tex"]
    assert r"50\% \_x\_" in latex and "±" not in latex and "½" not in latex


def test_captions_say_scale_hardware_version_and_what_intervals_cover():
    rows = make_rows(seeds=1)
    text = caption(table(rows, 4), rows, get_profile("cifar10-small"), 4)
    for part in (
        "cifar10",
        "width 32",
        "a CPU",
        "n = sets × nets",
        "compare directions",
        "given one set",
    ):
        assert part in text
    assert "Evaluation version 2; 28 nets trained at these settings" in text  # Table 5: 8 more
    for other in (rows.assign(method="dm"), rows.assign(augment="dsa")):  # not of that table
        both = pd.concat([rows, other.assign(training="another " + other["training"])])
        assert caption(table(rows, 4), both, get_profile("cifar10-small"), 4) == text


@pytest.mark.parametrize("number", [4, 5])
def test_published_tables_have_a_method_per_line(number):
    published = read_published(number)
    assert len(published) in (18, 24) and published["VGG11"].between(5, 60).all()


# Selection.


def kd_rows(tau, accuracy, split, **more):
    return study_rows({("main", "KD"): accuracy}, settings={"tau": tau}, split=split, **more)


def swept(*values):
    """`values`: (tau, accuracy on validation images, on test images)."""
    parts = [
        kd_rows(tau, a, split, n_eval=1 if split == "val" else 2)
        for tau, *both in values
        for split, a in zip(("val", "test"), both, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)


def test_tau_is_chosen_on_validation_images():
    rows = swept((1.0, 10, 20), (2.0, 14, 21), (4.0, 12, 22.5))
    found = arms(rows).query("arm == 'KD'")
    assert found["tau"].tolist() == [2.0] * 2 and set(found["eval_seed"]) == {1}  # 0 chose
    found = choices(rows, "kd", "tau").iloc[0]
    assert found[["chosen", "candidates", "at_edge", "n"]].tolist() == [2.0, "1, 2, 4", False, 2]
    assert choices(rows, "kd", "tau", "test")["chosen"].tolist() == [4.0]
    assert choices(swept((1.0, 10, 0), (2.0, 14, 0)), "kd", "tau")["at_edge"].tolist() == [True]


def test_a_choice_without_test_rows_is_not_measured():
    rows = swept((1.0, 10, 20), (2.0, 14, 21))
    assert (
        arms(rows[~((rows["split"] == "test") & (rows["tau"] == 2.0))]).query("arm == 'KD'").empty
    )


def test_without_a_sweep_kd_is_at_the_default_temperature():
    rows = pd.concat([kd_rows(1.5, 20, "test"), kd_rows(4.0, 30, "test")], ignore_index=True)
    assert arms(rows).query("arm == 'KD'")["tau"].tolist() == [1.5] * 4


def test_kd_has_the_learning_rate_chosen_for_cross_entropy_and_the_best_temperature_there():
    """At the default rate another temperature is best, and neither rate's sweep is seen by the
    other."""
    parts = [
        study_rows({("main", "CE"): -lr * 100 + 20}, settings={"lr": lr}, split="val", n_eval=1)
        for lr in (0.005, 0.01)
    ]
    found = {0.01: {1.0: 30, 2.0: 29, 4.0: 10}, 0.005: {1.0: 10, 2.0: 40, 4.0: 41}}
    for lr, tau in itertools.product(found, (1.0, 2.0, 4.0)):  # of both together 2 is best
        how = {"settings": {"lr": lr, "tau": tau, "teacher_lr": 0.01}}
        parts.append(study_rows({("main", "KD"): found[lr][tau]}, split="val", n_eval=1, **how))
        parts.append(study_rows({("main", "KD"): found[lr][tau]}, n_eval=2, **how))
    found = arms(pd.concat(parts, ignore_index=True)).set_index("arm")
    assert set(found.index) == {"KD", "KD, lr chosen"} and set(found["eval_seed"]) == {1}
    assert set(found.loc["KD", "lr"]) == {0.01} and set(found.loc["KD", "tau"]) == {1.0}
    tuned = found.loc["KD, lr chosen"]
    assert set(tuned["lr"]) == {0.005} and set(tuned["tau"]) == {4.0}


def test_plain_ce_gets_the_same_courtesy_and_keeps_its_default_line():
    parts = [
        study_rows({("main", "CE"): accuracy}, settings={"lr": lr}, split=split, n_eval=n)
        for lr, val, test in ((0.005, 10, 20), (0.01, 11, 21), (0.02, 12, 19))
        for split, accuracy, n in (("val", val, 1), ("test", test, 2))
    ]
    found = arms(pd.concat(parts, ignore_index=True))
    assert found.query("arm == 'CE'")["lr"].tolist() == [0.01] * 4
    assert found.query("arm == 'CE, lr chosen'")["lr"].tolist() == [0.02] * 2


def test_no_cell_mixes_versions_of_the_evaluator():
    rows = pd.concat([make_rows(), make_rows(evaluation=1, seeds=5)], ignore_index=True)
    assert set(comparable(rows)["evaluation"]) == {2} and set(table(rows, 4)["n"]) == {"2×2"}


def test_a_distillation_made_twice_counts_once_and_settings_agree():
    again = study_rows({("main", "CE"): 50.0}, NETS, set_settings={"slice_size": 1}, n_eval=1)
    other = make_rows(settings={"precision": "bfloat16"}, n_eval=1)
    rows = comparable(pd.concat([make_rows(), again, other], ignore_index=True))
    assert rows["accuracy"].max() < 30 and set(rows["precision"]) == {"float32"}


def test_other_methods_and_augmented_images_stand_in_a_table_of_their_own():
    others = [
        study_rows({("main", "CE"): 40.0}, NETS, method="dm"),
        study_rows({("main", "CE"): 30.0}, NETS, settings={"augment": "dsa"}),
    ]
    rows = pd.concat([make_rows(), *others], ignore_index=True)
    pd.testing.assert_frame_equal(table(rows, 4), table(make_rows(), 4))
    mine = study_rows({("main", "CE"): 40.0}, NETS, method="mine")
    assert "mine" in set(table(pd.concat([rows, mine], ignore_index=True), 4)["images"])


def test_kd_of_teachers_at_another_rate_is_not_compared():
    other = kd_rows(1.5, 50, "test", n_eval=1).assign(lr=0.02)
    rows = pd.concat([kd_rows(1.5, 20, "test"), other], ignore_index=True)
    assert comparable(rows)["accuracy"].max() < 30
    rows["teacher_lr"] = rows["teacher_lr"].astype(float).fillna(0.01)
    assert comparable(rows)["accuracy"].max() > 45  # only its own rate is another


def test_augmented_images_have_settings_of_their_own():
    """At the paper's scale nets are trained on them for longer; fewer of them are no minority."""
    longer = {"augment": "dsa", "epochs": 1001}
    rows = pd.concat([make_rows(), study_rows({("main", "CE"): 30.0}, NETS, settings=longer)])
    found = arms(rows.reset_index(drop=True))
    own = found[found["arm"] == "CE, augmented"]
    assert set(own["epochs"]) == {1001} and set(own["net"]) == set(NETS)
    assert set(found.loc[found["arm"] == "CE", "epochs"]) == {301}


# Free baselines.

FREE_ROWS = {
    ("random_real", "CE"): 15.0,
    ("class-means", "CE"): lambda net, d, e: {"ConvNet": 20.0, "MLP": 23.5}.get(net, 26.0) + d,
    ("class-means-contrast", "CE"): lambda net, d, e: 22.0 - (net == "LeNet") * 8 + d,
    ("main", "CE"): lambda net, d, e: 25.0 + d + (e - d) * 0.1,
    ("main_plus_similar", "CE"): lambda net, d, e: 24.0 + d + (e - d) * 0.1,
}
SOME = Scope((1,), (1000,), ("ConvNet", "MLP", "LeNet", "AlexNet"))


def test_free_baselines_stand_beside_distilled_images():
    rows = study_rows(FREE_ROWS, SOME.nets, n_eval=3)
    shown = free_table(rows, SOME).set_index("images")
    assert shown.index.tolist() == [*FREE, "baseline", "model pool", "printed: model pool + KD"]
    assert shown.loc["class means", "LeNet"].startswith("26.5 ±")
    assert shown.loc["printed: model pool + KD", "AlexNet"] == "22.5"
    means = list(FREE[1:])  # of ipc 1: the same images at both seeds
    assert set(shown.loc[means, "n"]) == {"1×6"}
    assert set(shown["n"].drop(means)) == {"2×3", "1×10"}
    centres = study_rows(FREE_ROWS, SOME.nets, n_eval=3, ipc=10)  # k-means begins at random images
    assert set(free_table(centres, replace(SOME, ipcs=(10,)))["n"]) == {"2×3", "1×10"}
    of_table = wide(table(rows, 4)).set_index("images")["n"]
    assert of_table["class means"] == "1×6" and of_table["random real images"] == "2×3"


def test_which_nets_class_means_win():
    """Means win on LeNet by one of their kinds, lose on ConvNet and MLP by both; on AlexNet they
    win by an interval of their own, but not among so many."""

    def means(net, d, e):
        return {"ConvNet": 20.0, "MLP": 23.5, "AlexNet": 26 + 0.4 * (d - 2)}.get(net, 26.0) + d

    rows = study_rows(FREE_ROWS | {("class-means", "CE"): means}, SOME.nets, seeds=5)
    cells = claim_cells(rows, SOME)
    beaten = cells[(cells["net"] == "AlexNet") & (cells["outcome"] == "loss")]
    assert len(beaten[beaten["comparison"].str.endswith("class means")]) == 2
    found = free_sentence(cells, 1)
    assert "sets on LeNet (class means); both" in found
    assert "means on ConvNet, MLP (4 nets measured; Holm's" in found
    assert found.endswith("without that correction, also class means on AlexNet (class means).")
    one = free_sentence(claim_cells(rows[rows["seed"] == 0], SOME), 1)
    assert "sets on no net; both" in one
    assert "means on no net (4 nets measured, given one set; Holm's" in one
    gone = (rows["net"] == "LeNet") & (rows["pool"] == "main_plus_similar")
    less = free_sentence(claim_cells(rows[~gone], SOME), 1)  # of LeNet one kind of sets is missing
    assert "sets on no net; both" in less and "(3 nets measured; Holm's" in less
    none = free_sentence(claim_cells(rows[rows["method"] == "dc"], SOME), 1)
    assert none == "Class means: not measured yet."


def test_how_the_other_pools_of_table_5_fared_is_said():
    """Of three sets of main model + others one is worse than the pool's, one better, one alike."""

    def others(net, d, e):
        return (12.0, 60.0, 30.5)[d] + d + 0.1 * e

    pools = {"main_plus_similar": 30.0, "total_random": 10.0, "main_plus_others": others}
    accuracies = {(pool, "CE"): value for pool, value in pools.items()}
    rows = study_rows(accuracies, SOME.nets, seeds=3, n_eval=1)
    rows.loc[rows["pool"] == "total_random", "diverged"] = rows["net"] == "MLP"
    text = other_pools_sentence(rows, SOME, rows[rows["pool"] == "main_plus_similar"])
    assert "diverge, by sets: 3 of 12 on total random, 0 of 12 on main model + others, 0 of" in text
    assert "nets: 0 of 3 sets of total random, 1 of 3 sets of main model + others. Neither" in text
    assert "Neither" not in other_pools_sentence(rows, SOME, rows)
    assert other_pools_sentence(rows[rows["pool"] != "total_random"], SOME, rows) == ""


def test_with_which_loss_printed_figures_agree_is_counted():
    """Other ways of training and other printed rows do not count; nets that disagree are named."""
    ours = pd.DataFrame(
        [
            ("baseline", "CE", "VGG11", "no"),
            ("model pool", "CE", "VGG11", "yes"),
            ("baseline", "CE", "MLP", "yes"),
            ("baseline", "½ CE", "VGG11", "yes"),
            ("KD", "½ CE", "VGG11", "no"),
            ("model pool + KD", "½ CE", "ConvNet", "no"),
            ("baseline", "KD", "VGG11", "no"),
        ],
        columns=["printed", "arm", "net", "agrees"],
    ).assign(ipc=1)
    theirs = ours[ours["arm"] == "½ CE"].assign(agrees="no")
    later = ours[ours["arm"] == "CE"].assign(ipc=10)
    table = loss_table(ours, pd.concat([later, theirs]))
    none = "not measured"
    assert table.to_numpy().tolist() == [
        [1, "without KD", "1 of 1", "2 of 3; not VGG11", "0 of 1; not VGG11", none],
        [1, "with KD", *["0 of 2; not ConvNet, VGG11", none] * 2],
        [10, "without KD", none, none, none, "2 of 3; not VGG11"],
        [10, "with KD", *[none] * 4],
    ]


def test_where_two_losses_agree_with_other_figures_is_named():
    """Figures not measured under both are left out, and so is an ipc with few of them."""
    printed, nets = ["baseline", "KD", "model pool", "model pool + KD"], ["MLP", "LeNet", "VGG11"]
    cells = [(name, arm, net) for name in printed for arm in ("½ CE", "CE") for net in nets]
    theirs = pd.DataFrame(cells, columns=["printed", "arm", "net"])
    theirs = theirs.assign(ipc=1, iteration=1000, agrees="yes")
    other = (theirs["net"] == "LeNet") & (theirs["arm"] == "CE") & (theirs["printed"] == "KD")
    theirs.loc[other, "agrees"] = "no"
    theirs = theirs.drop(index=0)  # half a cross-entropy of one figure
    few = theirs.head(12).assign(ipc=10)
    assert losses_sentences(pd.concat([theirs, few])) == (
        "At ipc 1 half a cross-entropy agrees, on the authors' sets, with 5 of 5 figures printed "
        "without KD and 6 of 6 printed with it, a whole one with 5 of 5 and 5 of 6; they differ "
        "on LeNet; not judged: ConvNet, AlexNet, ResNet18.\n"
    )
    assert losses_sentences(few) == "\n"


def test_what_markdown_would_take_for_a_column_is_escaped():
    text = to_markdown(pd.DataFrame({"a": ["1 | 2*"], "b": [3]}))
    assert text.splitlines()[-1] == "| 1 \\| 2\\* | 3 |"


def test_nets_that_never_learn_are_counted_where_claim_3_is_judged():
    def kd(net, d, e):
        return 10.0 if net == "AlexNet" and e < 2 else 30.0 + d + 0.1 * e

    accuracies = {("main", "KD"): kd, ("main_plus_similar", "KD"): 30.0}
    accuracies |= {("main", "CE"): 20.0, ("main_plus_similar", "CE"): 20.0}
    rows = study_rows(accuracies, SOME.nets, n_eval=5)
    dead = (rows["net"] == "AlexNet") & (rows["accuracy"] == 10.0)
    rows.loc[dead & (rows["eval_seed"] % 1000 == 0), "diverged"] = True
    text = kd_sentence(rows, SOME)
    assert "end at 10%: 4 of 20 under KD (2 diverged), 0 of 20 under CE (0 diverged), 0 of" in text
    assert "Without AlexNet claim 3 is *not measured* (0 of 4)" in text
    half = {("main", "½ CE"): kd, ("main", "CE"): 20.0}
    rows = study_rows(half, ("AlexNet",), n_eval=5)
    rows.loc[rows.index[rows["accuracy"] == 10.0][:1], "diverged"] = True
    found = half_ce_sentence(rows, SOME, "AlexNet")
    assert "% (4 of 10 nets end at 10%, 1 diverged) with half a cross-entropy and 20.7" in found
    whole = rows[rows["protocol"] == "ce"]
    more = whole[whole["seed"] == 1].head(1).assign(accuracy=50.0, eval_seed=99)  # of six nets
    of_sets = pd.concat([whole, more]).groupby("seed")["accuracy"].mean()
    found = half_ce_sentence(pd.concat([rows, more]), SOME, "AlexNet")
    assert f"and {of_sets.mean():.1f}% with a whole one" in found
