"""Class means, and k-means centres for more images per class: free baselines, nothing is distilled.

One image per class, the mean of its training images, is what gradient matching has to beat. A mean
is pale; rescaled to the contrast of a real image it is a second baseline.
"""

import torch
from torch import Tensor

from ..data import Data, as_synset, check_ipc
from ..support.errors import check_choice
from ..support.public import public
from ..support.rng import stream
from ..synset import SyntheticSet

CENTRES = {"class-means": False, "class-means-contrast": True}  # whether contrast is rescaled


@public
def centres(data: Data, ipc: int, seed: int = 0, method: str = "class-means") -> SyntheticSet:
    """`ipc` centres per class of its training images, found by k-means in pixels; one: their mean.

    `class-means-contrast` rescales each to unit contrast. `seed` decides where k-means begins; the
    mean is the same for all. Raises `DDError` for an unknown method or more centres than images.
    """
    rescaled = CENTRES[check_choice("method", method, CENTRES)]
    check_ipc(ipc, data)
    pairs = zip(data.bounds, data.bounds[1:], strict=False)
    parts = [k_means(data.x_train[a:b], ipc, stream(seed, "k-means", a)) for a, b in pairs]
    images = torch.cat(parts).to(data.device)
    labels = torch.arange(len(parts), device=data.device).repeat_interleave(ipc)
    about = {"ipc": ipc, "method": method, "pool": "", "seed": seed}
    return as_synset(data, unit_contrast(images) if rescaled else images, labels, about)


def k_means(images: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The k centres [k, ...] of images [N, ...]."""
    if k == 1:
        return images.double().mean(0, keepdim=True).to(images)
    from sklearn.cluster import KMeans  # takes a second; `import ddlib` does not need it
    from threadpoolctl import threadpool_limits

    points = images.flatten(1).double().cpu().numpy()
    with threadpool_limits(1):  # the order of sums, so the centres, would depend on the threads
        found = KMeans(k, n_init=1, random_state=generator.initial_seed() % 2**32).fit(points)
    return torch.from_numpy(found.cluster_centers_).to(images).view(k, *images.shape[1:])


def unit_contrast(images: Tensor) -> Tensor:
    """Images [N, C, H, W] scaled about their own mean to the standard deviation 1: that of all
    pixels of a normalised data set.
    """
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) / images.std((1, 2, 3), keepdim=True).clamp_min(1e-6)
