"""Runs a study: all notebooks in sequence, or the tasks of its plan for as long as there is time.

    python -m ddlib --profile quick
    python -m ddlib work --profile paper --budget 8m --store DIR     (goes on at every call)
    python -m ddlib --profile quick --workers 4                      (on Dask: docs/cluster.md)
    python -m ddlib status --profile paper --store DIR
    python -m ddlib publish --profile paper --store DIR              (copies its results to paper/)

Exit status: 0 done, 1 a notebook or task failed, 2 a mistake, 130 stopped with Ctrl-C.
"""

import argparse
import os
import re
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import pandas as pd

from ..datasets import DATASETS, MAY_DOWNLOAD
from ..support.errors import DDError, check_range
from ..support.machine import kind
from ..support.progress import VARIABLE
from ..support.store import ROOT, load_tensors
from .plan import PARTS, Task, plan, select
from .profiles import PROFILES, Profile, parse_settings
from .study import Study
from .tasks import check_plan, is_done, run_plan

NOTEBOOKS = ("01_distill", "02_pool_ablation", "03_kd_eval", "04_tables", "05_audit", "06_methods")
FILTERS = {"ipc": int, "seed": int, "pool": str, "net": str, "protocol": str}
SECONDS = {"s": 1, "m": 60, "h": 3600}


def notebooks_of(profile: Profile) -> list[str]:
    """Those that a profile has something for: 06 compares methods, the others are DC's."""
    wanted = {True: bool(profile.methods), False: "table4" in profile.parts}
    return [name for name in NOTEBOOKS if wanted[name == "06_methods"]]


class NotebookError(Exception):
    """A notebook stopped with an error."""


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    """The command line. Raises `DDError` for an option of another command."""
    parser = argparse.ArgumentParser(
        prog="python -m ddlib", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("command", nargs="?", default="notebooks", choices=COMMANDS, help="default: notebooks")
    add("--profile", default="quick", help=f"{', '.join(PROFILES)} (default: quick)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="override a setting")
    add("--out", "--store", help="where to write (default: this repository)")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--data-root", help="where CIFAR-10 lies or is downloaded to (default: data/)")
    add("--resume", action="store_true", help="notebooks: go on with what is there")
    add = parser.add_argument_group("notebooks and work, with Dask (docs/cluster.md)").add_argument
    add("--workers", type=int, help="processes, with one thread or one GPU each")
    add("--scheduler", help="address or scheduler file of a cluster that runs already")
    add = parser.add_argument_group("work and status").add_argument
    add("--budget", help="90s, 8m, 2h (default: until all is done)")
    add("--n", type=int, help="nets per cell (default: the profile's)")
    add("--part", help=f"only this part: {', '.join(PARTS)}")
    add("--until", type=int, help="only up to this iteration")
    for name, type_ in FILTERS.items():
        add(f"--{name}", type=type_, action="append", default=[], help=f"only this {name}")
    arguments = parser.parse_args(words)
    for name in ("budget", "n", "part", "until", *FILTERS):
        given = getattr(arguments, name) not in (None, [])
        if given and arguments.command not in ("work", "status"):
            raise DDError(f"--{name} belongs to the commands work and status")
    for name in ("workers", "scheduler"):
        if getattr(arguments, name) is not None and arguments.command not in ("notebooks", "work"):
            raise DDError(f"--{name} belongs to the commands notebooks and work")
    if arguments.workers is not None:
        check_range("workers", arguments.workers, 1)
        if arguments.scheduler:
            raise DDError("--workers starts a cluster, --scheduler uses one; needed: one of them")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    try:
        arguments = parse_arguments(words)
        arguments.settings = parse_settings(arguments.set)
        path = Path(str(arguments.settings.get("dataset", "")))
        if path.name and str(path) not in DATASETS and path.exists():  # notebooks run elsewhere
            arguments.settings["dataset"] = str(path.resolve())
        place = arguments.out, arguments.device, arguments.data_root
        study = Study(arguments.profile, arguments.settings, *place)
        with clients(study, arguments) as study.client:
            return COMMANDS[arguments.command](study, arguments)
    except (DDError, NotebookError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, DDError) else 1
    except KeyboardInterrupt:
        print("\nstopped; nothing is lost: the same command goes on (of notebooks: with --resume)")
        return 130


def clients(study: Study, arguments: Namespace) -> AbstractContextManager:
    """The client of a cluster, or None."""
    if not (arguments.workers or arguments.scheduler):
        return nullcontext()
    from .cluster import connect

    return connect(arguments.workers, arguments.scheduler, kind(study.device) == "cuda")


def work(study: Study, arguments: Namespace) -> int:
    """Do the tasks of the plan until the budget is spent."""
    budget = parse_duration(arguments.budget) if arguments.budget else None
    study.progress, tasks = sys.stderr.isatty(), tasks_of(study, arguments)
    check_plan(tasks, study)
    failures = run_plan(study, tasks, budget, partial(print, flush=True))
    return 1 if failures else 0


def status(study: Study, arguments: Namespace) -> int:
    """How many tasks of the plan are done and left, by ipc, seed and kind, and what comes next.

    No data set is downloaded for that: without it, tasks on sets made of real images are left out.
    """
    tasks = every = tasks_of(study, arguments)
    before = MAY_DOWNLOAD.set(False)
    try:
        study.data  # noqa: B018 (loaded here)
    except DDError as error:
        study.data = AbsentData(study)
        tasks = [task for task in every if not task.images.are_given]
        without = len(every) - len(tasks)
        print(f"{without} tasks are not counted: their images are made of data not here: {error}")
    finally:
        MAY_DOWNLOAD.reset(before)
    if not tasks:
        return 0
    done = [is_done(task, study) for task in tasks]
    places = [(t.images.ipc, t.images.seed, type(t).__name__.lower()) for t in tasks]
    lines = pd.DataFrame(places, columns=["ipc", "seed", "kind"]).assign(done=done)
    table = lines.groupby(["ipc", "seed", "kind"], sort=False)["done"].agg(tasks="size", done="sum")
    print(table.eval("left = tasks - done").reset_index().to_string(index=False))
    counted = "tasks" if tasks is every else "of the others"
    print(f"all {counted} are done" if all(done) else f"next: {tasks[done.index(False)]}")
    return 0


class AbsentData:
    """What a checkpoint of a study says of its data set, which is not there: no images."""

    def __init__(self, study: Study) -> None:
        paths = (study.runs / "distill").glob("*/checkpoint.safetensors")
        self.described = {"name": study.profile.dataset}  # without a checkpoint there are no sets
        for path in sorted(paths)[:1]:
            self.described = load_tensors(path)[1]["settings"]["data"]
        self.name, self.content = self.described["name"], self.described.get("content", "")

    def about(self) -> dict:
        """See `Data.about`."""
        return self.described


def publish(study: Study, arguments: Namespace) -> int:
    """Copy tables and latest sets of a study to paper/."""
    study.publish(ROOT / "paper")
    study.publish_sets(ROOT / "paper")
    print(*study.written, sep="\n")
    return 0


def tasks_of(study: Study, arguments: Namespace) -> list[Task]:
    """The tasks that the filters let through."""
    only = {name: getattr(arguments, name) for name in FILTERS}
    return select(plan(study.profile, arguments.part, arguments.n), arguments.until, **only)


def parse_duration(text: str) -> float:
    """Seconds of "90s", "8m" or "2h"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match:
        raise DDError(f"budget is {text!r}; needed: a number with s, m or h, such as 8m")
    return float(match[1]) * SECONDS[match[2]]


def run_notebooks(study: Study, arguments: Namespace) -> int:
    """Check what can be checked beforehand, run the notebooks, say what came out."""
    if not (ROOT / "notebooks").is_dir():
        raise DDError(f"no notebooks in {ROOT}; this command needs a checkout of ddlib")
    if study.runs.exists() and not arguments.resume:
        raise DDError(
            f"{study.runs} holds an earlier run; --resume goes on, --out writes elsewhere"
        )
    nets, table5 = study.profile.nets, "table5" in study.profile.parts
    if table5 and not ("ConvNet" in nets and len(nets) > 1 and study.profile.pools):
        given = f"nets is {nets}, pools is {study.profile.pools}"
        raise DDError(f"{given}; the notebooks compare ConvNet with other nets, and pools")
    print(study, flush=True)  # loads the data: a missing data set is found out here
    check_plan(plan(study.profile), study)
    study.begin()
    parameters = {
        "profile": arguments.profile,
        "settings": arguments.settings,
        "out": str(study.out),
        "device": arguments.device,
        "data_root": str(Path(study.data_root).resolve()) if arguments.data_root else None,
    }
    notebooks = [ROOT / "notebooks" / f"{name}.ipynb" for name in notebooks_of(study.profile)]
    started = time.perf_counter()
    if study.client is not None:  # the notebooks will find everything done
        study.progress = sys.stderr.isatty()
        if run_plan(study, plan(study.profile), say=partial(print, flush=True)):
            return 1
    for i, notebook in enumerate(notebooks, 1):
        print(f"[{i}/{len(notebooks)}] {notebook.stem}", flush=True)
        execute(notebook, study.runs / "notebooks" / notebook.name, parameters)
    report(study, time.perf_counter() - started)
    return 0


def execute(notebook: Path, target: Path, parameters: Mapping[str, object]) -> None:
    """Execute one notebook into `target`, its progress on the terminal."""
    import papermill

    os.environ.pop("JUPYTER_PATH", None)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, whatever else there is
    terminal = Path(f"/proc/{os.getpid()}/fd/2")
    if sys.stderr.isatty() and terminal.exists():  # the kernel draws its bars there
        os.environ[VARIABLE] = str(terminal)
    target.parent.mkdir(parents=True, exist_ok=True)
    options = {"kernel_name": "python3", "progress_bar": False, "cwd": str(ROOT)}
    options["extra_arguments"] = ["--log-level=CRITICAL"]  # a stopped kernel need not say so
    try:
        papermill.execute_notebook(str(notebook), str(target), parameters, **options)
    except papermill.PapermillExecutionError as error:
        if error.ename == "DDError":
            raise DDError(error.evalue) from error
        place = f"{target} stopped in cell {error.exec_count}"
        raise NotebookError(f"{place}: {error.ename}: {error.evalue}") from error


def report(study: Study, seconds: float) -> None:
    """Print Table 4 or that of the methods, and the paths of everything that was made."""
    tables, results = (study.out / "paper" / part for part in ("tables", "results"))
    shown = [tables / f"{study.name}-{name}.md" for name in ("table4", "methods")]
    print(*(f"\n{path.read_text()}" for path in shown if path.is_file()), sep="")
    groups = {
        "executed notebooks": sorted((study.runs / "notebooks").glob("*.ipynb")),
        "results": [*sorted((results / study.name).glob("*")), *tables.glob(f"{study.name}-*")],
        "figures": sorted(study.figures.glob("*.png")),
    }
    for title, paths in groups.items():
        print(f"{title}:", *(f"  {os.path.relpath(path)}" for path in paths), sep="\n")
    print(f"done in {seconds / 60:.1f} minutes")


COMMANDS = {"notebooks": run_notebooks, "work": work, "status": status, "publish": publish}
