"""DM: match the mean embeddings of real and synthetic images (Zhao and Bilen, WACV 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..nets import embedding
from ..support.errors import check_choice
from ..support.fast import default_slice, mixed_precision
from ..support.rng import Streams
from .objective import Objective, batchnorms, gradient_of

if TYPE_CHECKING:
    from ..config import DistillConfig
    from ..data import Data
    from ..pool import ModelPool

DECAY = 0.9  # of the mean norm in `dm_scale="main"`


class Distribution(Objective):
    """For each class, the squared distance of the mean embeddings of real and synthetic images.

    The nets are fresh and never trained; embeddings are those before the classifier (`net.embed`).
    As published: init real, lr 1, 20,000 iterations; for ipc >= 100 give `lr_images=10`, as there.
    `dm_batchnorm`: "batch" has BatchNorm's statistics of all real images and of all synthetic ones
    of a step, as published, which takes all of them at once; "frozen" those of real images, as DC:
    embeddings then grow with the images, which may run away. `dm_scale`: embeddings of different
    architectures differ in size, and with them the pixels' gradient; "main" scales that of every
    other member of the pool to the running mean norm of the main model's, "none" is as published.
    """

    recorded = True
    before: ClassVar[Mapping[str, Any]] = {"dm_batchnorm": "frozen"}

    def __init__(self, dm_scale: str = "none", dm_batchnorm: str = "batch") -> None:
        self.scale = check_choice("dm_scale", dm_scale, ("none", "main"))
        self.batchnorm = check_choice("dm_batchnorm", dm_batchnorm, ("batch", "frozen"))

    def prepare(self, config: DistillConfig, data: Data, rng: Streams) -> None:
        super().prepare(config, data, rng)
        self.norm = self.shown.new_zeros(())  # the main model's running mean; 0 before its first

    def state(self) -> dict[str, Tensor]:
        return {"norm": self.norm}

    def start(self, pool: ModelPool, k: int) -> nn.Module:
        if not self.nets:  # else a member without embeddings stops the run when it is first drawn
            for member in pool.members:
                embedding(pool.build(next(member.variants()), torch.Generator()))
        net = super().start(pool, k)
        self.is_main = pool.is_main(self.description)
        return net

    def class_loss(self, net: nn.Module, real: Tensor, synthetic: Tensor, label: int) -> Tensor:
        with torch.no_grad():
            slices = real.split(self.config.slice_size or default_slice(real.device) or len(real))
            target = sum(self.embed(net, x).sum(0) for x in slices) / len(real)
        return (target - self.embed(net, synthetic).mean(0)).square().sum()

    def match(self, net: nn.Module) -> Tensor:
        layers = batchnorms(net) if self.batchnorm == "batch" else []
        if not layers:
            return super().match(net)
        for layer in layers:
            layer.train()  # thawed: DC's frozen statistics are not used
        real = self.real if self.operations else self.data.x_train[self.rows]
        with torch.no_grad():
            target = self.embed(net, real.flatten(0, 1)).view(*real.shape[:2], -1).mean(1)
        synthetic = self.shown.detach().requires_grad_()
        means = self.embed(net, synthetic).view(len(target), self.config.ipc, -1).mean(1)
        loss = (target - means).square().sum()
        self.gradient.copy_(gradient_of(loss, synthetic))
        return loss.detach()

    def embed(self, net: nn.Module, images: Tensor) -> Tensor:
        """Embeddings [N, F], in the images' type whatever the products run in."""
        with mixed_precision(self.config.precision, images.device):
            return embedding(net)(images).to(images.dtype)

    def __call__(self, net: nn.Module, pixels: Tensor) -> Tensor:
        loss = super().__call__(net, pixels)
        if self.scale == "main":
            assert pixels.grad is not None
            norm = torch.linalg.vector_norm(pixels.grad)
            if self.is_main:
                mean = torch.where(self.norm > 0, torch.lerp(norm, self.norm, DECAY), norm)
                self.norm.copy_(torch.where(norm.isfinite(), mean, self.norm))
            else:
                unscaled = torch.ones_like(norm)
                pixels.grad *= torch.where(self.norm * norm > 0, self.norm / norm, unscaled)
        return loss
