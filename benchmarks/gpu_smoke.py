"""The first minutes on a GPU: is what is recorded right there, and how fast is it?

    make gpu-smoke                                        # or: python benchmarks/gpu_smoke.py
    make gpu-smoke ARGS="--reference DIR --data-root DIR --only versions,kernels"

Every stage is a process of its own with a time limit, and writes JSON into `--out` as it ends; a
table comes last. If a stage of correctness fails, later ones run without recording (DDLIB_GRAPHS=0)
and say so. Without a GPU the stages do small sizes, and skip what only a GPU has. Exit status: 1 if
a stage failed.
"""

import argparse
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import bench
import measures
import torch

from ddlib import DistillConfig, EvalConfig, distill, evaluate
from ddlib.losses import PROTOCOLS
from ddlib.methods.gradient import Gradient
from ddlib.nets import NETS, NORMS, build_net
from ddlib.support.fast import products
from ddlib.support.machine import environment, pick_device
from ddlib.support.rng import stream
from ddlib.support.store import ROOT, dumps, write_atomic
from ddlib.synset import SyntheticSet
from ddlib.training import Training, train_nets

# Largest errors of weights in proportion to how far they were trained, as in tests/test_witness.py
ALLOWED = {"float64": 1e-9, "float32": 1e-2, "tf32": 5e-2, "bfloat16": 0.5}
LEFT_OVER = 200  # MB that may stay reserved after a run
CONFIG = EvalConfig(epochs=8, lr=0.002)


class Skipped(Exception):
    """A stage has nothing to do here; the message says why."""


# Stages: each returns what it found, in words as "says"; what is "wrong" fails it


def versions(device, arguments):
    """Versions and free memory."""
    found = environment(device) | bench.machine(device)
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        found |= {"free_gb": round(free / 1e9, 1), "total_gb": round(total / 1e9, 1)}
    return found | {"says": f"{found['device']}, torch {found['torch']}"}


def kernels(device, arguments):
    """Nets trained recorded against plain: every net, norm and precision; float64 against a CPU."""
    gpu, errors = device == "cuda", {}
    nets = [("ConvNet", {"norm": norm, "pooling": "average"}) for norm in NORMS]
    nets += [("ConvNet", {"norm": "batch", "pooling": "max"}), *((net, {}) for net in [*NETS][1:])]
    small = {"ConvNet": {"width": 8}} | {net: {"width_factor": 0.1} for net in bench.NETS}
    small |= {"ConvNet": {"width": 8}, "MLP": {}, "LeNet": {}}
    for net, options in nets:
        options = options | ({} if gpu else small[net])
        for precision in ("float32", "tf32", "bfloat16", "float64") if gpu else ("float32",):
            name = " ".join([net, *options.get("norm", "").split(), precision])
            work = partial(trained, net, options, precision)
            one, two = (recording(on, partial(work, device)) for on in (True, False))
            errors[name] = distance(one, two, work("cpu", epochs=0)), ALLOWED[precision]
        work = partial(trained, net, options | small[net], "float64")
        there, here, start = work(device), work("cpu"), work("cpu", epochs=0)
        name = " ".join([net, *options.get("norm", "").split(), "against a CPU"])
        errors[name] = distance(there, here, start), 1e-6
    wrong = [name for name, (error, allowed) in errors.items() if not error <= allowed]
    says = f"{len(errors)} comparisons, largest error {max(e for e, _ in errors.values()):.1e}"
    return {"errors": errors, "wrong": wrong, "says": says}


def evaluation(device, arguments):
    """`evaluate`, six nets by every protocol, recorded against plain: accuracies."""
    data, synset = random_set(device)
    how = {"epochs": 6, "lr": 0.002, "progress": False, "n_eval": 10 if device == "cuda" else 1}
    how |= {} if device == "cuda" else {"width": 8, "width_factor": 0.1}
    found = {}
    for protocol in ("ce", "kd", "authors-2023"):
        work = partial(evaluate, synset, data, list(NETS), protocol, **how)
        rows = [recording(on, work)["accuracy"] for on in (True, False)]
        found[protocol] = float((rows[0] - rows[1]).abs().max())
    wrong = [protocol for protocol, points in found.items() if points > 5]
    says = f"at most {max(found.values()):.1f} points apart"
    return {"points": found, "wrong": wrong, "says": says}


def process(device, arguments):
    """Distils and evaluates, twice: what memory stays; then a recording that fails."""
    data, _ = random_set(device)
    size = {} if device == "cuda" else {"width": 8, "width_factor": 0.1, "batch_real": 8}
    loop = {"ipc": 2, "outer": 4, "inner": 2, "iterations": 3, **size}
    tested = {"width": 8, "width_factor": 0.1} if size else {}
    reserved, wrong = [], []
    for pool in ("main", "main_plus_similar"):
        made = distill(DistillConfig(pool=pool, main_prob=0.5, **loop), data, progress=False)
        evaluate(made, data, ["ConvNet"], n_eval=2, epochs=6, progress=False, **tested)
        if device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            reserved.append(torch.cuda.memory_reserved() / 1e6)
    if reserved and reserved[-1] > reserved[0] + LEFT_OVER:
        wrong.append(f"{reserved[-1] - reserved[0]:.0f} MB stay reserved")
    pixels = []
    for on in (True, False):
        work = partial(distill, DistillConfig(**loop), data, objective=Looking, progress=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pixels.append(recording(on, work).images)
        told = [str(w.message) for w in caught if "without a CUDA graph" in str(w.message)]
        if len(told) != (on and device == "cuda" and os.environ.get("DDLIB_GRAPHS") != "0"):
            wrong.append(f"recording {on}: {len(told)} warnings")
    start = torch.randn(pixels[0].shape, generator=stream(0, "init"))
    if not (error := distance(*pixels, start)) <= ALLOWED["float32"]:
        wrong.append(f"pixels after a failed recording are {error:.1e} away")
    says = f"reserved MB {[round(mb) for mb in reserved]}" if reserved else "no GPU memory"
    return {"reserved_mb": reserved, "wrong": wrong, "says": f"{says}; failed recording survived"}


def speed(device, arguments):
    """Ceilings; step, epoch and iteration plain and recorded; the longest kernels of one step."""
    tiny, found = device == "cpu", {}
    all_cases = bench.cases(device, tiny)
    ceilings = measures.ceilings(all_cases["ceilings"], device, 1)
    for row in ceilings:
        row["tflops"] = round(row["flop"] / min(row["seconds"]) / 1e12, 3)
    for name in ("step-ipc10", "epoch-ipc10", "iteration-ipc10"):
        for side in ("float32", "bfloat16") if tiny else ("tf32", "bfloat16"):
            for on in (False,) if tiny else (False, True):  # a CPU records nothing
                work = partial(measures.measure, all_cases[name], side, device, 1)
                seconds = recording(on, work)["seconds"]
                found[f"{name} {side} {'recorded' if on else 'plain'}"] = min(seconds)
    longest = profiled(all_cases["step-ipc10"], device)
    says = "; ".join(f"{name} {s * 1e3:.1f} ms" for name, s in found.items() if "step" in name)
    return {"ceilings": ceilings, "seconds": found, "kernels": longest, "says": says}


def beside(device, arguments):
    """Beside the public code."""
    if not arguments.reference:
        raise Skipped("no --reference DIR")
    words = ["--only", "step-ipc10,iteration-ipc1", "--repeats", "1"]
    return benchmark(device, arguments, [*words, "--reference", arguments.reference])


def study(device, arguments):
    """A slice of a study, killed, and gone on with."""
    profile, store = ("paper" if device == "cuda" else "quick"), Path(arguments.out) / "study"
    data = Path(arguments.data_root or ROOT / "data")
    if profile == "paper" and not any(data.glob("cifar-10*")):
        raise Skipped(f"no CIFAR-10 in {data}; give --data-root DIR")
    command = [sys.executable, "-m", "ddlib", "work", "--profile", profile, "--store", str(store)]
    command += ["--device", device, "--data-root", str(data)]
    small = "--set", "ipcs=1", "--set", "batch_real=8", "--set", "iterations=6"
    command += ["--ipc", "1"] if profile == "paper" else small
    kept = [killed(command, store, 1)]
    kept.append(killed(command, store, 1 + len(kept[0])))
    wrong = [] if set(kept[0]) < set(kept[1]) else [f"{kept[0]} when killed, later {kept[1]}"]
    says = f"{len(kept[0])} files when killed, {len(kept[1])} when killed again"
    return {"wrong": wrong, "says": says}


def scaling(device, arguments):
    """Steps of other sizes."""
    return benchmark(device, arguments, ["--only", "scaling", "--repeats", "1"])


SLOWER = 4  # times the seconds on a CPU
STAGES = {  # by name: seconds allowed, whether it is about correctness, what it does
    "versions": (20, False, versions),
    "kernels": (75, True, kernels),
    "evaluation": (60, True, evaluation),
    "process": (60, True, process),
    "speed": (90, False, speed),
    "beside": (120, False, beside),
    "study": (100, False, study),
    "scaling": (60, False, scaling),
}


# What they share


def recording(on, work):
    """`work()` with recording on (unless the environment has it off) or off."""
    before = os.environ.get("DDLIB_GRAPHS")
    if not on:
        os.environ["DDLIB_GRAPHS"] = "0"
    try:
        return work()
    finally:
        os.environ.pop("DDLIB_GRAPHS", None)
        if before is not None:
            os.environ["DDLIB_GRAPHS"] = before


def random_set(device):
    """Random data of CIFAR-10's shape, and a set of two images per class."""
    case = bench.FULL | {"stock": 300 if device == "cuda" else 20, "test": 200, "ipc": 2}
    data, images, labels = measures.inputs(case, device)
    about = images.cpu(), labels.cpu(), data.mean, data.std, data.classes, data.name
    return data, SyntheticSet(*about)


def trained(net, options, precision, device, epochs=CONFIG.epochs):
    """The weights of two nets that train side by side on random images, in one vector."""
    dtype = torch.float64 if precision == "float64" else torch.float32
    labels = torch.arange(10).repeat_interleave(2)
    images = torch.randn(20, 3, 32, 32, generator=stream(0, "images"))
    images, labels = (images + labels.view(-1, 1, 1, 1) / 10).to(device, dtype), labels.to(device)
    how, trainings = (PROTOCOLS["ce"], replace(CONFIG, precision=precision, batch=10)), []
    for seed in (0, 1):
        model = build_net(net, stream(seed, "net"), **options).to(device, dtype)
        batches = [stream(seed, "batches")]
        trainings.append(Training(model, images, labels, *how, generators=batches))
    if epochs:
        with products(precision, device):
            train_nets(trainings)
    parameters = (p for training in trainings for p in training.net.parameters())
    return torch.cat([p.detach().double().cpu().flatten() for p in parameters])


def distance(one, other, start):
    """How far apart two results are, in proportion to their way from the start."""
    return float((one - other).double().norm() / (other - start).double().norm())


class Looking(Gradient):
    """Asks for a value, which a recording does not have."""

    def class_loss(self, net, real, synthetic, label):
        loss = super().class_loss(net, real, synthetic, label)
        return loss * (1 if loss.item() > -1 else 0)


def profiled(case, device):
    """The 15 longest kernels of one matching step: name, ms, calls."""
    data, images, _ = measures.inputs(case, device)
    net, pixels = measures.fresh_net(case, data.device), measures.as_leaf(images)
    objective = measures.prepared(data, ipc=case["ipc"], batch_real=case["batch_real"])
    for _ in range(6):
        objective(net, pixels)
    activity = torch.profiler.ProfilerActivity
    kind = activity.CUDA if device == "cuda" else activity.CPU
    with torch.profiler.profile(activities=[kind]) as profile:
        objective(net, pixels)
        if device == "cuda":
            torch.cuda.synchronize()
    objective.close()
    name = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    rows = sorted(profile.key_averages(), key=lambda row: -getattr(row, name))[:15]
    return [(row.key[:80], round(getattr(row, name) / 1e3, 3), row.count) for row in rows]


def benchmark(device, arguments, words):
    """`bench.py` with its results in the stage's JSON."""
    path = Path(arguments.out) / f"bench-{arguments.stage}.json"
    words = [*words, "--device", device, "--json", str(path), "--no-report"]
    tiny = [] if device == "cuda" else ["--tiny"]
    command = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), *words, *tiny]
    subprocess.run(command, check=True, stdout=sys.stderr)
    records = json.loads(path.read_text())["records"]
    return {"records": records, "says": f"{len(records)} measurements in {path.name}"}


def killed(command, store, enough):
    """What is finished when a study is killed, as soon as it is enough."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while len(files(store)) < enough and process.poll() is None:
            time.sleep(0.5)
        process.kill()
    return files(store)


def files(folder):
    """What is finished in a study's folder: rows and sets."""
    found = [*folder.rglob("it*.safetensors"), *folder.rglob("rows/*.json")]
    return [str(path.relative_to(folder)) for path in found]


# The driver


def parse_arguments(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--out", default=str(ROOT / "runs" / "gpu-smoke"), help="default: runs/gpu-smoke")
    add("--only", default=",".join(STAGES), help="some of the stages (default: all)")
    add("--reference", metavar="DIR", help="a checkout of VICO-UoE/DatasetCondensation")
    add("--data-root", metavar="DIR", help="where CIFAR-10 lies (default: data)")
    add("--stage", help="one stage in this process")
    return parser.parse_args(words)


def main(words=None):
    arguments = parse_arguments(words)
    if arguments.stage:
        return one(arguments)
    words, results, graphs = sys.argv[1:] if words is None else words, {}, {}
    slower = 1 if pick_device(arguments.device).type == "cuda" else SLOWER
    for name in arguments.only.split(","):
        limit, is_check, _ = STAGES[name]
        results[name] = result = run(name, words, arguments.out, limit * slower, graphs)
        print(line(name, result), flush=True)
        if is_check and result["state"] == "failed":
            graphs = {"DDLIB_GRAPHS": "0"}
            print("from here on without recording (DDLIB_GRAPHS=0)", flush=True)
    print("\n| stage | state | seconds | |\n| --- | --- | --- | --- |")
    print(*(line(name, result) for name, result in results.items()), sep="\n")
    print(f"JSON of every stage: {arguments.out}")
    return 1 if any(result["state"] == "failed" for result in results.values()) else 0


def run(name, words, out, limit, graphs):
    """A stage in a process of its own: what it wrote, or why it wrote nothing."""
    path, started = Path(out) / f"{name}.json", time.monotonic()
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, *words, "--stage", name]
    kept = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, env=os.environ | graphs, **kept) as process:
        try:
            why = (process.communicate(timeout=limit)[1].strip().splitlines() or [""])[-1]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # it may have started others
            why = f"not done after {limit} s"
    result = {"state": "failed", "says": why}
    with contextlib.suppress(OSError, ValueError):
        result = json.loads(path.read_text())
    result["seconds"] = round(time.monotonic() - started, 1)
    return result | ({"says": f"{result['says']} (without recording)"} if graphs else {})


def one(arguments):
    """A stage in this process; its JSON says how it ended."""
    device = pick_device(arguments.device).type
    try:
        found = STAGES[arguments.stage][2](device, arguments)
        state = "failed" if found.get("wrong") else "right" if "wrong" in found else "done"
        if found.get("wrong"):
            found["says"] = "; ".join(map(str, found["wrong"]))
        if device == "cpu" and "wrong" in found:
            found["says"] += "; small, and nothing is recorded: no GPU"
    except Skipped as skipped:
        state, found = "skipped", {"says": str(skipped)}
    about = {"stage": arguments.stage, "device": device, "state": state}
    write_atomic(Path(arguments.out) / f"{arguments.stage}.json", dumps(about | found))
    return state == "failed"


def line(name, result):
    return f"| {name} | {result['state']} | {result['seconds']} | {result['says']} |"


if __name__ == "__main__":
    sys.exit(main())
