"""Tasks are done once, by whatever process; a study writes only where it is told to."""

import itertools
import shutil
import threading
from dataclasses import make_dataclass, replace

import pandas as pd
import pytest
import torch
from conftest import module, refused

import ddlib
from ddlib.choose import choices
from ddlib.identity import describe_row
from ddlib.losses import PROTOCOLS
from ddlib.study import PROFILES, Study, get_profile, given, profiles
from ddlib.study.plan import ImageSet, Sweep, Train, plan, select
from ddlib.study.tasks import (
    chosen_value,
    in_groups,
    is_done,
    rows_of,
    run_plan,
    run_together,
    tried,
)
from ddlib.support.store import ROOT

TINY = {
    "iterations": 4,
    "snapshots": [0, 2],
    "report": [2],
    "seeds": [0, 1],
    "pools": ["main_plus_similar"],
    "main_prob": 0.1,  # the pools differ early
    "main_probs": [],
    "batch_real": 8,
    "batch_bn": 2,
    "width": 4,
    "width_factor": 0.0625,
    "epochs": 2,
    "nets": ["ConvNet", "MLP"],
    "full_nets": ["MLP"],
    "full_epochs": 1,
    "methods": {},
    "coresets": [],
    "elf_nets": [],
}


def make(folder, **settings):
    return Study("quick", TINY | settings, out=folder, device="cpu", progress=False)


@pytest.fixture
def study(tmp_path):
    return make(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that was done in one go."""
    study = make(tmp_path_factory.mktemp("whole"))
    assert run_plan(study, plan(study.profile), say=None) == []
    return study


def outcome(study, tasks):
    """What must not depend on how a study was run."""
    rows = make(study.out).rows(tasks).drop(columns=["seconds", "machine", "revision"])
    return rows.drop(columns=[name for name in rows if name.endswith("_set")])


def some_tasks(study):
    """One set, with every kind of task that depends on it."""
    return select(plan(study.profile, "table4"), seed=[0], until=2, pool=["main_plus_similar"])


def files(folder):
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def forbid(monkeypatch):
    """Neither distil nor train any more."""
    monkeypatch.setattr(module("methods.gradient"), "real_gradient", None)
    monkeypatch.setattr(module("training"), "train_nets", None)


# Once.


def test_nothing_is_done_twice(whole, monkeypatch):
    before = files(whole.out)
    forbid(monkeypatch)
    again, said = make(whole.out), []
    assert run_plan(again, plan(again.profile), say=said.append) == []
    assert said == ["0 of 0 tasks done"] and files(whole.out) == before
    for task in plan(again.profile):
        assert is_done(task, again)
        run_together([task], again)
    assert files(whole.out) == before


def test_a_set_that_another_driver_finished_meanwhile_is_left_as_it_is(study):
    """A driver that waited for the lock, though iterations beyond it were configured."""
    task = ImageSet("dc", "main", 1, 0, 2)
    run_together([task], study)
    log = study.path(task).with_name("log.csv").read_text()
    module("study.tasks").distil([task], study, None)
    assert study.path(task).with_name("log.csv").read_text() == log


def test_a_teacher_that_cannot_be_built_is_found_before_the_first_task(study):
    """The student, without depth, can."""
    shallow, deep = (
        Train(ImageSet("random_real", ipc=1), "MLP", 1, "kd", "ConvNet", (("depth", depth),))
        for depth in (3, 99)
    )
    module("study.tasks").check_plan([shallow], study)
    with refused("depth", "99"):
        module("study.tasks").check_plan([deep], study)


def test_the_rows_of_a_part_are_read_back(whole, monkeypatch):
    forbid(monkeypatch)
    rows = make(whole.out).run("table4", pool=["main"])
    arms = rows.groupby(["protocol", "teacher"]).size()
    assert set(arms.index) == {
        ("ce", ""),
        ("kd", "ConvNet"),
        ("authors-2023", ""),
        ("authors-2023", "ConvNet"),
    }
    assert set(rows["pool"]) == {"main"} and set(rows["iteration"]) == {2, 4}
    assert set(whole.run("full_data")["epochs"]) == {1}


def test_interrupted_at_every_turn_and_resumed_gives_the_same_rows(whole, tmp_path):
    """Each process gets a little further than the one before, and stops."""
    for number in range(60):
        study, turns = make(tmp_path), itertools.count()
        tasks = some_tasks(study)
        run_plan(study, tasks, say=None, stop=lambda t=turns, n=3 * number: next(t) > n)
        if all(is_done(task, study) for task in tasks):
            break
    assert 3 < number < 59
    pd.testing.assert_frame_equal(outcome(study, tasks), outcome(whole, tasks))


def test_a_killed_distillation_goes_on_from_its_checkpoint(whole, study, monkeypatch):
    class Kill(BaseException):
        """Like SIGKILL: nothing is saved on the way out."""

    monkeypatch.setattr(module("run"), "CHECKPOINT_SECONDS", -1)
    task, turns = ImageSet("dc", "main", 1, 0, 4), itertools.count(1)

    def kill():
        if next(turns) == 3:
            raise Kill

    with pytest.raises(Kill):
        run_together([task], study, kill)
    assert study.path(ImageSet("dc", "main", 1, 0, 2)).is_file() and not is_done(task, study)
    started = []
    run_together([task], make(study.out), lambda: started.append(1))
    assert len(started) < 4  # not from the beginning
    assert study.load(task).id == whole.load(task).id


def test_two_studies_on_one_folder_share_what_each_does(whole, tmp_path, monkeypatch):
    one, two = make(tmp_path), make(tmp_path)
    tasks = some_tasks(one)
    assert len(one.results.rows()) == len(two.results.rows()) == 0
    for i, task in enumerate(tasks):
        run_together([task], (one, two)[i % 2])
    forbid(monkeypatch)
    for study in (one, two):
        assert run_plan(study, tasks, say=None) == []
    pd.testing.assert_frame_equal(outcome(one, tasks), outcome(whole, tasks))


def test_two_copies_are_merged_by_copying_one_into_the_other(whole, tmp_path, monkeypatch):
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    tasks = some_tasks(one)
    run_together([tasks[0]], one)
    shutil.copytree(one.out, two.out)
    run_plan(one, select(tasks, net=["MLP"]), say=None)
    run_plan(two, select(tasks, net=["ConvNet"]), say=None)
    shutil.copytree(two.out, one.out, dirs_exist_ok=True)
    forbid(monkeypatch)
    assert run_plan(make(one.out), tasks, say=None) == []
    pd.testing.assert_frame_equal(outcome(one, tasks), outcome(whole, tasks))


def test_a_task_that_lacks_something_says_what(study):
    images = ImageSet("dc", "main", 1, 0, 2)
    with refused("train 1 MLP", "cannot be done yet", "do first: dc main"):
        run_together([Train(images, "MLP", 1)], study)
    sweep = Sweep(images, "MLP", 1, "kd", "ConvNet", "tau", (1.5, 4.0))
    real = ImageSet("random_real", ipc=1)
    with refused("tau chosen", "do first: choose tau"):
        run_together([Train(real, "MLP", 1, "kd", "ConvNet", chosen=sweep)], study)
    first = Sweep(real, "MLP", 1, "ce", None, "lr", (0.005, 0.02))
    second = replace(sweep, images=real, after=first)
    last = Train(real, "MLP", 1, "kd", "ConvNet", chosen=second)
    for task in (second, last):
        with refused("lr", "do first: choose lr of ce"):
            run_together([task], study)
    assert not list(study.out.iterdir())


def test_one_failure_does_not_stop_the_others_and_is_named(study, monkeypatch):
    original = module("study.tasks").evaluate

    def evaluate(synsets, data, nets, *more, **options):
        if nets == ["MLP"] and any(s.config["seed"] == 1 for s in synsets):
            raise RuntimeError("broken")
        return original(synsets, data, nets, *more, **options)

    monkeypatch.setattr(module("study.tasks"), "evaluate", evaluate)
    said = []
    tasks = select(plan(study.profile, "table5"), until=2)
    failures = run_plan(study, tasks, say=said.append)
    assert {str(task) for task, _ in failures} == {
        f"train 1 MLP on dc {pool}, ipc 1, seed 1, iteration 2: ce"
        for pool in ("main", "main_plus_similar")
    }
    assert f"{len(tasks) - 2} of {len(tasks)} tasks done" in said
    assert said[-1].startswith("failed: train 1 MLP") and said[-1].endswith("broken")
    with pytest.raises(RuntimeError, match=r"2 tasks failed; the first: train 1 MLP .* broken"):
        study.run("table5", until=2)


# Side by side.


def test_sets_side_by_side_are_those_distilled_alone(whole, tmp_path):
    study = make(tmp_path)
    torch.set_num_threads(2)
    try:
        sets = study.distill_all("main_plus_similar")
    finally:
        torch.set_num_threads(1)
    assert [s.id for s in sets] == [s.id for s in whole.distill_all("main_plus_similar")]
    assert [s.iteration for s in sets[0].history] == [0, 2, 4] and len(sets[0].log) == 4


def test_a_gpu_distils_and_tests_what_is_needed(gpu, tmp_path):
    """A distillation after the other, with recorded work and streams."""
    short = {"iterations": 1, "snapshots": [], "report": [1], "outer": 4, "inner": 2}
    study = make(tmp_path, **short)
    sets = study.distill_all("main_plus_similar")
    assert [one.iteration for one in sets] == [1, 1] and gpu.captures > 0
    assert (
        len(study.run("table4", pool=["main_plus_similar"], net=["MLP"])) > 0 and gpu.alive() == []
    )


def test_what_is_done_at_the_same_time(study):
    """One set per thread, never two iterations of one; nets that are trained alike."""
    sets = [ImageSet("dc", "main", 1, seed, k) for k in (2, 4) for seed in (0, 1, 2)]
    nets = [Train(images, net, 1) for net in ("MLP", "ConvNet") for images in sets[:2]]
    torch.set_num_threads(2)
    try:
        groups = list(in_groups([*sets, *nets], study))
    finally:
        torch.set_num_threads(1)
    assert groups == [sets[:2], sets[2:3], sets[3:5], sets[5:], nets[:2], nets[2:]]


def test_an_interrupted_distillation_stops_the_others(study, monkeypatch):
    stopped = threading.Event()

    def distill(config, data, store, progress, stop):
        if config.seed == 0:
            raise KeyboardInterrupt
        for _ in range(500):
            if stop(0):
                return stopped.set()
            threading.Event().wait(0.01)

    monkeypatch.setattr(module("study.study"), "distill", distill)
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            study.distill_all("main")
    finally:
        torch.set_num_threads(1)
    assert stopped.wait(5)


# Choosing.


def fill(study, sweep, accuracy):
    """Rows of a sweep's candidates as if trained: `accuracy(split, value)` for each of its nets."""

    def evaluate(synsets, data, nets, protocol, n, *, split, config, results, **_):
        assert split == "both"
        value = getattr(config, sweep.setting)
        for synset, seed in itertools.product(synsets, range(n)):
            how = PROTOCOLS[protocol], nets[0], seed, sweep.teacher
            about = config, data.content
            rows = [describe_row(synset, *how, name, *about) for name in ("val", "test")]
            measured = {"diverged": False, "seconds": 1.0, "machine": "", "revision": ""}
            results.add(
                [], [r | measured | {"accuracy": accuracy(r["split"], value)} for r in rows]
            )

    return evaluate


SWEEPS = [
    Sweep(ImageSet("random_real", ipc=1), "MLP", 2, "kd", "ConvNet", "tau", (1.0, 2.0, 4.0)),
    Sweep(ImageSet("random_real", ipc=1), "MLP", 2, "ce", None, "lr", (1.0, 2.0, 4.0)),
]


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.setting)
@pytest.mark.parametrize("best", [1.0, 2.0, 4.0, 0.5, 8.0, 64.0])
def test_validation_images_choose_whatever_the_test_images_say(study, monkeypatch, sweep, best):
    """The best on validation is the worst on test; a choice at the edge extends the grid, twice."""

    def accuracy(split, value):
        distance = abs(value - best)
        return 90 - distance if split == "val" else 10 + distance

    monkeypatch.setattr(module("study.tasks"), "evaluate", fill(study, sweep, accuracy))
    run_together([sweep], study)
    expected = {1.0: (0.5,), 2.0: (), 4.0: (8.0,), 0.5: (0.5, 0.25), 8.0: (8.0, 16.0)}
    more = expected.get(best, (8.0, 16.0))
    assert chosen_value(sweep, study) == min(best, 16.0)
    assert tried(sweep, study)[0] == [1.0, 2.0, 4.0, *more]
    assert len(rows_of(sweep, study)) == 2 * 2 * (3 + len(more))


def test_what_is_chosen_is_used_by_the_nets_that_depend_on_it(whole):
    trains = [t for t in plan(whole.profile) if isinstance(t, Train) and t.chosen]
    assert len(trains) == 3 * 2 * 2 * 2 * 2
    for task in trains:
        (values,) = {row["settings"] for row in rows_of(task, whole)}
        usual = {"tau": None, "lr": 0.01}
        chain = [one for one in (task.chosen, task.chosen.after) if one]
        for sweep in chain:
            chosen, name = chosen_value(sweep, whole), sweep.setting
            assert (f'"{name}":{chosen}' in values) != (chosen == usual[name])
        other = chosen_value(chain[-1], whole) != 0.01 and task.chosen.after
        assert ('"teacher_lr":0.01' in values) == bool(other)
    frame = whole.results.frame()
    frame = frame[(frame["protocol"] == "ce") | (frame["lr"] == 0.01)]
    for protocol, setting in (("kd", "tau"), ("ce", "lr")):
        for line in choices(frame, protocol, setting).itertuples():
            sweep = Sweep(
                ImageSet("dc", line.pool, 1, 0, 2),
                line.net,
                1,
                protocol,
                "ConvNet" if protocol == "kd" else None,
                setting,
                getattr(whole.profile, f"{setting}s"),
            )
            assert chosen_value(sweep, whole) == line.chosen


def test_one_candidate_is_no_choice(study):
    study = make(study.out, taus=[4.0])
    sweep = Sweep(ImageSet("random_real", ipc=1), "MLP", 1, "kd", "ConvNet", "tau", (4.0,))
    assert is_done(sweep, study) and chosen_value(sweep, study) == 4.0


def choice_rows(values):
    """Validation rows of one cell: (set, eval seed, tau) -> accuracy."""
    cell = {
        "ipc": 1,
        "method": "dc",
        "pool": "main",
        "net": "MLP",
        "protocol": "kd",
        "split": "val",
    }
    return pd.DataFrame(
        [
            cell | {"set": s, "eval_seed": e, "tau": tau, "accuracy": accuracy}
            for (s, e, tau), accuracy in values.items()
        ]
    )


def test_candidates_are_compared_on_the_nets_that_all_of_them_have():
    """More nets of one candidate must not decide."""
    rows = choice_rows({("a", 0, 1.0): 50, ("a", 0, 2.0): 51, ("a", 1, 1.0): 90, ("b", 0, 1.0): 90})
    (line,) = choices(rows, "kd", "tau").itertuples()
    assert (line.chosen, line.n, line.at_edge, line.candidates) == (2.0, 1, True, "1, 2")
    assert choices(rows[rows["tau"] == 1.0], "kd", "tau").empty
    assert choices(choice_rows({("a", 0, 1.0): 1, ("b", 0, 2.0): 2}), "kd", "tau").empty


# A budget.


def test_a_budget_stops_a_distillation_and_the_next_call_goes_on(study, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(module("study.tasks").time, "monotonic", lambda: next(clock))
    task, said = ImageSet("dc", "main", 1, 0, 4), []
    run_plan(study, [task], budget=4, say=said.append)
    assert said[0].startswith(f"{task}: not finished") and said[-1] == "0 of 1 tasks done"
    monkeypatch.undo()
    run_plan(study, [task], budget=600, say=said.append)
    assert said[-1] == "1 of 1 tasks done"


@pytest.mark.parametrize(("budget", "done"), [(0.5, 0), (1.5, 0), (100, 1)])
def test_nets_that_take_longer_than_what_is_left_are_not_started(study, monkeypatch, budget, done):
    task = Train(ImageSet("random_real", ipc=1), "MLP", 2)
    usual = {("MLP", 1): 1.0}
    monkeypatch.setattr(module("study.tasks").time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(module("study.tasks"), "seconds_per_net", lambda study: usual)
    monkeypatch.setattr(module("study.tasks"), "groups", lambda nets, device: [nets])  # 2 at once
    said = []
    run_plan(study, [task], budget=budget, say=said.append)
    assert said[-1] == f"{done} of 1 tasks done" and is_done(task, study) == bool(done)


def test_seconds_per_net_are_those_of_this_machine(whole):
    usual = module("study.tasks").seconds_per_net(whole)
    assert {net for net, _ in usual} == {"ConvNet", "MLP"}
    assert all(0 < seconds < 60 for seconds in usual.values())


# The folder.


def test_results_of_other_settings_never_mix(study, tmp_path):
    run_together([Train(ImageSet("random_real", ipc=1), "MLP", 1)], study)
    other = make(tmp_path, epochs=3)
    assert (other.runs, other.figures) != (study.runs, study.figures)
    assert other.results.frame().empty
    assert Study("quick", {"epochs": PROFILES["quick"].epochs}, out=tmp_path).name == "quick"


def test_a_new_setting_orphans_no_study_of_yesterday(monkeypatch):
    yesterday = [profiles.study_name(get_profile("quick", s)) for s in ({}, {"iterations": 5})]
    newer = make_dataclass("Newer", [("novel", float, 0.5)], bases=(profiles.Profile,), frozen=True)

    def renewed(profile, **changes):
        return newer(**(vars(profile) | changes))

    profile = get_profile("quick", {"iterations": 5})
    monkeypatch.setitem(PROFILES, "quick", renewed(PROFILES["quick"]))
    assert profiles.study_name(renewed(PROFILES["quick"])) == yesterday[0] == "quick"
    assert profiles.study_name(renewed(profile)) == yesterday[1]
    assert profiles.study_name(renewed(profile, novel=0.7)) not in yesterday


def test_everything_is_written_below_out(whole):
    whole.publish()
    whole.write("paper/tables/x.csv", "a")
    assert {p.name for p in whole.out.iterdir()} == {"runs", "paper"}
    names = [f"paper/results/{whole.name}/{name}.csv" for name in ("sets", "rows")]
    assert whole.paths().splitlines() == [*names, "paper/tables/x.csv"]
    flat = ddlib.read_results(whole.out / "paper" / "results" / whole.name)
    assert len(flat) == len(whole.results.frame()) and set(flat["set"]) == set(
        whole.results.frame()["set"]
    )


def test_published_sets_are_the_latest_of_each_method(tmp_path):
    study = make(tmp_path, methods={"dm": {"method": "dm", "iterations": 3, "snapshots": [2]}})
    last = {"main": 4, "main_plus_similar": 2, "total_random": 2}
    sets = [ImageSet("dc", pool, 1, 0, k) for pool, k in last.items()]
    others = ImageSet("dm", "main", 1, 0, 2), ImageSet("dc", "main", 1, 1, 4)
    run_plan(study, [*sets, *others], say=None)
    study.publish_sets(study.out / "paper")
    names = {path.stem for path in study.written if path.suffix == ".safetensors"}
    ends = {"ipc1-main-s0": 4, "ipc1-main_plus_similar-s0": 2, "dm-ipc1-main-s0": 2}
    ends |= {"ipc1-main-s1": 4}
    assert names == {f"{study.name}-{place}" for place in ends}
    for place, iteration in ends.items():
        path = study.out / "paper" / "sets" / f"{study.name}-{place}.safetensors"
        assert ddlib.load_synset(path).iteration == iteration


def test_of_committed_sets_those_of_the_first_seed_are_shown(tmp_path):
    """`paper-fast` has five of each kind."""
    shown = Study("paper-fast", out=tmp_path, progress=False).published_sets()
    assert list(shown) == ["baseline\niteration 50", "model pool\niteration 50"]
    assert {one.config["seed"] for one in shown.values()} == {0}
    assert len([*(ROOT / "paper" / "sets").glob("paper-fast-ipc1-*.safetensors")]) == 10


def test_without_a_figure_nothing_is_saved(tmp_path):
    study = make(tmp_path)
    assert study.save_figure(None, "empty") == "nothing to draw yet"
    assert not study.figures.exists() and not study.written


def test_out_can_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DDLIB_OUT", str(tmp_path))
    assert Study("quick").out == tmp_path
    monkeypatch.delenv("DDLIB_OUT")
    assert Study("quick").out == ROOT


def test_tables_are_made_of_own_rows_or_of_committed_ones(whole):
    assert len(whole.published_rows()) == len(whole.results.rows())
    committed = Study("cifar10-small", out=whole.out / "elsewhere").published_rows()
    assert set(committed["dataset"]) == {"cifar10"}


def test_a_damaged_file_of_rows_is_named(study):
    run_together([Train(ImageSet("random_real", ipc=1), "MLP", 1)], study)
    path = next((study.runs / "rows").glob("*.json"))
    path.write_text(path.read_text()[:-5])
    with refused(path.name, "damaged"):
        _ = make(study.out).results


def test_an_unknown_profile_lists_the_known():
    with refused("'quik'", *PROFILES):
        Study("quik")


def test_coresets_are_chosen_by_a_net_of_their_own_settings(tmp_path, monkeypatch):
    seen = {}

    def coreset(data, *place, config, images, progress):
        seen.update(place=place, epochs=config.epochs, images=images)

    monkeypatch.setattr("ddlib.study.given.coreset", coreset)
    settings = {"feature_epochs": 7, "feature_images": 70, "coreset_epochs": 3}
    study = Study("quick", settings | {"coreset_images": 30}, out=tmp_path, progress=False)
    given.chosen_real(study, ImageSet("herding", "", 2, 1))
    assert seen == {"place": (2, 1, "herding"), "epochs": 3, "images": 30}


def test_what_a_registered_method_comes_with_holds_in_a_study(monkeypatch):
    """Before the study's settings, and after those of the study's `methods`; not its iterations,
    which a study needs to know.
    """

    class Mean(ddlib.Objective):
        def class_loss(self, net, real, synthetic, label):
            return (real.mean(0) - synthetic.mean(0)).square().sum()

    monkeypatch.setitem(ddlib.methods.METHODS, "mean-pixels", None)
    ddlib.register_method("mean-pixels", Mean, lr_images=7.0, batch_real=5, iterations=9)
    profile = get_profile("quick")
    config = profile.distill_config("main", 0, 1, "mean-pixels")
    assert (config.resolved().lr_images, config.resolved().batch_real) == (7.0, 5)
    assert config.iterations == profile.iterations
    named = {"own": {"method": "mean-pixels", "lr_images": 3.0}}
    config = get_profile("quick", {"methods": named}).distill_config("main", 0, 1, "own").resolved()
    assert (config.lr_images, config.batch_real, config.iterations) == (3.0, 5, 9)
