"""DC: match the gradients that real and synthetic images give a net (Zhao et al., ICLR 2021)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..support.fast import default_slice, mixed_precision
from .objective import Objective

# Outer steps and inner epochs by ipc (Zhao et al., ICLR 2021; methods of the DC family).
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


class Gradient(Objective):
    """For each class, the distance of the gradients of its real batch and its synthetic images."""

    recorded = True

    @staticmethod
    def loops(ipc: int) -> tuple[int, int]:
        """(outer steps, inner epochs); between the published values, those of the next lower."""
        return LOOPS[max(k for k in LOOPS if k <= ipc)]

    def class_loss(self, net: nn.Module, real: Tensor, synthetic: Tensor, label: int) -> Tensor:
        size = self.config.slice_size or default_slice(real.device)
        target = real_gradient(net, real, label, size, self.config.precision)
        return gradient_distance(synthetic_gradient(net, synthetic, label), target)


def gradient_distance(syn_grads: Sequence[Tensor], real_grads: Sequence[Tensor]) -> Tensor:
    """The distance of DC: the sum over layers and output units of 1 - cosine. Pure.

    Both are sequences of tensors of equal shapes, one per parameter. A weight [out, ...] counts one
    row per output unit, a LayerNorm weight [C, H, W] one per channel; one-dimensional parameters
    (biases, norm scales and shifts) are ignored. 1e-6 in the denominator keeps a row of zeros at
    distance 1. Returns a scalar >= 0, differentiable in both.
    """
    total = syn_grads[0].new_zeros(())
    for syn, real in zip(syn_grads, real_grads, strict=True):
        if syn.ndim < 2:
            continue
        syn, real = syn.flatten(1), real.flatten(1)
        norms = torch.linalg.vector_norm(syn, dim=1) * torch.linalg.vector_norm(real, dim=1)
        total = total + (1 - (syn * real).sum(1) / (norms + 1e-6)).sum()
    return total


def matched_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The parameters whose gradients the distance compares: all but the one-dimensional ones."""
    return [p for p in net.parameters() if p.ndim >= 2]


def real_gradient(
    net: nn.Module,
    images: Tensor,
    label: int,
    slice_size: int | None = None,
    precision: str = "float32",
) -> list[Tensor]:
    """Gradient of the mean cross-entropy over real images [N, C, H, W] of a class, detached.

    In slices: the activations of one fit into the processor's caches (or a GPU's memory), and their
    sum is the gradient of the whole batch. `precision="bfloat16"` runs convolutions and products
    under autocast; the sums stay in float32.
    """
    parameters = matched_parameters(net)
    total: list[Tensor] | None = None
    for x in images.split(slice_size or len(images)):
        with mixed_precision(precision, images.device):
            logits = net(x)
        loss = F.cross_entropy(logits.to(images.dtype), labels_of(x, label), reduction="sum")
        gradients = torch.autograd.grad(loss / len(images), parameters)
        total = list(gradients if total is None else torch._foreach_add(total, gradients))
    assert total is not None
    return total


def synthetic_gradient(net: nn.Module, images: Tensor, label: int) -> tuple[Tensor, ...]:
    """Gradient of the mean cross-entropy over synthetic images of a class, with its graph."""
    loss = F.cross_entropy(net(images), labels_of(images, label))
    return torch.autograd.grad(loss, matched_parameters(net), create_graph=True)


def labels_of(images: Tensor, label: int) -> Tensor:
    """The label of each of the images, int64 [N]."""
    return torch.full((len(images),), label, device=images.device)
