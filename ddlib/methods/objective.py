"""What a run is made of: parts, among them the objective, which says what pixels should achieve.

One of your own needs `class_loss` only, and works with every pool, in snapshots and when resumed:

>>> class MeanPixels(Objective):
...     def class_loss(self, net, real, synthetic, label):
...         return (real.mean(0) - synthetic.mean(0)).square().sum()
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..augment import Epoch, apply, draw, operations_of
from ..support.errors import DDError, check_loss
from ..support.fast import Recorder, mixed_precision
from ..support.rng import Streams

if TYPE_CHECKING:
    from ..config import DistillConfig
    from ..data import Data
    from ..pool import ModelPool


class Part:
    """Something a run is made of: images, an objective, an extra loss that remembers something."""

    # Of options that came later with another default: what runs did before, as their names say
    before: ClassVar[Mapping[str, Any]] = {}

    def prepare(self, config: DistillConfig, data: Data, rng: Streams) -> None:
        """Begin a run. All random numbers must come from `rng`, whose state the run keeps."""

    def state(self) -> dict[str, Tensor]:
        """The tensors that change from iteration to iteration: a checkpoint holds them."""
        return {}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])

    def measures(self) -> dict[str, float]:
        """Numbers to log after an iteration, by name; the last ones are kept with the set, "lr" as
        the learning rate at which nets are to be trained on it.
        """
        return {}

    def close(self) -> None:
        """End a run: let go of what it needed."""


class Objective(Part):
    """A loss between real and synthetic images, whose gradient is added to the pixels', per class.

    `__call__` may be overridden for another loss than a sum over classes, `start` for other nets
    than fresh ones. Subclasses take their own settings as keyword arguments of `__init__`.
    """

    recorded = False  # whether `class_loss` may be recorded on a GPU: see `fast.Recorder`

    @staticmethod
    def loops(ipc: int) -> tuple[int, int]:
        """(outer steps, inner epochs) of an iteration, where the config leaves them open."""
        return 1, 1

    def class_loss(self, net: nn.Module, real: Tensor, synthetic: Tensor, label: int) -> Tensor:
        """The loss of one class, 0-dim, differentiable in `synthetic` [ipc, C, H, W].

        `real`: [batch_real, C, H, W], different random training images of the class.
        """
        raise DDError(f"method {self.config.method!r} has no class_loss: give distill an objective")

    def prepare(self, config: DistillConfig, data: Data, rng: Streams) -> None:
        """Buffers that stay where they are, so that work on them can be recorded."""
        self.config, self.data, self.rng = config, data, rng
        outer, inner = self.loops(config.ipc)
        self.outer, self.inner = config.outer or outer, config.inner or inner
        classes, device = len(data.classes), data.device
        self.operations = operations_of(config.augment, data)
        self.shown = data.x_train.new_zeros(classes * config.ipc, *data.x_train.shape[1:])
        self.gradient = torch.zeros_like(self.shown)
        self.rows, self.rows_bn = (
            torch.zeros(classes, n, dtype=torch.int64, device=device)
            for n in (config.batch_real, config.batch_bn)
        )
        augmented = config.batch_real if self.operations else 0
        self.real = data.x_train.new_zeros(classes, augmented, *data.x_train.shape[1:])
        self.description: dict[str, Any] = {}
        self.nets: dict[str, nn.Module] = {}
        self.epochs: dict[nn.Module, InnerEpoch] = {}
        self.recorder = Recorder(device, self.recorded)

    def start(self, pool: ModelPool, k: int) -> nn.Module:
        """The net of iteration k: an architecture drawn from the pool, with fresh weights."""
        self.description, fresh = pool.sample(self.rng["pool"], k, self.rng["weights"])
        net = self.nets.setdefault(json.dumps(self.description), fresh)
        net.to(self.shown.device, self.shown.dtype).load_state_dict(fresh.state_dict())
        return net

    def __call__(self, net: nn.Module, pixels: Tensor) -> Tensor:
        """Add the loss's gradient to `pixels.grad`; returns the loss of all classes, 0-dim."""
        if layers := batchnorms(net):
            self.fill_rows(self.rows_bn, "batchnorm")
            self.recorder(self.freeze, net)
            for layer in layers:  # a replay sets their statistics, not that they are frozen
                layer.eval()
        self.fill_rows(self.rows, "batch")
        shown = self.show(pixels)
        self.shown.copy_(shown.detach())
        loss = self.recorder(self.match, net)
        assert pixels.grad is not None
        pixels.grad += pull_back(self.gradient, shown, pixels)
        return loss

    def show(self, pixels: Tensor) -> Tensor:
        """The pixels as they are matched, with their graph, beside `real`: one draw per class."""
        if not self.operations:
            return pixels
        shown = []
        of_class = pixels.split(self.config.ipc)
        for label, rows in enumerate(self.rows):
            drawn = draw(self.operations, self.rng["augment"])
            self.real[label] = apply(self.data.x_train[rows], *drawn)
            shown.append(apply(of_class[label], *drawn))
        return torch.cat(shown)

    def match(self, net: nn.Module) -> Tensor:
        """The loss, 0-dim; its gradient lies in `self.gradient`.

        One class's graph is alive at a time; where this is recorded, those of up to `LANES` classes
        (`Recorder.fork`; a smaller `slice_size` makes them smaller). The sum goes by class.
        """
        works = [partial(self.match_class, net, label) for label in range(len(self.rows))]
        return sum(self.recorder.fork(works), self.shown.new_zeros(()))

    def match_class(self, net: nn.Module, label: int) -> Tensor:
        """The loss of a class, without its graph; its gradient is put where it belongs."""
        of_class = slice(label * self.config.ipc, (label + 1) * self.config.ipc)
        synthetic = self.shown[of_class].detach().requires_grad_()
        real = self.real[label] if self.operations else self.data.x_train[self.rows[label]]
        distance = self.class_loss(net, real, synthetic, label)
        check_loss(f"method {self.config.method!r}", distance)
        self.gradient[of_class] = gradient_of(distance, synthetic)
        return distance.detach()

    def learn(self, finite: Tensor) -> None:
        """Move what is learned beside the images; unless `finite` (0-dim), it stays the same."""

    def train(self, net: nn.Module, pixels: Tensor, labels: Tensor) -> None:
        """The inner loop: `inner` epochs on the synthetic set, so that trained nets match too."""
        net.train()
        self.shown.copy_(pixels)
        if net not in self.epochs:
            self.epochs[net] = InnerEpoch(net, self.shown, labels, self.config, self.operations)
        for _ in range(self.inner):
            self.epochs[net].shuffle(self.rng["train"], self.rng["augment"])
            self.recorder(self.epochs[net].run)

    def freeze(self, net: nn.Module) -> None:
        """BatchNorm's statistics from real images of all classes."""
        freeze_batchnorm(net, self.data.x_train[self.rows_bn.flatten()])

    def fill_rows(self, rows: Tensor, name: str) -> None:
        """Fill `rows` [classes, n] of `data.x_train` at random, different ones within a class."""
        classes, n = rows.shape
        drawn = [self.data.draw(c, n, self.rng[name]) for c in range(classes)]
        rows.copy_(torch.stack(drawn), non_blocking=True)

    def close(self) -> None:
        """Let go of nets and recordings, which hold the objective in turn."""
        for held in (self.epochs, self.nets):
            held.clear()
        self.recorder.close()


def gradient_of(loss: Tensor, images: Tensor) -> Tensor:
    """The gradient of a loss with respect to images; `DDError` if it does not depend on them."""
    (gradient,) = torch.autograd.grad(loss, images, allow_unused=True)
    if gradient is None:
        raise DDError("the loss does not depend on the synthetic images; needed: one that does")
    return gradient


def pull_back(gradient: Tensor, shown: Tensor, pixels: Tensor) -> Tensor:
    """The gradient at `pixels` of a loss whose gradient at `shown`, made of them, is known."""
    return gradient if shown is pixels else torch.autograd.grad(shown, pixels, gradient)[0]


class InnerEpoch(Epoch):
    """One epoch of the inner loop: SGD, lr `lr_net`, no momentum, batches of `batch_train`."""

    def __init__(
        self,
        net: nn.Module,
        images: Tensor,
        labels: Tensor,
        config: DistillConfig,
        operations: Sequence[str] = (),
    ) -> None:
        super().__init__(images, config.batch_train, operations)
        self.net, self.labels, self.config = net, labels, config
        self.parameters: list[Tensor] = list(net.parameters())

    def step(self, images: Tensor, rows: Any) -> None:
        with mixed_precision(self.config.precision, images.device):
            logits = self.net(images)
        loss = F.cross_entropy(logits.to(images.dtype), self.labels[rows])
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            torch._foreach_add_(self.parameters, gradients, alpha=-self.config.lr_net)


def batchnorms(net: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers of a net."""
    return [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def freeze_batchnorm(net: nn.Module, images: Tensor) -> None:
    """Set the statistics of every BatchNorm layer from `images` (16 real ones per class in DC).

    Synthetic batches of a few images are too small to estimate them. `net.train()` thaws them.
    """
    layers: list[Any] = batchnorms(net)
    net.train()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0
    try:
        net(images)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
