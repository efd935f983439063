"""Images that a study is given: there is nothing to distil. By method, how they are had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..baselines.centres import CENTRES, centres
from ..baselines.coresets import CORESETS, EARLY, coreset
from ..data import full_real, random_real
from ..synset import SyntheticSet
from .released import METHOD as RELEASED_SETS
from .released import released_set

if TYPE_CHECKING:
    from .plan import ImageSet
    from .study import Study


def all_real(study: Study, images: ImageSet) -> SyntheticSet:
    """All training images."""
    return full_real(study.data)


def some_real(study: Study, images: ImageSet) -> SyntheticSet:
    """Random training images."""
    return random_real(study.data, images.ipc, images.seed)


def class_centres(study: Study, images: ImageSet) -> SyntheticSet:
    """Class means, or centres of k-means."""
    return centres(study.data, images.ipc, images.seed, images.method)


def chosen_real(study: Study, images: ImageSet) -> SyntheticSet:
    """Training images that a net chooses."""
    p, place = study.profile, (images.ipc, images.seed, images.method)
    settings = {"epochs": p.coreset_epochs, "width": p.width, "precision": p.eval_precision}
    config, number = replace(EARLY, **settings), p.coreset_images or None
    return coreset(study.data, *place, config=config, images=number, progress=study.progress)


def authors_set(study: Study, images: ImageSet) -> SyntheticSet:
    """A set that the authors released, whose file must be there."""
    return released_set(study.data_root / "released", images.pool, images.ipc, images.iteration)


FREE = ("random_real", *CENTRES)  # images that cost no distillation and no training
GIVEN: dict[str, Callable[[Study, ImageSet], SyntheticSet]] = {
    "full_data": all_real,
    "random_real": some_real,
    **dict.fromkeys(CENTRES, class_centres),
    **dict.fromkeys(CORESETS, chosen_real),
    RELEASED_SETS: authors_set,
}
