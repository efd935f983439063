"""Gradient matching: the distance between two gradients, and one matching step of DC (Zhao et al., ICLR 2021).

`real_gradient` walks through the real batch in slices: the activations of a slice fit into the processor's caches (or a GPU's
memory), the sum over the slices is the gradient of the whole batch. One slice as large as the batch is the plain path.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from .errors import DDError


def gradient_distance(syn_grads, real_grads):
    """The layer-wise, row-wise cosine distance of DC: sum over layers and output units of 1 - cos. Pure.

    Both are sequences of tensors of equal shapes, one per parameter. A weight [out, ...] counts one row per output unit,
    a LayerNorm weight [C, H, W] one per channel; one-dimensional parameters (biases, norm scales and shifts) are ignored.
    1e-6 in the denominator keeps a row of zeros at distance 1. Returns a scalar >= 0, differentiable in both.
    """
    total = syn_grads[0].new_zeros(())
    for syn, real in zip(syn_grads, real_grads, strict=True):
        if syn.ndim < 2:
            continue
        syn, real = syn.flatten(1), real.flatten(1)
        norms = torch.linalg.vector_norm(syn, dim=1) * torch.linalg.vector_norm(real, dim=1)
        total = total + (1 - (syn * real).sum(1) / (norms + 1e-6)).sum()
    return total


def matched_parameters(net):
    """The parameters whose gradients the distance compares: all but the one-dimensional ones."""
    return [p for p in net.parameters() if p.ndim >= 2]


def real_gradient(net, images, labels, slice_size=None, precision="float32"):
    """Gradient of the mean cross-entropy over a real batch [N, C, H, W], in slices; a list of detached tensors.

    `precision="bfloat16"` runs convolutions and products under autocast; the sums stay in float32.
    """
    parameters, total = matched_parameters(net), None
    step = slice_size or len(images)
    for x, y in zip(images.split(step), labels.split(step), strict=True):
        with mixed_precision(precision, images.device):
            loss = F.cross_entropy(net(x).to(images.dtype), y, reduction="sum") / len(images)
        grads = torch.autograd.grad(loss, parameters)
        total = list(grads) if total is None else torch._foreach_add(total, grads)
    return total


def default_slice(device):
    """Real images per backward pass: on a CPU few (64 are no faster and take twice the memory), on a GPU any number (None)."""
    return 32 if torch.device(device).type == "cpu" else None


def synthetic_gradient(net, images, labels):
    """Gradient of the mean cross-entropy over synthetic images, with its graph, so that it can be differentiated again."""
    return torch.autograd.grad(
        F.cross_entropy(net(images), labels), matched_parameters(net), create_graph=True
    )


def draw_batches(data, n, generator):
    """The real batches of one matching step: rows of `data.x_train`, int64 [classes, n], different within a class."""
    return torch.stack([data.draw(c, n, generator) for c in range(len(data.classes))])


def matching_step(net, images, labels, data, index, slice_size=None, precision="float32"):
    """Put the gradient of the matching loss into `images.grad`; returns the loss, summed over classes, as a 0-dim tensor.

    `images` [C * ipc, ...] are sorted by class; `index` comes from `draw_batches`. For each class in turn: the gradient of
    its real batch, the synthetic gradient, their distance, and its pull-back to that class's pixels; the graphs of only one
    class are alive at a time. Never waits for a GPU, so that it can be recorded.
    """
    if images.grad is None:
        images.grad = torch.zeros_like(images)
    loss, ipc = images.new_zeros(()), len(images) // len(index)
    for c, rows in enumerate(index):
        own = slice(c * ipc, (c + 1) * ipc)
        target = real_gradient(net, data.x_train[rows], data.y_train[rows], slice_size, precision)
        syn = images.detach()[own].requires_grad_()
        distance = gradient_distance(synthetic_gradient(net, syn, labels[own]), target)
        images.grad[own] = torch.autograd.grad(distance, syn)[0]
        loss += distance.detach()
    return loss


def batchnorms(net):
    """The BatchNorm layers of a net."""
    return [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def freeze_batchnorm(net, images):
    """Set the statistics of every BatchNorm layer from `images` (16 real ones per class in DC) and freeze them.

    Synthetic batches of a few images are too small to estimate them. `net.train()` thaws them again.
    """
    layers = batchnorms(net)
    net.train()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0
    net(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


def set_products(precision, device):
    """Whether float32 products may use a GPU's TF32 units, process-wide: in `tf32`, and beside `bfloat16`'s autocast."""
    if torch.device(device).type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision in (
            "tf32",
            "bfloat16",
        )
    elif precision == "tf32":
        raise DDError(
            "precision is 'tf32', which needs a GPU; allowed on a CPU: float32, bfloat16, float64"
        )


def mixed_precision(precision, device):
    """Autocast to bfloat16 if `precision` says so, else nothing.

    For real gradients, the inner loop and evaluation; weights, sums and what is differentiated twice stay float32.
    """
    if precision != "bfloat16":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
