"""What Dask costs: the quick profile with 1, 2 and 4 workers beside the serial run, and tasks that
do nothing.

    python benchmarks/cluster.py [--workers 1 2 4] [--empty 10000] [--set NAME=VALUE]

Minutes; one thread each. Writes benchmarks/cluster.json and the table of docs/cluster.md.
"""

import argparse
import os
import re
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, as Dask's workers have it

from distributed import as_completed

from ddlib.machine import environment
from ddlib.store import ROOT, dumps, write_atomic
from ddlib.study import Study, get_profile
from ddlib.study.cluster import connect, on_cluster
from ddlib.study.plan import plan
from ddlib.study.profiles import parse_settings
from ddlib.study.tasks import run_plan

RESULTS = ROOT / "benchmarks" / "cluster.json"
PAGE = ROOT / "docs" / "cluster.md"


def measure(workers, settings, folder):
    """Seconds of the plan in series (0 workers) or on a cluster, and a second time with all done.

    A task that is done costs what a task costs beside itself: its way there and back, and the look
    at its files.
    """
    study = Study("quick", settings, folder, "cpu", progress=False)
    tasks = plan(study.profile)
    if not workers:
        started = time.perf_counter()
        failures = run_plan(study, tasks, say=None)
        return {"seconds": time.perf_counter() - started, "failures": len(failures)}
    with connect(workers, None) as study.client:
        study.client.wait_for_workers(workers)
        started = time.perf_counter()
        failures = run_plan(study, tasks, say=None)
        seconds = time.perf_counter() - started
        overhead = again(study, tasks)
    return {"seconds": seconds, "failures": len(failures), "overhead_ms": 1000 * overhead}


def again(study, tasks):
    """Seconds per task of tasks that are done, on one worker or several."""
    started = time.perf_counter()
    outcomes = list(on_cluster(tasks, study, None, None))
    assert all(outcome.done for outcome in outcomes)
    return (time.perf_counter() - started) / len(tasks)


def empty(number, workers):
    """Seconds per task that does nothing, submitted one by one as those of a plan are."""
    with connect(workers, None) as client:
        client.wait_for_workers(workers)
        started = time.perf_counter()
        futures = [client.submit(abs, -1, key=f"empty {i}", priority=-i) for i in range(number)]
        for _ in as_completed(futures, loop=client.loop):
            pass
        return (time.perf_counter() - started) / number


def table(run):
    """What the page shows of a run."""
    lines = ["| workers | wall time | of the serial run | beside the task itself |"]
    lines += ["| --- | --- | --- | --- |"]
    serial = run["quick"]["0"]["seconds"]
    for workers, one in run["quick"].items():
        name = "none (in series)" if workers == "0" else workers
        beside = f"{one['overhead_ms']:.1f} ms" if "overhead_ms" in one else ""
        share = f"{one['seconds'] / serial:.2f}"
        lines.append(f"| {name} | {one['seconds']:.0f} s | {share} | {beside} |")
    about = run["about"]
    lines += ["", f"{about['device']}, {about['cores']} cores; {run['tasks']} tasks (`quick`)."]
    lines[-1] += f" {run['empty']['number']} empty tasks: {run['empty']['ms']:.2f} ms each."
    most = max(one.get("overhead_ms", 0) for one in run["quick"].values())
    seconds = f"{most * run['paper'] / 1000:.0f} s"
    lines[-1] += f" The {run['paper']} tasks of `paper` cost {seconds} in all beside themselves."
    return "\n".join(lines) + "\n"


def publish(run, page=PAGE):
    """Put the table into the page."""
    text = Path(page).read_text()
    marked = r"(<!-- costs -->\n).*?(<!-- end costs -->)"
    write_atomic(page, re.sub(marked, lambda m: m[1] + table(run) + m[2], text, flags=re.DOTALL))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--empty", type=int, default=10_000)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", default=str(RESULTS))
    arguments = parser.parse_args()
    settings = parse_settings(arguments.set)
    run = {"about": environment("cpu") | {"cores": os.cpu_count()}, "settings": settings}
    run |= {"tasks": len(plan(get_profile("quick", settings))), "quick": {}}
    run |= {"paper": len(plan(get_profile("paper")))}
    for workers in (0, *arguments.workers):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["DDLIB_CACHE"] = f"{folder}/cache"  # nobody finds trained nets
            run["quick"][str(workers)] = measure(workers, settings, folder)
            print(workers, run["quick"][str(workers)], flush=True)
    seconds = empty(arguments.empty, 2)
    run["empty"] = {"number": arguments.empty, "workers": 2, "ms": 1000 * seconds}
    write_atomic(arguments.out, dumps(run))
    if Path(arguments.out) == RESULTS:
        publish(run)
    print(table(run))


if __name__ == "__main__":
    main()
