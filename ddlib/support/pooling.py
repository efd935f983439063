"""2x2 poolings that are quick on a CPU; elsewhere they are PyTorch's own."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .machine import kind


class MeanPool(nn.Module):
    """2x2 average pooling, [N, C, H, W] to [N, C, H / 2, W / 2]; H and W even.

    On the CPU as a product with a constant matrix: PyTorch's own kernel takes a third of a bfloat16
    backward pass there (measured: 337 to 244 ms for ConvNet-D3-W128 over 256 images on 2 cores).
    """

    def forward(self, images: Tensor) -> Tensor:
        if kind(images.device) != "cpu":
            return F.avg_pool2d(images, 2)
        n, channels, height, width = images.shape
        pairs_of_rows = images.reshape(-1, 2 * width)
        means = pairs_of_rows @ pooling_matrix(width, images.dtype)
        return means.view(n, channels, height // 2, width // 2)


@functools.cache
@torch.inference_mode(False)  # what is kept serves training too
def pooling_matrix(width: int, dtype: torch.dtype) -> Tensor:
    """[2 * width, width / 2]: maps two rows laid end to end to the means of their 2x2 squares."""
    column = torch.arange(width)
    matrix = torch.zeros(2, width, width // 2)
    matrix[:, column, column // 2] = 0.25
    return matrix.view(2 * width, width // 2).to(dtype)


class MaxPool(nn.Module):
    """2x2 max pooling, [N, C, H, W] to [N, C, H / 2, W / 2]; H and W even.

    PyTorch's own kernel is slow on a CPU unless channels come last. There, the rows and then the
    columns of a square are compared as whole tensors, and the greatest pixels gathered: the same
    values, and the same gradients but for ties, where another one of the equal pixels may get it
    (measured: 211 to 171 ms for a bfloat16 backward pass of VGG11 over 64 images on 2 cores).
    """

    def forward(self, images: Tensor) -> Tensor:
        if kind(images.device) != "cpu" or images.is_contiguous(memory_format=torch.channels_last):
            return F.max_pool2d(images, 2)
        n, channels, height, width = images.shape
        pooled = n, channels, height // 2, width // 2
        with torch.no_grad():
            upper, lower = images.reshape(-1, 2, width).unbind(1)
            columns = torch.maximum(upper, lower)
            left, right = columns[:, ::2], columns[:, 1::2]
            if not images.requires_grad:
                return torch.maximum(left, right).view(pooled)
            is_right, is_lower = right > left, lower > upper
            is_lower = torch.where(is_right, is_lower[:, 1::2], is_lower[:, ::2])
            from_first = (is_lower.to(torch.uint8) * width + is_right).view(pooled)
            index = first_pixels(height, width) + from_first
        return images.flatten(2).gather(2, index.flatten(2)).view(pooled)


@functools.cache
def first_pixels(height: int, width: int) -> Tensor:
    """int64 [H / 2, W / 2]: where in the flattened image each 2x2 square begins."""
    return torch.arange(height * width).view(height, width)[::2, ::2].clone()
