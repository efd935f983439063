"""Augmentation: one of six differentiable operations at a time (DSA: Zhao and Bilen, ICML 2021).

A draw is an operation, all equally likely, and three numbers from [0, 1): one row of them for all
images, so that real and synthetic ones are changed alike, or a row for each. Operations take images
[N, C, S, S] in normalised pixel space, where 0 is the mean colour, and rows [1 or N, 3].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .support.errors import check_choice
from .support.machine import kind

if TYPE_CHECKING:
    from .data import Data

ALL = "dsa"
CROP, CUTOUT, SCALE, DEGREES = 0.125, 0.5, 1.2, 15.0


def color(images: Tensor, numbers: Tensor) -> Tensor:
    """Brightness by -0.5 to 0.5, then saturation times 0 to 2, then contrast times 0.5 to 1.5."""
    brightness, saturation, contrast = numbers[:, :, None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def crop(images: Tensor, numbers: Tensor) -> Tensor:
    """Shift by up to an eighth of the side, rows and columns; zeros come in."""
    side = images.shape[-1]
    border = int(side * CROP + 0.5)
    shift = (numbers[:, :2] * (2 * border + 1)).long()
    rows, columns = (shift[:, :, None] + torch.arange(side, device=images.device)).unbind(1)
    images = F.pad(images, (border,) * 4)
    n, channels, _, wide = images.shape
    images = images.gather(2, rows[:, None, :, None].expand(n, channels, side, wide))
    return images.gather(3, columns[:, None, None].expand(n, channels, side, side))


def cutout(images: Tensor, numbers: Tensor) -> Tensor:
    """Zeros in a square of half the side around any pixel; it may reach beyond the border."""
    side = images.shape[-1]
    size = int(side * CUTOUT + 0.5)
    first = (numbers[:, :2] * (side + 1 - size % 2)).long() - size // 2
    away = torch.arange(side, device=images.device) - first[:, :, None]
    rows, columns = ((away >= 0) & (away < size)).unbind(1)
    return images.masked_fill((rows[:, :, None] & columns[:, None])[:, None], 0)


def flip(images: Tensor, numbers: Tensor) -> Tensor:
    """Left and right change places, or not."""
    return torch.where(numbers[:, :1, None, None] < 0.5, images.flip(3), images)


def scale(images: Tensor, numbers: Tensor) -> Tensor:
    """Width and height times 1 / 1.2 to 1.2, each by itself."""
    x, y, _ = (1 / SCALE + numbers * (SCALE - 1 / SCALE)).unbind(1)
    return warp(images, [[x, 0 * x], [0 * y, y]])


def rotate(images: Tensor, numbers: Tensor) -> Tensor:
    """Turn by up to 15 degrees."""
    angle = torch.deg2rad((2 * numbers[:, 0] - 1) * DEGREES)
    cosine, sine = angle.cos(), angle.sin()
    return warp(images, [[cosine, -sine], [sine, cosine]])


def warp(images: Tensor, matrix: Sequence[Sequence[Tensor]]) -> Tensor:
    """Where `matrix` takes each pixel's place from, bilinear; zeros from beyond the border."""
    still = torch.zeros_like(matrix[0][0])
    places = torch.stack([torch.stack([*row, still], 1) for row in matrix], 1)
    grid = F.affine_grid(places.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    function.__name__: function for function in (color, crop, cutout, flip, scale, rotate)
}


def operations_of(augment: str, data: Data | None = None) -> tuple[str, ...]:
    """The operations that a setting names: "" none, "dsa" all six, or some joined by "_".

    "dsa" leaves out flip where a mirrored image is no longer of its class (`Data.mirrors`: digits).
    Raises `DDError` for an unknown name.
    """
    if augment == ALL:
        return tuple(name for name in OPERATIONS if name != "flip" or data is None or data.mirrors)
    names = tuple(augment.split("_")) if augment else ()
    known = OPERATIONS if len(names) > 1 else (ALL, *OPERATIONS)  # "dsa" stands alone
    for name in names:
        check_choice("augmentation", name, known)
    return names


def draw(
    operations: Sequence[str], generator: torch.Generator, rows: int = 1
) -> tuple[str, Tensor]:
    """An operation and its numbers [rows, 3]; both from `generator`, a CPU's."""
    name = operations[int(torch.randint(len(operations), (), generator=generator))]
    return name, torch.rand(rows, 3, generator=generator)


def apply(images: Tensor, operation: str, numbers: Tensor) -> Tensor:
    """Images after an operation, differentiable once."""
    return OPERATIONS[operation](images, numbers.to(images.device, images.dtype))


class Draws:
    """What the batches of an epoch are augmented by: an operation a batch, own numbers per image.

    On a GPU the epoch may be recorded, where Python cannot choose: there all operations are done,
    and the drawn one taken, from buffers that stay where they are.
    """

    def __init__(self, operations: Sequence[str], n: int, size: int, images: Tensor) -> None:
        self.operations, self.on_gpu = tuple(operations), kind(images.device) == "cuda"
        self.size, self.drawn = size, torch.zeros(-(-n // size), dtype=torch.int64)
        self.numbers = images.new_zeros(n, 3)
        self.on_device = self.drawn.to(images.device)

    def refresh(self, generator: torch.Generator) -> None:
        """Draw for the next epoch."""
        self.drawn = torch.randint(len(self.operations), self.drawn.shape, generator=generator)
        numbers = torch.rand(self.numbers.shape, generator=generator)
        self.on_device.copy_(self.drawn, non_blocking=True)
        self.numbers.copy_(numbers, non_blocking=True)

    def apply(self, images: Tensor, batch: int) -> Tensor:
        """The images of a batch of that number, augmented."""
        numbers = self.numbers.split(self.size)[batch]
        if not self.on_gpu:
            return apply(images, self.operations[int(self.drawn[batch])], numbers)
        done = torch.stack([apply(images, name, numbers) for name in self.operations])
        return done.index_select(0, self.on_device[batch : batch + 1])[0]


class Epoch:
    """One pass over images [N, ...] in batches of `size`; subclasses say what a `step` does.

    A set that fits into one batch is taken whole and in order; otherwise `shuffle` gives the next
    pass a new order, and draws how each batch is augmented. `run` may be recorded.
    """

    def __init__(self, images: Tensor, size: int, operations: Sequence[str] = ()) -> None:
        self.images, self.size = images, size
        self.order = torch.arange(len(images), device=images.device)
        self.draws = Draws(operations, len(images), size, images) if operations else None

    def step(self, images: Tensor, rows: Any) -> None:
        """One batch: `images` are `self.images[rows]`, augmented."""
        raise NotImplementedError

    def shuffle(self, order: torch.Generator, augmentation: torch.Generator | None = None) -> None:
        n = len(self.images)
        if n > self.size:
            self.order.copy_(torch.randperm(n, generator=order), non_blocking=True)
        if self.draws:
            assert augmentation is not None
            self.draws.refresh(augmentation)

    def run(self) -> None:
        whole = len(self.images) <= self.size
        for i, rows in enumerate([slice(None)] if whole else self.order.split(self.size)):
            images = self.images[rows]
            self.step(self.draws.apply(images, i) if self.draws else images, rows)
