"""A short schedule is held against the paper's."""

import numpy as np
import pytest
from conftest import study_rows
from scipy import stats

from ddlib.report.schedules import (
    BETTER,
    EQUAL,
    OPEN,
    WORSE,
    compare_schedules,
    distillation_times,
    judged,
    two_sample,
)

BASELINE, POOL = ("main", "CE"), ("main_plus_similar", "CE")


def test_two_samples_are_compared_as_scipy_does():
    a, b = [20.0, 21.5, 19.0, 22.0, 20.5], [23.0, 22.0, 24.5]
    theirs = stats.ttest_ind(a, b).confidence_interval(0.95)
    ours = two_sample(a, b)
    assert (ours["low"], ours["high"]) == pytest.approx(tuple(theirs))
    assert ours["mean"] == pytest.approx(np.mean(a) - np.mean(b))


def test_one_set_beside_several_is_taken_to_scatter_like_them():
    a = [20.0, 22.0, 21.0]
    half = stats.t.ppf(0.975, 2) * 1.0 * np.sqrt(1 / 3 + 1)
    assert two_sample(a, [20.0])["high"] == pytest.approx(1.0 + half)
    assert np.isnan(two_sample([20.0], [21.0])["low"])


def test_the_interval_covers():
    generator, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        cell = two_sample(generator.normal(3, 1, 5), generator.normal(2, 1, 1))
        covered += cell["low"] <= 1 <= cell["high"]
    assert 0.93 <= covered / 2000 <= 0.97


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-0.9, 1.0, EQUAL), (-1.1, 0.5, OPEN), (-3, -0.1, WORSE), (0.2, 3, BETTER), (-0.5, 2, OPEN)],
)
def test_an_interval_is_put_into_a_word(low, high, word):
    assert judged(low, high) == word


def test_schedules_are_compared_at_their_own_iterations_net_by_net():
    def short(net, d, e):
        return {"MLP": 24.0, "VGG11": 20.0}[net] + 0.1 * d

    def paper(net, d, e):
        return {"MLP": 24.0, "VGG11": 25.0}[net] + 0.1 * d

    fast = study_rows({BASELINE: short, POOL: short}, ("MLP", "VGG11"), seeds=5, n_eval=1)
    rows = study_rows({BASELINE: paper}, ("MLP", "VGG11"), seeds=3, n_eval=4)
    fast = fast.assign(iteration=fast["iteration"].where(fast["iteration"] == 0, 100))
    found = compare_schedules(fast, rows, 1, (100, 1000), ("MLP", "VGG11", "LeNet"))
    assert found[["images", "net", "judged"]].to_numpy().tolist() == [
        ["baseline", "MLP", EQUAL],
        ["baseline", "VGG11", WORSE],
    ]
    assert found["n short"].tolist() == ["5×1"] * 2 and found["n paper"].tolist() == ["3×4"] * 2
    assert found["mean"].tolist() == pytest.approx([0.1, -4.9])
    found = compare_schedules(fast.assign(diverged=True), rows, 1, (100, 1000), ("MLP",))
    assert (found["n short"].item(), found["n paper"].item()) == ("5×1*", "3×4")
    assert compare_schedules(fast, rows, 1, (1000, 1000), ("MLP",)).empty
    few = rows[(rows["seed"] > 0) | (rows["eval_seed"] < 2)]
    assert compare_schedules(fast, few, 1, (100, 1000), ("MLP",))["n paper"].item() == "3×2-4"


def test_a_set_takes_its_iterations_times_the_median_second():
    def record(side, seconds, case="step-ipc1"):
        return {"case": case, "side": side, "seconds": seconds}

    found = [record("reference", [9.0, 10.0, 50.0]), record("bfloat16", [3.0])]
    found.append(record("bfloat16", [100.0], "step-ipc10"))
    times = distillation_times({"records": found}, {"paper": 1200, "short": 60})
    assert times["code"].tolist() == ["public DC code, float32", *["ddlib, bfloat16"] * 2]
    assert times["schedule"].tolist() == ["paper", "paper", "short"]
    assert times["minutes a set"].tolist() == [200.0, 60.0, 3.0]
