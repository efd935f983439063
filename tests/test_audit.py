"""Comparisons, verdicts and their error rates: hand-built rows with known answers, and what is said
where rows are missing.
"""

import re

import numpy as np
import pandas as pd
import pytest
from conftest import refused, study_rows

from ddlib.report.audit import (
    CLAIMS,
    CONTRADICTED,
    GAIN,
    INCOMPLETE,
    LOSS,
    MISSING,
    MIXED,
    NO_CELL,
    QUESTIONS,
    SMALL,
    SUPPORTED,
    UNDECIDED,
    Scope,
    agrees,
    audit,
    claim_cells,
    claims,
    compatible,
    decisive,
    mean_of,
    noise_of_mean,
    outcome,
    outcome_counts,
    sentence,
    signed,
    simulate_verdicts,
    verdict,
)
from ddlib.report.published import (
    plain_ce,
    published_changes,
    stored_against_printed,
    stored_pool_effect,
)
from ddlib.report.tables import NETS, read_published
from ddlib.stats import interval

ACCURACIES = {
    ("main", "CE"): 20.0,
    ("main_plus_similar", "CE"): 23.0,
    ("main", "KD"): 22.0,
    ("main_plus_similar", "KD"): 26.0,
    ("main", "½ CE"): 19.0,
    ("main_plus_similar", "½ CE"): 22.0,
    ("main", "released KD"): 18.0,
    ("random_real", "CE"): 15.0,
    ("total_random", "CE"): 12.0,
    ("main_plus_others", "CE"): 18.0,
}
SCOPE = Scope((1,), (1000,))
POOL, BASELINE = ("main_plus_similar", "CE"), ("main", "CE")


def make_rows(changes=(), **options):
    return study_rows(ACCURACIES | dict(changes), **({"nets": NETS} | options))


def lowered(net, accuracy, by):
    """An accuracy that is lower on one net."""
    return lambda name, d, e: accuracy + d + 0.1 * e - by * (name == net)


def only(lines, **wanted):
    for column, value in wanted.items():
        lines = lines[lines[column] == value]
    assert len(lines) == 1, lines
    return lines.iloc[0]


# Cells and lines.


@pytest.mark.parametrize(
    ("point", "comparison", "effect", "word"),
    [
        ("half-ce", "CE − ½ CE, baseline sets", 1.0, GAIN),
        ("kd", "KD − CE, baseline sets", 2.0, GAIN),
        ("kd", "KD − CE, model pool sets", 3.0, GAIN),
        ("released-kd", "released KD − ½ CE, baseline sets", -1.0, LOSS),
    ],
)
def test_effects_are_the_paired_differences(point, comparison, effect, word):
    found = only(audit(make_rows(), SCOPE), point=point, comparison=comparison, net="VGG11")
    assert found[["mean", "low", "high"]].tolist() == pytest.approx([effect] * 3)
    assert (found["n"], found["outcome"]) == ("2×2", word)


def test_the_published_difference_stands_beside_it_and_is_compared_at_full_scale():
    found = only(audit(make_rows(), SCOPE), comparison="CE − ½ CE, baseline sets", net="ResNet18")
    assert found["published"] == pytest.approx(18.69 - 14.30) and found["agrees"] == "no"
    slim = audit(make_rows(settings={"width": 32}), SCOPE)
    assert set(slim["agrees"]) == {""} and slim["published"].notna().any()
    assert audit(make_rows(dataset="digits"), SCOPE)["published"].isna().all()


@pytest.mark.parametrize(
    ("printed", "answer"), [(1.9, "yes"), (2.3, "yes"), (2.5, "no"), (-0.5, "no"), (np.nan, "")]
)
def test_agreement_adds_the_noise_of_both(printed, answer):
    """Ours 1 ± 1, theirs ± 1: the difference of the two is known to ± 1.41."""
    assert agrees({"mean": 1.0, "high": 2.0, "df": 4}, printed, 1.0) == answer
    assert agrees({"mean": 1.0, "high": 2.0, "df": 0}, printed, 1.0) == ""


def test_effects_of_diverged_nets_have_a_star_that_markdown_leaves_alone():
    rows = make_rows()
    rows.loc[(rows["protocol"] == "kd") & (rows["net"] == "VGG11"), "diverged"] = True
    lines = audit(rows, SCOPE)
    said = sentence(lines[lines["point"] == "kd"])
    assert re.search(r"VGG11 [^\]]*\]\\\*", said) and re.search(r"MLP [^\]]*\],", said)
    assert said.count("*") == said.count("\\*") == said.count("VGG11")


def test_what_has_no_rows_is_listed_and_empty():
    rows = make_rows()
    rows = rows[~((rows["protocol"] == "kd") & (rows["net"] == "VGG11"))]
    lines = audit(rows, Scope((1, 10), (1000, 2000)))
    assert set(lines["point"]) == set(QUESTIONS)
    for wanted in ({"net": "VGG11", "ipc": 1}, {"net": "MLP", "ipc": 10}):
        found = only(lines, comparison="KD − CE, baseline sets", **wanted)
        assert (found["outcome"], found["n"], np.isnan(found["mean"])) == (MISSING, "", True)
    assert sentence(lines[lines["point"] == "warm-up"]) == "Not measured yet."
    assert outcome_counts(lines).loc["warm-up", MISSING] == 12


def test_no_rows_at_all_still_make_every_line():
    rows = make_rows().iloc[:0]
    assert set(audit(rows, SCOPE)["outcome"]) == {MISSING}
    assert set(claims(claim_cells(rows, SCOPE))["verdict"]) == {MISSING} and len(
        claims(claim_cells(rows, SCOPE))
    ) == len(CLAIMS)


def test_the_released_pool_is_compared_with_the_printed_one_and_kept_out_of_the_rest():
    released = study_rows({POOL: 26.0}, NETS, set_settings={"warmup": 500, "similar_depth": 1})
    lines = audit(pd.concat([make_rows(), released], ignore_index=True), SCOPE)
    assert only(lines, point="warm-up", net="MLP")["mean"] == pytest.approx(3.0)
    assert only(lines, comparison="KD − CE, model pool sets", net="MLP")["mean"] == pytest.approx(
        3.0
    )


def sweep(tau, val, test, seeds=1, rates=None, **more):
    parts = [
        study_rows(
            {("main", "KD"): accuracy},
            seeds=seeds,
            n_eval=5,
            settings={"tau": tau} | (rates or {}),
            split=split,
            **more,
        )
        for split, accuracy in (("val", val), ("test", test))
    ]
    return pd.concat(parts)


def test_tau_on_test_is_best_on_test_minus_chosen():
    rows = pd.concat(
        [
            *(sweep(1.0, 10, 20), sweep(2.0, 14, 21), sweep(4.0, 12, 22.5)),
            sweep(1.0, 60, 70, rates={"lr": 0.02, "teacher_lr": 0.01}),  # a choice of its own
        ],
        ignore_index=True,
    )
    found = only(
        audit(rows, SCOPE),
        point="tau",
        comparison="τ best on test − τ chosen on validation, baseline sets",
        net="MLP",
    )
    assert (found["mean"], found["n"], found["outcome"]) == (pytest.approx(1.5), "1×5", GAIN)


def test_several_rows_of_one_net_are_an_error():
    rows = make_rows()
    with refused("several rows"):
        audit(pd.concat([rows, rows], ignore_index=True), SCOPE)


def test_the_arm_that_agrees_with_a_printed_figure_is_named():
    """Table 4 prints 14.30 for ResNet18's baseline and 18.69 with KD."""
    accuracies = {BASELINE: 18.7, ("main", "½ CE"): 14.3}
    rows = study_rows(
        {k: lambda n, d, e, v=v: v + 0.3 * e for k, v in accuracies.items()}, ("ResNet18",), 1, 5
    )
    found = compatible(rows, SCOPE).set_index(["printed", "arm"])["agrees"].to_dict()
    assert found == {
        ("baseline", "CE"): "no",
        ("KD", "CE"): "yes",
        ("baseline", "½ CE"): "yes",
        ("KD", "½ CE"): "no",
    }
    assert compatible(rows.assign(width_factor=0.25), SCOPE).empty


# Verdicts.


def cell(mean, se=0.1, df=4, n="1×5"):
    half = 2.776 * se
    return {"mean": mean, "se": se, "df": df, "n": n, "low": mean - half, "high": mean + half}


NONE = {"mean": np.nan, "se": np.nan, "df": 0, "n": ""}


@pytest.mark.parametrize(
    ("effect", "word"),
    [
        (cell(2.0), GAIN),
        (cell(0.2, 0.01), GAIN),
        (cell(-2.0), LOSS),
        (cell(0.1), SMALL),
        (cell(1.0, 1.0), UNDECIDED),
        (NONE, MISSING),
        (cell(5.0) | {"df": 0}, UNDECIDED),
    ],
)
def test_outcome_of_a_cell(effect, word):
    assert outcome(effect) == word


@pytest.mark.parametrize(
    ("rule", "effects", "expected"),
    [
        ("every", [2, 3, 4], SUPPORTED),
        ("every", [2, 3, -2], CONTRADICTED),
        ("every", [2, 3, 0.0], CONTRADICTED),  # a gain of 1 point is ruled out
        ("every", [2, 3, 0.5], SUPPORTED),  # it is, but the net gains
        ("every", [2, 3, cell(0.0, 0.0)], UNDECIDED),  # no net differs: perhaps none has learned
        ("every", [2, 3, cell(1.0, 1.0)], UNDECIDED),
        ("every", [2, 3, None], INCOMPLETE),  # never supported with a part of the scope missing
        ("every", [2, None, -2], CONTRADICTED),
        ("every", [None, None, None], MISSING),
        ("mean", [2, 3, 4], SUPPORTED),
        ("mean", [4, 0.5, 0.5], SUPPORTED),
        ("mean", [2, 3, None], INCOMPLETE),
        ("mean", [0.1, 0.0, None], INCOMPLETE),
        ("mean", [0.1, 0.0, -0.1], CONTRADICTED),
        ("mean", [-3, -2, 0.0], CONTRADICTED),
        ("mean", [4, 3, -2], MIXED),  # the mean gains, a net loses
        ("mean", [2, 0.0, -0.1], MIXED),  # a net gains, the mean does not
        ("mean", [3, -3, None], MIXED),
        ("mean", [cell(1.5, 2.0)] * 3, UNDECIDED),
        ("mean", [None] * 3, MISSING),
    ],
)
def test_verdicts_by_the_rule(rule, effects, expected):
    cells = [NONE if e is None else e if isinstance(e, dict) else cell(e) for e in effects]
    measured = [c for c in cells if c["n"]]
    mean = (
        cell(np.mean([c["mean"] for c in measured]), measured[0]["se"] / 1.7) if measured else NONE
    )
    assert verdict(cells, mean, rule) == expected


def test_one_of_many_cells_needs_holm():
    """p = 0.02 one-sided in one of ten cells is no loss; in one of one it is."""
    edge = cell(-0.3, 0.1)  # t = -3, p = 0.02
    others = [cell(3.0)] * 9
    assert verdict([edge], edge, "mean") == CONTRADICTED
    assert verdict([edge, *others], cell(2.67), "mean") == SUPPORTED


def test_a_cell_without_interval_is_not_measured():
    """Fewer than five nets on one set say nothing, also where all other cells gain."""
    cells = claim_cells(make_rows(), SCOPE)
    thin = (cells["claim"] == 1) & (cells["net"] == "MLP")
    cells.loc[thin, ["low", "high", "se", "df"]] = [np.nan, np.nan, np.nan, 0]
    first = claims(cells).set_index("number").loc[1]
    assert (first["verdict"], first["measured"]) == (INCOMPLETE, "5 of 6")
    assert "MLP" not in first["evidence"]


def test_a_mean_says_of_which_nets_it_is():
    """On one set only seeds that all cells have count, so that it is not the mean of the cells."""
    cells = claim_cells(make_rows(), SCOPE)
    wide = (cells["claim"] == 2) & (cells["net"] == "MLP")
    cells.loc[wide, "n"] = "2×7"
    text = claims(cells).set_index("number").loc[2, "evidence"]
    assert "mean +3.0 [+3.0, +3.0] (n 2×2); n 2×7 or 2×2." in text


def test_a_mean_over_nets_is_of_sets_or_of_the_eval_seeds_that_all_have():
    """A net with more seeds than others counts with all of them where the sets are the unit."""

    def frame(values):
        lines = [
            {"net": net, "seed": d, "eval_seed": e, "accuracy": value, "diverged": False}
            for (net, d), accuracies in values.items()
            for e, value in enumerate(accuracies)
        ]
        return pd.DataFrame(lines)

    several = frame({("A", 0): [1, 3], ("B", 0): [6], ("A", 1): [2, 4, 9], ("B", 1): [1]})
    found = mean_of([several], ["A", "B"])
    assert found["mean"] == np.mean([(2 + 6) / 2, (5 + 1) / 2]) and found["df"] == 1
    assert found["n"] == "2×1-3"
    without = several[(several["net"] == "A") | (several["seed"] == 1)]  # seed 0 has no B
    one = mean_of([without], ["A", "B"])
    assert one["mean"] == (2 + 1) / 2 and one["n"] == "1×1" and one["sets"] == 1
    assert mean_of([several], ["A", "C"]) == NO_CELL
    twice = mean_of([several, several.assign(accuracy=several["accuracy"] + 2)], ["A", "B"])
    assert twice["mean"] == found["mean"] + 1
    assert mean_of([several, several[several["net"] == "A"]], ["A", "B"]) == NO_CELL


def test_what_decides_is_named():
    """The net that speaks least for "every", the mean, what is missing; nothing without rows."""
    cells = claim_cells(make_rows({BASELINE: lowered("VGG11", 20.0, 4.5)}.items()), SCOPE)
    least = claims(cells).set_index("number")["decides"]
    assert least[1] == "VGG11 +0.5 [+0.5, +0.5]" and least[3] == least[6] == ""
    assert re.fullmatch(r"mean \+3\.9 \[.*\], n 2×2", least[2]) and "total random" in least[4]
    cells.loc[(cells["claim"] == 1) & (cells["net"] == "VGG11"), "diverged"] = 2
    assert claims(cells).set_index("number").loc[1, "decides"] == "VGG11 +0.5 [+0.5, +0.5]*"
    assert "VGG11 +0.5 [+0.5, +0.5]*, ResNet18" in claims(cells)["evidence"][0]
    cells = claim_cells(make_rows(), SCOPE)
    cells.loc[(cells["claim"] == 1) & cells["net"].isin(["MLP", "LeNet"]), "df"] = 0
    assert claims(cells).set_index("number").loc[1, "decides"] == "MLP, LeNet missing"


def test_a_contradiction_is_shown_by_the_net_that_rules_a_point_out():
    """AlexNet's interval speaks least for the claim, and rules nothing out."""
    sizes = {"MLP": (0.3, 0.08), "AlexNet": (-0.2, 2.0), "VGG11": (5.0, 0.2)}
    known = {"df": 4, "n": "5×1", "sets": 5, "diverged": 0, "comparison": "a − b"}
    cells = [
        {"net": net, "mean": mean, "se": se, "low": mean - 2 * se, "high": mean + 2 * se} | known
        for net, (mean, se) in sizes.items()
    ]
    found = verdict(cells, NO_CELL, "every")
    assert found == CONTRADICTED
    assert decisive(cells, NO_CELL, "every", found).startswith("MLP +0.3 [")
    assert decisive(cells, NO_CELL, "every", "undecided").startswith("AlexNet −0.2 [")
    missing = [*cells, {"net": "LeNet", "comparison": "a − b"} | NO_CELL]
    assert decisive(missing, NO_CELL, "every", found).startswith("MLP +0.3 [")
    assert decisive(missing, NO_CELL, "every", "incomplete") == "LeNet missing"


def test_a_mean_over_comparisons_of_two_iterations_names_none():
    """Claim 6 where the pool is at a later iteration than the baseline."""
    means = {("class-means", "CE"): 18.0}
    rows = pd.concat([make_rows(means.items()), study_rows({POOL: 24.0}, NETS, iteration=2000)])
    cells = claim_cells(rows, Scope((1,), (1000, 2000)))
    six = cells[cells["claim"] == 6]
    assert set(six[six["net"] != "mean"]["iteration"]) == {1000, 2000}
    assert six[six["net"] == "mean"]["iteration"].tolist() == [""]
    assert cells[(cells["claim"] == 1) & (cells["net"] == "mean")]["iteration"].tolist() == [1000]


@pytest.mark.parametrize("nets", [5, 20])
def test_a_figure_printed_from_such_nets_agrees_in_95_of_100(nets):
    """Ours of so many nets on one set, theirs the mean of ten that scatter alike."""
    generator, found = np.random.default_rng(0), []
    for _ in range(2000):
        own, theirs = generator.normal(20, 3, nets), generator.normal(20, 3, 10)
        cell = interval(pd.DataFrame({"seed": 0, "accuracy": own}))
        found.append(agrees(cell, theirs.mean(), noise_of_mean(cell)))
    assert 0.935 < found.count("yes") / len(found) < 0.965


def test_several_sets_allow_for_that_of_the_printed_figure():
    generator, found = np.random.default_rng(0), []
    for _ in range(2000):
        *own, theirs = generator.normal(20, 3, 6)  # means of sets
        cell = interval(pd.DataFrame({"seed": range(5), "accuracy": own}))
        found.append(agrees(cell, theirs, noise_of_mean(cell)))
    assert 0.935 < found.count("yes") / len(found) < 0.965


def test_a_set_is_good_for_all_nets_or_for_none():
    """Where one set is read as its method, the mean over nets is wrong as often as one net."""
    truths = {"1 point": [1.0] * 5}
    found = simulate_verdicts(truths, [(1, 20)], (0.0, 0.5), 1.2, 300).query("rule == 'mean'")
    alone, shared = found["contradicted"]
    assert alone < 0.05 < 0.15 < shared


def test_claims_by_the_rule():
    found = claims(claim_cells(make_rows(), SCOPE)).set_index("number")
    assert found["verdict"].to_dict() == {
        1: SUPPORTED,
        2: SUPPORTED,
        3: MISSING,
        4: SUPPORTED,
        5: UNDECIDED,  # the gains are the same to the last digit, which says nothing
        6: MISSING,
    }
    assert found["measured"].to_dict() == {
        1: "6 of 6",
        2: "5 of 5",
        3: "0 of 10",
        4: "10 of 10",
        5: "4 of 4",
        6: "0 of 24",
    }
    assert found.loc[2, "evidence"].startswith(
        "model pool − baseline: MLP +3.0 [+3.0, +3.0], LeNet"
    )
    assert "mean +3.0 [+3.0, +3.0]; n 2×2." in found.loc[2, "evidence"]


def test_claim_3_compares_the_tuned_with_the_tuned():
    rows = [make_rows()]
    for split, best in (("val", 25.0), ("test", 21.0)):
        for lr in (0.01, 0.02):
            arm = {(pool, "CE"): best - (lr != 0.02) for pool in ("main", "main_plus_similar")}
            if (split, lr) != ("test", 0.01):
                n = {"val": 1}.get(split, 2)  # the first net chooses, and does not count then
                rows.append(study_rows(arm, NETS, settings={"lr": lr}, split=split, n_eval=n))
        for tau in (1.0, 4.0):
            arm = {("main", "KD"): 24.0 + (tau == 4.0), ("main_plus_similar", "KD"): 28.0 - tau}
            n = {"val": 1}.get(split, 2)
            how = {
                "settings": {"lr": 0.02, "tau": tau, "teacher_lr": 0.01},
                "split": split,
                "n_eval": n,
            }
            rows.append(study_rows(arm, NETS, **how))
    cells = claim_cells(pd.concat(rows, ignore_index=True), SCOPE).query(
        "claim == 3 and net == 'MLP'"
    )
    # 25 − 21 on baseline sets, 27 − 21 on the pool's; not 22 and 26, KD at the default rate
    assert cells["mean"].tolist() == pytest.approx([4.0, 6.0])
    assert cells["n"].tolist() == ["2×1", "2×1"]


def test_a_loss_on_one_net_makes_the_pool_mixed():
    rows = make_rows({POOL: lowered("VGG11", 23.0, 6.0)}.items())
    assert only(claims(claim_cells(rows, SCOPE)), number=2)["verdict"] == MIXED
    rows = make_rows({POOL: 20.2}.items())
    assert only(claims(claim_cells(rows, SCOPE)), number=2)["verdict"] == CONTRADICTED


def test_the_largest_gain_is_that_of_resnet18():
    kd = ("main_plus_similar", "KD")
    rows = make_rows({kd: lambda net, d, e: 26.0 + d + 0.1 * e + 2.5 * (net == "ResNet18")}.items())
    assert only(claims(claim_cells(rows, SCOPE)), number=5)["verdict"] == SUPPORTED
    cells = claim_cells(rows, SCOPE).query("claim == 5 and net != 'mean'")
    assert list(cells["net"]) == ["MLP", "LeNet", "AlexNet", "VGG11"]
    assert cells["mean"].tolist() == pytest.approx([2.5] * 4)


def test_one_set_is_said_in_the_verdict_and_an_ipc_is_judged_by_itself():
    rows = make_rows(seeds=1, n_eval=5)
    found = claims(claim_cells(rows, Scope((1, 10), (1000,))))
    assert only(found, number=1, ipc=1)["verdict"] == f"{SUPPORTED}, given one set"
    assert only(found, number=1, ipc=10)[["verdict", "measured"]].tolist() == [MISSING, "0 of 6"]


def test_the_mean_over_nets_uses_the_seeds_that_all_nets_have():
    more = {POOL: 23.0, BASELINE: 20.0}
    rows = pd.concat(
        [study_rows(more, ("MLP",), 1, 9), study_rows(more, NETS[2:], 1, 5)], ignore_index=True
    )
    assert only(claim_cells(rows, SCOPE), claim=2, net="mean")["n"] == "1×5"


@pytest.mark.parametrize("shape", [(1, 5), (3, 1), (3, 5)])
def test_error_rates_of_the_rule(shape):
    """Without an effect "supported" is rare; with one of 1 point everywhere, so is
    "contradicted".
    """
    truths = {"none": [0.0] * 5, "one": [1.0] * 5, "three": [3.0] * 5}
    rates = simulate_verdicts(truths, [shape], [0.0], 1.2, runs=300).set_index(["truth", "rule"])
    for rule in ("every", "mean"):
        assert rates.loc[("none", rule), SUPPORTED] <= 0.02
        assert rates.loc[("none", rule), MIXED] <= 0.05
        assert rates.loc[("one", rule), CONTRADICTED] <= 0.05
        assert rates.loc[("three", rule), CONTRADICTED] == 0
    assert rates.loc[("three", "mean"), SUPPORTED] > 0.8
    assert rates[[SUPPORTED, CONTRADICTED, MIXED, UNDECIDED]].sum(axis=1).tolist() == pytest.approx(
        [1.0] * 6
    )


def test_the_simulation_reads_cells_as_the_statistics_do():
    from ddlib.report.audit import simulated_cell

    for shape in ((1, 6), (3, 4)):
        values = np.random.default_rng(0).normal(size=shape)
        index = np.indices(shape)
        rows = {"seed": index[0].ravel(), "eval_seed": index[1].ravel(), "accuracy": values.ravel()}
        expected = interval(pd.DataFrame(rows))
        assert all(
            simulated_cell(values)[k] == pytest.approx(expected[k]) for k in ("mean", "se", "df")
        )


# Published figures alone.


def test_the_stored_pool_effect_is_that_of_the_stored_means():
    found = stored_pool_effect().set_index(["ipc", "net"])
    assert found.loc[(1, "ResNet18"), "effect"] == pytest.approx(18.73 - 19.10)
    assert found.loc[(1, "ResNet18"), "low"] < 0 < found.loc[(1, "ResNet18"), "high"]
    assert (found["low"] < found["effect"]).all() and len(found) == len(plain_ce()) / 2


def test_stored_plain_ce_lies_with_the_printed_kd_on_resnet18():
    found = stored_against_printed().set_index(["ipc", "images", "net"])["within"]
    assert found[10, "baseline", "ResNet18"] == "with" and found[10, "baseline", "VGG11"] == "with"


def test_published_changes_by_hand():
    """MLP, ipc 1, rows without KD: baseline and model pool from iteration 1000 to 2000 to 3000."""
    printed = (
        read_published(4).query("ipc == 1").sort_values("iteration").set_index("method")["MLP"]
    )
    steps = [abs(np.diff(printed[method])) for method in ("baseline", "model pool")]
    found = published_changes().set_index(["ipc", "rows"])
    assert found.loc[(1, "rows without KD"), "MLP"] == pytest.approx(np.mean(steps))


@pytest.mark.parametrize(("value", "text"), [(1.44, "+1.4"), (-0.62, "−0.6"), (-0.01, "0.0")])
def test_differences_have_a_sign(value, text):
    assert signed(value) == text
