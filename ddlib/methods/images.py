"""What is learned: pixels, or anything that images can be decoded from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data import random_real
from ..support.rng import Streams, stream
from .objective import Part

if TYPE_CHECKING:
    from ..config import DistillConfig
    from ..data import Data


class Images(Part):
    """What is learned, and how images are made of it.

    A parameterisation decodes with a graph and hands out a leaf, `as_leaf(output)`; `step` then
    pulls the gradient back: `torch.autograd.grad(output, latents, gradient)` (GLaD, CVPR 2023).
    """

    def decode(self) -> Tensor:
        """The images as they are now [classes * ipc, C, H, W], by class: a leaf, its `grad` 0."""
        raise NotImplementedError

    def step(self, gradient: Tensor, finite: Tensor) -> None:
        """Learn from the gradient at the decoded images; unless `finite` (0-dim), stay the same."""
        raise NotImplementedError


class Pixels(Images):
    """The pixels themselves: SGD with momentum, from noise or real images (`config.init`)."""

    def prepare(self, config: DistillConfig, data: Data, rng: Streams) -> None:
        self.lr, self.momentum = config.lr_images, config.momentum_images
        self.pixels = as_leaf(first_images(config, data))
        self.velocity = torch.zeros_like(self.pixels, requires_grad=False)

    def state(self) -> dict[str, Tensor]:
        return {"pixels": self.pixels, "velocity": self.velocity}

    def decode(self) -> Tensor:
        assert self.pixels.grad is not None
        self.pixels.grad.zero_()
        return self.pixels

    def step(self, gradient: Tensor, finite: Tensor) -> None:
        sgd(self.pixels, self.velocity, gradient, self.lr, self.momentum, finite)


def first_images(config: DistillConfig, data: Data) -> Tensor:
    """The images of iteration 0: random training images, or N(0, 1) in normalised pixel space."""
    if config.init == "real":
        images = random_real(data, config.ipc, config.seed).images
    else:
        shape = len(data.classes) * config.ipc, *data.x_train.shape[1:]
        images = torch.randn(shape, generator=stream(config.seed, "init"))
    return images.to(data.device, data.x_train.dtype)


def as_leaf(images: Tensor) -> Tensor:
    """A copy of images without their graph, that wants a gradient and has one of 0."""
    leaf = images.detach().clone().requires_grad_()
    leaf.grad = torch.zeros_like(leaf)
    return leaf


@torch.no_grad()
def sgd(
    values: Tensor, velocity: Tensor, gradient: Tensor, lr: float, momentum: float, finite: Tensor
) -> None:
    """One step of SGD with momentum, in place; none unless `finite`, decided on the device."""
    faster = velocity * momentum + gradient
    moved = torch.add(values, faster, alpha=-lr)
    velocity.copy_(torch.where(finite, faster, velocity))
    values.copy_(torch.where(finite, moved, values))
