"""Nets of torchvision for small images: what newer papers evaluate on beside the six of `nets`.

Stems are as this field has them for 32x32 pixels (github.com/kuangliu/pytorch-cifar): a 3x3
convolution without stride, no pooling behind it. Batch norm, as published, and no dropout.
"""

import torchvision
from torch import Tensor, nn

from .nets import extra_padding, scaled
from .public import public

# Of MobileNetV2: expansion, width, blocks, stride
STAGES = (
    *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


class DenseNet121(torchvision.models.DenseNet):
    """DenseNet-121 (Huang et al., CVPR 2017): growth 32; 1024 features of 4x4 maps at side 32.

    `width_factor` scales the growth.
    """

    @public
    def __init__(
        self, width_factor: float = 1.0, channels: int = 3, side: int = 32, classes: int = 10
    ) -> None:
        growth = scaled(32, width_factor)
        super().__init__(growth, (6, 12, 24, 16), 2 * growth, num_classes=classes)
        self.features.conv0 = stem(channels, 2 * growth, side)
        self.features.pool0 = nn.Identity()

    def embed(self, images: Tensor) -> Tensor:
        """Features [N, F] before the classifier: the mean over the last maps, after relu."""
        return self.features(images).relu().mean((2, 3))


class MobileNetV2(torchvision.models.MobileNetV2):
    """MobileNetV2 (Sandler et al., CVPR 2018): 1280 features of 4x4 maps at side 32.

    The first stage of 24 filters keeps the side, as the stem does. `width_factor` scales the
    widths, the last one from 1 on only.
    """

    @public
    def __init__(
        self, width_factor: float = 1.0, channels: int = 3, side: int = 32, classes: int = 10
    ) -> None:
        stages = [[*stage] for stage in STAGES]
        super().__init__(classes, width_factor, stages, round_nearest=4, dropout=0.0)
        self.features[0][0] = stem(channels, self.features[0][0].out_channels, side)

    def embed(self, images: Tensor) -> Tensor:
        """Features [N, F] before the classifier: the mean over the last maps."""
        return self.features(images).mean((2, 3))


def stem(channels: int, width: int, side: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the side; 28 becomes 32."""
    convolution = nn.Conv2d(channels, width, 3, padding=1 + extra_padding(side), bias=False)
    nn.init.kaiming_normal_(convolution.weight)
    return convolution
