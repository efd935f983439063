"""The synthetic set: what distillation makes, evaluation trains on, and others can load."""

import base64
import contextlib
import hashlib
import io
import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .datasets import DATASETS
from .errors import DDError, check_choice, first_line
from .machine import pick_device
from .public import public
from .store import UNREADABLE, check_size, dumps, load_tensors, save_tensors, write_atomic

FORMAT = 1
INFO = ("dataset", "iteration", "mean", "std", "classes", "config", "provenance")
SHOWN = 10  # classes, and images of each, of a notebook's picture
THUMBNAIL = 32  # pixels
LARGEST = 1000.0  # a pixel of a foreign file, in normalised pixel space


@public
@dataclass
class SyntheticSet(torch.utils.data.Dataset):
    """A few images per class and all that is needed to use them correctly.

    `images`: float32 [N, C, side, side] in normalised pixel space: (pixel in [0, 1] - mean) / std,
    per channel. `labels`: int64 [N], sorted. `config`: the full settings of the distillation.
    `provenance`: versions, git revision, device, seeds, wall time, diverged iterations. `history`
    (sets at earlier iterations) and `log` (a DataFrame, a row per iteration) are not saved. As a
    `torch.utils.data.Dataset` it yields (image, label); a notebook shows it as thumbnails.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    classes: tuple[str, ...]
    dataset: str
    iteration: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    history: list["SyntheticSet"] = field(default_factory=list, compare=False)
    log: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        self.images, self.labels = self.images.detach(), self.labels.to(self.images.device)
        if self.images.ndim != 4 or len(self.images) != len(self.labels) or not len(self.labels):
            shapes = f"images {list(self.images.shape)} and labels {list(self.labels.shape)}"
            raise DDError(f"{shapes}; needed: [N, C, H, W] and [N], N > 0")
        kinds = f"images are {self.images.dtype} and labels {self.labels.dtype}"
        if not self.images.is_floating_point() or self.labels.dtype != torch.int64:
            raise DDError(f"{kinds}; needed: floats and int64")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise DDError(f"labels are {low} to {high}; allowed: 0 to {len(self.classes) - 1}")
        channels, means = self.images.shape[1], len(self.mean or ())
        if self.mean is not None and not means == len(self.std or ()) == channels:
            numbers = f"their mean {means}, their std {len(self.std or ())}"
            raise DDError(f"images have {channels} channels, {numbers}; they must agree")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __repr__(self) -> str:
        shape, about = "x".join(map(str, self.images.shape[1:])), self.config | {"ipc": self.ipc}
        names = [name for name in ("ipc", "method", "pool", "seed") if name in about]
        settings = ", ".join(f"{name} {about[name]}" for name in names)
        return (
            f"SyntheticSet({self.dataset!r}: {len(self)} images {shape}, {len(self.classes)} "
            f"classes; {settings}, iteration {self.iteration};\n"
            f"  mean {rounded(self.mean)}, std {rounded(self.std)}; id {self.id})"
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """What a notebook shows: the text, and thumbnails if the normalisation is known."""
        shown = {"text/plain": repr(self)}
        if self.mean is not None and self.images.shape[1] in (1, 3):
            shown["image/png"] = base64.b64encode(self.thumbnails()).decode()
        return shown

    @property
    def ipc(self) -> int:
        """Images per class (of the smallest class)."""
        return int(torch.bincount(self.labels, minlength=len(self.classes)).min())

    @property
    def id(self) -> str:
        """A fingerprint of the pixels and labels: results belong to exactly these."""
        return fingerprint(self.images, self.labels)[:12]

    def images01(self) -> Tensor:
        """Images for viewing, [N, C, side, side] in [0, 1]: normalisation undone, then clipped."""
        if self.mean is None:
            hint = "load_synset(path, dataset='cifar10')"
            raise DDError(f"the normalisation of this set is unknown; name it: {hint}")
        device = self.images.device
        mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (self.images * std + mean).clamp(0, 1)

    def thumbnails(self) -> bytes:
        """A PNG of the first images of the first classes, ten of each at most: a class per row, or
        of one image per class all in one row.
        """
        from torchvision.utils import save_image

        classes, counts = self.labels.unique(return_counts=True)
        columns, file = min(SHOWN, int(counts.min())), io.BytesIO()
        rows = torch.cat([(self.labels == c).nonzero()[:columns, 0] for c in classes[:SHOWN]])
        shown = replace(self, images=self.images[rows], labels=self.labels[rows]).images01()
        small = F.adaptive_avg_pool2d(shown.float(), min(shown.shape[-1], THUMBNAIL))
        save_image(small, file, "png", nrow=columns if columns > 1 else SHOWN, pad_value=1)
        return file.getvalue()

    @public
    def save(self, path: str | Path) -> Path:
        """Write `path` (.safetensors: tensors, with everything else as JSON in its header) and a
        readable copy of that JSON beside it (.json), each atomically. `load` needs only the first.
        """
        path = with_ending(path)
        info = {"id": self.id, "format": FORMAT} | {name: getattr(self, name) for name in INFO}
        save_tensors(path, {"images": self.images, "labels": self.labels}, info)
        write_atomic(path.with_suffix(".json"), dumps(info))
        return path

    @classmethod
    @public
    def load(cls, path: str | Path) -> "SyntheticSet":
        """Read what `save` wrote. Raises `DDError` for a missing, damaged or foreign file."""
        path = with_ending(path)
        tensors, info = load_tensors(path)
        try:
            if info["format"] != FORMAT:
                raise DDError(f"{path} has format {info['format']}; this ddlib reads {FORMAT}")
            about = {name: info[name] for name in INFO} | {"classes": tuple(info["classes"])}
            about |= {k: None if about[k] is None else tuple(about[k]) for k in ("mean", "std")}
            synset = cls(tensors["images"], tensors["labels"], **about)
        except (KeyError, TypeError) as error:
            raise DDError(f"{path} is no synthetic set (its header lacks {error})") from error
        known = info.get("id") or id_beside(path)
        if known not in (None, synset.id):
            raise DDError(f"{path} is damaged: its images and labels are not those of id {known}")
        return synset

    @public
    def to(self, device: torch.device | str) -> "SyntheticSet":
        """The same set on another device."""
        place = pick_device(str(device))
        return replace(self, images=self.images.to(place), labels=self.labels.to(place))

    @public
    def export_pngs(self, folder: str | Path) -> list[Path]:
        """Write one PNG per image, `<class>_<k>.png`; returns the paths.

        Of a class's name letters, digits, spaces and `._-` are kept; if two are the same then, all
        have their label behind them.
        """
        from torchvision.transforms.functional import to_pil_image

        if self.images.shape[1] not in (1, 3):
            raise DDError(f"images have {self.images.shape[1]} channels; PNGs have 1 or 3")
        paths: list[Path] = []
        plain = [
            re.sub(r"[^\w .-]", "-", name).lstrip(".")[:80] or "class" for name in self.classes
        ]
        if len({name.lower() for name in plain}) < len(plain):
            plain = [f"{name}-{label}" for label, name in enumerate(plain)]
        seen: Counter[int] = Counter()
        for image, label in zip(self.images01().cpu(), self.labels.tolist(), strict=True):
            to_pil_image(image.float()).save(file := io.BytesIO(), "png")
            place = Path(folder) / f"{plain[label]}_{seen[label]:03d}.png"
            paths.append(write_atomic(place, file.getvalue()))
            seen[label] += 1
        return paths


def fingerprint(*tensors: Tensor) -> str:
    """sha256 over the numbers of tensors, such as pixels and labels; hexadecimal."""
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(tensor.cpu().contiguous().numpy().data)
    return content.hexdigest()


def id_beside(path: Path) -> str | None:
    """The id of a set as the JSON beside it knows it, None without one."""
    beside = path.with_suffix(".json")
    try:
        return str(json.loads(beside.read_bytes())["id"]) if beside.is_file() else None
    except UNREADABLE as error:
        raise DDError(
            f"{beside} is damaged ({first_line(error)}); delete it or get it anew"
        ) from error


def rounded(values: Sequence[float] | None) -> tuple[float, ...] | str:
    """A mean or std as people read it."""
    return "unknown" if values is None else tuple(round(v, 4) for v in values)


def with_ending(path: str | Path) -> Path:
    """`path` with .safetensors behind it, if it is not there yet."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")


@public
def load_synset(path: str | Path, index: int = -1, dataset: str | None = "cifar10") -> SyntheticSet:
    """Read a synthetic set: ddlib's own .safetensors, or a .pt file as the DC family has them.

    Such a .pt holds `{"data": [[images, labels], ...]}`; `index` chooses the entry, by default the
    last. It says nothing of its normalisation: `dataset` names whose it is (None if unknown).
    Accuracies stored beside the images (`accs_all_exps`) come back in percent, in
    `provenance["accuracies"]`. Nothing in the file is executed. `DDError` for anything else.
    """
    path = Path(path)
    if path.suffix != ".pt":
        return SyntheticSet.load(path)
    content = read_pt(path)
    try:
        entries: Any = dict(content)["data"] if isinstance(content, dict) else None
        images, given = (torch.as_tensor(part) for part in entries[index])
        check_size(path, images.numel() + given.numel())
        images, labels = images.float(), given.long()
        stored = content.get("accs_all_exps", {}).items()
        accuracies = {str(net): [100 * float(a) for a in values] for net, values in stored}
        if not (torch.equal(labels, given) and int(labels.min()) >= 0):
            raise ValueError("labels that are no integers from 0")
        if int(labels.max()) >= len(labels):
            raise ValueError("more classes than images")
        if not images.abs().max() <= LARGEST:  # nor NaN
            raise ValueError("pixels beyond what is learned")
    except IndexError as error:
        raise DDError(f"{path} has no entry {index}; it holds {len(entries)}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        needed = f"{{'data': [[images, labels], ...]}}, finite pixels up to {LARGEST:g}"
        reason = f"({first_line(error)}); needed: {needed}, labels from 0"
        raise DDError(f"{path} is no set of the DC family {reason}") from error
    about = *normalisation(dataset, int(labels.max()) + 1), dataset or "unknown"
    provenance = {"source": path.name, "entry": index, "accuracies": accuracies}
    synset = SyntheticSet(images, labels, *about, provenance=provenance)
    seed = index if index >= 0 else len(entries) + index
    return replace(synset, config={"ipc": synset.ipc, "pool": path.stem, "seed": seed})


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
