"""Evaluation: train fresh nets on a synthetic set under a protocol, test them on real images, one row per net."""

import time
from dataclasses import replace

import torch

from .config import PROTOCOLS, EvalConfig, check_known
from .device import environment, keep_freed_memory
from .errors import DDError, check_choice, check_range
from .graphs import Epoch, Graph, on_streams
from .matching import mixed_precision, set_products
from .nets import NETS, build_net
from .progress import bar
from .protocols import make_loss
from .results import Results, as_frame
from .rng import stream

TEACHER = "ConvNet"
_teachers = {}  # logits of trained teachers on their set: shared by all students, protocols and temperatures


def evaluate(
    synset, data, nets=("ConvNet",), protocol="ce", n_eval=5, seed=0, *, teacher=TEACHER, split="test", config=None,
    results=None, progress=True, stop=None, **settings,
):  # fmt: skip
    """Train `n_eval` fresh nets of each architecture on `synset` and test them on `data`.

    Returns a `DataFrame` with one row per net (`results.COLUMNS`; accuracy in percent). `protocol`: see `ddlib.protocols`;
    `teacher` is the net that `kd` and `authors-2023` learn from (None for `authors-2023`: its "no KD", half a CE). Net i has
    eval seed `seed + i`; a teacher of the same number comes from a stream of its own. `split`: "test", "val" to choose
    settings, or "both": one training, a row for each. `config` is an `EvalConfig`, `settings` override single ones
    (`tau=4.0`). With `results` (a `Results`), rows found there are not computed again and new ones are saved as they finish;
    `stop()` is asked before every net, and if it says True, what is not there yet is left out. A net with non-finite weights
    or logits is marked `diverged` and keeps the accuracy it has. On a GPU all nets of an architecture train at once; `seconds`
    is then a net's share. Raises `DDError` for anything unknown or a set that does not fit.
    """
    keep_freed_memory()
    config = configured(config, settings)
    set_products(config.precision, data.device)
    if protocol == "ce":
        teacher = None
    for name in splits(split):
        check_request(synset, data, nets, protocol, n_eval, teacher, name)
    results = Results() if results is None else results
    if config.precision == "float64":
        data = data.to(dtype=torch.float64)
    rows = []
    with bar(len(nets) * n_eval, f"evaluate {protocol}", show=progress) as ticks:
        for net in nets:
            seeds = range(seed, seed + n_eval)
            wanted = {s: identities(synset, data, protocol, net, s, teacher, split, config) for s in seeds}
            missing = [s for s in seeds if any(results.get(row) is None for row in wanted[s])]
            ticks.update(n_eval - len(missing))
            for group in groups(missing, data.device):
                if stop and stop():
                    break
                started = time.perf_counter()
                trained = train_group(synset, data, protocol, net, group, teacher, config)
                tested = [[measure_accuracy(n, *data.split(name), config.precision) for name in splits(split)] for n in trained]
                seconds = round((time.perf_counter() - started) / len(group), 3)
                machine = {"seconds": seconds} | environment(data.device)
                results.add_all(
                    row | {"accuracy": accuracy, "diverged": diverged} | machine
                    for s, outcomes in zip(group, tested, strict=True)
                    for row, (accuracy, diverged) in zip(wanted[s], outcomes, strict=True)
                )
                ticks.update(len(group))
            rows += [found for s in seeds for row in wanted[s] if (found := results.get(row)) is not None]
    return as_frame(rows)


def identities(synset, data, protocol, net, eval_seed, teacher, split, config):
    """The rows of one trained net without their results, one per split."""
    return [describe(synset, data, protocol, net, eval_seed, teacher, name, config) for name in splits(split)]


def splits(split):
    return ("val", "test") if split == "both" else (split,)


def groups(seeds, device):
    """Which nets train at once: all of them on a GPU, each alone on a CPU, where sharing the caches would cost time."""
    if torch.device(device).type == "cuda":
        return [seeds] if seeds else []
    return [[s] for s in seeds]


def train_group(synset, data, protocol, name, seeds, teacher, config):
    """Fresh nets of one architecture, one per eval seed, trained on `synset` under a protocol."""
    images, labels = synset.images.to(data.device, data.x_train.dtype), synset.labels.to(data.device)
    targets = teacher_logits(synset, data, teacher, seeds, config) if teacher else [None] * len(seeds)
    nets = [fresh_net(name, data, config, stream(seed, "eval", name)) for seed in seeds]
    losses = [make_loss(protocol, labels, target, config) for target in targets]
    train_nets(nets, images, losses, config, [stream(seed, "batches", name) for seed in seeds])
    return nets


def train_nets(nets, images, losses, config, generators):
    """Train nets in place: SGD, lr x 0.1 after epoch `config.drop_epoch` with the momentum reset, no augmentation.

    `loss(logits, batch, epoch)` gives the scalar to descend. These are the DC family's settings (Zhao et al., ICLR 2021):
    lr 0.01, momentum 0.9, weight decay 5e-4, batch 256, epochs 0..300, drop after 151. On a GPU the nets train side by side,
    and an epoch of all of them is one recorded graph.
    """
    trainings = [Training(net, images, loss, config) for net, loss in zip(nets, losses, strict=True)]
    before = min(config.drop_epoch + 1, config.epochs)
    for lr, epochs in ((config.lr, before), (config.lr * 0.1, config.epochs - before)):
        for training in trainings:
            training.start(lr)
        everyone = Graph(lambda: on_streams([training.run for training in trainings], images.device), images.device)
        for _ in range(epochs):
            for training, generator in zip(trainings, generators, strict=True):
                training.pass_.shuffle(generator)
            everyone()


def train_net(net, images, loss, config, generator):
    """`train_nets` for one net."""
    train_nets([net], images, [loss], config, [generator])


class Training:
    """The training of one net on a set, an epoch at a call of `run`."""

    def __init__(self, net, images, loss, config):
        self.net, self.images, self.loss, self.config = net.train(), images, loss, config
        self.parameters = list(net.parameters())
        self.pass_ = Epoch(self.step, len(images), config.batch, images.device)
        on_gpu = images.device.type == "cuda"  # a recorded epoch counts on the device
        self.epoch = torch.zeros((), dtype=torch.float64, device=images.device) if on_gpu else 0

    def start(self, lr):
        """From here on with this learning rate, and no momentum yet."""
        self.optimizer = torch.optim.SGD(
            self.parameters, lr, self.config.momentum, weight_decay=self.config.weight_decay, fused=True
        )

    def step(self, batch):
        with mixed_precision(self.config.precision, self.images.device):
            logits = self.net(self.images[batch])
        loss = self.loss(logits.to(self.images.dtype), batch, self.epoch)
        gradients = torch.autograd.grad(loss, self.parameters)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def run(self):
        self.pass_.run()
        self.epoch += 1


@torch.no_grad()
def measure_accuracy(net, images, labels, precision="float32", batch=500):
    """(accuracy in percent, diverged): diverged means that weights or logits are not finite."""
    net.eval()
    finite = torch.stack([torch.isfinite(p).all() for p in net.parameters()] or [torch.ones((), dtype=torch.bool)]).all()
    finite, correct = finite.to(images.device), torch.zeros((), dtype=torch.int64, device=images.device)
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        with mixed_precision(precision, x.device):
            logits = net(x)
        correct += (logits.argmax(1) == y).sum()
        finite &= torch.isfinite(logits).all()
    return 100 * int(correct) / len(labels), not bool(finite)


def teacher_logits(synset, data, name, seeds, config):
    """Logits [N, classes] on the synthetic images, one tensor per eval seed, of teachers trained on them with plain CE.

    Each is trained once per process.
    """
    plain = replace(config, alpha=0.0, tau=1.0)
    keys = {seed: (synset.id, name, seed, plain, str(data.device)) for seed in seeds}
    missing = [seed for seed in seeds if keys[seed] not in _teachers]
    if missing:
        images, labels = synset.images.to(data.device, data.x_train.dtype), synset.labels.to(data.device)
        nets = [fresh_net(name, data, config, stream(seed, "teacher", name)) for seed in missing]
        losses = [make_loss("ce", labels, None, plain)] * len(nets)
        train_nets(nets, images, losses, plain, [stream(seed, "teacher batches", name) for seed in missing])
        for seed, net in zip(missing, nets, strict=True):
            net.eval()
            with torch.no_grad(), mixed_precision(config.precision, images.device):
                _teachers[keys[seed]] = torch.cat([net(x) for x in images.split(500)]).to(images.dtype)
    return [_teachers[keys[seed]] for seed in seeds]


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
        "distill_precision": about.get("precision", ""),
    }
