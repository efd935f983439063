"""Training: fresh nets on a synthetic set under a protocol, their teachers, and their accuracy."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .augment import Epoch, operations_of
from .config import EvalConfig
from .data import Data
from .losses import PROTOCOLS, Protocol
from .nets import AnyNet, build_net, net_class, net_name, net_width
from .results import Results
from .support.errors import check_loss
from .support.fast import Recorder, mixed_precision, side_by_side
from .support.machine import kind
from .support.rng import stream
from .synset import SyntheticSet

LONGEST = 32  # batches of an epoch that is recorded: as many copies of each kernel
Pairs = Sequence[tuple[SyntheticSet, int]]  # sets, each with an eval seed


def train_group(
    pairs: Pairs,
    data: Data,
    protocol: Protocol,
    name: AnyNet,
    teacher: AnyNet | None,
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
        generators = [stream(seed, use, net_name(name)) for use in streams[1:]]
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
    net: AnyNet,
    teacher: AnyNet | None,
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


def teacher_logits(
    pairs: Pairs, data: Data, name: AnyNet, config: EvalConfig, results: Results
) -> list[Tensor]:
    """Logits [N, classes] of teachers trained with plain CE, a tensor per pair of set and eval
    seed, on that set's images.

    `results.teachers` keeps them: all students, protocols and temperatures share them.
    """
    teachers = results.teachers
    lr = config.lr if config.teacher_lr is None else config.teacher_lr
    # The norm is the student's
    plain = replace(config, lr=lr, teacher_lr=None, alpha=0.0, tau=1.0, norm=None, options={})
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


def ids_of(pairs: Pairs) -> list[str]:
    """The id of each pair's set, for which the pixels of a set are read once."""
    sets = {id(synset): synset for synset, _ in pairs}
    known = {key: synset.id for key, synset in sets.items()}
    return [known[id(synset)] for synset, _ in pairs]


def on_device(synset: SyntheticSet, data: Data) -> tuple[Tensor, Tensor]:
    """Images and labels of a set, as and where the data are."""
    return synset.images.to(data.device, data.x_train.dtype), synset.labels.to(data.device)


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
        settings = config.lr, config.momentum, 0, config.weight_decay
        self.optimizer = torch.optim.SGD(net.parameters(), *settings, fused=True)
        self.done: Tensor | int = 0
        self.lr: Tensor | None = None
        if kind(images.device) == "cuda":  # what a recorded epoch counts and reads lies there
            self.done = torch.zeros((), dtype=torch.float64, device=images.device)
            self.lr = torch.zeros((), device=images.device)  # the fused kernel takes float32 only

    def start(self, lr: float) -> None:
        """From here on with this learning rate, and no momentum yet."""
        self.optimizer.param_groups[0]["lr"] = lr if self.lr is None else self.lr.fill_(lr)
        for state in self.optimizer.state.values():  # the buffers stay: no recording makes them
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].zero_()

    def step(self, images: Tensor, rows: Tensor | slice) -> None:
        self.optimizer.zero_grad()  # of a recording that failed
        targets = None if self.targets is None else self.targets[rows]
        with mixed_precision(self.config.precision, images.device):
            outputs = self.protocol.forward(self.net, images, targets, self.config)
        labels, outputs = self.labels[rows], in_type(outputs, images.dtype)
        # backward() lays a gradient out in memory as its weight is; the fused optimiser relies on
        # it
        loss = self.protocol.loss(outputs, labels, targets, self.config, self.done)
        check_loss(f"protocol {self.protocol.name!r}", loss).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run(self) -> None:
        super().run()
        self.done += 1


def in_type(outputs: Any, dtype: torch.dtype) -> Any:
    """A tensor, or several, in a floating-point type."""
    if isinstance(outputs, tuple | list):
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


@torch.no_grad()
def read_images(read: Callable[[Tensor], Tensor], images: Tensor, precision: str) -> Tensor:
    """What a net's `read` makes of images [N, ...], 100 at a time, in their type."""
    with mixed_precision(precision, images.device):
        return torch.cat([read(x) for x in images.split(100)]).to(images.dtype)


def fresh_net(
    name: AnyNet, data: Data, config: EvalConfig, generator: torch.Generator
) -> nn.Module:
    """An evaluation net of the width and norm that `config` gives, on the data's device."""
    net = build_net(name, generator, **options_for(name, data, config))
    return net.to(data.device, data.x_train.dtype)


def options_for(name: AnyNet, data: Data, config: EvalConfig) -> dict[str, Any]:
    """With what an evaluation net is built."""
    channels, side, classes = data.shape
    return {"channels": channels, "side": side, "classes": classes} | net_width(name, config)
