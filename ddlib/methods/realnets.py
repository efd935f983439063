"""Nets trained on real images, once: teachers, ELF's feature nets, MetaDD's auxiliaries, experts.

Kept as safetensors in `cache()`, under a name made of everything that decides their weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..augment import operations_of
from ..config import EvalConfig
from ..data import Data
from ..losses import PROTOCOLS
from ..nets import AnyNet, net_class, net_name, net_width
from ..support.code import code_of
from ..support.errors import check_range
from ..support.fast import keep_freed_memory, products
from ..support.progress import bar
from ..support.public import public
from ..support.rng import stream
from ..support.store import canonical, digest, load_tensors, save_tensors
from ..training import Training, fresh_net, measure_accuracy

# ELF, section 4: SGD lr 0.01 without a drop, momentum 0.9, decay 5e-4, batch 256, augmented.
REAL = EvalConfig(epochs=100, augment="dsa")


class RealNet(NamedTuple):
    """A net in evaluation mode that wants no gradients, and its accuracy on test images, %."""

    net: nn.Module
    accuracy: float


@public
def pretrained(
    net: AnyNet,
    data: Data,
    seed: int = 0,
    config: EvalConfig = REAL,
    images: int | None = None,
    progress: bool = True,
    epochs: int | None = None,
) -> RealNet:
    """A net trained on real training images with cross-entropy, or read back from the cache.

    `config`: its epochs at its learning rate, which is not lowered; batches, decay, augmentation,
    width and precision. `images`: so many random training images, by default all; validation and
    test images are never seen. `epochs` instead of the config's: 0, which no config takes, are
    fresh weights. Raises `DDError` for more images than there are.
    """
    config = replace(config, epochs=epochs) if epochs else config
    data = data.in_precision(config.precision)
    known = describe(net, data, seed, config, images)
    known |= {"epochs": 0} if epochs == 0 else {}
    path = cache() / f"{net_name(net)}-{cache_key(known)}.safetensors"
    model = fresh_net(net, data, config, stream(seed, "pretrained", net_name(net)))
    if path.is_file():
        tensors, info = load_tensors(path)
        model.load_state_dict(tensors)
        if info.get("content", "") == data.content:
            return RealNet(model.eval().requires_grad_(False), info["accuracy"])
    elif epochs != 0:
        train_on_real(model, data, seed, config, images, progress=progress)
    with products(config.precision, data.device):
        accuracy, _ = measure_accuracy(model, *data.split("test"), config.precision)
    info = known | {"accuracy": accuracy, "content": data.content}
    save_tensors(path, model.state_dict(), info)
    return RealNet(model.eval().requires_grad_(False), accuracy)


def train_on_real(
    net: nn.Module,
    data: Data,
    seed: int,
    config: EvalConfig,
    images: int | None = None,
    each: Callable[[int], Any] | None = None,
    progress: bool = True,
) -> None:
    """Train `net` in place as `pretrained` says; `each(epoch)` is called after each, from 1."""
    keep_freed_memory()
    name, rows = type(net).__name__, chosen_images(data, images, seed)
    generators = [stream(seed, f"pretrained {kind}", name) for kind in ("batches", "augment")]
    operations = operations_of(config.augment, data)
    x, y = data.x_train[rows], data.y_train[rows]
    training = Training(net, x, y, PROTOCOLS["ce"], config, None, generators, operations)
    training.start(config.lr)
    with (
        products(config.precision, data.device),
        bar(config.epochs, f"train {name} on real images", show=progress) as ticks,
    ):
        for epoch in range(1, config.epochs + 1):
            training.shuffle(*generators)
            training.run()
            if each:
                each(epoch)
            ticks.update()


def chosen_images(data: Data, images: int | None, seed: int) -> Tensor:
    """Rows of the training images that are used, int64 on the data's device."""
    n = len(data.y_train)
    if images is None:
        return torch.arange(n, device=data.device)
    check_range("images", images, 1, n)
    chosen = torch.randperm(n, generator=stream(seed, "pretrained images"))[:images]
    return chosen.sort().values.to(data.device)


def describe(
    net: AnyNet, data: Data, seed: int, config: EvalConfig, images: int | None
) -> dict[str, Any]:
    """Everything that decides the weights, JSON-able."""
    irrelevant = {"width", "depth", "width_factor", "norm", "alpha", "tau", "teacher_lr", "options"}
    settings = {k: v for k, v in asdict(config).items() if k not in irrelevant}
    about: dict[str, Any] = {"net": net_name(net), "data": data.name, "digest": data.digest}
    about |= {"shape": data.shape, "seed": seed, "images": images}
    about |= {"operations": operations_of(config.augment, data)}
    code = code_of(net_class(net))
    return about | settings | net_width(net, config) | ({"code": code} if code else {})


def cache_key(about: dict[str, Any]) -> str:
    """A name for what `about` describes."""
    return digest(canonical(about))[:16]


def cache() -> Path:
    """Where nets trained on real images lie: $DDLIB_CACHE, else ddlib in the user's cache."""
    folder = os.environ.get("DDLIB_CACHE")
    if folder:
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ddlib" / "nets"
