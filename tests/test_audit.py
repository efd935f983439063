"""The audit and the claims: hand-built rows with known answers, and what is said where rows are missing."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
from conftest import refused

from ddlib.report import audit_figures
from ddlib.report.audit import (
    COLUMNS,
    CONTRADICTED,
    MISSING,
    OPEN,
    QUESTIONS,
    SUPPORTED,
    agreement,
    audit,
    differences,
    gain,
    nearest,
    printed_changes,
    repeated,
    scope,
    sentence,
    signed,
    spread_table,
)
from ddlib.report.claims import CLAIMS, FAILS, HOLDS, IN_PART, claim_cells, claims
from ddlib.report.selection import at_chosen_tau, chosen_taus, comparable
from ddlib.report.tables import NETS
from ddlib.results import COLUMNS as ROW
from ddlib.results import TEXT, as_frame, read_rows
from ddlib.store import ROOT
from ddlib.study.profiles import PROFILES

METHODS = {  # pool, protocol, teacher -> accuracy; the expected differences are written beside the tests
    ("main", "ce", ""): 20.0,
    ("main_plus_similar", "ce", ""): 23.0,
    ("main", "kd", "ConvNet"): 22.0,
    ("main_plus_similar", "kd", "ConvNet"): 24.0,
    ("main", "authors-2023", ""): 19.0,
    ("main_plus_similar", "authors-2023", ""): 22.0,
    ("main", "authors-2023", "ConvNet"): 18.0,
    ("main_plus_similar", "authors-2023", "ConvNet"): 18.0,
    ("random_real", "ce", ""): 15.0,
    ("total_random", "ce", ""): 12.0,
    ("main_plus_others", "ce", ""): 18.0,
}
PLAIN = {"warmup": 0, "main_prob": 0.9, "similar_depth": np.nan}


def row(pool, protocol, net, d, e, accuracy, **other):
    blank = {c: "" if c in TEXT else np.nan for c in ROW}
    about = {
        "dataset": "cifar10",
        "ipc": 1,
        "pool": pool,
        "net": net,
        "split": "test",
        "iteration": 1000,
        "seconds": 1.0,
    }
    teacher = other.pop("teacher", "ConvNet" if protocol == "kd" else "")
    tau = {"tau": 1.5} if teacher else {}
    own = {
        "distill_seed": d,
        "eval_seed": e,
        "protocol": protocol,
        "accuracy": accuracy,
        "diverged": False,
        "teacher": teacher,
    }
    return blank | about | PLAIN | own | tau | {"set_id": f"{pool} {d}", "width": 128.0} | other


def make_rows(seeds=2, nets=NETS, methods=METHODS, **other):
    """Two nets per set; the second seed and the second net differ by amounts that all methods share, so that pairs cancel."""
    rows = []
    for ((pool, protocol, teacher), accuracy), net, d, e in itertools.product(
        methods.items(), nets, range(seeds), range(4 // seeds)
    ):
        at = {"iteration": 0} if pool == "random_real" else {}
        rows.append(
            row(pool, protocol, net, d, e, accuracy + d + 0.1 * e, teacher=teacher, **(at | other))
        )
    return as_frame(rows)


@functools.cache
def whole():
    """The audit of `make_rows`, for several tests."""
    return audit(make_rows())


def only(lines, **wanted):
    for column, value in wanted.items():
        lines = lines[lines[column] == value]
    assert len(lines) == 1, lines
    return lines.iloc[0]


@pytest.mark.parametrize(
    ("point", "comparison", "effect", "verdict"),
    [
        ("half-ce", "CE − ½ CE, baseline sets", 1.0, CONTRADICTED),  # Table 4 prints −1.28 on VGG11
        ("half-ce", "CE − ½ CE, pool sets", 1.0, SUPPORTED),  # Table 4 prints +0.64
        ("kd", "KD − CE, baseline sets", 2.0, SUPPORTED),
        ("kd", "KD − CE, pool sets", 1.0, SUPPORTED),
        ("released-kd", "released KD − ½ CE, baseline sets", -1.0, CONTRADICTED),
        ("released-kd", "released KD − ½ CE, pool sets", -4.0, CONTRADICTED),
    ],
)
def test_effects_are_the_paired_differences(point, comparison, effect, verdict):
    found = only(whole(), point=point, comparison=comparison, net="VGG11")
    assert (found["effect"], found["low"], found["high"]) == pytest.approx((effect, effect, effect))
    assert (found["n"], found["verdict"], found["question"]) == ("2×2", verdict, QUESTIONS[point])


def test_the_published_difference_is_with_minus_without_kd():
    lines = whole()
    assert only(lines, comparison="KD − CE, baseline sets", net="ResNet18")[
        "published"
    ] == pytest.approx(18.69 - 14.30)
    assert only(lines, comparison="KD − CE, pool sets", net="ResNet18")[
        "published"
    ] == pytest.approx(22.03 - 15.17)
    assert np.isnan(only(lines, comparison="KD − CE, pool sets", net="ConvNet")["published"])


def test_the_verdict_turns_with_the_sign():
    better, worse = make_rows(), make_rows(methods=METHODS | {("main", "kd", "ConvNet"): 18.0})
    verdicts = [
        only(audit(r), comparison="KD − CE, baseline sets", net="MLP")["verdict"]
        for r in (better, worse)
    ]
    assert verdicts == [SUPPORTED, CONTRADICTED]


def test_what_has_no_rows_is_listed_and_empty():
    rows = make_rows()
    rows = rows[~((rows["protocol"] == "kd") & (rows["net"] == "VGG11"))]
    lines = audit(rows, ipcs=(1, 10), iterations=(1000, 2000))
    assert list(lines.columns) == [*COLUMNS, "diverged"] and set(lines["point"]) == set(QUESTIONS)
    for wanted in ({"net": "VGG11", "ipc": 1}, {"net": "MLP", "ipc": 10}):
        found = only(lines, comparison="KD − CE, baseline sets", **wanted)
        assert (found["verdict"], found["n"], np.isnan(found["effect"])) == (MISSING, "", True)
    own = lines[(lines["point"] == "warm-up")]
    assert set(own["verdict"]) == {MISSING} and sentence(own) == "Not yet measured."


def test_no_rows_at_all_still_make_every_line():
    lines = audit(make_rows().iloc[:0], ipcs=(1,), iterations=(1000,))
    assert set(lines["verdict"]) == {MISSING} and set(lines["point"]) == set(QUESTIONS)
    assert set(claims(make_rows().iloc[:0])["verdict"]) == {MISSING}


def test_few_pairs_decide_nothing():
    rows = make_rows()
    rows = rows[rows["eval_seed"] == 0]
    found = only(audit(rows), comparison="KD − CE, baseline sets", net="MLP")
    assert (found["effect"], found["n"], found["verdict"]) == (pytest.approx(2.0), "2×1", OPEN)


def test_sizes_are_compared_at_the_paper_s_scale_only():
    small = make_rows(width=32.0)
    assert set(audit(small).query("comparison == 'CE − ½ CE, pool sets'")["verdict"]) == {OPEN}
    assert nearest(small).empty


def test_nothing_published_stands_beside_other_data():
    lines = audit(make_rows(dataset="digits"))
    assert lines["published"].isna().all()
    assert not lines.loc[lines["verdict"] != MISSING, "comparison"].str.contains("published").any()


@pytest.mark.parametrize(
    ("low", "high", "printed", "full", "verdict"),
    [
        (1.0, 2.0, 1.5, True, SUPPORTED),
        (1.0, 2.0, 2.4, True, SUPPORTED),  # within the noise of 0.5
        (1.0, 2.0, 2.6, True, CONTRADICTED),
        (-0.2, 2.0, 1.0, True, OPEN),
        (0.1, 2.0, -0.2, True, OPEN),  # other side of 0
        (1.0, 2.0, 1.5, False, OPEN),
        (1.0, 2.0, np.nan, True, OPEN),
    ],
)
def test_the_rule_of_half_ce(low, high, printed, full, verdict):
    assert agreement({"low": low, "high": high}, printed, 0.5, full) == verdict


@pytest.mark.parametrize(
    ("low", "high", "printed", "full", "verdict"),
    [
        (0.1, 1.0, 9.0, True, SUPPORTED),
        (-1.0, -0.1, np.nan, False, CONTRADICTED),
        (-0.5, 0.5, 4.0, True, CONTRADICTED),  # the printed gain is far off
        (-0.5, 0.5, 4.0, False, OPEN),
        (-0.5, 0.5, 0.9, True, OPEN),
    ],
)
def test_the_rule_of_gains(low, high, printed, full, verdict):
    assert gain({"low": low, "high": high}, printed, 0.5, full) == verdict


@pytest.mark.parametrize(("printed", "verdict"), [(0.1, SUPPORTED), (0.9, CONTRADICTED)])
def test_the_rule_of_repeats(printed, verdict):
    assert repeated({"low": 1.0, "high": 2.0}, printed, 0.5) == verdict


def test_published_repeats_change_less():
    nets = dict.fromkeys(NETS, 0.0)
    lines = [
        {"ipc": 1, "iteration": k, "method": m} | nets
        for k in (1, 2, 3)
        for m in ("baseline", "KD")
    ]
    published = pd.DataFrame(lines)
    published.loc[
        (published["method"] == "baseline") & (published["iteration"] == 2), list(NETS)
    ] = 3.0
    found = printed_changes(published, 1)
    assert (found["mean"], found["high"], found["n"]) == (-3.0, -3.0, "6 nets × 2 changes")
    assert printed_changes(published.iloc[:0], 1) is None


def sweep(net="MLP", seeds=1):
    """tau 2 is best on validation images, tau 4 on test images, by 1.5 points."""
    rows = []
    for (tau, val, test), d, e in itertools.product(
        [(1.0, 10, 20), (2.0, 14, 21), (4.0, 12, 22.5)], range(seeds), range(4)
    ):
        rows.append(row("main", "kd", net, d, e, val + 0.1 * e, tau=tau, split="val"))
        rows.append(row("main", "kd", net, d, e, test + 0.1 * e, tau=tau))
    return as_frame([*rows, *(row("main", "ce", net, 0, e, 20.0) for e in range(4))])


def test_tau_is_chosen_on_validation_rows():
    kept = at_chosen_tau(sweep())
    assert set(kept["split"]) == {"test"} and (kept["protocol"] == "ce").sum() == 4
    assert kept.loc[kept["protocol"] == "kd", "tau"].tolist() == [2.0] * 4
    assert chosen_taus(sweep(), "test") == {(1, "main", "MLP"): 4.0}
    assert at_chosen_tau(kept).equals(kept)  # again: nothing left to choose


def test_tau_without_a_sweep_is_the_only_one_the_default_or_the_smallest():
    rows = sweep()[lambda f: f["split"] == "test"]

    def taus(f):
        return sorted(at_chosen_tau(f)["tau"].dropna().unique())

    assert taus(rows[rows["tau"] != 1.0]) == [2.0]  # the default is not there: the smallest
    assert taus(rows.assign(tau=rows["tau"].replace(2.0, 1.5))) == [1.5]
    assert taus(rows[rows["tau"] == 4.0]) == [4.0]
    assert at_chosen_tau(rows[rows["protocol"] == "ce"]).shape[0] == 4


def test_a_tau_without_test_rows_is_not_chosen():
    rows = sweep()
    kept = at_chosen_tau(rows[~((rows["split"] == "test") & (rows["tau"] == 2.0))])
    assert set(kept["tau"].dropna()) == {4.0}  # second on validation images


def test_tau_on_test_is_best_on_test_minus_chosen():
    found = only(
        audit(sweep()),
        point="tau",
        comparison="τ best on test − τ chosen on validation, baseline sets",
        net="MLP",
    )
    assert (found["effect"], found["n"], found["verdict"]) == (pytest.approx(1.5), "1×4", SUPPORTED)


def test_warm_up_and_depth_are_compared_and_kept_out_of_the_rest():
    released = make_rows(
        methods={("main_plus_similar", "ce", ""): 26.0}, warmup=500, similar_depth=1, set_id="other"
    )
    lines = audit(pd.concat([make_rows(), released], ignore_index=True))
    assert only(lines, point="warm-up", net="MLP")["effect"] == pytest.approx(3.0)
    assert only(lines, comparison="KD − CE, pool sets", net="MLP")["effect"] == pytest.approx(1.0)


def test_a_distillation_made_twice_counts_once():
    twice = make_rows(methods={("main", "ce", ""): 50.0}, nets=("MLP",), set_id="made again")
    rows = comparable(pd.concat([make_rows(), twice], ignore_index=True))
    assert "made again" not in set(rows["set_id"])
    assert only(audit(rows), comparison="KD − CE, baseline sets", net="MLP")[
        "effect"
    ] == pytest.approx(2.0)


def test_the_spread_is_split_into_sets_and_nets():
    rows = make_rows(methods={("main", "ce", ""): 20.0})  # sets 1 apart, nets 0.1 apart
    found = spread_table(rows).set_index("net").loc["MLP"]
    assert found["sd_nets"] == pytest.approx(0.1 / np.sqrt(2))
    assert found["sd_sets"] == pytest.approx(np.sqrt(0.5 - 0.005 / 2))
    assert found["mean"] == pytest.approx(1.96 * np.sqrt(2 * (0.4975 + 0.0005)))
    assert spread_table(make_rows(seeds=1)).empty


def test_the_nearest_protocol_is_named():
    methods = METHODS | {
        ("main", "authors-2023", ""): 14.0,
        ("main", "ce", ""): 19.0,
        ("main", "authors-2023", "ConvNet"): 16.0,
    }
    found = (
        nearest(make_rows(methods=methods, seeds=1))
        .query("net == 'ResNet18'")
        .set_index("printed")["nearest"]
    )
    assert (found["baseline"], found["KD"]) == ("½ CE", "CE")  # printed 14.30 and 18.69


def test_claims_hold_by_the_rule():
    found = claims(make_rows()).set_index("number")["verdict"].to_dict()
    assert found == {
        1: HOLDS,
        2: HOLDS,
        3: HOLDS,
        4: HOLDS,
        5: FAILS,
    }  # equal gains: ResNet18's is not the largest


def test_claims_fail_and_hold_in_part():
    rows = make_rows()
    lower = (rows["pool"] == "main_plus_similar") & (rows["protocol"] == "ce")
    assert (
        claims(rows[~(lower & (rows["net"] == "MLP"))])["verdict"][1] == IN_PART
    )  # a net is missing
    assert claims(rows.assign(accuracy=rows["accuracy"] - 9 * lower))["verdict"][1] == FAILS
    assert (
        claims(rows.assign(accuracy=rows["accuracy"] - 9 * (lower & (rows["net"] == "MLP"))))[
            "verdict"
        ][1]
        == IN_PART
    )
    assert claims(rows[~lower])["verdict"][1] == MISSING


def test_the_largest_gain_is_that_of_resnet18():
    rows = make_rows()
    more = (
        (rows["net"] == "ResNet18")
        & (rows["pool"] == "main_plus_similar")
        & (rows["protocol"] == "kd")
    )
    rows = rows.assign(accuracy=rows["accuracy"] + 2.5 * more)
    assert claims(rows)["verdict"][4] == HOLDS
    cells = claim_cells(rows).query("claim == 5")
    assert list(cells["net"]) == ["MLP", "LeNet", "AlexNet", "VGG11"] and cells[
        "effect"
    ].tolist() == pytest.approx([2.5] * 4)


def test_one_distillation_is_said():
    found = claims(make_rows(seeds=1))
    assert list(found["claim"]) == list(CLAIMS.values())
    assert (
        found["evidence"]
        .str.contains("one distillation, so that the intervals cover the nets' spread only")
        .all()
    )
    assert not claims(make_rows())["evidence"].str.contains("one distillation").any()


def test_evidence_names_what_is_missing():
    rows = make_rows()
    text = claims(rows[rows["net"] != "ResNet18"], ipcs=(1, 10))["evidence"][1]
    assert text.startswith("Model pool − baseline: clear gain in 4 of 4 (MLP +3.0, LeNet +3.0")
    assert text.endswith("n 2×2; not yet measured: ipc 10, ResNet18.")


def test_the_committed_rows_give_lines_claims_and_figures():
    rows = read_rows(ROOT / "paper" / "results" / "cifar10-small.csv")
    expected = scope(PROFILES["cifar10-small"])
    lines = audit(rows, **expected)
    measured = lines[lines["verdict"] != MISSING]
    assert measured[["effect", "low", "high"]].notna().all(axis=None) and measured["n"].ne("").all()
    assert (measured["low"] <= measured["effect"] + 1e-9).all() and (
        measured["effect"] <= measured["high"] + 1e-9
    ).all()
    figure = audit_figures.effects(lines[lines["point"] == "kd"], "KD")
    assert [axis.get_title(loc="left").splitlines()[1] for axis in figure.axes] == [
        "baseline sets",
        "pool sets",
    ]
    assert audit_figures.effects(lines[lines["point"] == "warm-up"], "nothing") is None


def test_panels_keep_nets_in_place_where_some_are_missing():
    rows = make_rows()
    lines = differences(rows[~((rows["protocol"] == "kd") & (rows["net"] == "ConvNet"))])
    figure = audit_figures.effects(lines, "differences")
    last = figure.axes[1].collections[-2].get_offsets()
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(NETS)
    assert np.ma.getmaskarray(last)[0, 0] or np.isnan(last[0, 0])  # ConvNet's place stays empty
    assert last[1].tolist() == pytest.approx([2.0, 1.0])


def test_several_rows_of_one_run_are_an_error():
    rows = make_rows()
    with refused("several rows"):
        audit(pd.concat([rows, rows], ignore_index=True))


@pytest.mark.parametrize(("value", "text"), [(1.44, "+1.4"), (-0.62, "−0.6"), (-0.01, "0.0")])
def test_differences_have_a_sign(value, text):
    assert signed(value) == text
