"""The synthetic set: what distillation makes, evaluation trains on, and the file others can load."""

import hashlib
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .errors import DDError
from .store import dumps, load_tensors, save_tensors, write_atomic

FORMAT = 1
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (
    0.2023,
    0.1994,
    0.2010,
)  # the one this field uses; the true one is 0.2470, 0.2435, 0.2616
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


@dataclass
class SyntheticSet(torch.utils.data.Dataset):
    """A few images per class and all that is needed to use them correctly.

    `images`: float32 [N, C, side, side] in normalised pixel space: (pixel in [0, 1] - mean) / std, per channel.
    `labels`: int64 [N], sorted. `config`: the full settings of the distillation. `provenance`: versions, git revision,
    device, seeds, wall time, diverged iterations. As a `torch.utils.data.Dataset` it yields (image, label).
    """

    images: torch.Tensor
    labels: torch.Tensor
    mean: tuple
    std: tuple
    classes: tuple
    dataset: str
    iteration: int = 0
    config: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    history: list = field(
        default_factory=list, repr=False, compare=False
    )  # sets at earlier iterations, not saved
    log: object = field(
        default=None, repr=False, compare=False
    )  # a DataFrame, one row per iteration, not saved

    def __post_init__(self):
        self.images, self.labels = self.images.detach(), self.labels.to(self.images.device)
        if self.images.ndim != 4 or len(self.images) != len(self.labels) or not len(self.labels):
            raise DDError(
                f"images {list(self.images.shape)} and labels {list(self.labels.shape)}; needed: [N, C, H, W] and [N], N > 0"
            )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]

    @property
    def ipc(self):
        """Images per class (of the smallest class)."""
        return int(torch.bincount(self.labels, minlength=len(self.classes)).min())

    @property
    def id(self):
        """A fingerprint of the pixels and labels: results belong to exactly these."""
        content = hashlib.sha256(self.images.cpu().contiguous().numpy().tobytes())
        content.update(self.labels.cpu().numpy().tobytes())
        return content.hexdigest()[:12]

    def images01(self):
        """Images for viewing, [N, C, side, side] in [0, 1]: normalisation undone, then clipped."""
        if self.mean is None:
            raise DDError(
                "the normalisation of this set is unknown; name it: load_synset(path, dataset='cifar10')"
            )
        mean, std = (
            torch.tensor(v, device=self.images.device).view(-1, 1, 1) for v in (self.mean, self.std)
        )
        return (self.images * std + mean).clamp(0, 1)

    def save(self, path):
        """Write `path` (.safetensors: tensors, with everything else as JSON in its header) and a readable copy of that JSON
        beside it (.json), each atomically. `load` needs the first only."""
        path = with_ending(path)
        info = {
            "format": FORMAT,
            "dataset": self.dataset,
            "iteration": self.iteration,
            "mean": self.mean,
            "std": self.std,
            "classes": list(self.classes),
            "config": self.config,
            "provenance": self.provenance,
        }
        save_tensors(path, {"images": self.images, "labels": self.labels}, info)
        write_atomic(path.with_suffix(".json"), dumps({"id": self.id, **info}))
        return path

    @classmethod
    def load(cls, path):
        """Read what `save` wrote. Raises `DDError` for a missing, damaged or foreign file."""
        tensors, info = load_tensors(with_ending(path))
        try:
            if info["format"] != FORMAT:
                raise DDError(f"{path} has format {info['format']}; this ddlib reads {FORMAT}")
            mean, std = (None if info[k] is None else tuple(info[k]) for k in ("mean", "std"))
            return cls(
                tensors["images"],
                tensors["labels"],
                mean,
                std,
                tuple(info["classes"]),
                info["dataset"],
                info["iteration"],
                info["config"],
                info["provenance"],
            )
        except (KeyError, TypeError) as error:
            raise DDError(f"{path} is no synthetic set (its header lacks {error})") from error

    def to(self, device):
        """The same set on another device."""
        return SyntheticSet(
            **{**vars(self), "images": self.images.to(device), "labels": self.labels.to(device)}
        )

    def export_pngs(self, folder):
        """Write one PNG per image, `<class>_<k>.png`; returns the paths."""
        from torchvision.transforms.functional import to_pil_image

        folder, paths, seen = Path(folder), [], {}
        folder.mkdir(parents=True, exist_ok=True)
        for image, label in zip(self.images01().cpu(), self.labels.tolist(), strict=True):
            seen[label] = seen.get(label, -1) + 1
            paths.append(folder / f"{self.classes[label]}_{seen[label]:03d}.png")
            to_pil_image(image).save(paths[-1])
        return paths


def with_ending(path):
    """`path` with .safetensors behind it, if it is not there yet."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")


def load_synset(path, index=-1, dataset="cifar10"):
    """Read a synthetic set: ddlib's own .safetensors, or a .pt file as the DC family publishes them.

    Such a .pt holds `{"data": [[images, labels], ...]}`; `index` chooses the entry, by default the last. It says nothing of
    its normalisation: `dataset` names whose it is (`"cifar10"`, or None if unknown). Accuracies stored beside the images
    (`accs_all_exps`) come back in `provenance["accuracies"]`, in percent. Nothing in the file is executed
    (`weights_only=True`). Raises `DDError` for anything else.
    """
    path = Path(path)
    if path.suffix != ".pt":
        return SyntheticSet.load(path)
    if not path.is_file():
        raise DDError(f"no file {path}")
    # Stored accuracies are numpy scalars; numpy < 2 pickled them under the old module name.
    scalar = np._core.multiarray.scalar
    allowed = [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
    ]
    allowed.append(type(np.dtype(np.float64)))
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
    ) as error:
        raise DDError(
            f"{path} is damaged, or holds more than tensors and numbers ({first_line(error)})"
        ) from error
    try:
        entries = dict(content)["data"] if isinstance(content, dict) else None
        images, labels = entries[index]
        images, labels = torch.as_tensor(images).float(), torch.as_tensor(labels).long()
        accuracies = {
            str(net): [100 * float(a) for a in values]
            for net, values in content.get("accs_all_exps", {}).items()
        }
        classes = int(labels.max()) + 1
        if int(labels.min()) < 0:
            raise ValueError("negative labels")
    except IndexError as error:
        raise DDError(f"{path} has no entry {index}; it holds {len(entries)}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DDError(
            f"{path} is no set of the DC family; needed: {{'data': [[images, labels], ...]}}"
        ) from error
    mean, std, names = normalisation(dataset, classes)
    provenance = {"source": path.name, "entry": index, "accuracies": accuracies}
    synset = SyntheticSet(
        images, labels, mean, std, names, dataset or "unknown", provenance=provenance
    )
    synset.config = {
        "ipc": synset.ipc,
        "pool": path.stem,
        "seed": index if index >= 0 else len(entries) + index,
    }
    return synset


def normalisation(dataset, classes):
    """Mean, std and class names of a known data set; (None, None, numbers) for None."""
    if dataset == "cifar10" and classes <= 10:
        return CIFAR10_MEAN, CIFAR10_STD, CIFAR10_CLASSES
    if dataset is None:
        return None, None, tuple(str(c) for c in range(classes))
    raise DDError(
        f"the normalisation of {dataset!r} with {classes} classes is not known; valid: 'cifar10' or None"
    )


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
