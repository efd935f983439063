"""The plan on Dask gives the rows of the serial run, whoever dies meanwhile: real processes."""

import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import dask
import pandas as pd
import pytest
import torch
from conftest import module, refused
from distributed import Client
from test_launcher import SETTINGS, TINY

from ddlib.study import Study, cluster, launcher
from ddlib.study.plan import ImageSet, Train, plan, select
from ddlib.study.tasks import Outcome, advance, is_done, run_plan
from ddlib.support.store import ROOT

PATIENCE = 120  # seconds until something is taken for lost
REAL = ImageSet("random_real", ipc=1)
SLOW = Train(REAL, "ConvNet", 2, settings=(("epochs", 200),))
CHANGED = {"seeds": [0, 1], "iterations": 30}
WORDS = [*SETTINGS, *(f"--set={name}={value}" for name, value in CHANGED.items())]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}


def make(folder, client=None, **changes):
    settings = TINY | CHANGED | changes
    return Study("quick", settings, folder, "cpu", progress=False, client=client)


def some_tasks(study):
    """A set, one on which nets take seconds, and every kind of task that depends on the former."""
    first, *others = select(plan(study.profile, "table4"), seed=[0], pool=["main"])
    return [first, SLOW, *others]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Two workers, restarted when a test has killed them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        with cluster.connect(2, None) as client:
            yield client


@pytest.fixture
def workers(client):
    """The client when both of its workers are there."""
    client.wait_for_workers(2, PATIENCE)
    return client


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """What the tests compare with: the tasks done in series."""
    study = make(tmp_path_factory.mktemp("serial"))
    assert run_plan(study, some_tasks(study), say=None) == []
    return study


def assert_same(study, serial, number=None):
    """A study's folder holds what the serial run's does, of the first tasks."""
    tasks, fresh = some_tasks(serial)[:number], make(study.out)
    assert all(is_done(task, fresh) for task in tasks)
    frames = [one.rows(tasks).drop(columns=["seconds", "machine"]) for one in (fresh, serial)]
    frames = [frame.drop(columns=[c for c in frame if c.endswith("_set")]) for frame in frames]
    pd.testing.assert_frame_equal(*frames, check_exact=True)


def wait_for(test):
    end = time.monotonic() + PATIENCE
    while not (found := test()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


# On the workers.


def running(dask_worker):
    return os.getpid(), [str(task.key) for task in dask_worker.state.executing]


def checkpoint_always():
    module("run").CHECKPOINT_SECONDS = -1


def break_some(undo=[]):  # noqa: B006
    """Distilling with seed 1 and training MLPs with KD fail from now on, until the next call."""
    study, tasks = module("study.study"), module("study.tasks")
    if undo:
        study.distill, tasks.evaluate = undo.pop()
        return
    undo.append((study.distill, tasks.evaluate))
    distill, evaluate = undo[0]

    def no_distill(config, *more, **options):
        if config.seed == 1:
            raise RuntimeError("no gradient")
        return distill(config, *more, **options)

    def no_evaluate(sets, data, nets, protocol, *more, **options):
        if nets == ["MLP"] and protocol == "kd":
            raise RuntimeError("no teacher")
        return evaluate(sets, data, nets, protocol, *more, **options)

    study.distill, tasks.evaluate = no_distill, no_evaluate


def take_memory():
    """Training takes 3 GB from now on, until the worker is started anew."""

    def evaluate(*_, **__):
        return bytes(b"1" * 3 * 10**9)

    module("study.tasks").evaluate = evaluate


# The same rows.


@pytest.mark.cluster
def test_a_cluster_gives_the_rows_of_the_serial_run(serial, workers, tmp_path):
    study, said = make(tmp_path, workers), []
    tasks = some_tasks(study)
    assert run_plan(study, tasks, say=said.append) == []
    assert said[-1] == f"{len(tasks)} of {len(tasks)} tasks done" and len(said) == len(tasks) + 1
    assert_same(study, serial)
    pids = {pid for pid, _ in workers.run(running).values()}
    assert len(pids) == 2 and os.getpid() not in pids
    rows = study.run("table4", seed=[0], pool=["main"])
    assert len(rows) and not study.results.frame()["machine"].str.contains("2 threads").any()


@pytest.mark.cluster
def test_drivers_share_a_store(serial, workers, tmp_path):
    """Two on the same cluster and one without: all finish, and nothing is distilled twice."""
    with Client(workers.scheduler.address, set_as_default=False) as second:
        studies = [make(tmp_path, client) for client in (workers, second, None)]
        works = [partial(run_plan, one, some_tasks(one), say=None) for one in studies]
        with ThreadPoolExecutor(2) as pool:
            others = [pool.submit(work) for work in works[:2]]
            assert works[2]() == []
        assert [other.result() for other in others] == [[], []]
    assert_same(studies[0], serial)


def test_a_study_travels_as_its_settings_and_each_process_has_one(tmp_path, monkeypatch):
    study = make(tmp_path)
    assert len(study.data.x_train) and study.load(REAL)
    sent = pickle.dumps((SLOW, study))
    assert len(sent) < 2000
    monkeypatch.chdir(tmp_path)
    (_, one), (_, two) = pickle.loads(sent), pickle.loads(sent)
    assert one is two and one.name == study.name and one.runs == study.runs and not one.progress
    assert one.client is None and one.data_root == study.data_root


@pytest.mark.cluster
def test_notebooks_find_their_tasks_done(workers, tmp_path, monkeypatch, capsys):
    nets = ["ConvNet", "MLP"]  # notebooks compare
    tasks, found = [Train(REAL, "MLP", 1), Train(REAL, "LeNet", 1)], []

    def execute(*_):
        found.append(all(is_done(task, make(tmp_path, nets=nets)) for task in tasks))

    monkeypatch.setattr(launcher, "execute", execute)
    monkeypatch.setattr(launcher, "plan", lambda profile: tasks)
    where = ["--out", str(tmp_path), "--scheduler", workers.scheduler.address]
    assert launcher.main([*WORDS, f"--set=nets={','.join(nets)}", *where]) == 0
    assert found == [True] * 5
    assert f"dashboard: {workers.dashboard_link}" in capsys.readouterr().out


# Faults.


@pytest.mark.cluster
def test_killed_in_a_distillation_another_worker_goes_on(serial, workers, tmp_path):
    workers.run(checkpoint_always)
    study = make(tmp_path, workers)
    with ThreadPoolExecutor(1) as pool:
        driver = pool.submit(run_plan, study, some_tasks(study)[:3], say=None)
        early = wait_for(lambda: list(tmp_path.rglob("it00005.safetensors")))[0]
        written = early.stat().st_mtime_ns
        wait_for(lambda: checkpoint_of(early) > written)
        kill_worker(workers, "dc main")
        assert driver.result(PATIENCE) == []
    assert early.stat().st_mtime_ns == written  # it did not begin anew
    assert_same(study, serial, 3)


@pytest.mark.cluster
def test_killed_in_an_evaluation_another_worker_does_it(serial, workers, tmp_path):
    study = make(tmp_path, workers)
    with ThreadPoolExecutor(1) as pool:
        driver = pool.submit(run_plan, study, [SLOW], say=None)
        wait_for(lambda: list((study.runs / "rows").glob("*.json")))
        kill_worker(workers, "train 2 ConvNet")
        assert driver.result(PATIENCE) == []
    assert run_plan(make(tmp_path), some_tasks(study)[:1], say=None) == []
    assert_same(study, serial, 2)


def checkpoint_of(snapshot):
    """When the checkpoint beside a snapshot was written, ns."""
    path = snapshot.parent / "checkpoint.safetensors"
    return path.stat().st_mtime_ns if path.is_file() else 0


def kill_worker(client, word):
    """kill -9 the worker that does a task with `word` in its key."""

    def find():
        states = client.run(running).values()
        return [pid for pid, keys in states if any(word in key for key in keys)]

    os.kill(wait_for(find)[0], signal.SIGKILL)


@pytest.mark.cluster
def test_a_task_that_raises_is_named_and_the_others_finish(serial, workers, tmp_path):
    workers.run(break_some)
    study, said = make(tmp_path, workers), []
    tasks = [*some_tasks(study), *select(plan(study.profile, "curve"), seed=[1], pool=["main"])]
    failures = run_plan(study, tasks, say=said.append)
    assert {str(task): str(error) for task, error in failures} == {
        "dc main, ipc 1, seed 1, iteration 30": "no gradient",
        "choose tau of kd: 1 MLP on dc main, ipc 1, seed 0, iteration 30": "no teacher",
    }
    left = [task for task in tasks if not is_done(task, make(tmp_path))]
    assert all(t.images.seed == 1 or "tau" in str(t) for t in left) and len(left) == 5
    assert said[-3] == f"{len(tasks) - len(left)} of {len(tasks)} tasks done"
    assert all(line.startswith("failed: ") for line in said[-2:])
    with pytest.raises(RuntimeError, match=r"^2 tasks failed; the first: .*no (gradient|teacher)$"):
        study.do(left)
    workers.run(break_some)
    study.do(left)
    assert_same(study, serial)


@pytest.mark.cluster
def test_a_budget_is_kept_and_the_next_call_goes_on(serial, workers, tmp_path):
    study, said = make(tmp_path, workers), []
    task = some_tasks(study)[0]
    assert run_plan(study, [task, SLOW], budget=-1, say=said.append) == []
    assert said == ["0 of 2 tasks done"] and not list(tmp_path.rglob("*.safetensors"))
    assert run_plan(study, [task], budget=0.3, say=said.append) == []
    assert said[1].startswith(f"{task}: not finished") and said[-1] == "0 of 1 tasks done"
    assert list(tmp_path.rglob("checkpoint.safetensors"))
    assert run_plan(study, some_tasks(study)[:2], say=None) == []
    assert_same(study, serial, 2)


@pytest.mark.cluster
def test_a_worker_keeps_its_memory_limit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "MEMORY_LIMIT", 2 * 2**30)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        cluster.connect(1, None) as client,
    ):
        assert "workers: 1, at most 2.0 GiB each" in capsys.readouterr().out
        client.run(take_memory)
        study = make(tmp_path, client)
        tasks = [Train(REAL, net, 1) for net in ("ConvNet", "MLP")]
        ((task, error),) = run_plan(study, tasks[:1], say=None)
        assert task == tasks[0] and "out of memory" in str(error)
        assert run_plan(study, tasks[1:], say=None) == []  # the worker was started anew


@pytest.mark.cluster
def test_workers_that_write_elsewhere_are_found_out(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0)
    study = make(tmp_path / "here", workers)
    study.origin = (*study.origin[:2], str(tmp_path / "there"), study.origin[3])
    with refused(study.runs, "must see that folder"):
        run_plan(study, [Train(REAL, "MLP", 1), Train(REAL, "LeNet", 1)], say=None)


def is_left(group):
    """Whether a process of a group lives."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.cluster
def test_ctrl_c_loses_nothing(serial, tmp_path):
    """All processes get the signal, as from a terminal."""
    words = ["work", "--store", str(tmp_path), "--pool", "main", "--workers", "1", *WORDS]
    command = [sys.executable, "-m", "ddlib", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    driver = subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True, **pipes)
    wait_for(lambda: list(tmp_path.rglob("it00005.safetensors")))
    os.killpg(driver.pid, signal.SIGINT)
    said, errors = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130 and "nothing is lost" in said and errors == ""
    assert list(tmp_path.rglob("checkpoint.safetensors"))  # 10 seconds before one is due
    wait_for(lambda: not is_left(driver.pid))
    study = make(tmp_path)
    assert run_plan(study, some_tasks(study)[:2], say=None) == []
    assert_same(study, serial, 2)


@pytest.mark.cluster
def test_the_commands_of_the_docs_a_late_worker_and_a_scheduler_that_dies(serial, tmp_path):
    """The scheduler is killed in mid-distillation; all is started again."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    block = re.search(r"```sh\n(dask scheduler .*?)```", page, re.DOTALL)[1]
    scheduler, worker, driver = (
        shlex.split(line.replace("/shared/", f"{tmp_path}/"), comments=True)
        for line in block.splitlines()
    )
    assert driver[:2] == ["python", "-m"] and driver[driver.index("--profile") + 1] == "paper"
    driver[driver.index("paper")] = "quick"
    driver += [*WORDS, "--pool", "main", "--seed", "0"]
    started = []

    def start(words, **options):
        words = words[1:] if words[0] == "python" else ["-m", *words]
        command = [sys.executable, *words]
        started.append(subprocess.Popen(command, env=ENVIRONMENT, cwd=tmp_path, **options))
        return started[-1]

    def start_scheduler():
        process = start(scheduler, stderr=subprocess.DEVNULL)
        wait_for(lambda: next(tmp_path.glob("*.json"), None))
        return process

    try:
        first = start_scheduler()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        lost = start(driver, **pipes)
        assert lost.stdout.readline().startswith("dashboard: ")  # it waits for workers
        start(worker, stderr=subprocess.DEVNULL)
        wait_for(lambda: list(tmp_path.rglob("it00005.safetensors")))
        first.kill()
        said, errors = lost.communicate(timeout=PATIENCE)
        assert lost.returncode == 2 and "Traceback" not in said
        assert errors == "error: the scheduler is gone; nothing is lost: the same command goes on\n"
        next(tmp_path.glob("*.json")).unlink()
        start_scheduler()
        start(worker, stderr=subprocess.DEVNULL)
        assert start(driver, stdout=subprocess.DEVNULL).wait(PATIENCE) == 0
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(PATIENCE)
    study = make(tmp_path / "study")
    assert run_plan(study, [SLOW], say=None) == []
    assert_same(study, serial)


# Without processes.


def test_without_the_options_dask_is_not_imported(tmp_path):
    code = (
        "import sys; sys.modules['distributed'] = None\n"
        "from ddlib.study import launcher\n"
        "assert launcher.main(['work', *sys.argv[1:]]) == 0\n"
        "assert not {'dask', 'distributed.client'} & set(sys.modules)\n"
        "assert launcher.main(['work', '--workers', '2', *sys.argv[1:]]) == 2\n"
    )
    only = ["--pool", "random_real", "--store", str(tmp_path)]
    command = [sys.executable, "-c", code, *WORDS, *only]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("error: Dask is not installed; needed: pip install")


def test_each_gpu_worker_sees_one_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    seen = [one["env"]["CUDA_VISIBLE_DEVICES"] for one in cluster.gpus(3)]
    assert seen == ["2", "5", "2"] and cluster.gpus(1)[0]["resources"] == {"GPU": 1}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    seen = [one["env"]["CUDA_VISIBLE_DEVICES"] for one in cluster.gpus(3)]
    assert seen == ["0", "1", "0"]


@pytest.mark.parametrize(("device", "resources"), [("cpu", None), ("cuda", {"GPU": 1})])
def test_a_task_asks_for_a_gpu_where_one_is_used(tmp_path, device, resources):
    class Submitted(Exception):
        pass

    def submit(*_, **how):
        raise Submitted(how.get("resources"), how["key"])

    study = make(tmp_path, SimpleNamespace(submit=submit))
    study.device = torch.device(device)
    with pytest.raises(Submitted) as caught:
        next(cluster.on_cluster([SLOW], study, None, None))
    assert caught.value.args[0] == resources and str(study.runs) in caught.value.args[1]


def test_a_scheduler_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "TIMEOUT", 0.2)
    for place in ("tcp://127.0.0.1:1", str(tmp_path / "none.json"), "nonsense"):
        assert launcher.main(["work", "--scheduler", place, "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: no scheduler answers at {place}") and "8786" in error
        assert error.count("\n") == 1


def test_the_bar_weighs_tasks_by_the_seconds_of_their_kind():
    sets = [ImageSet("dc", "main", 1, seed, 4) for seed in range(3)]
    trains = [Train(images, net, 1) for images in sets[:2] for net in ("MLP", "LeNet")]
    ticks = SimpleNamespace(set_description=lambda text: setattr(ticks, "text", text))
    outcomes = [Outcome(sets[0], 100.0, True), Outcome(trains[0], 4.0, True)]
    advance(ticks, outcomes, [*sets, *trains])
    assert ticks.n == 104 and ticks.total == 104 + 2 * 100 + 4 + 2 * 52
    assert ticks.text == "2 of 7 tasks"
