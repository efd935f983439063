"""Expert trajectories: the weights of nets trained on real images, after every epoch.

They are what MTT matches (Cazenavette et al., CVPR 2022; `buffer.py` of its code). One file per
expert in `cache()/experts`, under a name made of everything that decides it: what is there is not
trained again, whatever run, seed or ipc needs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..support.errors import DDError
from ..support.rng import stream
from ..support.store import load_tensors, save_tensors

if TYPE_CHECKING:
    from ..config import EvalConfig
    from ..data import Data
    from ..pool import ModelPool


def expert_settings(epochs: int, augment: str, precision: str) -> EvalConfig:
    """As published: SGD at a learning rate of 0.01, no momentum, no decay, batches of 256."""
    from ..config import EvalConfig  # which knows the methods

    plain: dict[str, Any] = {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "batch": 256}
    return EvalConfig(epochs=epochs, augment=augment, precision=precision, **plain)


def expert(
    pool: ModelPool,
    description: dict[str, Any],
    data: Data,
    seed: int,
    config: EvalConfig,
    images: int | None = None,
    progress: bool = False,
) -> Path:
    """The file of a trajectory, trained now if there is none: weights [P] by epoch, "0" to the
    last, where "0" is the initialisation.

    `description`: a net that `pool` builds. `seed` decides weights, batches, augmentation, and
    which `images` (a number; None: all) of the training images it sees. Only parameters are kept:
    of BatchNorm no statistics. Raises `DDError` for more images than there are, or weights that do
    not stay finite.
    """
    from ..pool import label
    from .realnets import cache, cache_key, describe, train_on_real

    net = pool.build(description, stream(seed, "expert", description["net"]))
    about = describe(type(net), data, seed, config, images) | {"description": description}
    path = cache() / "experts" / f"{label(description)}-s{seed}-{cache_key(about)}.safetensors"
    if not path.is_file():
        net.to(data.device, data.x_train.dtype)
        trajectory = [flat_parameters(net.parameters()).detach()]

        def keep(epoch: int) -> None:
            trajectory.append(flat_parameters(net.parameters()).detach())

        train_on_real(net, data, seed, config, images, keep, progress)
        if not torch.isfinite(trajectory[-1]).all():
            name = f"expert {seed} of {label(description)}"
            raise DDError(f"{name} did not stay finite; leave this net out of the pool")
        save_tensors(path, {str(epoch): kept for epoch, kept in enumerate(trajectory)}, about)
    return path


def read_expert(path: Path, epochs: tuple[int, ...], like: Tensor) -> list[Tensor]:
    """The weights at these epochs, each as `like` [P]; `DDError` for a damaged file."""
    tensors, _ = load_tensors(path, [str(epoch) for epoch in epochs])
    for kept in tensors.values():
        if kept.shape != like.shape or not torch.isfinite(kept).all():
            needed = f"{len(like)} finite ones; delete it to train the expert anew"
            raise DDError(f"{path} is damaged: weights {list(kept.shape)}, needed: {needed}")
    return [tensors[str(epoch)].to(like) for epoch in epochs]


def flat_parameters(parameters: Iterable[Tensor]) -> Tensor:
    """All parameters of a net as one new vector [P], with their graph."""
    return torch.cat([p.reshape(-1) for p in parameters])
