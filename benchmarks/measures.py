"""What is measured, one repetition at a time: clock, memory, FLOP counts, and ddlib's side of every
case.

A case is a dict of sizes (see `bench.cases`). Content does not change the speed of dense kernels,
so that images are random.
"""

import functools
import re
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ddlib.config import DistillConfig, EvalConfig
from ddlib.data import Data
from ddlib.datasets import CIFAR10
from ddlib.distill import distill
from ddlib.evaluate import evaluate
from ddlib.methods.images import as_leaf
from ddlib.nets import build_net, embedding
from ddlib.support.fast import keep_freed_memory, set_products
from ddlib.support.rng import Streams, stream
from ddlib.synset import SyntheticSet
from ddlib.training import measure_group

KINDS = ("step", "epoch", "iteration", "evaluation")


class Clock:
    """Times repetitions: called before the first, between two and after the last; answers True when
    there are enough.

    The first `warmup` repetitions are not kept. `turn()` is called before each one that is, outside
    of the time. Holds `seconds` (a list) and `peak_mb` (what the memory grew by, at its peak, since
    the first call).
    """

    def __init__(self, device, warmup, repeats, turn=None):
        self.device, self.warmup, self.repeats, self.turn = (
            torch.device(device),
            warmup,
            repeats,
            turn,
        )
        self.seconds, self.done, self.peak_mb, self.started = [], -1, None, 0.0

    def __call__(self, *_):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.done += 1
        if self.done == 0:
            self.memory = start_memory(self.device)
        if self.done > self.warmup:
            self.seconds.append(now - self.started)
        if len(self.seconds) == self.repeats:
            self.peak_mb = peak_memory(self.device, self.memory)
            return True
        if self.turn and self.done >= self.warmup:
            self.turn()
        self.started = time.perf_counter()
        return False

    def run(self, work):
        """Do `work()` until there are enough repetitions."""
        while not self():
            work()
        return self


def start_memory(device):
    """MB in use now; peaks are counted from here: allocated on a GPU, resident on a CPU (None where
    /proc is missing).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return resident_mb("VmRSS")


def peak_memory(device, before):
    """MB at the peak since `start_memory` answered `before`, less `before`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6 - before
    return None if before is None else resident_mb("VmHWM") - before


def resident_mb(field):
    return (
        int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
        * 1024
        / 1e6
    )


@functools.cache
def flop_per_image(net="ConvNet", **options):
    """FLOP that one 3-channel image costs in products and convolutions (a multiply-add is 2), as
    PyTorch counts them.

    `forward`; `train`: forward and gradient of the weights; `match`: that with its graph, and the
    pull-back to the pixels; `embed`, `pull`: the embedding, and that with its pull-back. Counted on
    the plain path (average pooling as `avg_pool2d`) without computing anything.
    """
    with torch.device("meta"):
        net, side = build_net(net, **options), options.get("side", 32)
        image, label = (
            torch.empty(1, 3, side, side, requires_grad=True),
            torch.zeros(1, dtype=torch.int64),
        )
        weights = [p for p in net.parameters() if p.ndim >= 2]

        def pull_back():
            gradients = torch.autograd.grad(
                F.cross_entropy(net(image * 1), label), weights, create_graph=True
            )
            torch.autograd.grad(sum((g * torch.empty_like(g)).sum() for g in gradients), image)

        works = {
            "forward": lambda: net(image.detach()),
            "train": lambda: torch.autograd.grad(
                F.cross_entropy(net(image.detach()), label), weights
            ),
            "match": pull_back,
            "embed": lambda: embedding(net)(image.detach()),
            "pull": lambda: torch.autograd.grad(embedding(net)(image * 1).sum(), image),
        }
        counts = {}
        for name, work in works.items():
            with FlopCounterMode(display=False) as counter:
                work()
            counts[name] = counter.get_total_flops()
    return counts


def flop(case):
    """FLOP of one repetition of a case: what the mathematics needs, not what an implementation
    adds.
    """
    each = flop_per_image(case["net"], **net_options(case))
    synthetic = case["classes"] * case["ipc"]
    real, matched = ("embed", "pull") if case["method"] == "dm" else ("train", "match")
    step = case["classes"] * case["batch_real"] * each[real] + synthetic * each[matched]
    return {
        "step": step,
        "epoch": synthetic * each["train"],
        "iteration": case["outer"] * step
        + (case["outer"] - 1) * case["inner"] * synthetic * each["train"],
        "evaluation": case["nets"]
        * (case["epochs"] * synthetic * each["train"] + case["test"] * each["forward"]),
    }[case["kind"]]


def net_options(case):
    """The options of `build_net` for a case."""
    shape = {"side": case["side"], "classes": case["classes"]}
    return shape | ({"width": case["width"]} if case["net"] == "ConvNet" else {})


def inputs(case, device):
    """Random `Data` of CIFAR-10's shape with `stock` images per class, and a random synthetic set:
    (data, images, labels).
    """
    generator, classes, side = torch.Generator().manual_seed(0), case["classes"], case["side"]

    def part(n):
        images = torch.randn(classes * min(n, 100), 3, side, side, generator=generator)
        return images.repeat(-(-n // 100), 1, 1, 1)[: classes * n].to(device)

    stock, ipc = case["stock"], case["ipc"]
    labels, syn_labels = (
        torch.arange(classes, device=device).repeat_interleave(n) for n in (stock, ipc)
    )
    x_test = part(-(-case["test"] // classes))[: case["test"]]
    y_test = torch.arange(len(x_test), device=device) % classes
    names = tuple(f"class {c}" for c in range(classes))
    x_train = part(stock)
    data = Data(
        "random",
        names,
        *CIFAR10,
        x_train,
        labels,
        x_train[:0],
        labels[:0],
        x_test,
        y_test,
    )
    return data, part(ipc), syn_labels


def measure(case, side, device, repeats, turn=None, driver=None):
    """One case on one side (a precision, `plain` or `reference`) as a record: raw seconds, FLOP,
    peak memory, threads.

    `plain` is ddlib in float32 without its speed-ups: the whole real batch at once, glibc's own
    handing out of memory, no recorded graph. `driver`: the module with the functions of the
    reference's side.
    """
    case = case | ({"nets": 1} if driver else {})  # the reference trains its nets one by one
    touch_libraries(device)
    clock = Clock(device, case["warmup"], repeats * case["times"], turn)
    if driver is None:
        set_products("float32" if side == "plain" else side, device)
        if side != "plain":
            keep_freed_memory()
        work = DDLIB[case["kind"]]
    else:
        work = driver.WORKS[case["kind"]]
    more = work(case, side, *inputs(case, device), clock) or {}
    tf32 = (
        torch.device(device).type == "cuda" and torch.backends.cudnn.conv.fp32_precision == "tf32"
    )
    precision = ("tf32" if tf32 else "float32") if side in ("plain", "reference") else side
    about = {
        "side": side,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "units": case["nets"],
    }
    return about | {"flop": flop(case), "peak_mb": clock.peak_mb, "seconds": clock.seconds} | more


def touch_libraries(device):
    """Load the kernels' code, so that it does not count as memory of the first repetition."""
    net = torch.nn.Conv2d(3, 4, 3).to(device)
    net(torch.randn(2, 3, 8, 8, device=device)).sum().backward()


def time_step(case, side, data, images, labels, clock):
    """One matching step: draw the real batches, match gradients for all classes, gradient of the
    pixels. No update.
    """
    net, pixels = fresh_net(case, data.device), as_leaf(images)
    plain = {"slice_size": case["batch_real"]} if side == "plain" else {"precision": side}
    sizes = {name: case[name] for name in ("method", "ipc", "batch_real")}
    objective = prepared(data, **sizes, **plain)
    objective.recorder.records &= side != "plain"
    clock.run(lambda: objective(net, pixels))


def time_epoch(case, side, data, images, labels, clock):
    """One epoch of the inner loop on the synthetic set."""
    net = fresh_net(case, data.device)
    objective = prepared(data, ipc=case["ipc"], precision=side, inner=1)
    clock.run(lambda: objective.train(net, images, labels))


def prepared(data, **settings):
    """A method's objective as a run has it."""
    config = DistillConfig(**settings).resolved()
    objective = config.parts()["objective"]
    objective.prepare(config, data, Streams(0))
    return objective


def time_iteration(case, side, data, images, labels, clock):
    """Whole iterations of `ddlib.distill`: a fresh net, its outer steps, its inner epochs."""
    names = ("method", "ipc", "width", "batch_real", "outer", "inner")
    sizes = {name: case[name] for name in names}
    config = DistillConfig(pool="main", iterations=10**6, precision=side, **sizes)
    clock()
    distill(config, data, progress=False, stop=clock)


def time_evaluation(case, side, data, images, labels, clock):
    """`ddlib.evaluate` with all nets of a repetition in one call; then testing alone."""
    synset = SyntheticSet(images, labels, data.mean, data.std, data.classes, data.name)
    config = EvalConfig(epochs=case["epochs"], width=case["width"], precision=side)
    clock.run(
        lambda: evaluate(
            synset, data, [case["net"]], "ce", case["nets"], config=config, progress=False
        )
    )
    nets = [fresh_net(case, data.device) for _ in range(case["nets"])]
    test = Clock(data.device, 1, clock.repeats).run(
        lambda: measure_group(nets, data, ["test"], side)
    )
    return {"test_seconds": test.seconds}


DDLIB = dict(zip(KINDS, (time_step, time_epoch, time_iteration, time_evaluation), strict=True))


def fresh_net(case, device):
    return build_net(case["net"], stream(0, "net"), **net_options(case)).to(device).train()


def ceilings(case, device, repeats):
    """Records of the fastest products this machine does here: a square matmul, a forward
    convolution, per precision.
    """
    size, images = case["matmul"], case["conv_images"]
    rows = []
    for precision in case["sides"]:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        set_products(precision if precision != "bfloat16" else "float32", device)
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        x = torch.randn(images, 128, 16, 16, device=device, dtype=dtype)
        w = torch.randn(128, 128, 3, 3, device=device, dtype=dtype)
        products = {
            f"matmul {size}": (lambda a=a, b=b: a @ b, 2 * size**3),
            f"conv3x3 {images}x128x16x16": (
                lambda x=x, w=w: F.conv2d(x, w, padding=1),
                2 * 9 * 128 * 128 * 16 * 16 * images,
            ),
        }
        for name, (work, count) in products.items():
            with torch.no_grad():
                clock = Clock(device, 3, repeats * case["times"]).run(work)
            rows.append(
                {"work": name, "precision": precision, "flop": count, "seconds": clock.seconds}
            )
    return rows
