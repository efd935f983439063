"""Evaluation: train fresh nets on a synthetic set under a protocol, test them on real images, one row per net."""

import time
from dataclasses import replace

import torch

from .config import PROTOCOLS, EvalConfig, check_known
from .device import environment, keep_freed_memory
from .errors import DDError, check_choice, check_range
from .graphs import Epoch, Graph, side_by_side
from .matching import mixed_precision, set_products
from .nets import DEPTHS, NETS, build_net, net_class, net_name, width_options
from .progress import bar
from .protocols import make_loss
from .results import Results, as_frame
from .rng import stream
from .synset import SyntheticSet

TEACHER = "ConvNet"
AT_ONCE = {
    "cuda": 10,
    "cpu": 4,
}  # nets that train side by side: a ResNet18 takes up to 3.5 GB (ipc 50)
_teachers = {}  # logits of trained teachers on their set: shared by all students, protocols and temperatures


def evaluate(
    synset,
    data,
    nets=("ConvNet",),
    protocol="ce",
    n_eval=5,
    seed=0,
    *,
    teacher=TEACHER,
    split="test",
    config=None,
    results=None,
    progress=True,
    stop=None,
    **settings,
):
    """Train `n_eval` fresh nets of each architecture on `synset`, or on each of a list of sets, and test them on `data`.

    Returns a `DataFrame` with one row per net (`results.COLUMNS`; accuracy in percent). `nets` and `teacher`: names or classes
    (see `ddlib.nets`). `protocol`: see `ddlib.protocols`;
    `teacher` is the net that `kd` and `authors-2023` learn from (None for `authors-2023`: its "no KD", half a CE). Net i has
    eval seed `seed + i`; a teacher of the same number comes from a stream of its own. `split`: "test", "val" to choose
    settings, or "both": one training, a row for each. `config` is an `EvalConfig`, `settings` override single ones
    (`tau=4.0`). With `results` (a `Results`), rows found there are not computed again and new ones are saved as they finish;
    `stop()` is asked before every group, and if it says True, what is not there yet is left out. A net with non-finite weights
    or logits is marked `diverged` and keeps the accuracy it has. Several nets of an architecture train at once (`groups`);
    `seconds` is then a net's share. Raises `DDError` for anything unknown or a set that does not fit.
    """
    keep_freed_memory()
    config = configured(config, settings)
    if config.depth is None:
        config = replace(config, depth=DEPTHS.get(data.shape[1]))
    set_products(config.precision, data.device)
    if protocol == "ce":
        teacher = None
    synsets = [synset] if isinstance(synset, SyntheticSet) else list(synset)
    for one in synsets:
        for name in splits(split):
            check_request(one, data, nets, protocol, n_eval, teacher, name)
    results = Results() if results is None else results
    if config.precision == "float64":
        data = data.to(dtype=torch.float64)
    wanted = {
        (k, net, s): identities(synsets[k], data, protocol, net, s, teacher, split, config)
        for k in range(len(synsets))
        for net in nets
        for s in range(seed, seed + n_eval)
    }
    with bar(len(wanted), f"evaluate {protocol}", show=progress) as ticks:
        for net in nets:
            mine = {key: rows for key, rows in wanted.items() if key[1] == net}
            missing = [
                key for key, rows in mine.items() if any(results.get(row) is None for row in rows)
            ]
            ticks.update(len(mine) - len(missing))
            for group in groups(missing, data.device):
                if stop and stop():
                    break
                started = time.perf_counter()
                trained = train_group(
                    [(synsets[k], s) for k, _, s in group], data, protocol, net, teacher, config
                )
                tested = measure_group(trained, data, splits(split), config.precision)
                seconds = round((time.perf_counter() - started) / len(group), 3)
                machine = {"seconds": seconds} | environment(data.device)
                results.add_all(
                    row | {"accuracy": accuracy, "diverged": diverged} | machine
                    for key, outcomes in zip(group, tested, strict=True)
                    for row, (accuracy, diverged) in zip(wanted[key], outcomes, strict=True)
                )
                ticks.update(len(group))
    return as_frame(
        [
            found
            for rows in wanted.values()
            for row in rows
            if (found := results.get(row)) is not None
        ]
    )


def identities(synset, data, protocol, net, eval_seed, teacher, split, config):
    """The rows of one trained net without their results, one per split."""
    return [
        describe(synset, data, protocol, net, eval_seed, teacher, name, config)
        for name in splits(split)
    ]


def splits(split):
    return ("val", "test") if split == "both" else (split,)


def groups(missing, device):
    """Which nets train at once: on a GPU many, which leave it idle one by one; on a CPU one per thread, within its memory."""
    size = (
        AT_ONCE["cuda"]
        if torch.device(device).type == "cuda"
        else min(AT_ONCE["cpu"], torch.get_num_threads())
    )
    return [missing[i : i + size] for i in range(0, len(missing), size)]


def train_group(pairs, data, protocol, name, teacher, config, streams=("eval", "batches")):
    """Fresh nets of one architecture, one per pair of set and eval seed, trained on that set under a protocol.

    `streams`: the names of the generators of their weights and batches.
    """
    targets = teacher_logits(pairs, data, teacher, config) if teacher else [None] * len(pairs)
    nets = [
        fresh_net(name, data, config, stream(seed, streams[0], net_name(name))) for _, seed in pairs
    ]
    sets = [on_device(synset, data) for synset, _ in pairs]
    losses = [
        make_loss(protocol, labels, target, config)
        for (_, labels), target in zip(sets, targets, strict=True)
    ]
    generators = [stream(seed, streams[1], net_name(name)) for _, seed in pairs]
    train_nets(nets, [images for images, _ in sets], losses, config, generators)
    return nets


def on_device(synset, data):
    """Images and labels of a set, as and where the data are."""
    return synset.images.to(data.device, data.x_train.dtype), synset.labels.to(data.device)


def measure_group(nets, data, names, precision):
    """Per net a list with `measure_accuracy` on each of the splits."""
    works = [
        lambda n=net: [measure_accuracy(n, *data.split(name), precision) for name in names]
        for net in nets
    ]
    return (
        [work() for work in works]
        if torch.device(data.device).type == "cuda"
        else side_by_side(works, data.device)
    )


def train_nets(nets, images, losses, config, generators):
    """Train nets in place, each on its images: SGD, lr x 0.1 after epoch `config.drop_epoch` with the momentum reset.

    `loss(logits, batch, epoch)` gives the scalar to descend. These are the DC family's settings (Zhao et al., ICLR 2021):
    lr 0.01, momentum 0.9, weight decay 5e-4, batch 256, epochs 0..300, drop after 151, no augmentation. The nets train side by
    side; on a GPU an epoch of all of them is one recorded graph.
    """
    trainings = [Training(*own, config) for own in zip(nets, images, losses, strict=True)]
    device = images[0].device
    before = min(config.drop_epoch + 1, config.epochs)
    for lr, epochs in ((config.lr, before), (config.lr * 0.1, config.epochs - before)):
        for training in trainings:
            training.start(lr)
        everyone = Graph(
            lambda: side_by_side([training.run for training in trainings], device), device
        )
        for _ in range(epochs):
            for training, generator in zip(trainings, generators, strict=True):
                training.pass_.shuffle(generator)
            everyone()


def train_net(net, images, loss, config, generator):
    """`train_nets` for one net."""
    train_nets([net], [images], [loss], config, [generator])


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
            self.parameters,
            lr,
            self.config.momentum,
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    def step(self, batch):
        with mixed_precision(self.config.precision, self.images.device):
            logits = self.net(self.images[batch])
        self.loss(
            logits.to(self.images.dtype), batch, self.epoch
        ).backward()  # lays gradients out as the weights are
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run(self):
        self.pass_.run()
        self.epoch += 1


@torch.no_grad()
def measure_accuracy(net, images, labels, precision="float32", batch=None):
    """(accuracy in percent, diverged): diverged means that weights or logits are not finite.

    `batch`: images at once; by default 100 on a CPU, whose memory has to hold several nets' activations, else 500.
    """
    net.eval()
    finite = torch.stack(
        [torch.isfinite(p).all() for p in net.parameters()] or [torch.ones((), dtype=torch.bool)]
    ).all()
    finite, correct = (
        finite.to(images.device),
        torch.zeros((), dtype=torch.int64, device=images.device),
    )
    batch = batch or (100 if images.device.type == "cpu" else 500)
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        with mixed_precision(precision, x.device):
            logits = net(x)
        correct += (logits.argmax(1) == y).sum()
        finite &= torch.isfinite(logits).all()
    return 100 * int(correct) / len(labels), not bool(finite)


def teacher_logits(pairs, data, name, config):
    """Logits [N, classes] of teachers trained with plain CE, a tensor per pair of set and eval seed, on that set's images.

    Each is trained once per process.
    """
    plain = replace(config, alpha=0.0, tau=1.0)
    keys = [(synset.id, net_class(name), seed, plain, str(data.device)) for synset, seed in pairs]
    missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in _teachers}
    if missing:
        nets = train_group(
            list(missing.values()), data, "ce", name, None, plain, ("teacher", "teacher batches")
        )
        for (key, (synset, _)), net in zip(missing.items(), nets, strict=True):
            images, _ = on_device(synset, data)
            net.eval()
            with torch.no_grad(), mixed_precision(config.precision, images.device):
                _teachers[key] = torch.cat([net(x) for x in images.split(100)]).to(images.dtype)
    return [_teachers[key] for key in keys]


def fresh_net(name, data, config, generator):
    """An evaluation net at the width that `config` gives, on the data's device."""
    channels, side, classes = data.shape
    options = {"channels": channels, "side": side, "classes": classes, **net_width(name, config)}
    return build_net(name, generator, **options).to(data.device, data.x_train.dtype)


def net_width(name, config):
    """Of a config's width, depth and width factor what a net has."""
    return width_options(name, config.width, config.depth, config.width_factor)


def configured(config, settings):
    """An `EvalConfig` with single settings overridden; unknown names are errors."""
    check_known(EvalConfig, settings)
    return replace(config or EvalConfig(), **settings)


def check_request(synset, data, nets, protocol, n_eval, teacher, split):
    """Raise `DDError` for anything that `evaluate` cannot do."""
    check_choice("protocol", protocol, PROTOCOLS)
    for net in nets:
        net_class(net)
    if protocol == "kd" and teacher is None:
        raise DDError("protocol 'kd' needs a teacher; valid: " + ", ".join(NETS))
    if teacher is not None:
        net_class(teacher, "teacher")
    check_range("n_eval", n_eval, 1)
    if not len(data.split(split)[1]):
        raise DDError(f"split {split!r} of {data.name} has no images")
    mine, theirs = tuple(synset.images.shape[1:]), tuple(data.x_test.shape[1:])
    if mine != theirs:
        raise DDError(f"the set's images are {list(mine)}, the data's {list(theirs)}")
    if int(synset.labels.max()) >= len(data.classes):
        raise DDError(
            f"the set has labels up to {int(synset.labels.max())}, the data {len(data.classes)} classes"
        )
    for name in ("mean", "std"):
        a, b = getattr(synset, name), getattr(data, name)
        if a is not None and max(abs(x - y) for x, y in zip(a, b, strict=True)) > 1e-4:
            raise DDError(
                f"the set is normalised with {name} {rounded(a)}, the data with {rounded(b)}"
            )


def rounded(values):
    return [round(v, 4) for v in values]


def describe(synset, data, protocol, net, eval_seed, teacher, split, config):
    """A row's identity: everything but the result and the machine."""
    about, released = synset.config, protocol == "authors-2023"
    widths = net_width(net, config) | (net_width(teacher, config) if teacher else {})
    return {
        "dataset": data.name,
        "ipc": synset.ipc,
        "pool": about.get("pool", "unknown"),
        "iteration": synset.iteration,
        "distill_seed": about.get("seed", 0),
        "protocol": protocol,
        "net": net_name(net),
        "eval_seed": eval_seed,
        "teacher": net_name(teacher) if teacher else "",
        "teacher_seed": eval_seed if teacher else None,
        "alpha": config.alpha if teacher or released else None,
        "tau": config.tau if teacher else None,
        "split": split,
        "epochs": config.epochs,
        "lr": config.lr,
        "batch": config.batch,
        "width": widths.get("width"),
        "width_factor": widths.get("width_factor"),
        "main_prob": about.get("main_prob"),
        "warmup": about.get("warmup"),
        "similar_depth": about.get("similar_depth"),
        "set_id": synset.id,
        "precision": config.precision,
        "depth": widths.get("depth"),
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        "distill_precision": about.get("precision", ""),
    }
