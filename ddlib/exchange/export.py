"""Sets in the layouts that others read: DC's and MTT's code, DD-Ranking, the Hugging Face Hub."""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..support.errors import DDError, check_choice
from ..support.public import public
from ..support.store import write_atomic
from ..synset import SyntheticSet, png
from .layouts import OWN

RANKED = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny-imagenet": "TinyImageNet"}
# DD-Ranking 0.2.0 on its DC sets (branch eval, DC/CIFAR10/IPC10.yaml); it looks up every key
RANKING: dict[str, Any] = {
    "real_data_path": "./dataset/",
    "model_name": "ConvNet-3",
    "use_torchvision": False,
    "data_aug_func": None,
    "aug_params": None,
    "custom_train_trans": None,
    "custom_val_trans": None,
    "optimizer": "sgd",
    "lr_scheduler": "step",
    "step_size": 500,
    "weight_decay": 0.0005,
    "momentum": 0.9,
    "num_eval": 5,
    "num_epochs": 1000,
    "eval_full_data": True,
    "syn_batch_size": 256,
    "real_batch_size": 256,
    "random_data_format": "tensor",
    "random_data_path": "./random/",
    "num_workers": 4,
    "device": "cuda",
    "dist": False,
}
CARD = """\
---
pretty_name: "{title}"
license: {license}
task_categories:
- image-classification
tags:
- dataset-distillation
size_categories:
- {size}
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train/**
---

# {title}

{n} synthetic images, {ipc} of each of {classes} classes, in place of the training images of
{dataset}. They are for training networks from scratch; test these on the real test images.

`set.safetensors` is the set. The PNGs are for looking at: they are clipped to [0, 1] and rounded to
8 bits. Here {outside:.1f}% of the pixel values lie outside [0, 1], and the PNGs differ from the set
by {rms:.3f} (root of the mean squared difference of pixels in [0, 1]).

```python
import ddlib  # or safetensors.torch.load_file("set.safetensors"): images, labels

synset = ddlib.load_synset("this folder")
```

Images are normalised per channel: mean {mean}, std {std}.{more} Fingerprint: {id}.

```json
{config}
```
"""


@public
def export(
    synset: SyntheticSet, folder: str | Path, format: str = "hugging-face", license: str = "unknown"
) -> list[Path]:
    """Write a set into `folder` in one of `FORMATS`, each file atomically; returns their paths.

    `dc`: res_<data set>_<ipc>ipc.pt, {"data": [[images, labels]]}. `mtt`: images_best.pt,
    labels_best.pt (hard ones, or logits) and lr_best.pt if there is a learning rate. `dd-ranking`:
    images.pt, labels.pt, lr.pt and config.yaml, which trains without augmentation: name one there
    if the set needs it. `hugging-face`: a folder for the Hub, with `license` in its card: PNGs and
    metadata.csv for the viewer, the set itself, a card and Croissant metadata. Images stay in their
    space and in float32, except in PNGs. Raises `DDError` for what a format cannot hold.
    """
    check_choice("format", format, FORMATS)
    if synset.space == "zca" and format in ("dc", "hugging-face"):
        raise DDError(f"images are whitened (zca), which {format!r} cannot say; valid: mtt")
    if synset.soft_labels is not None and format == "dc":
        raise DDError("'dc' has no soft labels; valid: mtt, dd-ranking, hugging-face")
    files = FORMATS[format](synset, license)
    return [write_atomic(Path(folder) / name, content) for name, content in files.items()]


Files = dict[str, bytes]  # names within the folder


def as_dc(synset: SyntheticSet, license: str) -> Files:
    data = [[own(synset.images), own(synset.labels)]]
    return {
        f"res_{synset.dataset}_{synset.ipc}ipc.pt": pickled({"data": data, "accs_all_exps": {}})
    }


def as_mtt(synset: SyntheticSet, license: str) -> Files:
    tensors = {"images": own(synset.images), "labels": logits_or_labels(synset)} | rate(synset)
    return {f"{name}_best.pt": pickled(tensor) for name, tensor in tensors.items()}


def as_dd_ranking(synset: SyntheticSet, license: str) -> Files:
    check_choice("data set of DD-Ranking", synset.dataset, RANKED)
    counts = torch.bincount(synset.labels, minlength=len(synset.classes))
    if counts.min() != counts.max():
        raise DDError(f"classes hold {counts.tolist()} images; DD-Ranking needs equally many")
    order = synset.labels.argsort(stable=True)
    tensors = {
        "images": synset.images[order].cpu(),
        "labels": logits_or_labels(synset)[order.cpu()],
    }
    about = {"dataset": RANKED[synset.dataset], "ipc": synset.ipc}
    about |= {"im_size": list(synset.images.shape[2:]), **RANKING, "use_zca": synset.space == "zca"}
    about |= {"default_lr": synset.lr or 0.01, "save_path": "./results/ddlib.csv"}
    if synset.soft_labels is not None:
        about |= {"soft_label_mode": "S", "soft_label_criterion": "sce"}
    # A value in JSON is one in YAML
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in about.items())
    files = {f"{name}.pt": pickled(tensor) for name, tensor in (tensors | rate(synset)).items()}
    return files | {"config.yaml": text.encode()}


def as_hugging_face(synset: SyntheticSet, license: str) -> Files:
    shown, files = synset.images01().cpu(), {}
    digits, seen = len(str(len(synset.classes) - 1)), Counter[int]()
    lines = [("file_name", "label", "class")]
    for image, label in zip(shown, synset.labels.tolist(), strict=True):
        name = f"{label:0{digits}d}/{seen[label]:04d}.png"  # so ImageFolder counts as we do
        seen[label] += 1
        files[f"data/train/{name}"] = png(image)
        lines.append((name, str(label), synset.classes[label]))
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(lines)
    files["data/train/metadata.csv"] = table.getvalue().encode()
    files[OWN], about_own = synset.files()
    files[str(Path(OWN).with_suffix(".json"))] = about_own.encode()
    files["README.md"] = card(synset, shown, license).encode()
    about = croissant(synset, license, files)
    return files | {"croissant.json": (json.dumps(about, indent=1) + "\n").encode()}


FORMATS: dict[str, Callable[[SyntheticSet, str], Files]] = {
    "dc": as_dc,
    "mtt": as_mtt,
    "dd-ranking": as_dd_ranking,
    "hugging-face": as_hugging_face,
}


def pickled(content: Any) -> bytes:
    """What torch.load reads, also with weights_only=True."""
    torch.save(content, file := io.BytesIO())
    return file.getvalue()


def own(tensor: Tensor) -> Tensor:
    """The same on the CPU, in float32 unless it holds whole numbers, without the rest of what it
    may be a part of: torch.save writes that.
    """
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor.cpu().clone(memory_format=torch.contiguous_format)


def logits_or_labels(synset: SyntheticSet) -> Tensor:
    """Labels int64 [N], or logits float32 [N, classes], whose softmax is the soft labels."""
    if synset.soft_labels is None:
        return own(synset.labels)
    soft = own(synset.soft_labels)
    smallest = torch.finfo(soft.dtype).tiny
    return soft if synset.soft_kind == "logits" else soft.clamp(min=smallest).log()


def rate(synset: SyntheticSet) -> dict[str, Tensor]:
    """The learning rate as a tensor without dimensions, if there is one."""
    return {} if synset.lr is None else {"lr": torch.tensor(synset.lr)}


def title(synset: SyntheticSet) -> str:
    """What a set is called where others see it."""
    about = synset.config
    parts = [str(about[k]) for k in ("method", "pool") if about.get(k)]
    return f"{synset.dataset}, {synset.ipc} images per class" + (
        f" ({', '.join(parts)})" * bool(parts)
    )


def card(synset: SyntheticSet, shown: Tensor, license: str) -> str:
    """The dataset card; `shown`: the images [N, C, side, side] in [0, 1]."""
    pixels = synset.pixels01().cpu()
    outside = 100 * float(((pixels < 0) | (pixels > 1)).float().mean())
    rms = float((pixels - (shown * 255).round() / 255).square().mean().sqrt())
    n = len(synset)
    sizes = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M"}
    more = f" Learning rate that was learned with them: {synset.lr:g}." if synset.lr else ""
    if synset.soft_labels is not None:
        more += f" `soft_labels` are {synset.soft_kind}: train on these, not on the labels."
    about = {
        "title": title(synset),
        "license": json.dumps(license),
        "n": n,
        "ipc": synset.ipc,
        "more": more,
    }
    about |= {"size": next((text for most, text in sizes.items() if n < most), "1M<n<10M")}
    about |= {"classes": len(synset.classes), "dataset": synset.dataset, "id": synset.id}
    about |= {"mean": synset.mean, "std": synset.std, "outside": outside, "rms": rms}
    recipe = {"config": synset.config, "recipe": synset.recipe}
    return CARD.format(**about, config=json.dumps(recipe, indent=1, default=str))


def croissant(synset: SyntheticSet, license: str, files: Files) -> dict[str, Any]:
    """Croissant 1.0 metadata (docs.mlcommons.org/croissant), JSON-LD."""
    schema = {"sc": "https://schema.org/", "cr": "http://mlcommons.org/croissant/"}
    context = schema | {
        "@language": "en",
        "@vocab": "https://schema.org/",
        "dct": "http://purl.org/dc/terms/",
    }
    context |= {k: f"cr:{k}" for k in ("column", "extract", "field", "fileProperty", "source")}
    context |= {k: f"cr:{k}" for k in ("fileObject", "fileSet", "includes", "recordSet")}
    terms = {"conformsTo": "dct:conformsTo", "dataType": {"@id": "cr:dataType", "@type": "@vocab"}}
    kinds = {OWN: "application/octet-stream", "data/train/metadata.csv": "text/csv"}
    objects = [
        {
            "@id": Path(name).name,
            "@type": "cr:FileObject",
            "name": Path(name).name,
            "contentUrl": name,
            "encodingFormat": kind,
            "sha256": hashlib.sha256(files[name]).hexdigest(),
        }
        for name, kind in kinds.items()
    ]
    columns = (("file_name", "sc:Text"), ("label", "sc:Integer"), ("class", "sc:Text"))
    return {
        "@context": context | terms,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": title(synset),
        "description": f"Synthetic images in place of the training images of {synset.dataset}.",
        "license": license,
        "version": "1.0.0",
        "distribution": objects,
        "recordSet": [
            {
                "@id": "images",
                "@type": "cr:RecordSet",
                "name": "images",
                "field": [
                    {
                        "@id": f"images/{name}",
                        "@type": "cr:Field",
                        "name": name,
                        "dataType": kind,
                        "source": {
                            "fileObject": {"@id": "metadata.csv"},
                            "extract": {"column": name},
                        },
                    }
                    for name, kind in columns
                ],
            }
        ],
    }
