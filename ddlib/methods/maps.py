"""Class activation maps: where a net sees the class of an image (Grad-CAM, as MetaDD uses it)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..support.errors import check_choice

# Whose output is mapped: the index in `net.features`. Its side is at least 4 on images of 28 or 32.
LAYERS = {
    "ConvNet": -2,  # the last relu, 8x8 at depth 3
    "AlexNet": 16,  # the last relu, 8x8
    "VGG11": 20,  # the relu after the sixth convolution, 4x4; after the last pooling it is 1x1
    "ResNet18": -2,  # before the average pooling, 4x4
    "LeNet": 4,  # the second relu, 10x10
}
GRID = 8  # side of every map


@torch.enable_grad()
def logits_and_maps(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, classes] and maps [N, 8, 8] of one forward pass, both with a graph to `images`.

    Grad-CAM on the logit of the label, w_k = mean over positions of d z_y / d a_k, a map is
    relu(sum_k w_k a_k), resized, then (map - min) / (max - min + 1e-8). The weights keep their
    graph, which decides the gradient where the layers after the map are not linear (VGG11).
    """
    if not images.requires_grad:
        images = images.detach().requires_grad_()
    layer, outputs = LAYERS[check_choice("net of a map", type(net).__name__, LAYERS)], []
    with net.features[layer].register_forward_hook(lambda *call: outputs.append(call[-1])):  # type: ignore
        logits = net(images)
    (activations,) = outputs
    score = logits.gather(1, labels[:, None]).sum()
    weights = torch.autograd.grad(score, activations, create_graph=True)[0].mean((2, 3))
    maps = F.relu(torch.einsum("nk,nkhw->nhw", weights, activations))[:, None]
    maps = F.interpolate(maps, (GRID, GRID), mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return logits, (maps - low) / (high - low + 1e-8)


def activation_map(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Class activation maps [N, 8, 8] in 0..1 of a net of `LAYERS` for the labels [N].

    With a graph if `images` [N, C, H, W] want a gradient. `DDError` for a net without maps (MLP).
    """
    maps = logits_and_maps(net, images, labels)[1]
    return maps if images.requires_grad else maps.detach()


def is_dead(maps: Tensor) -> Tensor:
    """Which maps [M, N, H, W] are 0 everywhere, as where relu leaves nothing: bool [M, N]."""
    return maps.flatten(2).amax(2) == 0


def shares(maps: Tensor) -> tuple[float, float]:
    """Meta and heterogeneous features: % of positions where all or only some maps are >= 0.5."""
    high = maps >= 0.5
    every = 100 * float(high.all(0).double().mean())
    return every, 100 * float(high.any(0).double().mean()) - every
