"""Latents that a decoder turns into images, learned at one of its layers (GLaD, CVPR 2023)."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..support.errors import DDError, check_range, first_line
from ..support.public import public
from ..support.rng import Streams, stream
from .images import Images, as_leaf, first_images, sgd

if TYPE_CHECKING:
    from ..config import DistillConfig
    from ..data import Data


class Latents(Images):
    """Images = decoder(latents): SGD with momentum on the latents, the decoder frozen.

    `decoder`: any deterministic module that gives images [classes * ipc, C, H, W] in normalised
    pixel space; a copy of it is used, in evaluation mode. `latents`: its first inputs, a row per
    image, by class. `layer`: of an `nn.Sequential`, learn the input of this one (GLaD's layer); the
    ones before it are applied once. `lr`, `momentum`: None for the config's, whose `lr_images` is
    meant for pixels: a latent space has a scale of its own. `chunk`: images whose graph is alive
    at a time.

    Without a decoder it is that of `methods.autoencoder`, by `decoder_epochs`, `decoder_images` (0:
    all) and `decoder_seed`. The first latents are its codes of random real images, or for init
    "noise" N(0, 1) with the mean and standard deviation of these codes, per channel.
    """

    @public
    def __init__(
        self,
        decoder: nn.Module | None = None,
        latents: Tensor | None = None,
        layer: int = 0,
        lr: float | None = None,
        momentum: float | None = None,
        chunk: int = 50,
        decoder_epochs: int = 5,
        decoder_images: int = 0,
        decoder_seed: int = 0,
    ) -> None:
        if (decoder is None) != (latents is None):
            raise DDError("a decoder and its first latents go together; give both, or neither")
        self.given, self.layer = (decoder, latents), layer
        self.lr = lr if lr is None else check_range("lr", lr, 0)
        self.momentum = momentum if momentum is None else check_range("momentum", momentum, 0, 1)
        self.chunk = check_range("chunk", chunk, 1)
        images = check_range("decoder_images", decoder_images, 0) or None
        self.training = decoder_seed, check_range("decoder_epochs", decoder_epochs, 1), images

    def prepare(self, config: DistillConfig, data: Data, rng: Streams) -> None:
        decoder, latents = self.given
        if decoder is None:
            from .autoencoder import autoencoder  # which knows the methods

            encoder, decoder = autoencoder(data, *self.training)
            latents = first_codes(encoder, config, data)
        assert latents is not None
        decoder = copy.deepcopy(decoder).to(data.device, data.x_train.dtype)
        decoder.eval().requires_grad_(False)
        layers = [*decoder] if isinstance(decoder, nn.Sequential) else [decoder]
        at = check_range("layer", self.layer, 0, len(layers))
        before, self.decoder = nn.Sequential(*layers[:at]), nn.Sequential(*layers[at:])
        shape, given = [len(data.classes) * config.ipc, *data.x_train.shape[1:]], [*latents.shape]
        try:
            latents = chunked(before, latents.to(data.device, data.x_train.dtype), self.chunk)
            images = chunked(self.decoder, latents, self.chunk)
        except (RuntimeError, ValueError) as error:
            raise DDError(f"decoder takes no latents {given}: {first_line(error)}") from error
        if [*images.shape] != shape:
            made = f"decoder makes images {[*images.shape]} of latents {given}"
            raise DDError(f"{made}; needed: {shape}")
        self.latents = latents  # a copy, by `chunked`
        self.velocity = torch.zeros_like(self.latents)
        self.rate = config.lr_images if self.lr is None else self.lr
        self.inertia = config.momentum_images if self.momentum is None else self.momentum

    def state(self) -> dict[str, Tensor]:
        return {"latents": self.latents, "velocity": self.velocity}

    def decode(self) -> Tensor:
        return as_leaf(chunked(self.decoder, self.latents, self.chunk))

    def step(self, gradient: Tensor, finite: Tensor) -> None:
        """The decoder is run again, a chunk at a time, with a graph that the pull-back needs."""
        pulled = []
        chunks = self.latents.split(self.chunk), gradient.split(self.chunk)
        for latents, above in zip(*chunks, strict=True):
            latents = latents.detach().requires_grad_()
            pulled += torch.autograd.grad(self.decoder(latents), latents, above)
        sgd(self.latents, self.velocity, torch.cat(pulled), self.rate, self.inertia, finite)


@torch.no_grad()
def chunked(decoder: nn.Module, latents: Tensor, chunk: int) -> Tensor:
    """`decoder(latents)` without a graph, so many at a time; a copy even if it changes nothing."""
    return torch.cat([decoder(part) for part in latents.split(chunk)])


def first_codes(encoder: nn.Module, config: DistillConfig, data: Data) -> Tensor:
    """The codes of iteration 0 by `config.init`, see `Latents`."""
    real = first_images(replace(config, init="real"), data)
    codes = chunked(encoder, real, len(real))
    if config.init == "real":
        return codes
    std, mean = torch.std_mean(codes, (0, 2, 3), keepdim=True)
    noise = torch.randn(codes.shape, generator=stream(config.seed, "init"))
    return mean + std * noise.to(codes)
