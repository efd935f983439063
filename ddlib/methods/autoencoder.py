"""A small convolutional autoencoder of real images: the decoder that latents have by default."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..data import Data
from ..support.fast import products
from ..support.progress import bar
from ..support.rng import stream, torch_seeded_by
from ..support.store import load_tensors, save_tensors
from .realnets import cache, cache_key, chosen_images

WIDTH, CODES, BATCH, LR = 32, 16, 64, 1e-3


def autoencoder(
    data: Data, seed: int = 0, epochs: int = 5, images: int | None = None, progress: bool = True
) -> tuple[nn.Sequential, nn.Sequential]:
    """(encoder, decoder) trained on real training images, or read back from `realnets.cache()`.

    Codes are [N, 16, side / 4, side / 4], a third of the numbers of a color image. The loss is the
    mean squared error in normalised pixel space; Adam, lr 1e-3, batches of 64. `images`: so many
    random training images, by default all; others are never seen. Raises `DDError` for more than
    there are. Both come in evaluation mode and want no gradients.
    """
    rows = chosen_images(data, images, seed)
    known = {"data": data.name, "digest": data.digest, "shape": data.shape, "seed": seed}
    known |= {"epochs": epochs, "images": images, "type": str(data.x_train.dtype)}
    known |= {"width": WIDTH, "codes": CODES, "batch": BATCH, "lr": LR}
    path = cache() / f"autoencoder-{cache_key(known)}.safetensors"
    with torch_seeded_by(stream(seed, "autoencoder")):
        encoder, decoder = layers(data.shape[0])
    both = nn.Sequential(encoder, decoder).to(data.device, data.x_train.dtype)
    if path.is_file():
        both.load_state_dict(load_tensors(path)[0])
    else:
        optimizer = torch.optim.Adam(both.parameters(), LR)
        generator = stream(seed, "autoencoder batches")
        with (
            products("float32", data.device),
            bar(epochs, "train an autoencoder on real images", show=progress) as ticks,
        ):
            for _ in range(epochs):
                order = torch.randperm(len(rows), generator=generator).to(data.device)
                for batch in rows[order].split(BATCH):
                    x = data.x_train[batch]
                    optimizer.zero_grad()
                    F.mse_loss(both(x), x).backward()
                    optimizer.step()
                ticks.update()
        save_tensors(path, both.state_dict(), known)
    both.eval().requires_grad_(False)
    return encoder, decoder


def layers(channels: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Fresh ones: convolutions with stride 2, and nearest neighbours, each twice."""
    encoder = nn.Sequential(
        *(nn.Conv2d(channels, WIDTH, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(WIDTH, 2 * WIDTH, 3, 2, 1), nn.ReLU()),
        nn.Conv2d(2 * WIDTH, CODES, 1),
    )
    decoder = nn.Sequential(
        *(nn.Conv2d(CODES, 2 * WIDTH, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
        *(nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
        nn.Conv2d(WIDTH, channels, 3, padding=1),
    )
    return encoder, decoder
