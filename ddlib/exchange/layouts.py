"""Distilled sets in the layouts of this field, read as tensors; nothing in a file is executed.

A layout says how numbers lie in a file, its space what they mean: `normalised` is (pixel - mean) /
std, `pixels` is [0, 1], `zca` is whitened (`ddlib.whitened`). A set that is read in the wrong space
is junk without an error, so a space that a layout leaves open must be named.

`dc`        DC, DSA, DM, DC-Bench: {"data": [[images, labels], ...], "accs_all_exps": ...}
`datadam`   DataDAM: {"data": [images, labels]}
`mtt`       MTT and its successors: images_best.pt and labels_best.pt, perhaps lr_best.pt, in one
            folder; DATM's and PAD's labels are logits. DD-Ranking: images.pt, labels.pt, lr.pt.
            images_zca_best.pt is what the inverse of the whitening makes of the images: pixels.
`idc`       IDC, NCFM: [images, labels] in [0, 1], of which `factor`^2 tiles each are an image
`hmdc`      HMDC: {"synthetic_images": [classes, ipc, C, H, W], "factor": ..., "n_ipc": ...}
`eccv2024`  the challenge of ECCV 2024: images [10 x classes, C, H, W] in the order of the classes
`folder`    a folder of images per class (CV-DD, RDED, SRe2L), 8 bits per channel
`npz`       arrays `images` (uint8, or floats) and `labels`
`ddlib`     our own .safetensors, or a folder that holds it as set.safetensors
"""

import contextlib
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets import DATASETS, channels_first, open_npz, read_image
from ..support.errors import DDError, check_choice, check_range, first_line
from ..support.store import UNREADABLE, check_size
from ..synset import LARGEST

WIDEST = -1.0, 2.0  # of learned pixels, meant to be 0 to 1
SPACES = ("normalised", "pixels", "zca")
OWN = "set.safetensors"
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
MOST_TILES = 16  # along a side
# Mean and std of CIFAR-100's pixels, by which ECCV 2024's challenge normalises its sets and its
# test images (`evaluate.py` there); the DC family takes CIFAR-10's
CIFAR100 = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)


class Found(NamedTuple):
    """What a file holds, as it stands there.

    `images` [N, C, H, W]; `labels`: integers [N], or logits or probabilities [N, classes]. `space`:
    one of `SPACES`, None where the layout leaves it open. `names`: of the classes, if it has them.
    `scale`: the mean and std that "normalised" means here, None for the data set's. `about`: the
    rest, JSON-able.
    """

    images: Tensor
    labels: Tensor
    space: str | None = None
    factor: int = 1
    lr: float | None = None
    names: tuple[str, ...] | None = None
    scale: tuple[Sequence[float], Sequence[float]] | None = None
    about: Mapping[str, Any] = MappingProxyType({})


def read_dc(path: Path, content: Any, index: int) -> Found:
    entries, stored = content["data"], content.get("accs_all_exps", {}).items()
    try:
        images, labels = (torch.as_tensor(part) for part in entries[index])
    except IndexError as error:
        raise DDError(f"{path} has no entry {index}; it holds {len(entries)}") from error
    accuracies = {str(net): [100 * float(a) for a in values] for net, values in stored}
    seed = index if index >= 0 else len(entries) + index
    about = {"entry": index, "accuracies": accuracies, "seed": seed}
    return Found(images, labels, "normalised", about=about)


def read_datadam(path: Path, content: Any, index: int) -> Found:
    images, labels = content["data"]
    return Found(images, labels)


def read_mtt(path: Path, content: Any, index: int) -> Found:
    labels, rate = read_pt(beside(path, "labels")), beside(path, "lr")
    check_size(path, numbers(labels))
    space = "pixels" if path.name.startswith("images_zca") else None
    return Found(content, labels, space, lr=float(read_pt(rate)) if rate.is_file() else None)


def read_idc(path: Path, content: Any, index: int) -> Found:
    images, labels = content
    return Found(images, labels, "pixels")


def read_hmdc(path: Path, content: Any, index: int) -> Found:
    images = torch.as_tensor(content["synthetic_images"])
    labels = torch.arange(len(images)).repeat_interleave(images.shape[1])
    return Found(images.flatten(0, 1), labels, "normalised", int(content.get("factor", 1)))


def read_eccv2024(path: Path, content: Any, index: int) -> Found:
    if len(content) % 10:
        raise ValueError(f"{len(content)} images, not ten of each class")
    labels = torch.arange(classes := len(content) // 10).repeat_interleave(10)
    return Found(content, labels, "normalised", scale=CIFAR100 if classes == 100 else None)


def read_folder(path: Path, content: Any, index: int) -> Found:
    folders = sorted(part for part in path.iterdir() if part.is_dir())
    numbered = all(folder.name.isdecimal() for folder in folders)  # 10 is behind 9
    folders = sorted(folders, key=lambda folder: int(folder.name)) if numbered else folders
    files = [
        sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGES) for folder in folders
    ]
    pictures: list[np.ndarray] = []
    for file in (file for part in files for file in part):
        pictures.append(np.asarray(read_image(file)))
        check_size(path, len(pictures) * pictures[0].size)
        if pictures[-1].shape != pictures[0].shape:
            raise ValueError(f"{file.name} has another size than the first image")
    classes = [int(folder.name) if numbered else k for k, folder in enumerate(folders)]
    labels = torch.tensor([k for k, part in zip(classes, files, strict=True) for _ in part])
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    names = None if numbered else tuple(folder.name for folder in folders)
    return Found(pixels, labels, "pixels", names=names)


def read_npz(path: Path, content: Any, index: int) -> Found:
    try:
        with open_npz(path) as file:
            images, labels = (torch.as_tensor(file[name]) for name in ("images", "labels"))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"damaged: {first_line(error)}") from error
    images = channels_first(images)
    if images.dtype == torch.uint8:
        return Found(images.float() / 255, labels, "pixels")
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, neither uint8 nor floats")
    return Found(images, labels)


READERS: dict[str, Callable[[Path, Any, int], Found]] = {
    "dc": read_dc,
    "datadam": read_datadam,
    "mtt": read_mtt,
    "idc": read_idc,
    "hmdc": read_hmdc,
    "eccv2024": read_eccv2024,
    "folder": read_folder,
    "npz": read_npz,
}
LAYOUTS = ("ddlib", *READERS)


def read_layout(path: Path, layout: str, index: int, space: str | None, factor: int) -> Found:
    """The images (float32) and labels of a file or folder in one of `READERS`, tiles taken apart.

    `Found.space` is then one of `SPACES`. Raises `DDError`, a line that says what is needed.
    """
    check_range("factor", factor, 1, MOST_TILES)
    was_named = space is not None
    path, content = open_path(path)
    name = recognise(path, content) if layout == "auto" else layout
    if index != -1 and name != "dc":
        raise DDError(f"index is {index}, and {path} is in layout {name!r}; only 'dc' has several")
    try:
        found = READERS[name](path, content, index)
        images, labels = found.images, found.labels
        check_size(path, images.numel() * max(factor, found.factor) ** 2)
        images = images.float()
        if images.ndim != 4 or not labels.numel() or labels.shape[:1] != images.shape[:1]:
            shapes = f"images {list(images.shape)}, labels {list(labels.shape)}"
            raise ValueError(f"{shapes}; needed: [N, C, H, W] and [N] or [N, classes]")
        if not images.abs().max() <= LARGEST:  # nor NaN
            raise ValueError(f"pixels that are not finite or beyond {LARGEST:g}")
        labels = checked_labels(labels)
        if found.factor > 1 and factor not in (1, found.factor):
            raise ValueError(f"factor {found.factor} in the file, not {factor}")
        images, labels = tiles(images, labels, factor := max(factor, found.factor))
        if name == "idc" and space is None and not (images.min() >= -0.5 and images.max() <= 1.5):
            span = f"{images.min():g} to {images.max():g}"
            raise ValueError(f"pixels from {span}, not in [0, 1]; if that is right, name space=")
    except DDError:
        raise
    except (IndexError, RuntimeError, ArithmeticError, *UNREADABLE) as error:
        reason = f"({first_line(error)}); valid layouts: auto, {', '.join(LAYOUTS)}"
        raise DDError(f"{path} is no set in layout {name!r} {reason}") from error
    if not (space := space or found.space):
        allowed = ", ".join(SPACES)
        raise DDError(f"{path} does not say what its numbers mean; name space=, one of {allowed}")
    low, high = float(images.min()), float(images.max())
    if space == "pixels" and not (low >= WIDEST[0] and high <= WIDEST[1]):
        raise DDError(
            f"{path} holds numbers from {low:g} to {high:g}; space='pixels' means 0 to 1, "
            f"overshooting to {WIDEST[0]:g} and {WIDEST[1]:g} at most"
        )
    about: dict[str, Any] = {"pool": path.resolve().parent.name if name == "mtt" else path.stem}
    about |= {"layout": name} | dict(found.about) | ({"factor": factor} if factor > 1 else {})
    scale = None if was_named else found.scale
    return found._replace(images=images, labels=labels, space=space, about=about, scale=scale)


def open_path(path: Path) -> tuple[Path, Any]:
    """The file that is read, and what it holds; None for what a reader opens itself."""
    if path.is_dir() and (path / "images_best.pt").is_file():
        path = path / "images_best.pt"
    if path.is_dir() or path.suffix == ".npz":
        return path, None
    content = read_pt(path)
    check_size(path, numbers(content))
    return path, content


def numbers(content: Any) -> int:
    """How many numbers the tensors within lists and dictionaries have, expanded ones in full."""
    if isinstance(content, Tensor):
        return content.numel()
    parts = content.values() if isinstance(content, dict) else content
    return sum(map(numbers, parts)) if isinstance(content, dict | list | tuple) else 0


def recognise(path: Path, content: Any) -> str:
    """The layout of a file or folder, by what it holds. `DDError` if that is none, or two."""
    if path.is_dir() or path.suffix == ".npz":
        return "folder" if path.is_dir() else "npz"
    if isinstance(content, dict) and "synthetic_images" in content:
        return "hmdc"
    if isinstance(content, dict) and "data" in content:
        return "datadam" if is_pair(content["data"]) else "dc"
    if is_pair(content):
        return "idc"
    if isinstance(content, Tensor) and content.ndim == 4:
        if beside(path, "labels").is_file():
            return "mtt"
        if not path.name.startswith("images") and len(content) % 10 == 0:
            return "eccv2024"
        raise DDError(
            f"{path} holds images alone: valid are layout='mtt' with {beside(path, 'labels').name} "
            "beside it, and layout='eccv2024', ten images of each class in their order"
        )
    keys = f" of {', '.join(map(str, content))[:60]}" if isinstance(content, dict) else ""
    kind = type(content).__name__ + keys
    raise DDError(f"{path} holds a {kind}, no set; valid layouts: {', '.join(LAYOUTS)}")


def is_pair(content: Any) -> bool:
    """Whether this is [images, labels]."""
    pair = isinstance(content, list | tuple) and len(content) == 2
    return pair and all(isinstance(part, Tensor) for part in content)


def beside(path: Path, part: str) -> Path:
    """labels_best.pt of images_best.pt, or of images_zca_best.pt."""
    name = re.sub(r"^images(_zca)?", part, path.name)
    return path.with_name(name if name != path.name else f"{part}_{path.name}")


def checked_labels(labels: Tensor) -> Tensor:
    """Labels int64 [N], or float32 [N, classes]; ValueError for what cannot be labels."""
    if labels.ndim == 2:
        if not torch.isfinite(labels.float()).all():
            raise ValueError("soft labels that are not finite")
        return labels.float()
    whole = labels.long()
    if labels.ndim != 1 or not torch.equal(whole.to(labels.dtype), labels) or whole.min() < 0:
        raise ValueError("labels that are no integers from 0")
    if int(whole.max()) >= len(whole):
        raise ValueError("more classes than images")
    return whole


def tiles(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Each image as its factor x factor tiles, brought to its side (bilinear), row by row: IDC's
    `decode` (Kim et al., ICML 2022). The tiles of an image stay together.
    """
    if factor == 1:
        return images, labels
    side, channels = images.shape[-1], images.shape[1]
    if side % factor:
        raise ValueError(f"a side of {side} pixels has no {factor} equal parts")
    small = side // factor
    parts = images.unfold(2, small, small).unfold(3, small, small).permute(0, 2, 3, 1, 4, 5)
    parts = parts.reshape(-1, channels, small, small)
    shown = F.interpolate(parts, (side, side), mode="bilinear", align_corners=False)
    return shown, labels.repeat_interleave(factor**2, 0)


def read_pt(path: Path) -> Any:
    """The content of a .pt file of tensors and numbers; nothing in it is executed."""
    if not path.is_file():
        raise DDError(f"no file {path}")
    # Stored accuracies are numpy scalars; numpy < 2 pickled them under the old module name.
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as file:
        check_size(path, sum(part.file_size for part in file.infolist()) // 4)
    allowed: list[Any] = [*((scalar, name) for name in names), np.dtype, type(np.dtype(np.float64))]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, LookupError, pickle.PickleError, *UNREADABLE) as error:
        reason = f"damaged, or holds more than tensors and numbers ({first_line(error)})"
        raise DDError(f"{path} is {reason}") from error


def normalisation(dataset: str | None, classes: int) -> tuple[Any, Any, tuple[str, ...]]:
    """Mean, std and class names of a data set known by name; (None, None, numbers) for None."""
    numbers = tuple(str(c) for c in range(classes))
    if dataset is None:
        return None, None, numbers
    known = [name for name, about in DATASETS.items() if about.mean]
    about = DATASETS[check_choice("normalisation", dataset, [*known, None])]
    names = about.classes or numbers
    if classes > len(names):
        raise DDError(f"the set has {classes} classes; {dataset} has {len(names)}")
    return about.mean, about.std, names


def matched_classes(
    path: Path, names: tuple[str, ...], labels: Tensor, known: tuple[str, ...] | None
) -> tuple[tuple[str, ...], Tensor]:
    """Class names, and labels in their order, of folders of these names in alphabetical order."""
    if known is None:
        return names, labels
    if set(names) <= set(known):
        return known, torch.tensor([known.index(name) for name in names])[labels]
    if len(names) == len(known) and not set(names) & set(known):
        return known, labels  # numbers, say; names of which some are known stand in another order
    shown = ", ".join(names)[:60]
    raise DDError(f"{path} has classes {shown}; the data set's are {', '.join(known)[:100]}")
