"""Sets from files, our own or those of others."""

from dataclasses import replace
from pathlib import Path

from ..datasets import DATASETS
from ..support.errors import check_choice
from ..support.public import public
from ..synset import SyntheticSet, are_probabilities, denormalise, normalise
from .layouts import LAYOUTS, OWN, SPACES, matched_classes, normalisation, read_layout


@public
def load_synset(
    path: str | Path,
    index: int = -1,
    dataset: str | None = "cifar10",
    layout: str = "auto",
    space: str | None = None,
    factor: int = 1,
) -> SyntheticSet:
    """Read a synthetic set: ddlib's own .safetensors, or what others publish: see
    `ddlib.exchange.layouts`.

    `layout` "auto" tells the layouts apart by what they hold. `dataset` names whose normalisation,
    and classes, the images have (None if unknown; then what is in [0, 1] stays so). `space`: what
    the numbers mean, "normalised", "pixels" (in [0, 1]; they are normalised here) or "zca"; to be
    named for layouts that leave it open. `factor`: each stored image is so many tiles along a side,
    and so many images squared here (IDC; HMDC's files say it themselves). `index` chooses the entry
    of a DC file, by default the last. Learning rates, soft labels and stored accuracies (percent,
    `provenance["accuracies"]`) come along. Nothing in a file is executed. `DDError` for anything
    else: a line.
    """
    check_choice("layout", layout, ("auto", *LAYOUTS))
    check_choice("space", space, (None, *SPACES))
    path = Path(path)
    path = path / OWN if path.is_dir() and (path / OWN).is_file() and layout != "folder" else path
    own = not path.is_dir() and path.suffix not in (".pt", ".pth", ".npz")
    if layout == "ddlib" or (layout == "auto" and own):
        synset = SyntheticSet.load(path)
        check_choice("index of a set of ddlib's", index, (-1,))
        check_choice("factor of a set of ddlib's", factor, (1,))
        check_choice("space of this set", space, (None, synset.space))
        check_choice("dataset of this set", dataset, ("cifar10", None, synset.dataset))
        return synset
    found = read_layout(path, layout, index, space, factor)
    soft, about = found.labels.ndim == 2, dict(found.about)
    labels = found.labels.argmax(1) if soft else found.labels
    n = found.labels.shape[1] if soft else int(labels.max()) + 1
    mean, std, classes = normalisation(dataset, n)
    if found.names:
        known = DATASETS[dataset].classes if dataset else None
        classes, labels = matched_classes(path, found.names, labels, known)
    images, plain = found.images, ((0.0,) * found.images.shape[1], (1.0,) * found.images.shape[1])
    if found.space == "zca" or (found.space == "pixels" and mean is None):
        mean, std = plain
    elif found.scale and mean is None:
        mean, std = found.scale
    elif (found.space == "pixels" or found.scale) and len(mean) == images.shape[1]:
        images = normalise(denormalise(images, *(found.scale or plain)), mean, std)
    config = {"pool": about.pop("pool"), "seed": about.pop("seed", 0)}
    synset = SyntheticSet(
        images,
        labels,
        *(mean, std, classes, dataset or "unknown"),
        config=config | ({"method": "unknown"} if about["layout"] != "dc" else {}),
        provenance={"source": path.name} | about,
        space="zca" if found.space == "zca" else "normalised",
        soft_labels=found.labels if soft else None,
        soft_kind="probabilities" if soft and are_probabilities(found.labels) else "logits",
        lr=found.lr,
    )
    return replace(synset, config={"ipc": synset.ipc} | synset.config)
