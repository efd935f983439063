"""Statistics: means over distillations, two-stage intervals, pairing."""

import numpy as np
import pandas as pd
import pytest

from ddlib.errors import DDError
from ddlib.stats import (
    bootstrap_means,
    interval,
    interval_text,
    mean_over_nets,
    paired_difference,
    summarise,
)


def rows_of(accuracies, net="ConvNet", **more):
    """Rows of a distillations x nets matrix of accuracies."""
    return pd.DataFrame(
        [
            {
                "net": net,
                "distill_seed": d,
                "eval_seed": e,
                "accuracy": a,
                "diverged": False,
                "seconds": 1.0,
                **more,
            }
            for d, line in enumerate(accuracies)
            for e, a in enumerate(line)
        ]
    )


def test_the_mean_weighs_distillations_equally():
    s = interval(rows_of([[10.0, 10.0, 10.0, 10.0], [20.0]]))
    assert s["mean"] == 15.0
    assert s["n"] == "2×1-4"


def test_the_interval_has_the_spread_of_distillations_not_of_nets():
    """Ten nets on each of three sets: the sets differ by 10 points, the nets by 0.1. Pooling all nets would be 5x too sure."""
    accuracies = [[base + 0.1 * (e % 2) for e in range(10)] for base in (20.0, 30.0, 40.0)]
    s = interval(rows_of(accuracies))
    assert s["high"] - s["low"] > 10
    assert s["n"] == "3×10"


def test_bootstrap_means_have_the_variance_of_the_two_stage_scheme():
    """Var = between/D + within/(D E), both of the drawn-with-replacement (population) kind."""
    groups = [np.array([0.0, 2.0]), np.array([10.0, 16.0]), np.array([5.0, 5.0])]
    means = bootstrap_means(groups, 40000)
    centres = np.array([g.mean() for g in groups])
    within = np.mean([g.var() for g in groups]) / 2
    assert means.mean() == pytest.approx(centres.mean(), abs=0.1)
    assert means.var() == pytest.approx((centres.var() + within) / 3, rel=0.05)


def test_one_distillation_leaves_the_spread_of_its_nets():
    s = interval(rows_of([[10.0, 20.0, 30.0]]))
    assert s["n"] == "1×3"
    assert s["low"] < 20.0 < s["high"]


def test_intervals_are_reproducible_and_independent_of_row_order():
    rows = rows_of([[1.0, 2.0], [3.0, 5.0]])
    assert interval(rows) == interval(rows)
    assert interval(rows)["mean"] == interval(rows.iloc[::-1])["mean"]
    assert interval_text(rows) == interval_text(rows)


def test_diverged_rows_are_counted_and_stay_in_the_mean():
    rows = rows_of([[10.0, 30.0]])
    rows.loc[0, "diverged"] = True
    s = interval(rows)
    assert (s["diverged"], s["mean"]) == (1, 20.0)


def test_no_rows_is_an_error():
    with pytest.raises(DDError, match="no rows"):
        interval(rows_of([[1.0]]).iloc[:0])


def test_pairing_removes_what_both_methods_share():
    rng = np.random.default_rng(0)
    shared = rng.normal(30, 10, (4, 5))
    a, b = rows_of(shared + 2.0), rows_of(shared)
    difference = paired_difference(a, b).iloc[0]
    assert difference["mean"] == pytest.approx(2.0)
    assert (difference["low"], difference["high"]) == (pytest.approx(2.0), pytest.approx(2.0))
    assert interval(a)["low"] < interval(b)["high"]  # unpaired, the two could not be told apart


def test_pairs_are_matched_by_seed_and_counted():
    a, b = rows_of([[1.0, 2.0], [3.0, 4.0]]), rows_of([[0.0, 0.0]])
    difference = paired_difference(a, b).iloc[0]
    assert (difference["n"], difference["mean"]) == ("1×2", 1.5)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (rows_of([[1.0]], net="MLP"), rows_of([[1.0]]), "no pairs"),
        (pd.concat([rows_of([[1.0]])] * 2), rows_of([[1.0]]), "first method has several rows"),
    ],
)
def test_what_cannot_be_paired_is_an_error(a, b, message):
    with pytest.raises(DDError, match=message):
        paired_difference(a, b)


def test_summarise_keeps_the_order_of_first_appearance():
    rows = pd.concat([rows_of([[1.0]], net="VGG11"), rows_of([[2.0]], net="MLP")])
    assert summarise(rows, ["net"])["net"].tolist() == ["VGG11", "MLP"]


def test_the_mean_over_nets_has_no_spread_from_architectures():
    rows = pd.concat([rows_of([[10.0], [11.0]], net="MLP"), rows_of([[50.0], [51.0]], net="VGG11")])
    merged = mean_over_nets(rows, "both")
    assert merged["accuracy"].tolist() == [30.0, 31.0]
    assert interval(merged)["high"] - interval(merged)["low"] <= 1.0
