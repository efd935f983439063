"""The launcher behind `make reproduce`: runs notebooks 01 to 05 in sequence under papermill with one profile.

Exit status: 0 done, 1 a notebook failed, 2 a mistake in the command, 130 stopped with Ctrl-C.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

from ..errors import DDError
from ..progress import VARIABLE
from ..store import ROOT
from .profiles import PROFILES, get_profile, parse_settings
from .study import Study

NOTEBOOKS = ("01_distill", "02_pool_ablation", "03_kd_eval", "04_tables", "05_audit")


def parse_arguments(words=None):
    parser = argparse.ArgumentParser(prog="python -m ddlib", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--profile", default="quick", help=f"what to run: {', '.join(PROFILES)} (default: quick)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override a setting of the profile",
    )
    parser.add_argument("--out", default=None, help="where to write (default: this repository)")
    parser.add_argument(
        "--resume", action="store_true", help="go on with what an earlier run has finished"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--data-root", default=None, help="where CIFAR-10 lies or is downloaded to (default: data/)"
    )
    return parser.parse_args(words)


def main(words=None):
    arguments = parse_arguments(words)
    try:
        run(arguments)
    except DDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NotebookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nstopped; nothing is lost. The same command with --resume goes on from here (make reproduce does)."
        )
        return 130
    return 0


class NotebookError(Exception):
    """A notebook stopped with an error."""


def run(arguments):
    """Check everything that can be checked beforehand, run the notebooks, say what came out."""
    settings = parse_settings(arguments.set)
    if "dataset" in settings and Path(str(settings["dataset"])).exists():
        settings["dataset"] = str(
            Path(settings["dataset"]).resolve()
        )  # notebooks run in another folder
    get_profile(arguments.profile, settings)
    study = Study(arguments.profile, settings, arguments.out, arguments.device, arguments.data_root)
    if study.runs.exists() and not arguments.resume:
        raise DDError(
            f"{study.runs} holds an earlier run; --resume goes on with it, --out DIR writes elsewhere"
        )
    print(study, flush=True)  # loads the data: a missing data set is found out here
    parameters = {
        "profile": arguments.profile,
        "settings": settings,
        "out": str(study.out),
        "device": arguments.device,
        "data_root": str(Path(arguments.data_root).resolve()) if arguments.data_root else None,
    }
    notebooks = [ROOT / "notebooks" / f"{name}.ipynb" for name in NOTEBOOKS]
    check_parameters(notebooks, parameters)
    started, executed = time.perf_counter(), []
    for i, notebook in enumerate(notebooks, 1):
        print(f"[{i}/{len(notebooks)}] {notebook.stem}", flush=True)
        executed.append(execute(notebook, study.runs / "notebooks" / notebook.name, parameters))
    report(study, executed, time.perf_counter() - started)


def check_parameters(notebooks, parameters):
    """papermill only warns of a parameter that a notebook does not have; here it is an error."""
    import papermill

    for notebook in notebooks:
        known = papermill.inspect_notebook(str(notebook))
        for name in parameters:
            if name not in known:
                raise DDError(
                    f"{notebook.name} has no parameter {name!r}; valid: {', '.join(known)}"
                )


def execute(notebook, target, parameters):
    """Execute one notebook into `target`, its progress on the terminal."""
    import papermill

    os.environ.pop("JUPYTER_PATH", None)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = (
        "1"  # the kernel of this environment, whatever else the user has installed
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with shown_progress(target.parent / ".progress"):
        try:
            papermill.execute_notebook(
                str(notebook),
                str(target),
                parameters,
                kernel_name="python3",
                progress_bar=False,
                cwd=str(ROOT),
                extra_arguments=[
                    "--log-level=CRITICAL"
                ],  # to the kernel: a stopped one need not say so at length
            )
        except papermill.PapermillExecutionError as error:
            if error.ename == "DDError":
                raise DDError(error.evalue) from error
            raise NotebookError(
                f"{target} stopped in cell {error.exec_count}: {error.ename}: {error.evalue}"
            ) from error
    return target


class shown_progress:
    """While open, whatever the kernel's progress bars write to `path` is copied to this process's stderr."""

    def __init__(self, path):
        self.path, self.done = path, threading.Event()

    def __enter__(self):
        self.path.write_text("")
        os.environ[VARIABLE] = str(self.path)
        self.thread = threading.Thread(target=self.copy, daemon=True)
        self.thread.start()

    def copy(self):
        with open(self.path) as file:
            while not self.done.is_set():
                text = file.read()
                if text and sys.stderr.isatty():
                    sys.stderr.write(text)
                elif text:  # a log: one line now and then instead of a bar redrawn in place
                    sys.stderr.write(
                        text.replace("\r", "\n").strip().rsplit("\n", 1)[-1].rstrip() + "\n"
                    )
                sys.stderr.flush()
                self.done.wait(0.5 if sys.stderr.isatty() else 15)

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        os.environ.pop(VARIABLE)
        self.path.unlink(missing_ok=True)


def report(study, executed, seconds):
    """Print the result table and the paths of everything that was made."""
    out, name = study.out, study.name
    table = out / "paper" / "tables" / f"{name}-table4.md"
    print(f"\n{table.read_text()}")
    groups = {
        "executed notebooks": executed,
        "results": [
            out / "paper" / "results" / f"{name}.csv",
            *sorted((out / "paper" / "tables").glob(f"{name}-*")),
        ],
        "figures": sorted(study.figures.glob("*.png")),
    }
    for title, paths in groups.items():
        print(f"{title}:")
        for path in paths:
            print(f"  {os.path.relpath(path)}")
    print(f"done in {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    sys.exit(main())
