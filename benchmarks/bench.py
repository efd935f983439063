"""How fast is ddlib here? Measures steps, epochs, iterations and evaluations, beside the machine's
own ceilings.

    python benchmarks/bench.py  # ddlib alone
    python benchmarks/bench.py --reference DIR  # beside a checkout of VICO-UoE/DatasetCondensation

Minutes, a quarter of an hour beside the reference on a CPU; needs no data set. Every side of a
measurement runs in a process of its own (ddlib changes how its process hands out memory) with the
same inputs and threads; the sides of one measurement take turns, repetition by repetition, so that
a machine that slows down slows all of them. Writes benchmarks/results/<device>.json, and from all
of those RESULTS.md and scaling.png.
"""

import argparse
import contextlib
import fnmatch
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime

import measures
import reference
import render
import torch

from ddlib.nets import NETS
from ddlib.support.errors import DDError, check_choice, check_range
from ddlib.support.machine import environment, pick_device
from ddlib.support.store import ROOT, dumps, write_atomic

# Epochs and test images on a CPU: seconds for the heavy nets, enough epochs for the light ones to
# outweigh what is done once.
CPU_SIZES = {
    "ConvNet": (5, 500),
    "MLP": (100, 2000),
    "LeNet": (100, 2000),
    "AlexNet": (1, 100),
    "VGG11": (1, 100),
    "ResNet18": (1, 100),
}
PANELS = {
    "ipc": (1, 5, 10, 20, 50),
    "width": (32, 64, 128),
    "classes": (2, 5, 10, 20),
    "side": (28, 32),
}
FULL = {
    "method": "dc",
    "net": "ConvNet",
    "width": 128,
    "classes": 10,
    "side": 32,
    "ipc": 10,
    "batch_real": 256,
    "stock": 5000,
    "nets": 1,
    "outer": 1,
    "inner": 1,
    "epochs": 1,
    "test": 1,
    "warmup": 1,
    "times": 1,
}
TINY = {"width": 32, "batch_real": 4, "stock": 16}


def cases(device, tiny=False):
    """Every measurement by name: its sizes, warm-up, how many times `--repeats` it is repeated, its
    sides, what is shortened.

    On a CPU some are shortened so that all fit into a quarter of an hour. `stock` is the number of
    real images per class.
    """
    cpu, base = device == "cpu", FULL | (TINY if tiny else {})
    ours = ["float32", "bfloat16"] if cpu else ["float32", "tf32", "bfloat16"]
    quick = {"warmup": 3, "times": 3} if cpu else {"warmup": 6, "times": 3}
    slow = {"warmup": 1, "times": 1} if cpu else quick
    found = {"ceilings": base | {"kind": "ceilings", "sides": ours, "times": 3}}
    size = (2048, 256) if cpu else (8192, 2048)
    found["ceilings"] |= dict(
        zip(("matmul", "conv_images"), (128, 4) if tiny else size, strict=True)
    )
    for ipc in (1, 10, 50):
        plain = ["plain"] if ipc == 10 or not cpu else []
        found[f"step-ipc{ipc}"] = (
            base | slow | {"kind": "step", "ipc": ipc, "sides": [*ours, *plain]}
        )
    found["step-dsa-ipc1"] = found["step-ipc1"] | {"method": "dsa", "sides": ours}
    whole = {"kind": "iteration", "method": "dm", "ipc": 10, "sides": ours}
    found["iteration-dm-ipc10"] = base | slow | whole
    for ipc in (10, 50):
        found[f"epoch-ipc{ipc}"] = base | quick | {"kind": "epoch", "ipc": ipc, "sides": ours}
    for ipc, outer, inner in ((1, 1, 1), (10, 10, 50)):
        sizes = {"ipc": ipc, "outer": outer, "inner": inner}
        if cpu:
            sizes |= {
                "outer": min(outer, 2),
                "inner": min(inner, 5),
                "batch_real": min(64, base["batch_real"]),
            }
        few = slow if ipc == 1 or cpu else {"warmup": 2, "times": 1}  # seconds each
        found[f"iteration-ipc{ipc}"] = (
            base | few | {"kind": "iteration", "sides": ours, "note": shortened(sizes)} | sizes
        )
    for net in NETS:
        sizes = {"net": net, "nets": 10, "epochs": 301, "test": 10000}
        if cpu or tiny:
            epochs, test = (1, 10) if tiny else CPU_SIZES[net]
            sizes |= {"nets": 2, "epochs": epochs, "test": test, "ipc": 1 if tiny else base["ipc"]}
        about = {"kind": "evaluation", "sides": ours if cpu else ours[1:], "note": shortened(sizes)}
        found[f"evaluation-{net}"] = base | about | sizes
    some = {"batch_real": min(32, base["batch_real"])} if cpu else {}
    panels = {name: values[:2] for name, values in PANELS.items()} if tiny else PANELS
    found["scaling"] = (
        base
        | slow
        | {"kind": "scaling", "sides": ["float32"], "panels": panels, "note": shortened(some)}
        | some
    )
    for case in found.values():
        if tiny and case["kind"] != "iteration":  # the loops are those of an ipc
            case["ipc"] = min(2, case["ipc"])
    return found


def shortened(sizes):
    """In words, what of the whole work is done; "" if all."""
    whole = {
        "batch_real": (256, "real images per class"),
        "epochs": (301, "epochs"),
        "nets": (10, "nets"),
        "test": (10000, "test images"),
    }
    if sizes.get("ipc") == 10:
        whole |= {"outer": (10, "outer steps"), "inner": (50, "inner epochs")}
    return ", ".join(
        f"{sizes[k]} of {n} {words}"
        for k, (n, words) in whole.items()
        if k in sizes and sizes[k] < n
    )


def parse_arguments(words=None):
    parser = argparse.ArgumentParser(
        prog="python benchmarks/bench.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--reference",
        metavar="DIR",
        help="a checkout of VICO-UoE/DatasetCondensation to measure beside",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="NAME,...",
        help="these measurements (* allowed); nothing is written",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="repetitions of slow measurements; quick ones: 3 times as many",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=0,
        help="start no measurement after so many minutes (0: no limit)",
    )
    parser.add_argument(
        "--end-to-end",
        action="store_true",
        help="also time `python -m ddlib --profile quick`, once",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes: does it run at all? Nothing is written"
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="instead of benchmarks/results/<device>.json; the report lies beside it",
    )
    parser.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="render RESULTS.md, scaling.png",
    )
    parser.add_argument(
        "--one", metavar="NAME", help="one measurement in this process; prints JSON"
    )
    parser.add_argument(
        "--side", default="float32", help="for --one: float32, tf32, bfloat16, plain or reference"
    )
    parser.add_argument(
        "--turns", action="store_true", help=argparse.SUPPRESS
    )  # wait for a line before each repetition
    return parser.parse_args(words)


def main(words=None):
    arguments = parse_arguments(words)
    try:
        check_range("repeats", arguments.repeats, 1)
        device = pick_device(arguments.device).type
        if not arguments.one:
            return everything(arguments, device)
        print(json.dumps(one(arguments, device)), flush=True)
    except DDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def one(arguments, device):
    """The records of one measurement on one side, in this process."""
    found = cases(device, arguments.tiny)
    case, side, repeats = (
        found[check_choice("measurement", arguments.one, found)],
        arguments.side,
        arguments.repeats,
    )
    answer, turn, driver = sys.stdout, None, None
    if case["kind"] == "ceilings":
        return measures.ceilings(case, device, repeats)
    if case["kind"] == "scaling":
        return scaling(case, device, repeats)
    if side == "reference":
        if not arguments.reference:
            raise DDError("--side reference needs --reference DIR")
        driver = reference.load(arguments.reference)
    else:
        check_choice("side", side, case["sides"])
    if arguments.turns:

        def turn():
            print("ready", file=answer, flush=True)
            sys.stdin.readline()

    with contextlib.redirect_stdout(sys.stderr):  # the reference prints
        record = measures.measure(case, side, device, repeats, turn, driver)
    return [{"kind": case["kind"], **record}]


def scaling(case, device, repeats):
    """Records of matching steps where one size varies and the others stay."""
    rows = []
    for panel, values in case["panels"].items():
        for value in values:
            record = measures.measure(
                case | {"kind": "step", panel: value}, "float32", device, repeats
            )
            del record["peak_mb"]  # the process is not fresh
            rows.append(
                {
                    "kind": "scaling",
                    "panel": panel,
                    "x": value,
                    "batch_real": case["batch_real"],
                    **record,
                }
            )
    return rows


def everything(arguments, device):
    """All measurements that were asked for, a line on each as it is done; then the files. Exit
    status: 1 if one failed.
    """
    found, started = cases(device, arguments.tiny), time.monotonic()
    chosen = choose(arguments.only, found)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(device) | machine(device),
        "settings": {"repeats": arguments.repeats, "tiny": arguments.tiny},
        "reference": reference.fingerprint(arguments.reference) if arguments.reference else "",
        "cases": {name: found[name] for name in chosen},
        "records": [],
        "skipped": [],
        "failed": {},
        "end_to_end": None,
        "minutes": 0,
    }
    print(
        f"{result['environment']['device']}, torch {result['environment']['torch']}; "
        "median [min, max]",
        flush=True,
    )
    for name in chosen:
        if arguments.minutes and time.monotonic() - started > 60 * arguments.minutes:
            result["skipped"].append(name)
            print(f"{name}: skipped, time is up", flush=True)
            continue
        try:
            rows = take_turns(name, found[name], arguments, device)
        except MeasurementError as error:
            result["failed"][name] = str(error)
            print(f"{name}: failed: {error}", file=sys.stderr, flush=True)
            continue
        result["records"] += [{"case": name, **row} for row in rows]
        print(*render.lines(result, name), sep="\n", flush=True)
        result["minutes"] = round((time.monotonic() - started) / 60, 1)
        if arguments.json:  # what is done is safe, whatever happens to the rest
            write_atomic(arguments.json, dumps(result))
    if arguments.end_to_end:
        try:
            result["end_to_end"] = end_to_end(device)
            print(f"end to end, profile quick: {result['end_to_end']['seconds']:.0f} s", flush=True)
        except MeasurementError as error:
            result["failed"]["end to end"] = str(error)
    result["minutes"] = round((time.monotonic() - started) / 60, 1)
    write(arguments, result)
    return 1 if result["failed"] else 0


def choose(only, found):
    """The names that `--only` asks for; all if it is empty."""
    if not only:
        return list(found)
    for pattern in only.split(","):
        if not fnmatch.filter(found, pattern):
            check_choice("measurement", pattern, found)
    return [
        name for name in found if any(fnmatch.fnmatch(name, pattern) for pattern in only.split(","))
    ]


def machine(device):
    """What else decides a speed."""
    about = {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }
    if device == "cuda":
        about |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return about


class MeasurementError(Exception):
    """A child process ended without a result. The message is its last line."""


class Child:
    """A process that measures one side of a case, and waits for its turn before each repetition."""

    def __init__(self, name, side, arguments, device):
        words = [
            sys.executable,
            __file__,
            "--one",
            name,
            "--side",
            side,
            "--device",
            device,
            "--turns",
            "--repeats",
            str(arguments.repeats),
        ]
        words += ["--tiny"] * arguments.tiny + (
            ["--reference", arguments.reference] if arguments.reference else []
        )
        hidden = (
            {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        )  # the reference takes a GPU if it sees one
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | hidden,
        )

    def advance(self):
        """Wait until it is ready for a repetition (None), or done (its records)."""
        line = self.process.stdout.readline()
        if line.strip() == "ready":
            return None
        if self.process.wait() or not line:
            self.errors.seek(0)
            last = self.errors.read().strip().splitlines()[-1:] or [
                f"exit status {self.process.returncode}"
            ]
            raise MeasurementError(last[0].removeprefix("error: "))
        return json.loads(line)

    def go(self):
        with contextlib.suppress(BrokenPipeError):  # it died while it waited: `advance` says why
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        return self.advance()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self.errors.close()


def take_turns(name, case, arguments, device):
    """The records of all sides of a case: one process each, started one after the other, then one
    repetition each in turn.
    """
    alone = case["kind"] in ("ceilings", "scaling")
    sides = (
        case["sides"][:1]
        if alone
        else [*case["sides"], *(["reference"] if arguments.reference else [])]
    )
    children, results = [], {}
    try:
        for side in sides:
            children.append(Child(name, side, arguments, device))
            results[side] = children[-1].advance()  # warms up while nothing else runs
        while not all(results.values()):
            for side, child in zip(sides, children, strict=True):
                results[side] = results[side] or child.go()
    finally:
        for child in children:
            child.close()
    return [row for side in sides for row in results[side]]


def end_to_end(device):
    """Seconds of the whole quick profile, notebooks and all, run once in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            sys.executable,
            "-m",
            "ddlib",
            "--profile",
            "quick",
            "--device",
            device,
            "--out",
            folder,
        ]
        started = time.perf_counter()
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - started
    if done.returncode:
        raise MeasurementError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return {"profile": "quick", "seconds": seconds}


def write(arguments, result):
    """The JSON (unless only a part was measured and no file was named), then what is rendered from
    all JSON files.
    """
    if (arguments.only or arguments.tiny) and not arguments.json:
        print("a part only: nothing is written (name a file with --json to keep it)")
        return
    slug = re.sub(r"[^a-z0-9]+", "-", result["environment"]["device"].lower()).strip("-")
    path = write_atomic(arguments.json or render.RESULTS / f"{slug}.json", dumps(result))
    print(f"wrote {path}")
    if arguments.report:
        rendered = render.render([path], path.parent) if arguments.json else render.render()
        print(*(f"wrote {path}" for path in rendered), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
