"""Data sets as tensors on the device: normalised once, split once, sampled by class.

They come by name (`ddlib.datasets`), or are a user's own: an ImageFolder tree or an .npz file.
Each gets a validation split taken from its *training* images; distillation never sees it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .datasets import (
    DATASETS,
    Arrays,
    Dataset,
    channels_first,
    read_image_folder,
    read_npz,
    resizing,
)
from .nets import SIDES
from .support.errors import DDError, check_choice, check_range
from .support.machine import pick_device
from .support.public import public
from .support.rng import stream
from .support.store import check_size
from .synset import SyntheticSet, fingerprint, normalise, rounded

Device = torch.device | str
VAL_FRACTION = 0.1


@public
@dataclass(eq=False)
class Data:
    """A data set on the device.

    `x_train, x_val, x_test`: float [N, C, side, side], normalised by `mean` and `std` (per channel,
    in units of [0, 1] pixels). `y_*`: int64 [N]. `classes`: names in the order of the labels. The
    training images are sorted by class. `note`: what was done to the images, such as a resizing.
    `mirrors`: whether a mirrored image is still of its class, which it is not for digits. `space`:
    "normalised", or "zca" for `ddlib.whitened` images. Raises `DDError` for tensors that do not fit
    together.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    note: str = ""
    mirrors: bool = True
    space: str = "normalised"
    _hashes: dict = field(default_factory=dict, init=False, repr=False)

    def __repr__(self) -> str:
        channels, side, classes = self.shape
        each = " to ".join(str(n) for n in sorted({min(self.counts()), max(self.counts())}))
        parts = f"{len(self.y_train)} train ({each} a class), {len(self.y_val)} val"
        return (
            f"Data({self.name!r}: {channels}x{side}x{side}, {classes} classes; {parts}, "
            f"{len(self.y_test)} test;\n  mean {rounded(self.mean)}, std {rounded(self.std)}"
            f"{self.note and '; ' + self.note})"
        )

    def __post_init__(self) -> None:
        for part in ("train", "val", "test"):
            (x, y), size = self.split(part), self.x_train.shape[1:]
            if x.ndim != 4 or x.shape[1:] != size or y.shape != x.shape[:1] or size[1] != size[2]:
                shapes = f"x_{part} is {list(x.shape)}, y_{part} {list(y.shape)}"
                raise DDError(f"{shapes}; needed: [N, C, side, side] and [N], all of one size")
            if y.dtype != torch.int64:
                raise DDError(f"y_{part} is {y.dtype}; needed: int64")
            if len(y):
                check_labels(f"y_{part}", y, self.classes)
        if (self.y_train.diff() < 0).any():
            raise DDError("the training images are not sorted by class; sort them by y_train")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, side, classes): what a net needs to know."""
        return self.x_train.shape[1], self.x_train.shape[2], len(self.classes)

    @property
    def device(self) -> torch.device:
        return self.x_train.device

    @property
    def digest(self) -> str:
        """A fingerprint of the training images and labels, the same on every device."""
        return self._hash("train")

    @property
    def content(self) -> str:
        """A fingerprint of all images and labels and how they are split, for identities.

        Empty for a data set of ddlib's own as published (`Dataset.content`), with the usual
        validation split: its name says enough.
        """
        usual = DATASETS[self.name].mirrors if self.name in DATASETS else True
        mirrors = "" if self.mirrors == usual else f"mirrors {self.mirrors} "
        return mirrors + self._hash("train", "val", "test")[:16]

    def _hash(self, *parts: str, known: str | None = None) -> str:
        """The fingerprint of these splits, `known` or computed, once; anew if a tensor changed."""
        tensors = [tensor for part in parts for tensor in self.split(part)]
        now = [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
        before, found = self._hashes.get(parts, ([], ""))
        same = len(before) == len(now) and all(
            a is b and i == j for (a, i), (b, j) in zip(before, now, strict=True)
        )
        if known is not None or not same:
            plain = [x.float() if x.is_floating_point() else x for x in tensors]
            found = fingerprint(*plain) if known is None else known
            self._hashes[parts] = now, found
        return found

    def about(self) -> dict[str, Any]:
        """What tells this data set from another of the same name: JSON-able."""
        mean, std = list(self.mean), list(self.std)
        about = {"name": self.name, "train": self.counts(), "mean": mean, "std": std}
        return about | ({"content": self.content} if self.content else {})

    def counts(self) -> list[int]:
        """Training images per class."""
        return torch.bincount(self.y_train, minlength=len(self.classes)).tolist()

    @cached_property
    def bounds(self) -> list[int]:
        """Where each class begins in `x_train`, and where the last one ends."""
        return list(accumulate(self.counts(), initial=0))

    def sample(self, label: int, n: int, generator: torch.Generator) -> Tensor:
        """`n` different random training images of one class, [n, C, side, side]."""
        return self.x_train[self.draw(label, n, generator).to(self.device)]

    def draw(self, label: int, n: int, generator: torch.Generator) -> Tensor:
        """Rows of `x_train`, int64 [n] on the CPU: `n` different random ones of one class."""
        first, held = self.bounds[label], self.bounds[label + 1] - self.bounds[label]
        if n > held:
            name = self.classes[label]
            raise DDError(f"{n} training images of class {name!r} were asked for; it holds {held}")
        return torch.randperm(held, generator=generator)[:n] + first

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Images and labels of `train`, `val` or `test`."""
        check_choice("split", name, ("train", "val", "test"))
        return getattr(self, f"x_{name}"), getattr(self, f"y_{name}")

    def in_precision(self, precision: str) -> "Data":
        """The same data in the type of weights and images at a precision: float64, else float32."""
        dtype = torch.float64 if precision == "float64" else torch.float32
        return self if self.x_train.dtype == dtype else self.to(dtype=dtype)

    def to(self, device: Device | None = None, dtype: torch.dtype | None = None) -> "Data":
        """The same data on another device or in another floating-point type."""
        device = device if device is None else pick_device(device)
        tensors: dict[str, Any] = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        moved = {k: v.to(device, dtype if k[0] == "x" else None) for k, v in tensors.items()}
        data = replace(self, **moved)
        for parts in self._hashes:
            data._hash(*parts, known=self._hash(*parts))
        return data


@public
def load_data(
    name_or_path: str | Path,
    root: str | Path = "data",
    device: Device = "cpu",
    val_fraction: float = VAL_FRACTION,
    side: int | None = None,
) -> Data:
    """Load a data set: a name of `datasets.DATASETS`, an ImageFolder tree, or an .npz file.

    `root` is where the files of a named one lie or are downloaded to. `val_fraction` of a class's
    training images, at least one, becomes the validation split; which ones is fixed, so that every
    run holds out the same. Images keep their side of 28, 32, 64 or 128 unless `side` names another
    (digits, of 8x8 pixels, come to 32); `Data.note` says if they were resized. A tree has
    `train/<class>/*` and `test/<class>/*`; an .npz has the fields of `datasets.Arrays`. Raises
    `DDError` for an unknown name, missing or damaged files, arrays that do not fit together, a
    class with no images, or a side the nets cannot take.
    """
    check_range("val_fraction", val_fraction, 0.0, 0.9)
    device = pick_device(device)
    name, dataset, place = find_dataset(name_or_path, Path(root).expanduser(), side)
    if dataset.side is not None:
        check_choice("image side", dataset.side, SIDES)
    arrays = read_arrays(name, dataset, place)
    x_train, x_test = as_images(arrays.x_train), as_images(arrays.x_test)
    y_train = as_labels("y_train", arrays.y_train, len(x_train))
    y_test = as_labels("y_test", arrays.y_test, len(x_test))
    note = resizing([tuple(x.shape[2:]) for x in (x_train, x_test)], dataset.side)
    x_train, x_test = (resize(x, dataset.side) for x in (x_train, x_test))
    found = range(min(int(y_train.max()) + 1, len(y_train) + 1))  # each class needs an image
    classes = dataset.classes or arrays.classes or [str(c) for c in found]
    check_classes(y_train, y_test, classes)
    held_out = validation_mask(y_train, val_fraction)
    order = torch.argsort(y_train, stable=True)
    train, val = order[~held_out[order]], order[held_out[order]]
    mean = tuple(dataset.mean or x_train.mean((0, 2, 3)).tolist())
    std = tuple(dataset.std or x_train.std((0, 2, 3)).clamp(min=1e-3).tolist())
    check_channels(train=x_train.shape[1], test=x_test.shape[1], mean=len(mean), std=len(std))
    tensors = [
        tensor.to(device)
        for x, y, rows in (
            (x_train, y_train, train),
            (x_train, y_train, val),
            (x_test, y_test, ...),
        )
        for tensor in (normalise(x[rows], mean, std), y[rows])
    ]
    rest: Any = *tensors, arrays.note or note, dataset.mirrors
    data = Data(name, tuple(classes), mean, std, *rest)
    usual = dataset == DATASETS.get(name, dataset) and val_fraction == VAL_FRACTION
    if dataset.content and usual and content_of(arrays) == dataset.content:
        data._hash("train", "val", "test", known="")
    return data


def read_arrays(name: str, dataset: Dataset, place: Path) -> Arrays:
    """What a data set's reader gives; `DDError` if that is something else."""
    found = dataset.reader(place)
    if not isinstance(found, tuple) or not 4 <= len(found) <= len(Arrays._fields):
        many = f" of {len(found)}" if isinstance(found, tuple) else ""
        made = f"a {type(found).__name__}{many}"
        fields = ", ".join(Arrays._fields[:4])
        raise DDError(f"the reader of {name!r} gave {made}; needed: Arrays ({fields})")
    return Arrays(*found)


def content_of(arrays: Arrays) -> str:
    """A fingerprint of what a reader read, as it came from the files."""
    return fingerprint(*(torch.as_tensor(np.asarray(part)) for part in arrays[:4]))


def find_dataset(name: str | Path, root: Path, side: int | None) -> tuple[str, Dataset, Path]:
    """The name of a data set, how to read it (at `side`, if that is given), and where it lies."""
    path = Path(str(name)).expanduser()
    if path.suffix == ".npz" and path.is_file():
        return path.stem, Dataset(read_npz, side), path
    if str(name) not in DATASETS and path.is_dir():
        return path.resolve().name, Dataset(partial(read_image_folder, side=side), side), path
    own = "a folder with train/ and test/", "an .npz file"
    dataset = DATASETS[check_choice("data set", str(name), (*DATASETS, *own))]
    return str(name), replace(dataset, side=dataset.side if side is None else side), root


@public
def random_real(data: Data, ipc: int, seed: int) -> SyntheticSet:
    """The baseline of every table: `ipc` randomly chosen real training images per class."""
    generator = stream(seed, "random_real")
    check_ipc(ipc, data)
    images = torch.cat([data.sample(c, ipc, generator) for c in range(len(data.classes))])
    labels = torch.arange(len(data.classes)).repeat_interleave(ipc)
    return as_synset(
        data, images, labels, {"ipc": ipc, "method": "random_real", "pool": "", "seed": seed}
    )


@public
def full_real(data: Data) -> SyntheticSet:
    """All training images as a `SyntheticSet`: what a net reaches with the whole data set."""
    config = {"ipc": min(data.counts()), "method": "full_data", "pool": "", "seed": 0}
    return as_synset(data, data.x_train, data.y_train, config)


def as_synset(data: Data, images: Tensor, labels: Tensor, config: dict[str, Any]) -> SyntheticSet:
    """Real images in the form of a `SyntheticSet`."""
    about = data.mean, data.std, data.classes, data.name
    return SyntheticSet(images, labels, *about, config=config, space=data.space)


def check_ipc(ipc: int, data: Data) -> None:
    """Raise `DDError` unless every class holds `ipc` training images."""
    held, name = min(zip(data.counts(), data.classes, strict=True), key=lambda pair: pair[0])
    if not 1 <= ipc <= held:
        raise DDError(f"ipc is {ipc}; allowed: 1 to {held} (the training images of class {name!r})")


def as_images(x: Any) -> Tensor:
    """Arrays of any of the accepted layouts as float [N, C, H, W] in [0, 1]."""
    x = np.asarray(x)
    if x.dtype.kind not in "bf" and x.dtype != np.uint8:
        raise DDError(f"images are {x.dtype}; allowed: uint8, or floats from 0 to 1")
    check_size("all images", x.size)
    x = torch.as_tensor(x if x.dtype == np.uint8 else x.astype(np.float32))  # of any byte order
    x = channels_first(x.float() / 255 if x.dtype == torch.uint8 else x)
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.numel():
        layouts = "[N, H, W], [N, H, W, C] or [N, C, H, W], N at least 1, C 1 or 3"
        raise DDError(f"images have shape {list(x.shape)}; allowed: {layouts}")
    if not (torch.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
        values = f"{x.min():g} to {x.max():g}"
        raise DDError(f"pixels range from {values}; allowed: uint8, or floats from 0 to 1")
    return x.contiguous()


def resize(x: Tensor, side: int | None) -> Tensor:
    """Images at side x side (bilinear); left alone if they are so, or `side` is None."""
    if side is None or x.shape[2:] == (side, side):
        return x
    return F.interpolate(x, (side, side), mode="bilinear", antialias=True).clamp(0, 1)


def as_labels(part: str, labels: Any, n: int) -> Tensor:
    """Labels as int64 [N]; raises `DDError` unless they are `n` integers."""
    labels = np.asarray(labels)
    if not (labels.size and labels.dtype.kind in "iu"):
        raise DDError(f"{part} holds {labels.size} {labels.dtype}; allowed: integers from 0")
    if labels.shape != (n,):
        raise DDError(f"{part} has shape {list(labels.shape)}; there are {n} images")
    if labels.max() > 2**31:
        raise DDError(f"{part} holds label {labels.max()}; allowed: 0 to the classes less one")
    return torch.as_tensor(labels.astype(np.int64))


def check_classes(y_train: Tensor, y_test: Tensor, classes: Sequence[str]) -> None:
    """Raise `DDError` unless every label has a class, and every class training images."""
    for part, y in (("y_train", y_train), ("y_test", y_test)):
        check_labels(part, y, classes)
    for name, count in zip(classes, torch.bincount(y_train, minlength=len(classes)), strict=True):
        if not count:
            raise DDError(f"class {name!r} has no training images; every class needs at least one")


def check_labels(part: str, y: Tensor, classes: Sequence[str]) -> None:
    """Raise `DDError` unless every label has a class."""
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= len(classes):
        raise DDError(f"{part} holds labels {low} to {high}; allowed: 0 to {len(classes) - 1}")


def check_channels(**channels: int) -> None:
    """Raise `DDError` unless training images, test images, mean and std have as many channels."""
    if len(set(channels.values())) > 1:
        raise DDError(f"channels differ: {channels}; they must agree")


def validation_mask(labels: Tensor, fraction: float) -> Tensor:
    """True for the held-out images: a fixed random `fraction` of each class."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.randperm(len(labels), generator=stream(0, "validation split"))
    for c in labels.unique():
        rows = order[labels[order] == c]
        mask[rows[: min(max(round(fraction * len(rows)), fraction > 0), len(rows) - 1)]] = True
    return mask
