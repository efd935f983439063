"""Data sets as tensors on the device: normalised once, split once, sampled by class.

`digits` ships inside scikit-learn, `cifar10` comes through torchvision, and a user's own data are an ImageFolder tree or an
.npz file. Every data set gets a validation split taken from its *training* images; distillation never sees it.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .errors import DDError, check_choice, check_range
from .nets import SIDES
from .rng import stream
from .synset import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, SyntheticSet

DATASETS = ("cifar10", "digits")


@dataclass
class Data:
    """A data set on the device.

    `x_train, x_val, x_test`: float [N, C, side, side], normalised by `mean` and `std` (per channel, in units of [0, 1]
    pixels). `y_*`: int64 [N]. `classes`: names in the order of the labels. The training images are sorted by class.
    """

    name: str
    classes: tuple
    mean: tuple
    std: tuple
    x_train: torch.Tensor
    y_train: torch.Tensor
    x_val: torch.Tensor
    y_val: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor

    @property
    def shape(self):
        """(channels, side, classes): what a net needs to know."""
        return self.x_train.shape[1], self.x_train.shape[2], len(self.classes)

    @property
    def device(self):
        return self.x_train.device

    def about(self):
        """What tells this data set from another of the same name: JSON-able."""
        return {
            "name": self.name,
            "train": self.counts(),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def counts(self):
        """Training images per class, a list of ints."""
        return torch.bincount(self.y_train, minlength=len(self.classes)).tolist()

    def sample(self, label, n, generator):
        """`n` different random training images of one class, [n, C, side, side]."""
        return self.x_train[self.draw(label, n, generator).to(self.device)]

    def draw(self, label, n, generator):
        """Rows of `x_train`, int64 [n] on the CPU: `n` different random ones of one class."""
        if not hasattr(self, "_starts"):
            self._counts = self.counts()
            self._starts = np.cumsum([0, *self._counts]).tolist()
        if n > self._counts[label]:
            name, held = self.classes[label], self._counts[label]
            raise DDError(f"{n} training images of class {name!r} were asked for; it holds {held}")
        return torch.randperm(self._counts[label], generator=generator)[:n] + self._starts[label]

    def split(self, name):
        """Images and labels of `train`, `val` or `test`."""
        check_choice("split", name, ("train", "val", "test"))
        return getattr(self, f"x_{name}"), getattr(self, f"y_{name}")

    def to(self, device=None, dtype=None):
        """The same data on another device or in another floating-point type."""
        moved = {
            k: (v.to(device, dtype) if k[0] == "x" else v.to(device))
            for k, v in vars(self).items()
            if isinstance(v, torch.Tensor)
        }
        return Data(self.name, self.classes, self.mean, self.std, **moved)


def load_data(name_or_path, root="data", device="cpu", val_fraction=0.1, side=None):
    """Load a data set: `"digits"`, `"cifar10"`, an ImageFolder tree, or an .npz with x_train, y_train, x_test, y_test.

    `root` is where CIFAR-10 lies or is downloaded to. `val_fraction` of the training images of each class, at least one,
    becomes the validation split; which ones is fixed, so that every run holds out the same. `side` resizes to 28 or 32
    (default: 32, or 28 if the images have it). An ImageFolder tree has `train/<class>/*` and `test/<class>/*`. Arrays
    are uint8 or [0, 1] floats, [N, H, W], [N, H, W, C] or [N, C, H, W]. Raises `DDError` for an unknown name, missing
    files, a class with no images, or a side the nets cannot take.
    """
    check_range("val_fraction", val_fraction, 0.0, 0.9)
    path = Path(str(name_or_path)).expanduser()
    if name_or_path == "digits":
        arrays = read_digits()
    elif name_or_path == "cifar10":
        arrays = read_cifar10(root)
    elif path.suffix == ".npz" and path.is_file():
        arrays = read_npz(path)
    elif path.is_dir():
        arrays = read_image_folder(path, check_choice("image side", side or 32, SIDES))
    else:
        raise DDError(
            f"no data set {str(name_or_path)!r}; valid: {', '.join(DATASETS)}, a folder with train/ and test/, or an .npz file"
        )
    x_train, y_train, x_test, y_test, classes, mean, std = arrays
    x_train, x_test = (resize(as_images(x), side) for x in (x_train, x_test))
    if x_train.shape[1] != x_test.shape[1]:
        raise DDError(
            f"training images have {x_train.shape[1]} channels, test images {x_test.shape[1]}; they must agree"
        )
    y_train, y_test = (torch.as_tensor(np.asarray(y), dtype=torch.int64) for y in (y_train, y_test))
    check_labels(y_train, y_test, len(x_train), len(x_test), classes)
    held_out = validation_mask(y_train, val_fraction)
    order = torch.argsort(y_train, stable=True)
    train, val = order[~held_out[order]], order[held_out[order]]
    mean = mean or tuple(x_train.mean((0, 2, 3)).tolist())
    std = std or tuple(x_train.std((0, 2, 3)).clamp(min=1e-3).tolist())

    def normalised(x):
        return ((x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)).to(
            device
        )

    return Data(
        str(name_or_path) if name_or_path in DATASETS else path.stem,
        tuple(classes),
        mean,
        std,
        normalised(x_train[train]),
        y_train[train].to(device),
        normalised(x_train[val]),
        y_train[val].to(device),
        normalised(x_test),
        y_test.to(device),
    )


def random_real(data, ipc, seed):
    """The baseline of every table: `ipc` randomly chosen real training images per class, as a `SyntheticSet`."""
    generator = stream(seed, "random_real")
    check_ipc(ipc, data)
    images = torch.cat([data.sample(c, ipc, generator) for c in range(len(data.classes))])
    return as_synset(data, images, ipc, "random_real", seed)


def full_real(data):
    """All training images as a `SyntheticSet`: what a net reaches with the whole data set."""
    return as_synset(data, data.x_train, min(data.counts()), "full_data", 0, data.y_train)


def as_synset(data, images, ipc, method, seed, labels=None):
    """Real images in the form of a `SyntheticSet`."""
    if labels is None:
        labels = torch.arange(len(data.classes)).repeat_interleave(ipc)
    config = {"method": method, "ipc": ipc, "pool": "", "seed": seed}
    return SyntheticSet(images, labels, data.mean, data.std, data.classes, data.name, config=config)


def check_ipc(ipc, data):
    """Raise `DDError` unless every class holds `ipc` training images."""
    counts = data.counts()
    smallest = min(range(len(counts)), key=counts.__getitem__)
    if not 1 <= ipc <= counts[smallest]:
        name = data.classes[smallest]
        raise DDError(
            f"ipc is {ipc}; allowed: 1 to {counts[smallest]} (the training images of class {name!r})"
        )


def read_digits():
    """scikit-learn's handwritten digits (1,797 images of 8x8 pixels), 50 images per class for test, the rest for training."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = (bunch.images / 16).astype(np.float32)[:, None], bunch.target
    order = torch.randperm(len(labels), generator=stream(0, "digits", "test split")).numpy()
    test = np.concatenate([order[labels[order] == c][:50] for c in range(10)])
    train = np.setdiff1d(np.arange(len(labels)), test)
    return images[train], labels[train], images[test], labels[test], tuple("0123456789"), None, None


def read_cifar10(root):
    """CIFAR-10 through torchvision, downloaded into `root` if it is not there."""
    from torchvision.datasets import CIFAR10

    try:
        try:
            splits = [CIFAR10(root, train=train, download=False) for train in (True, False)]
        except RuntimeError:
            splits = [CIFAR10(root, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise DDError(
            f"CIFAR-10 is not in {root!s} and could not be downloaded; put the folder cifar-10-batches-py there (from "
            "cifar-10-python.tar.gz of the data set's home page) or name its place with --data-root"
        ) from error
    arrays = [a for s in splits for a in (s.data, np.array(s.targets))]
    return *arrays, CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD


def read_npz(path):
    """A user's arrays; class names come from an optional `classes` entry."""
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            missing = [n for n in names if n not in file]
            if missing:
                raise DDError(f"{path} lacks {', '.join(missing)}; it needs {', '.join(names)}")
            arrays = [file[n] for n in names]
            classes = [str(c) for c in file["classes"]] if "classes" in file else None
    except (ValueError, TypeError, OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        if isinstance(error, DDError):
            raise
        raise DDError(f"{path} is damaged or no .npz file of plain arrays ({error})") from error
    for name, labels in (("y_train", arrays[1]), ("y_test", arrays[3])):
        if not (labels.size and np.issubdtype(labels.dtype, np.integer)):
            raise DDError(
                f"{path}: {name} holds {labels.dtype}, {labels.size} of them; it needs integers from 0"
            )
    for name, images in (("x_train", arrays[0]), ("x_test", arrays[2])):
        if images.dtype.kind not in "buif":
            raise DDError(
                f"{path}: {name} holds {images.dtype}; it needs images: uint8, or floats from 0 to 1"
            )
    return *arrays, classes or [str(c) for c in range(int(arrays[1].max()) + 1)], None, None


def read_image_folder(path, side):
    """`path/train/<class>/*` and `path/test/<class>/*`, resized to side x side, in the classes' alphabetical order."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor
    from torchvision.transforms.functional import resize as resize_pil

    arrays, classes = [], None
    for part in ("train", "test"):
        try:
            folder = ImageFolder(path / part)
        except FileNotFoundError as error:
            raise DDError(
                f"{path / part}: {str(error).splitlines()[0]} (needed: {part}/<class>/<image files>)"
            ) from error
        classes = classes or folder.classes
        if folder.classes != classes:
            raise DDError(f"{path}: classes of train {classes} and of test {folder.classes} differ")
        images = []
        for k, (file, _) in enumerate(folder.samples):
            try:
                images.append(
                    pil_to_tensor(
                        resize_pil(folder[k][0].convert("RGB"), [side, side], antialias=True)
                    )
                )
            except (OSError, SyntaxError) as error:
                raise DDError(f"{file} is damaged or no image") from error
        arrays += [torch.stack(images).numpy(), np.array(folder.targets)]
    return *arrays, classes, None, None


def as_images(x):
    """Arrays of any of the accepted layouts as float [N, C, H, W] in [0, 1]."""
    x = torch.as_tensor(np.asarray(x))
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.permute(0, 3, 1, 2)
    if x.ndim != 4 or not len(x):
        raise DDError(
            f"images have shape {list(x.shape)}; allowed: [N, H, W], [N, H, W, C] or [N, C, H, W], N at least 1"
        )
    if not (torch.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
        raise DDError(
            f"pixels range from {x.min():g} to {x.max():g}; allowed: uint8, or floats from 0 to 1"
        )
    return x.contiguous()


def resize(x, side=None):
    """Images resized to side x side (bilinear); left alone if they have it."""
    side = check_choice("image side", side or (28 if x.shape[-2:] == (28, 28) else 32), SIDES)
    if x.shape[-2:] == (side, side):
        return x
    return F.interpolate(x, (side, side), mode="bilinear", antialias=True).clamp(0, 1)


def check_labels(y_train, y_test, n_train, n_test, classes):
    """Raise `DDError` unless there is a label per image, each in range, and every class has training images."""
    for part, y, n in (("train", y_train, n_train), ("test", y_test, n_test)):
        if y.ndim != 1 or len(y) != n:
            raise DDError(f"y_{part} has shape {list(y.shape)}; there are {n} images")
        if len(y) and not (int(y.min()) >= 0 and int(y.max()) < len(classes)):
            raise DDError(
                f"y_{part} holds labels {int(y.min())} to {int(y.max())}; allowed: 0 to {len(classes) - 1}"
            )
    for c, count in enumerate(torch.bincount(y_train, minlength=len(classes)).tolist()):
        if count == 0:
            raise DDError(
                f"class {classes[c]!r} has no training images; every class needs at least one"
            )


def validation_mask(labels, fraction):
    """True for the held-out images: a fixed random `fraction` of each class."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.randperm(len(labels), generator=stream(0, "validation split"))
    for c in labels.unique():
        own = order[labels[order] == c]
        mask[own[: min(max(round(fraction * len(own)), fraction > 0), len(own) - 1)]] = True
    return mask
