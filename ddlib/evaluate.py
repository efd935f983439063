"""Evaluation: train fresh nets on a synthetic set under a protocol, test them on real images, a row
for each.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, product
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from .augment import operations_of
from .config import EvalConfig, check_known, is_a
from .data import Data
from .errors import DDError, check_choice, check_range
from .fast import (
    Epoch,
    Recorder,
    keep_freed_memory,
    mixed_precision,
    products,
    side_by_side,
)
from .losses import PROTOCOLS, Net, Protocol, find_protocol
from .machine import environment, kind
from .nets import DEPTHS, build_net, net_class, net_name, width_options
from .progress import bar
from .public import APART, LARGEST_SEED, public
from .results import DISTILLATION, EVALUATION, NESTED, ROWS, Results, canonical, flat
from .rng import stream
from .synset import SyntheticSet

# The evaluation version. Raise it whenever the same net, set and seed may come out otherwise: no
# table cell mixes two. 1: until 2026-11-21; 2: gradients laid out as their weights (LeNet and
# AlexNet were wrong), max pooling by whole tensors.
VERSION = 2
TEACHER = "ConvNet"
AT_ONCE = {"cuda": 10, "cpu": 4}  # nets side by side: a ResNet18 takes up to 3.5 GB (ipc 50)
LONGEST = 32  # batches of an epoch that is recorded: as many copies of each kernel
Pairs = Sequence[tuple[SyntheticSet, int]]  # sets, each with an eval seed


@public
def evaluate(
    synset: SyntheticSet | Iterable[SyntheticSet],
    data: Data,
    nets: Net | Sequence[Net] = ("ConvNet",),
    protocol: str | Protocol = "ce",
    n_eval: int = 5,
    seed: int = 0,
    *,
    teacher: Net | None = TEACHER,
    split: str = "test",
    config: EvalConfig | None = None,
    results: Results | None = None,
    progress: bool = True,
    stop: Callable[[], bool] | None = None,
    **settings: object,
) -> pd.DataFrame:
    """Train `n_eval` fresh nets of each architecture on `synset`, or on each of several sets, and
    test them on `data`.

    Returns one line per net and split (`results.flat`; accuracy in percent). `protocol`: see
    `ddlib.losses`, or a `Protocol` of your own; `teacher` is the net that `kd` and `authors-2023`
    learn from (None for `authors-2023`: its "no KD", half a CE), and for `kd-real` one trained on
    real images, which `elf` needs too (`ddlib.elf`). `eval_seeds` numbers the nets, from `seed` on;
    a teacher of the same number comes from a stream of its own. `split`: "test", "val" to choose
    settings, or "both": one training, a row for each. `config` is an `EvalConfig`, `settings`
    override single ones (`tau=4.0`). With `results` (a `Results`), rows found there are not
    computed again and new ones are saved as they finish, also before Ctrl-C, which says how many
    those are; `stop()` is asked before every group, and if it says True, what is not there yet is
    left out. A net with non-finite weights or logits is marked `diverged` and keeps the accuracy it
    has. Several nets of an architecture train at once (`groups`); `seconds` is a row's share.
    On a set with soft labels `ce` trains with these; a set's own learning rate counts only if you
    say so: `lr=synset.lr`. Raises `DDError` for anything unknown, or a set that does not fit the
    data (a whitened one needs `ddlib.whitened` data).
    """
    keep_freed_memory()
    protocol, teacher = find_protocol(protocol, teacher)
    config = configured(config, settings, protocol)
    if config.depth is None:
        config = replace(config, depth=DEPTHS.get(data.shape[1]))
    synsets = [synset] if isinstance(synset, SyntheticSet) else list(synset)
    if isinstance(nets, str | type) or not isinstance(nets, Iterable):
        nets = [nets]  # of what is no net `check_request` has more to say
    nets = list(nets)
    if not (synsets and nets):
        raise DDError(f"{len(synsets)} sets and {len(nets)} nets; needed: at least one of each")
    check_range("seed", seed, 0, LARGEST_SEED - n_eval)
    for one in synsets:
        check_request(one, data, nets, teacher, splits(split))
        check_soft(one, data, protocol)
    if protocol.check:
        for net in nets:
            protocol.check(net, data, config)
    place = "kept in results; call again to go on" if results else "lost: evaluate has no results="
    results = Results() if results is None else results
    if config.precision == "float64":
        data = data.to(dtype=torch.float64)
    rows = {}
    for (k, one), net in product(enumerate(synsets), nets):
        # Reads all pixels, so once for all seeds
        row = describe_row(one, protocol, net, 0, teacher, "test", config, data.content)
        for s in eval_seeds(one, n_eval, seed):
            rows[k, net, s] = [row | {"eval_seed": s, "split": name} for name in splits(split)]
    about = [describe_set(one, data) for one in synsets]
    missing = [key for key in rows if any(results.get(row) is None for row in rows[key])]
    ticks = bar(len(rows), f"evaluate {protocol.name}", len(rows) - len(missing), show=progress)
    with (
        interruptible(results, list(rows.values()), place),
        products(config.precision, data.device),
        ticks,
    ):
        for group in groups(missing, data.device):
            if stop and stop():
                break
            started = time.perf_counter()
            pairs, net = [(synsets[k], s) for k, _, s in group], group[0][1]
            trained = train_group(pairs, data, protocol, net, teacher, config, results)
            outcomes = measure_group(trained, data, splits(split), config.precision)
            share = (time.perf_counter() - started) / len(group) / len(splits(split))
            machine = {"seconds": round(share, 3)} | machine_text(environment(data.device))
            tested = zip([row for key in group for row in rows[key]], chain(*outcomes), strict=True)
            results.add([about[k] for k, *_ in group], [row | o | machine for row, o in tested])
            ticks.update(len(group))
    finished = [results.get(row) for same in rows.values() for row in same]
    sets = pd.DataFrame(about).drop_duplicates("set")
    return flat(sets, pd.DataFrame([r for r in finished if r is not None], columns=list(ROWS)))


@contextmanager
def interruptible(results: Results, nets: Sequence[Sequence[dict]], place: str) -> Iterator[None]:
    """Ctrl-C within the block says of how many nets all rows are in `results`, and what of it."""
    try:
        yield
    except KeyboardInterrupt:
        done = sum(all(results.get(row) for row in rows) for rows in nets)
        raise KeyboardInterrupt(f"{done} of {len(nets)} nets are {place}") from None


def eval_seeds(synset: SyntheticSet, n: int, seed: int = 0) -> range:
    """The eval seeds of n nets on a set, from `APART` times the set's own seed on.

    So nets on sets of different seeds share no weights, as an interval over sets requires, and nets
    of different methods at one set seed do, which pairing removes.
    """
    first = seed + APART * identity_of(synset)["seed"]
    return range(first, first + n)


def splits(split: str) -> tuple[str, ...]:
    """The names of the splits that are tested: "both" means validation and test."""
    return ("val", "test") if split == "both" else (split,)


def groups(missing: Sequence[tuple], device: torch.device | str) -> list[list[tuple]]:
    """Which nets (set, architecture, eval seed) train at once: of one architecture, on a GPU many,
    on a CPU one per thread.
    """
    on_gpu = kind(device) == "cuda"
    size = AT_ONCE["cuda"] if on_gpu else min(AT_ONCE["cpu"], torch.get_num_threads())
    found = []
    for name in dict.fromkeys(net for _, net, _ in missing):
        same = [key for key in missing if key[1] == name]
        found += [same[i : i + size] for i in range(0, len(same), size)]
    return found


def describe_row(
    synset: SyntheticSet,
    protocol: Protocol,
    net: Net,
    eval_seed: int,
    teacher: Net | None,
    split: str,
    config: EvalConfig,
    content: str = "",
) -> dict:
    """A row's identity (`results.KEY`): everything but the result and the machine.

    Settings are those that differ from the defaults and matter to these nets; teacher, tau and
    alpha wherever they are used; the data's `content`, unless their name says enough.
    """
    used = net_width(net, config) | (net_width(teacher, config) if teacher else {})
    unused = {"width", "depth", "width_factor", "norm"} - set(used) | {"alpha", "tau", "options"}
    own = {k: v for k, v in config.options.items() if v != protocol.options[k]}
    changed = own | {
        name: value
        for name, value in asdict(config).items()
        if name not in unused and value != EVALUATION[name]
    }
    if teacher:
        changed |= {"teacher": net_name(teacher), "alpha": config.alpha, "tau": config.tau}
    elif protocol.teacher != "never":
        changed |= {"alpha": config.alpha}
    changed |= {"data": content} if content else {}
    return {
        "set": set_key(synset),
        "net": net_name(net),
        "protocol": protocol.name,
        "settings": canonical(changed),
        "eval_seed": eval_seed,
        "split": split,
        "evaluation": VERSION,
    }


def describe_set(synset: SyntheticSet, data: Data) -> dict:
    """A line of the table of sets (`results.SETS`)."""
    named, origin = identity_of(synset), synset.provenance
    irrelevant = {*named, "snapshots", *NESTED}
    changed = synset.config.get("options", {}) | {
        k: v for k, v in synset.config.items() if k not in irrelevant and v != DISTILLATION.get(k)
    }
    held_out = len(data.y_val) / (len(data.y_val) + len(data.y_train))
    changed["val_fraction"] = round(held_out, 3)
    made = {"settings": canonical(changed), "seconds": origin.get("seconds", 0.0)}
    return {"set": set_key(synset)} | named | made | machine_text(origin)


def identity_of(synset: SyntheticSet) -> dict:
    """What a set is called in results."""
    about = synset.config
    pool = about.get("pool", "unknown")
    base = about.get("method", "dc" if pool != "unknown" else "unknown")
    images = about.get("images", "pixels")
    wrapped = [*about.get("extras", ()), *([images] if images != "pixels" else [])]
    return {
        "method": "+".join(wrapped) or base,
        "base": base if wrapped else about.get("base", ""),
        "pool": pool,
        "dataset": synset.dataset,
        "ipc": synset.ipc,
        "iteration": synset.iteration,
        "seed": about.get("seed", 0),
    }


def set_key(synset: SyntheticSet) -> str:
    """A set's key in results: its pixels and what it is called.

    A model pool that has not drawn another net yet has the baseline's pixels, and is still another.
    """
    return hashlib.sha256(canonical(identity_of(synset) | {"id": synset.id}).encode()).hexdigest()[
        :12
    ]


def machine_text(about: dict) -> dict:
    """Hardware and versions of `device.environment` as two columns."""
    names = {"device": "", "python": "python ", "torch": "torch "}
    parts = [f"{text}{about[name]}" for name, text in names.items() if name in about]
    return {"machine": "; ".join(parts), "revision": about.get("revision", "")}


def train_group(
    pairs: Pairs,
    data: Data,
    protocol: Protocol,
    name: Net,
    teacher: Net | None,
    config: EvalConfig,
    results: Results | None = None,
    streams: tuple[str, str, str] = ("eval", "batches", "augment"),
) -> list[nn.Module]:
    """Fresh nets of one architecture, one per pair of set and eval seed, trained on that set under
    a protocol.

    `streams`: the names of the generators of their weights, batches and augmentation. `results`
    keeps what the protocol prepares.
    """
    results = Results() if results is None else results
    targets = prepare_targets(pairs, data, protocol, name, teacher, config, results)
    trainings = []
    for (synset, seed), target in zip(pairs, targets, strict=True):
        images, labels = on_device(synset, data)
        net = fresh_net(name, data, config, stream(seed, streams[0], net_name(name)))
        generators = [stream(seed, kind, net_name(name)) for kind in streams[1:]]
        operations = operations_of(config.augment, data)
        trainings.append(
            Training(net, images, labels, protocol, config, target, generators, operations)
        )
    train_nets(trainings)
    return [training.net for training in trainings]


def prepare_targets(
    pairs: Pairs,
    data: Data,
    protocol: Protocol,
    net: Net,
    teacher: Net | None,
    config: EvalConfig,
    results: Results,
) -> Sequence[Tensor | None]:
    """What a protocol knows of each image of each pair's set: by default the teacher's logits, or
    the set's soft labels as probabilities.

    They are those of the images as they are, also where training augments them.
    """
    if protocol.prepare:
        return protocol.prepare(pairs, data, net, teacher, config, results)
    if teacher:
        return teacher_logits(pairs, data, teacher, config, results)
    soft = [synset.targets() for synset, _ in pairs]
    return [None if t is None else t.to(data.device, data.x_train.dtype) for t in soft]


def ids_of(pairs: Pairs) -> list[str]:
    """The id of each pair's set, for which the pixels of a set are read once."""
    sets = {id(synset): synset for synset, _ in pairs}
    known = {key: synset.id for key, synset in sets.items()}
    return [known[id(synset)] for synset, _ in pairs]


def on_device(synset: SyntheticSet, data: Data) -> tuple[Tensor, Tensor]:
    """Images and labels of a set, as and where the data are."""
    return synset.images.to(data.device, data.x_train.dtype), synset.labels.to(data.device)


def measure_group(
    nets: Sequence[nn.Module], data: Data, names: Sequence[str], precision: str
) -> list[list[dict]]:
    """Per net a list with accuracy and diverged (`measure_accuracy`) on each of the splits."""

    def measure(net: nn.Module) -> list[dict]:
        measured = [measure_accuracy(net, *data.split(name), precision) for name in names]
        return [{"accuracy": accuracy, "diverged": diverged} for accuracy, diverged in measured]

    if kind(data.device) == "cuda":
        return [measure(net) for net in nets]
    return side_by_side([partial(measure, net) for net in nets], data.device)


class Training(Epoch):
    """The training of one net on a set under a protocol, an epoch at a call of `run`.

    `generators`: of the batches' order and, if `operations` are to augment them, of that.
    """

    def __init__(
        self,
        net: nn.Module,
        images: Tensor,
        labels: Tensor,
        protocol: Protocol,
        config: EvalConfig,
        targets: Tensor | None = None,
        generators: Sequence[torch.Generator] = (),
        operations: Sequence[str] = (),
    ) -> None:
        super().__init__(images, config.batch, operations)
        self.net, self.labels, self.protocol = net.train(), labels, protocol
        self.config, self.targets, self.generators = config, targets, generators
        self.optimizer: torch.optim.Optimizer | None = None
        self.done: Tensor | int = 0
        self.lr: Tensor | None = None
        if kind(images.device) == "cuda":  # what a recorded epoch counts and reads lies there
            self.done = torch.zeros((), dtype=torch.float64, device=images.device)
            self.lr = torch.zeros((), device=images.device)  # the fused kernel takes float32 only

    def start(self, lr: float) -> None:
        """From here on with this learning rate, and no momentum yet."""
        settings = lr, self.config.momentum, 0, self.config.weight_decay
        if self.optimizer is None:
            self.optimizer = torch.optim.SGD(self.net.parameters(), *settings, fused=True)
        self.optimizer.param_groups[0]["lr"] = lr if self.lr is None else self.lr.fill_(lr)
        for state in self.optimizer.state.values():  # the buffers stay: no recording makes them
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].zero_()

    def step(self, images: Tensor, rows: Tensor | slice) -> None:
        assert self.optimizer is not None
        self.optimizer.zero_grad()  # of a recording that failed
        targets = None if self.targets is None else self.targets[rows]
        with mixed_precision(self.config.precision, images.device):
            outputs = self.protocol.forward(self.net, images, targets, self.config)
        labels, outputs = self.labels[rows], in_type(outputs, images.dtype)
        # backward() lays a gradient out in memory as its weight is; the fused optimiser relies on
        # it
        self.protocol.loss(outputs, labels, targets, self.config, self.done).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run(self) -> None:
        super().run()
        self.done += 1


def in_type(outputs: Any, dtype: torch.dtype) -> Any:
    """A tensor, or a tuple of them, in a floating-point type."""
    if isinstance(outputs, tuple):
        return tuple(output.to(dtype) for output in outputs)
    return outputs.to(dtype)


def train_nets(trainings: Sequence[Training]) -> None:
    """Train nets in place, all under the same schedule: SGD, lr x 0.1 after epoch
    `config.drop_epoch` with the momentum reset.

    These are the DC family's settings (Zhao et al., ICLR 2021): lr 0.01, momentum 0.9, weight decay
    5e-4, batch 256, epochs 0..300, drop after 151, no augmentation. The nets train side by side; on
    a GPU an epoch of all of them is one recorded graph, which reads the rate from memory.
    """
    config, device = trainings[0].config, trainings[0].labels.device
    before = min(config.drop_epoch + 1, config.epochs)
    short = max(len(training.images) / training.size for training in trainings) <= LONGEST
    with closing(Recorder(device, short)) as recorder:
        epoch = partial(side_by_side, [training.run for training in trainings], device)
        for lr, epochs in (config.lr, before), (config.lr * 0.1, config.epochs - before):
            for training in trainings:
                training.start(lr)
            for _ in range(epochs):
                for training in trainings:
                    training.shuffle(*training.generators)
                recorder(epoch)


@torch.no_grad()
def measure_accuracy(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    precision: str = "float32",
    batch: int | None = None,
) -> tuple[float, bool]:
    """(accuracy in percent, diverged): diverged means that weights or logits are not finite.

    `batch`: images at once; by default 100 on a CPU, whose memory has to hold several nets'
    activations, else 500.
    """
    net.eval()
    finite = torch.stack(
        [torch.isfinite(p).all() for p in net.parameters()] or [torch.ones((), dtype=torch.bool)]
    ).all()
    finite = finite.to(images.device)
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    batch = batch or (100 if kind(images.device) == "cpu" else 500)
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        with mixed_precision(precision, x.device):
            logits = net(x)
        correct += (logits.argmax(1) == y).sum()
        finite &= torch.isfinite(logits).all()
    return 100 * int(correct) / len(labels), not bool(finite)


def teacher_logits(
    pairs: Pairs, data: Data, name: Net, config: EvalConfig, results: Results
) -> list[Tensor]:
    """Logits [N, classes] of teachers trained with plain CE, a tensor per pair of set and eval
    seed, on that set's images.

    `results.teachers` keeps them: all students, protocols and temperatures share them.
    """
    teachers, plain = results.teachers, replace(config, alpha=0.0, tau=1.0, options={})
    named = zip(ids_of(pairs), pairs, strict=True)
    keys = [(key, net_class(name), seed, plain, str(data.device)) for key, (_, seed) in named]
    missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in teachers}
    if missing:
        streams = ("teacher", "teacher batches", "teacher augment")
        nets = train_group(
            list(missing.values()), data, PROTOCOLS["ce"], name, None, plain, results, streams
        )
        for (key, (synset, _)), net in zip(missing.items(), nets, strict=True):
            teachers[key] = read_images(net.eval(), on_device(synset, data)[0], config.precision)
    return [teachers[key] for key in keys]


@torch.no_grad()
def read_images(read: Callable[[Tensor], Tensor], images: Tensor, precision: str) -> Tensor:
    """What a net's `read` makes of images [N, ...], 100 at a time, in their type."""
    with mixed_precision(precision, images.device):
        return torch.cat([read(x) for x in images.split(100)]).to(images.dtype)


def fresh_net(name: Net, data: Data, config: EvalConfig, generator: torch.Generator) -> nn.Module:
    """An evaluation net of the width and norm that `config` gives, on the data's device."""
    net = build_net(name, generator, **options_for(name, data, config))
    return net.to(data.device, data.x_train.dtype)


def options_for(name: Net, data: Data, config: EvalConfig) -> dict[str, Any]:
    """With what an evaluation net is built."""
    channels, side, classes = data.shape
    return {"channels": channels, "side": side, "classes": classes} | net_width(name, config)


def net_width(name: Net, config: EvalConfig) -> dict:
    """Of a config's width, depth, width factor and norm those that a net has."""
    return width_options(name, config.width, config.depth, config.width_factor, config.norm)


def configured(
    config: EvalConfig | None, settings: Mapping[str, Any], protocol: Protocol
) -> EvalConfig:
    """An `EvalConfig` with single settings overridden, the protocol's own ones among them; unknown
    names are errors.
    """
    config = config or EvalConfig()
    options = config.options | {k: v for k, v in settings.items() if k in protocol.options}
    settings = {k: v for k, v in settings.items() if k not in protocol.options}
    for name, value in options.items():
        check_choice(f"option of protocol {protocol.name!r}", name, protocol.options)
        usual = protocol.options[name]
        if usual is not None and not is_a(value, type(usual)):
            raise DDError(f"{name} is {value!r}; needed: {type(usual).__name__}")
        options[name] = float(value) if isinstance(usual, float) else value  # 1 and 1.0 are one row
    check_known(EvalConfig, settings, also=protocol.options)
    return replace(config, **({"options": options} | settings))


def check_request(
    synset: SyntheticSet,
    data: Data,
    nets: Sequence[Net],
    teacher: Net | None,
    names: Sequence[str],
) -> None:
    """Raise `DDError` for anything that `evaluate` cannot do."""
    if not isinstance(synset, SyntheticSet):
        raise DDError(f"a set is a {type(synset).__name__}; needed: a SyntheticSet")
    for net in nets:
        net_class(net)
    if teacher is not None:
        net_class(teacher, "teacher")
    for name in names:
        if not len(data.split(name)[1]):
            raise DDError(f"split {name!r} of {data.name} has no images")
    shapes = [list(images.shape[1:]) for images in (synset.images, data.x_test)]
    if shapes[0] != shapes[1]:
        raise DDError(f"the set's images are {shapes[0]}, the data's {shapes[1]}")
    if int(synset.labels.max()) >= len(data.classes):
        raise DDError(
            f"the set has labels up to {int(synset.labels.max())}, "
            f"the data {len(data.classes)} classes"
        )
    if synset.space != data.space:
        raise DDError(
            f"images of the set are in space {synset.space!r}, of the data in {data.space!r}; both "
            "must be the same (ddlib.whitened(data) are in 'zca')"
        )
    for name in ("mean", "std"):
        a, b = getattr(synset, name), getattr(data, name)
        if a is not None and max(abs(x - y) for x, y in zip(a, b, strict=True)) > 1e-4:
            a, b = ([round(value, 4) for value in values] for values in (a, b))
            raise DDError(f"the set is normalised with {name} {a}, the data with {b}")


def check_soft(synset: SyntheticSet, data: Data, protocol: Protocol) -> None:
    """Raise `DDError` for soft labels that the protocol does not use, or of other classes."""
    if synset.soft_labels is None:
        return
    if not protocol.soft:
        able = ", ".join(name for name, known in PROTOCOLS.items() if known.soft)
        raise DDError(
            f"protocol {protocol.name!r} has no use for the soft labels of a set; valid: {able}, "
            "or a set without them: dataclasses.replace(synset, soft_labels=None)"
        )
    if len(synset.classes) != len(data.classes):
        counts = f"{len(synset.classes)} classes, the data {len(data.classes)}"
        raise DDError(f"the set has soft labels of {counts}; they must agree")
