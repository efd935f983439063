"""Evaluation: train fresh nets on a synthetic set under a protocol, test them on real images, one row per net."""

import time
from dataclasses import replace

import torch

from .config import PROTOCOLS, EvalConfig, check_known
from .device import environment, keep_freed_memory
from .distill import batches
from .errors import DDError, check_choice, check_range
from .matching import mixed_precision
from .nets import NETS, build_net
from .progress import bar
from .protocols import make_loss
from .results import Results, as_frame
from .rng import stream

TEACHER = "ConvNet"
_teachers = {}  # logits of trained teachers on their set: shared by all students, protocols and temperatures


def evaluate(
    synset, data, nets=("ConvNet",), protocol="ce", n_eval=5, seed=0, *, teacher=TEACHER, split="test", config=None,
    results=None, progress=True, **settings,
):  # fmt: skip
    """Train `n_eval` fresh nets of each architecture on `synset` and test them on `data`.

    Returns a `DataFrame` with one row per net (`results.COLUMNS`; accuracy in percent). `protocol`: see `ddlib.protocols`;
    `teacher` is the net that `kd` and `authors-2023` learn from (None for `authors-2023`: its "no KD", half a CE). Net i has
    eval seed `seed + i`; a teacher of the same number comes from a stream of its own. `split`: "test", or "val" to choose
    settings. `config` is an `EvalConfig`, `settings` override single ones (`tau=4.0`). With `results` (a `Results`), rows
    found there are not computed again and new ones are saved as they finish. A net with non-finite weights or logits is
    marked `diverged` and keeps the accuracy it has. Raises `DDError` for anything unknown or a set that does not fit.
    """
    keep_freed_memory()
    config = configured(config, settings)
    check_request(synset, data, nets, protocol, n_eval, teacher, split)
    if protocol == "ce":
        teacher = None
    results = Results() if results is None else results
    if config.precision == "float64":
        data = data.to(dtype=torch.float64)
    images, labels = synset.images.to(data.device, data.x_train.dtype), synset.labels.to(data.device)
    rows, runs = [], [(net, seed + i) for net in nets for i in range(n_eval)]
    with bar(len(runs), f"evaluate {protocol}", show=progress) as ticks:
        for net_name, eval_seed in runs:
            row = describe(synset, data, protocol, net_name, eval_seed, teacher, split, config)
            done = results.get(row)
            if done is None:
                started = time.perf_counter()
                targets = teacher_logits(synset, data, teacher, eval_seed, config) if teacher else None
                net = fresh_net(net_name, data, config, stream(eval_seed, "eval", net_name))
                loss = make_loss(protocol, labels, targets, config)
                train_net(net, images, loss, config, stream(eval_seed, "batches", net_name))
                row["accuracy"], row["diverged"] = measure_accuracy(net, *data.split(split), config.precision)
                row["seconds"] = round(time.perf_counter() - started, 3)
                done = row | environment(data.device)
                results.add(done)
            rows.append(done)
            ticks.update()
    return as_frame(rows)


def train_net(net, images, loss, config, generator):
    """Train in place: SGD, lr x 0.1 after epoch `config.drop_epoch` with the momentum buffers reset, no augmentation.

    `loss(logits, batch, epoch)` gives the scalar to descend. These are the DC family's settings (Zhao et al., ICLR 2021):
    lr 0.01, momentum 0.9, weight decay 5e-4, batch 256, epochs 0..300, drop after 151.
    """
    net.train()
    optimizer = new_optimizer(net, config, config.lr)
    for epoch in range(config.epochs):
        for batch in batches(len(images), config.batch, generator):
            optimizer.zero_grad()
            with mixed_precision(config.precision, images.device):
                logits = net(images[batch])
            loss(logits.to(images.dtype), batch, epoch).backward()
            optimizer.step()
        if epoch == config.drop_epoch:
            optimizer = new_optimizer(net, config, config.lr * 0.1)


def new_optimizer(net, config, lr):
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)


@torch.no_grad()
def measure_accuracy(net, images, labels, precision="float32", batch=500):
    """(accuracy in percent, diverged): diverged means that weights or logits are not finite."""
    net.eval()
    correct, finite = 0, all(bool(torch.isfinite(p).all()) for p in net.parameters())
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        with mixed_precision(precision, x.device):
            logits = net(x)
        correct += int((logits.argmax(1) == y).sum())
        finite = finite and bool(torch.isfinite(logits).all())
    return 100 * correct / len(labels), not finite


def teacher_logits(synset, data, name, seed, config):
    """Logits [N, classes] on the synthetic images of a teacher trained on them with plain CE; trained once per process."""
    plain = replace(config, alpha=0.0, tau=1.0)
    key = (synset.id, name, seed, plain, str(data.device))
    if key not in _teachers:
        images, labels = synset.images.to(data.device, data.x_train.dtype), synset.labels.to(data.device)
        net = fresh_net(name, data, config, stream(seed, "teacher", name))
        train_net(net, images, make_loss("ce", labels, None, plain), plain, stream(seed, "teacher batches", name))
        net.eval()
        with torch.no_grad():
            _teachers[key] = torch.cat([net(x) for x in images.split(500)])
    return _teachers[key]


def fresh_net(name, data, config, generator):
    """An evaluation net at the width that `config` gives, on the data's device."""
    channels, side, classes = data.shape
    options = {"channels": channels, "side": side, "classes": classes, **net_width(name, config)}
    return build_net(name, generator, **options).to(data.device, data.x_train.dtype)


def net_width(name, config):
    """The width options of a net: ConvNet has a width and depth, LeNet and MLP have none, the others scale."""
    if name == "ConvNet":
        return {"width": config.width, "depth": config.depth}
    return {} if name in ("MLP", "LeNet") else {"width_factor": config.width_factor}


def configured(config, settings):
    """An `EvalConfig` with single settings overridden; unknown names are errors."""
    check_known(EvalConfig, settings)
    return replace(config or EvalConfig(), **settings)


def check_request(synset, data, nets, protocol, n_eval, teacher, split):
    """Raise `DDError` for anything that `evaluate` cannot do."""
    check_choice("protocol", protocol, PROTOCOLS)
    for net in nets:
        check_choice("net", net, NETS)
    if protocol == "kd" and teacher is None:
        raise DDError("protocol 'kd' needs a teacher; valid: " + ", ".join(NETS))
    if teacher is not None:
        check_choice("teacher", teacher, NETS)
    check_range("n_eval", n_eval, 1)
    if not len(data.split(split)[1]):
        raise DDError(f"split {split!r} of {data.name} has no images")
    mine, theirs = tuple(synset.images.shape[1:]), tuple(data.x_test.shape[1:])
    if mine != theirs:
        raise DDError(f"the set's images are {list(mine)}, the data's {list(theirs)}")
    if int(synset.labels.max()) >= len(data.classes):
        raise DDError(f"the set has labels up to {int(synset.labels.max())}, the data {len(data.classes)} classes")
    for name in ("mean", "std"):
        a, b = getattr(synset, name), getattr(data, name)
        if a is not None and max(abs(x - y) for x, y in zip(a, b, strict=True)) > 1e-4:
            raise DDError(f"the set is normalised with {name} {rounded(a)}, the data with {rounded(b)}")


def rounded(values):
    return [round(v, 4) for v in values]


def describe(synset, data, protocol, net, eval_seed, teacher, split, config):
    """A row's identity: everything but the result and the machine."""
    about, released = synset.config, protocol == "authors-2023"
    return {
        "dataset": data.name,
        "ipc": synset.ipc,
        "pool": about.get("pool", "unknown"),
        "iteration": synset.iteration,
        "distill_seed": about.get("seed", 0),
        "protocol": protocol,
        "net": net,
        "eval_seed": eval_seed,
        "teacher": teacher or "",
        "teacher_seed": eval_seed if teacher else None,
        "alpha": config.alpha if teacher or released else None,
        "tau": config.tau if teacher else None,
        "split": split,
        "epochs": config.epochs,
        "lr": config.lr,
        "batch": config.batch,
        "width": config.width if "ConvNet" in (net, teacher) else None,
        "width_factor": (net_width(net, config) | net_width(teacher or "MLP", config)).get("width_factor"),
        "main_prob": about.get("main_prob"),
        "warmup": about.get("warmup"),
        "similar_depth": about.get("similar_depth"),
        "set_id": synset.id,
        "precision": config.precision,
        "depth": config.depth if "ConvNet" in (net, teacher) else None,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
    }
