"""A study finds again what it has made, and writes only where it is told to."""

import time

import pandas as pd
import pytest
import torch
from conftest import module, refused

from ddlib.methods import Objective
from ddlib.results import COLUMNS
from ddlib.store import ROOT
from ddlib.study.profiles import PROFILES
from ddlib.study.study import Study

TINY = {
    "iterations": 3,
    "snapshots": [0, 2],
    "report": [2],
    "seeds": [0, 1],
    "batch_real": 8,
    "width": 4,
    "width_factor": 0.0625,
    "epochs": 3,
    "n_eval": 1,
    "nets": ["ConvNet", "MLP"],
    "full_nets": ["MLP"],
    "full_epochs": 1,
}


@pytest.fixture
def study(tmp_path):
    return Study("quick", TINY, out=tmp_path, device="cpu", progress=False)


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_nothing_is_made_twice(study, tmp_path, monkeypatch):
    first = study.evaluate(study.reported(study.distill_all("main")))
    again = Study("quick", TINY, out=tmp_path, device="cpu", progress=False)
    monkeypatch.setattr(Objective, "match", None)  # calling it would fail
    monkeypatch.setattr(module("evaluate"), "train_nets", None)
    second = again.evaluate(again.reported(again.distill_all("main")))
    pd.testing.assert_frame_equal(first, second)


def test_distillations_of_all_seeds_go_side_by_side(study, tmp_path):
    """One per thread, the same sets as alone."""
    alone = [study.distill("main_plus_similar", seed) for seed in (0, 1)]
    other = Study("quick", TINY, out=tmp_path / "other", device="cpu", progress=False)
    torch.set_num_threads(2)
    try:
        together = other.distill_all("main_plus_similar")
    finally:
        torch.set_num_threads(1)
    assert [s.id for s in together] == [s.id for s in alone]


def test_an_interrupted_distillation_stops_the_others(study, monkeypatch):
    done = []

    def distilled(config, data, store, progress, stop):
        if config.seed == 0:
            raise KeyboardInterrupt
        for _ in range(500):
            if stop(0):
                return done.append(config.seed)
            time.sleep(0.01)

    monkeypatch.setattr(module("study.study"), "distill", distilled)
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            study.distill_all("main")
    finally:
        torch.set_num_threads(1)
    for _ in range(500):
        if done:
            break
        time.sleep(0.01)
    assert done == [1]


def test_results_of_other_settings_never_mix(study, tmp_path):
    study.evaluate([study.distill("main", 0)])
    other = Study("quick", TINY | {"epochs": 2}, out=tmp_path, device="cpu", progress=False)
    assert (other.runs, other.figures) != (study.runs, study.figures)
    assert other.results.frame().empty
    assert Study("quick", {"epochs": PROFILES["quick"].epochs}, out=tmp_path).name == "quick"


def test_everything_is_written_below_out(study, tmp_path):
    study.evaluate([study.distill("main", 0)])
    study.write("paper/results/x.csv", "a")
    assert {name.split("/")[0] for name in files(tmp_path)} == {"runs", "paper"}
    assert study.paths() == "paper/results/x.csv"


def test_out_can_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DDLIB_OUT", str(tmp_path))
    assert Study("quick").out == tmp_path
    monkeypatch.delenv("DDLIB_OUT")
    assert Study("quick").out == ROOT


def test_the_snapshots_that_tables_show_are_evaluated(study):
    rows = study.evaluate(study.reported([study.distill("main_plus_similar", 0)]))
    assert sorted(rows["iteration"].unique()) == [2, 3]
    assert list(rows.columns) == list(COLUMNS)


def test_other_numbers_of_iterations_need_no_other_setting(tmp_path):
    for iterations, reported in ((1, [1]), (5, [2, 5])):
        study = Study(
            "quick", TINY | {"iterations": iterations}, out=tmp_path, device="cpu", progress=False
        )
        assert [s.iteration for s in study.reported([study.distill("main", 0)])] == reported


def test_tau_is_chosen_on_validation_images_per_net(study):
    taus, rows = study.choose_tau([study.distill("main", 0)])
    assert set(rows["split"]) == {"val", "test"}
    assert set(taus) == {"ConvNet", "MLP"} and set(taus.values()) <= set(study.profile.taus)
    best = rows[rows["split"] == "val"].groupby(["net", "tau"])["accuracy"].mean()
    for net, tau in taus.items():
        assert best[net, tau] == best[net].max()


@pytest.mark.parametrize(("sign", "best"), [(1, 4.0), (-1, 1.5)])
def test_tau_is_chosen_whatever_the_test_images_say(study, monkeypatch, sign, best):
    """The splits are made to disagree about every temperature."""

    def evaluated(synsets, split, tau, **_):
        assert split == "both"
        return pd.DataFrame(
            {
                "net": "MLP",
                "tau": tau,
                "split": ["val", "test"],
                "accuracy": [50 + sign * tau, 50 - 9 * sign * tau],
            }
        )

    monkeypatch.setattr(study, "evaluate", evaluated)
    assert study.choose_tau([])[0] == {"MLP": best}


def test_full_data_and_random_real_are_rows_like_all_others(study):
    rows = pd.concat([study.full_data(), study.evaluate(study.random_real(), ["MLP"])])
    assert rows["pool"].tolist() == ["full_data", "random_real", "random_real"]
    assert rows["epochs"].tolist() == [1, 3, 3]


def test_tables_are_made_of_own_rows_or_of_committed_ones(study):
    study.evaluate([study.distill("main", 0)])
    assert len(study.published_rows()) == 2


def test_a_foreign_csv_is_refused(study):
    study.runs.mkdir(parents=True)
    (study.runs / "rows.csv").write_text("a,b\n1,2\n")
    with refused("rows.csv", "another schema"):
        _ = study.results


def test_an_unknown_profile_lists_the_known():
    with refused("'quik'", *PROFILES):
        Study("quik")
