"""The plan on a Dask cluster: tasks as futures that wait for those they need. See docs/cluster.md.

Dask schedules, and does a task elsewhere when its worker dies; no array travels through it.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..support.errors import DDError
from ..support.machine import kind
from .plan import Task, needs
from .tasks import Outcome, Stop, in_series, is_done, is_ready

try:
    import dask
    from distributed import (
        Client,
        Future,
        KilledWorker,
        Nanny,
        Reschedule,
        Scheduler,
        SpecCluster,
        Worker,
        as_completed,
        get_worker,
    )
    from distributed.system import MEMORY_LIMIT
except ImportError as error:
    raise DDError("Dask is not installed; needed: pip install -e '.[cluster]'") from error

if TYPE_CHECKING:
    from .study import Study

PATIENCE = 60  # seconds until a shared file system shows what another host has written
TIMEOUT = 10  # seconds until a scheduler has answered
ONE_AT_A_TIME = threading.Lock()  # a study is no object for several threads of a worker
# ddlib keeps freed memory for its next task: a worker that is full is at work, not to be paused
OWN = {f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause")}
OWN |= {"distributed.deploy.lost-worker-timeout": "5 minutes"}  # a busy machine starts one slowly


@contextlib.contextmanager
def connect(workers: int | None, scheduler: str | None, gpu: bool = False) -> Iterator[Client]:
    """A client of `workers` processes of its own or of the cluster at an address or scheduler file.

    Each of its own has one thread or, with `gpu`, one GPU, and an equal share of the memory; one
    that takes more is killed. Says where the dashboard is. Raises `DDError` if no cluster answers.
    """
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # we say it in one line
    with contextlib.ExitStack() as stack:
        where: object = scheduler
        if workers:
            stack.enter_context(dask.config.set(OWN))
            where = stack.enter_context(own_cluster(workers, gpu))
            print(f"workers: {workers}, at most {MEMORY_LIMIT / workers / 2**30:.1f} GiB each")
        elif Path(str(scheduler)).is_file():
            where = None
        try:
            file = scheduler if where is None else None
            client = Client(where, scheduler_file=file, timeout=TIMEOUT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise DDError(
                f"no scheduler answers at {scheduler}; needed: an address such as "
                "tcp://host:8786, or the file that 'dask scheduler --scheduler-file' wrote"
            ) from error
        stack.enter_context(client)
        print(f"dashboard: {client.dashboard_link}", flush=True)
        yield client


def own_cluster(workers: int, gpu: bool) -> SpecCluster:
    """A LocalCluster of processes with one thread each; with `gpu`, each sees one GPU."""
    every = {"nthreads": 1, "memory_limit": MEMORY_LIMIT // workers, "dashboard": False}
    every |= {"silence_logs": logging.CRITICAL, "preload": [__name__]}
    each = gpus(workers) if gpu else [{}] * workers
    spec = {i: {"cls": Nanny, "options": every | own} for i, own in enumerate(each)}
    local = {"host": "127.0.0.1", "dashboard": True, "dashboard_address": "127.0.0.1:0"}
    return SpecCluster(spec, {"cls": Scheduler, "options": local}, silence_logs=logging.CRITICAL)


def dask_setup(worker: Worker) -> None:
    """What Dask calls in a worker that starts: Ctrl-C is the driver's, who closes its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def gpus(workers: int) -> list[dict[str, Any]]:
    """Options of workers that take this machine's GPUs in turn, or CUDA_VISIBLE_DEVICES'."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = names if all(names) else [str(i) for i in range(torch.cuda.device_count())]
    seen = [{"CUDA_VISIBLE_DEVICES": names[i % len(names)]} for i in range(workers)]
    return [{"resources": {"GPU": 1}, "env": one} for one in seen]


def on_cluster(
    tasks: Sequence[Task], study: "Study", budget: float | None, stop: Stop | None
) -> Iterator[Outcome]:
    """Do tasks on `study.client`'s workers, the first of those that can begin first.

    See `tasks.run_plan`. Raises `DDError` if the scheduler is gone, or if the workers' files are
    not where the study looks for them.
    """
    client: Client = study.client
    done: list[Task] = []
    end = None if budget is None else time.time() + budget
    gpu = {"resources": {"GPU": 1}} if kind(study.device) == "cuda" else {}
    futures, before = {}, {}
    for i, task in enumerate(tasks):
        # Two drivers that want the same share it
        key = type(task).__name__.lower(), str(task), str(study.runs), str(end)
        before[key] = [futures[need] for need in needs(task, study.profile) if need in futures]
        how = {"key": key, "priority": -i, **gpu}
        futures[task] = client.submit(work, task, study, end, *before[key], **how)
    names = {future.key: task for task, future in futures.items()}
    try:
        for future in as_completed(list(futures.values()), loop=client.loop):
            outcome = outcome_of(future, names[future.key], before[future.key])
            if outcome:
                yield outcome
            if outcome and outcome.done:
                done.append(outcome.task)
                if len(done) == 1:  # a mistake is found out early
                    check(done, study)
            if stop and stop():
                break
    finally:
        with contextlib.suppress(Exception):  # of a scheduler that is gone
            client.cancel([future for future in futures.values() if not future.done()])
    check(done, study)


def work(task: Task, study: "Study", end: float | None, *before: Outcome | None) -> Outcome | None:
    """On a worker: a task as in series, until `end` (seconds since 1970); None if not begun."""
    if not all(one and one.done for one in before):
        return None
    if before and not appears(lambda: is_ready(task, study), study):
        raise DDError(f"what other workers made is not in {study.runs}; all must see that folder")
    halt = partial(is_unwanted, get_worker(), get_worker().get_current_task())
    with ONE_AT_A_TIME:
        budget = None if end is None else end - time.time()
        outcome = next(in_series([task], study, budget, halt), None)
    if outcome and outcome.error:
        raise outcome.error
    if halt() and not (outcome and outcome.done):
        raise Reschedule
    return outcome


def is_unwanted(worker: Worker, key: Any) -> bool:
    """Whether a worker is closing, or nobody waits for its task any more."""
    task = worker.state.tasks.get(key)
    return worker.status.name.startswith("clos") or task is None or task.state != "executing"


def appears(test: Callable[[], bool], study: "Study") -> bool:
    """Whether a test of a study's files holds within `PATIENCE`."""
    end = time.monotonic() + PATIENCE
    while True:
        study.results.refresh()
        if (holds := test()) or time.monotonic() > end:
            return holds
        time.sleep(1)


def outcome_of(future: Future, task: Task, before: Sequence[Future]) -> Outcome | None:
    """What came of a task; None if it was not begun, for want of what it needs or of time."""
    if future.status == "finished":
        return future.result()
    if future.status != "error":
        raise DDError("the scheduler is gone; nothing is lost: the same command goes on")
    if any(each.status == "error" for each in before):  # Dask passes their error on
        return None
    error = future.exception()
    if isinstance(error, KilledWorker):
        error = RuntimeError("every worker that tried died: out of memory, or killed")
    return Outcome(task, 0.0, False, error)


def check(done: Sequence[Task], study: "Study") -> None:
    """Raise `DDError` if what workers say is done is not to be seen here."""
    if not appears(lambda: all(is_done(task, study) for task in done), study):
        raise DDError(f"what the workers made is not in {study.runs}; they must see that folder")
