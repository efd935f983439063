"""MTT: match the training trajectories of experts (Cazenavette et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import vector_to_parameters

from ..augment import apply, draw
from ..support.errors import DDError, check_range
from ..support.public import public
from ..support.rng import Streams
from .experts import expert, expert_settings, flat_parameters, read_expert
from .images import sgd
from .objective import Objective, batchnorms

if TYPE_CHECKING:
    from ..config import DistillConfig
    from ..data import Data
    from ..pool import ModelPool

Weights = dict[str, Tensor]  # by name
MOMENTUM = 0.5  # of the learned step size, as published


@public
@dataclass(eq=False, repr=False)
class Trajectory(Objective):
    """How far N steps on the synthetic set end from where an expert is M epochs later, relatively.

    A net starts from an expert's weights after s epochs and takes N steps of SGD on the synthetic
    images, each batch augmented by one operation with own numbers per image. The loss, one for all
    classes, is |theta_N - theta*_(s + M)|^2 / |theta*_s - theta*_(s + M)|^2. Pixels and step size
    learn from it; the latter is the set's `lr`, for the evaluation:
    `evaluate(synset, data, lr=synset.lr)`. As published, nothing keeps it positive.

    Experts are trained when first drawn, and kept (`experts.expert`). BatchNorm's statistics are
    frozen from real images at theta*_s as in DC, where the published code takes those of each
    batch. All is differentiated twice: precision bfloat16 is for the experts' training alone.
    """

    steps: int = 20  # N
    ahead: int = 3  # M, in epochs
    latest: int = 25  # s is one of 0..latest - 1
    experts: int = 100  # per architecture
    expert_epochs: int = 50
    batch_syn: int = 0  # synthetic images per step; 0: all
    lr_lr: float = 1e-5  # of the step size
    lr_start: float = 0.01  # the step size at first
    expert_images: int = 0  # random real images that an expert is trained on; 0: all

    def __post_init__(self) -> None:
        for setting in fields(self):
            least = setting.name in ("ahead", "latest", "experts", "expert_epochs")
            check_range(setting.name, getattr(self, setting.name), int(least))
        if self.latest + self.ahead > self.expert_epochs:
            allowed = f"at most the expert_epochs, {self.expert_epochs}"
            raise DDError(f"latest + ahead is {self.latest + self.ahead}; allowed: {allowed}")

    def prepare(self, config: DistillConfig, data: Data, rng: Streams) -> None:
        super().prepare(config, data, rng)
        if (self.outer, self.inner) != (1, 1):
            loops = f"outer is {self.outer}, inner {self.inner}"
            raise DDError(f"{loops}; allowed for trajectories: 1 and 1, with the option steps")
        self.real = self.real.new_zeros(0)  # large, and nothing real is matched here
        self.training = expert_settings(self.expert_epochs, config.augment, config.precision)
        self.lr = data.x_train.new_tensor(self.lr_start).requires_grad_()
        self.velocity, self.lr_gradient = torch.zeros_like(self.lr), torch.zeros_like(self.lr)

    def state(self) -> dict[str, Tensor]:
        return {"lr": self.lr, "velocity": self.velocity}

    def measures(self) -> dict[str, float]:
        return {"lr": self.lr.item()}

    def start(self, pool: ModelPool, k: int) -> nn.Module:
        """A net with an expert's weights; `target`: those that it should come to, [P]."""
        net = super().start(pool, k)
        seed = int(torch.randint(self.experts, (), generator=self.rng["expert"]))
        s = int(torch.randint(self.latest, (), generator=self.rng["start"]))
        about = self.description, self.data, seed, self.training, self.expert_images or None
        epochs, like = (s, s + self.ahead), flat_parameters(net.parameters())
        self.begin, self.target = read_expert(expert(pool, *about), epochs, like)
        vector_to_parameters(self.begin.clone(), net.parameters())
        return net

    def __call__(self, net: nn.Module, pixels: Tensor) -> Tensor:
        if batchnorms(net):
            self.fill_rows(self.rows_bn, "batchnorm")
            self.freeze(net)
        theta = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
        for rows in islice(self.batches(), self.steps):
            theta = self.descend(net, theta, pixels[rows], rows // self.config.ipc)
        left, way = flat_parameters(theta.values()) - self.target, self.begin - self.target
        loss = left.square().sum() / way.square().sum()
        slopes = torch.autograd.grad(loss, (pixels, self.lr), materialize_grads=True)
        assert pixels.grad is not None
        pixels.grad += slopes[0]
        self.lr_gradient = slopes[1]
        return loss.detach() * len(self.data.classes)  # of which a run logs the mean

    def batches(self) -> Iterator[Tensor]:
        """Rows of step after step: a random order cut into pieces, and then a new one."""
        n = len(self.shown)
        size = min(self.batch_syn or n, n)
        while True:
            order = torch.randperm(n, generator=self.rng["train"]) if size < n else torch.arange(n)
            yield from order.to(self.shown.device).split(size)

    def descend(self, net: nn.Module, theta: Weights, images: Tensor, labels: Tensor) -> Weights:
        """The weights after a step of SGD on augmented images, with their graph."""
        if self.operations:
            images = apply(images, *draw(self.operations, self.rng["augment"], len(images)))
        loss = F.cross_entropy(functional_call(net, theta, (images,)), labels)
        slopes = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        return {name: theta[name] - self.lr * g for name, g in zip(theta, slopes, strict=True)}

    def learn(self, finite: Tensor) -> None:
        finite = finite & self.lr_gradient.isfinite()
        sgd(self.lr, self.velocity, self.lr_gradient, self.lr_lr, MOMENTUM, finite)
