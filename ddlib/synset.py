"""The synthetic set: what distillation makes, evaluation trains on, and others can load."""

import base64
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .support.errors import DDError, check_choice, first_line
from .support.machine import pick_device
from .support.public import public
from .support.store import UNREADABLE, dumps, load_tensors, packed, write_atomic

FORMAT = 1
INFO = ("dataset", "iteration", "mean", "std", "classes", "config", "provenance")
MORE: dict[str, Any] = {"space": "normalised", "soft_kind": "logits", "lr": None, "recipe": {}}
LARGEST = 1000.0  # a pixel in normalised pixel space; real ones are within a few units of 0
SHOWN = 10  # classes, and images of each, of a notebook's picture
THUMBNAIL = 32  # pixels
ZOOM = 2  # of pictures where no style can enlarge them


@public
@dataclass(eq=False)
class SyntheticSet(torch.utils.data.Dataset):
    """A few images per class and all that is needed to use them correctly.

    `images`: float32 or float64 [N, C, side, side] in normalised pixel space: (pixel in [0, 1] -
    mean) / std, per channel; if `space` is "zca", as `ddlib.whitened` makes images. `labels`: int64
    [N], in any order.
    `config`: the full settings of the distillation. `provenance`: versions, git revision, device,
    seeds, wall time, diverged iterations. `soft_labels`: [N, classes], of the `soft_kind` "logits"
    or "probabilities", on which nets are to be trained instead of `labels`. `lr`: the learning rate
    that was learned with the images, `recipe`: how nets are meant to be trained on them; `evaluate`
    uses neither by itself. `history` (sets at earlier iterations) and `log` (a DataFrame, a row per
    iteration) are not saved. As a `torch.utils.data.Dataset` it yields (image, label); a notebook
    shows it as thumbnails.
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
    history: list["SyntheticSet"] = field(default_factory=list)
    log: Any = None
    space: str = "normalised"
    soft_labels: Tensor | None = None
    soft_kind: str = "logits"
    lr: float | None = None
    recipe: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images, self.labels = self.images.detach(), self.labels.to(self.images.device)
        if self.images.dtype in (torch.bfloat16, torch.float16):
            self.images = self.images.float()  # NumPy, PNG and metrics know no others
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
        check_choice("space", self.space, ("normalised", "zca"))
        check_choice("kind of soft labels", self.soft_kind, ("logits", "probabilities"))
        if self.soft_labels is not None:
            soft = self.soft_labels = self.soft_labels.detach().to(self.images)
            if soft.shape != (len(self), len(self.classes)) or not torch.isfinite(soft).all():
                needed = f"finite numbers [{len(self)}, {len(self.classes)}]"
                raise DDError(f"soft labels are {list(soft.shape)}; needed: {needed}")
            if self.soft_kind == "probabilities" and not are_probabilities(soft):
                raise DDError(
                    "soft labels are no probabilities; needed: from 0, rows that sum to 1"
                )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __repr__(self) -> str:
        shape, about = "x".join(map(str, self.images.shape[1:])), self.config | {"ipc": self.ipc}
        names = [name for name in ("ipc", "method", "pool", "seed") if name in about]
        settings = ", ".join(f"{name} {about[name]}" for name in names)
        settings += f", lr {self.lr:.4g}" if self.lr is not None else ""
        settings += f", soft labels ({self.soft_kind})" if self.soft_labels is not None else ""
        settings += ", whitened (zca)" if self.space == "zca" else ""
        return (
            f"SyntheticSet({self.dataset!r}: {len(self)} images {shape}, {len(self.classes)} "
            f"classes; {settings}, iteration {self.iteration};\n"
            f"  mean {rounded(self.mean)}, std {rounded(self.std)}; id {self.id})"
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """What a notebook shows: the text, and thumbnails if the normalisation is known."""
        shown = {"text/plain": repr(self)}
        if self.has_pictures:
            shown["image/png"] = base64.b64encode(self.thumbnails(ZOOM)).decode()
        return shown

    @property
    def has_pictures(self) -> bool:
        """Whether the images can be shown: grey or in colours, of a known normalisation."""
        return self.mean is not None and self.space != "zca" and self.images.shape[1] in (1, 3)

    @property
    def ipc(self) -> int:
        """Images per class (of the smallest class)."""
        return int(torch.bincount(self.labels, minlength=len(self.classes)).min())

    @property
    def id(self) -> str:
        """A fingerprint of the pixels and labels: results belong to exactly these."""
        soft = () if self.soft_labels is None else (self.soft_labels, self.soft_kind)
        space = () if self.space == "normalised" else (self.space,)
        return fingerprint(self.images, self.labels, *soft, *space)[:12]

    def targets(self) -> Tensor | None:
        """The soft labels as probabilities, [N, classes]; None without them."""
        if self.soft_labels is None or self.soft_kind == "probabilities":
            return self.soft_labels
        return self.soft_labels.softmax(1)

    def pixels01(self) -> Tensor:
        """The images as pixels [N, C, side, side], in [0, 1] but for what overshoots.

        Raises `DDError` if the normalisation is unknown or the images are whitened.
        """
        if self.mean is None or self.std is None:
            hint = "load_synset(path, dataset='cifar10')"
            raise DDError(f"the normalisation of this set is unknown; name it: {hint}")
        if self.space == "zca":
            raise DDError("whitened images (zca) cannot be shown; allowed: normalised ones")
        return denormalise(self.images, self.mean, self.std)

    def images01(self) -> Tensor:
        """Images for viewing, [N, C, side, side] in [0, 1]: `pixels01`, clipped."""
        return self.pixels01().clamp(0, 1)

    def thumbnails(self, zoom: int = 1) -> bytes:
        """A PNG of the first images of the first classes, ten of each at most: a class per row, or
        of one image per class all in one row. A pixel is `zoom` pixels wide and high.
        """
        from torchvision.utils import make_grid

        classes, counts = self.labels.unique(return_counts=True)
        columns = min(SHOWN, int(counts.min()))
        rows = torch.cat([(self.labels == c).nonzero()[:columns, 0] for c in classes[:SHOWN]])
        images, labels = self.images[rows], self.labels[rows]
        shown = replace(self, images=images, labels=labels, soft_labels=None).images01()
        small = F.adaptive_avg_pool2d(shown.float(), min(shown.shape[-1], THUMBNAIL))
        small = small.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
        return png(make_grid(small, nrow=columns if columns > 1 else SHOWN, pad_value=1))

    @public
    def save(self, path: str | Path) -> Path:
        """Write `path` (.safetensors: tensors, with everything else as JSON in its header) and a
        readable copy of that JSON beside it (.json), each atomically. `load` needs only the first.
        """
        path = with_ending(path)
        content, about = self.files()
        write_atomic(path, content)
        write_atomic(path.with_suffix(".json"), about)
        return path

    def files(self) -> tuple[bytes, str]:
        """What `save` writes: the .safetensors and the .json."""
        info = {"id": self.id, "format": FORMAT} | {name: getattr(self, name) for name in INFO}
        info |= {k: getattr(self, k) for k, usual in MORE.items() if getattr(self, k) != usual}
        soft = {} if self.soft_labels is None else {"soft_labels": self.soft_labels}
        tensors = {"images": self.images, "labels": self.labels} | soft
        return packed(tensors, info), dumps(info)

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
            about |= {name: info[name] for name in MORE if name in info}
            soft = tensors.get("soft_labels")
            synset = cls(tensors["images"], tensors["labels"], **about, soft_labels=soft)
        except (KeyError, TypeError) as error:
            raise DDError(f"{path} is no synthetic set (its header lacks {error})") from error
        known = info.get("id") or id_beside(path)
        if known not in (None, synset.id):
            raise DDError(f"{path} is damaged: its images and labels are not those of id {known}")
        return synset

    @public
    def to(self, device: torch.device | str) -> "SyntheticSet":
        """The same set on another device."""
        return replace(self, images=self.images.to(pick_device(device)))  # the labels follow

    @public
    def export_pngs(self, folder: str | Path) -> list[Path]:
        """Write one PNG per image, `<class>_<k>.png`; returns the paths.

        Of a class's name letters, digits, spaces and `._-` are kept; if two are the same then, all
        have their label behind them.
        """
        if self.images.shape[1] not in (1, 3):
            raise DDError(f"images have {self.images.shape[1]} channels; PNGs have 1 or 3")
        paths: list[Path] = []
        plain = [
            re.sub(r"[^\w .-]", "-", name).lstrip(".")[:80] or "class" for name in self.classes
        ]
        if len({name.lower() for name in plain}) < len(plain):
            plain = [f"{name}-{label}" for label, name in enumerate(plain)]
        seen: Counter[int] = Counter()
        for image, label in zip(self.images01(), self.labels.tolist(), strict=True):
            place = Path(folder) / f"{plain[label]}_{seen[label]:03d}.png"
            paths.append(write_atomic(place, png(image)))
            seen[label] += 1
        return paths


def png(image: Tensor) -> bytes:
    """A PNG of an image [C, H, W] in [0, 1], rounded to 8 bits."""
    from torchvision.transforms.functional import to_pil_image

    to_pil_image((image * 255).round().byte().cpu()).save(file := io.BytesIO(), "png")
    return file.getvalue()


def fingerprint(*parts: Tensor | str) -> str:
    """sha256 over the numbers of tensors, such as pixels and labels, or words; hexadecimal."""
    content = hashlib.sha256()
    for part in parts:
        content.update(
            part.encode() if isinstance(part, str) else part.cpu().contiguous().numpy().data
        )
    return content.hexdigest()


def are_probabilities(soft: Tensor) -> bool:
    """Whether rows are at least 0 and sum to 1, but for roundings."""
    return bool((soft >= 0).all() and ((soft.sum(1) - 1).abs() < 1e-3).all())


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixels - mean) / std, per channel, of [N, C, side, side] in [0, 1]."""
    return (pixels - channels(mean, pixels)).div_(channels(std, pixels))


def denormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised images [N, C, side, side] as pixels: images std + mean, per channel."""
    return images * channels(std, images) + channels(mean, images)


def channels(values: Sequence[float], like: Tensor) -> Tensor:
    """A mean or std as a tensor [C, 1, 1], as and where another is."""
    return torch.tensor(values).view(-1, 1, 1).to(like)


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
