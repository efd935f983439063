"""Nets of torchvision for small images: what newer papers evaluate on beside the six of `nets`.

Stems are as this field has them for 32x32 pixels (github.com/kuangliu/pytorch-cifar): a 3x3
convolution without stride, no pooling behind it. Batch norm, as published, and no dropout. The
models of torchvision and timm as they are go by `torchvision:<model>` and `timm:<model>`.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from .nets import extra_padding, scaled
from .support.errors import DDError, check_choice, first_line
from .support.public import public

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


@functools.cache
def library_net(name: str) -> type[nn.Module]:
    """The class of a model of `LIBRARIES`, "timm:resnet18", as it is there: no stem is changed.

    Raises `DDError` for an unknown model or a missing library, and, when it is built, for images
    that it cannot take.
    """
    library, _, model = name.partition(":")
    names, build = LIBRARIES[check_choice("library of nets", library, LIBRARIES)]()
    check_choice(f"{library} model", model, names)

    class LibraryNet(nn.Module):
        @public
        def __init__(self, channels: int = 3, side: int = 32, classes: int = 10) -> None:
            super().__init__()
            self.model = build_model(name, partial(build, model), channels, side, classes)

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images)

    LibraryNet.__name__ = LibraryNet.__qualname__ = name
    return LibraryNet


Build = Callable[[str, int, int], nn.Module]  # by name, channels and classes; fresh weights


def torchvision_models() -> tuple[list[str], Build]:
    """The names of torchvision's classifiers, and how one is built."""
    models = torchvision.models

    def build(name: str, channels: int, classes: int) -> nn.Module:
        if channels != 3:
            raise DDError(f"torchvision's models take 3 channels; the images have {channels}")
        inception = name in ("googlenet", "inception_v3")  # without outputs beside the logits
        more = {"aux_logits": False, "init_weights": False} if inception else {}
        return models.get_model(name, weights=None, num_classes=classes, **more)

    return models.list_models(models), build


def timm_models() -> tuple[list[str], Build]:
    """The names of timm's models, and how one is built."""
    try:
        import timm
    except ImportError:
        raise DDError("timm is not installed; pip install timm") from None

    def build(name: str, channels: int, classes: int) -> nn.Module:
        return timm.create_model(name, pretrained=False, in_chans=channels, num_classes=classes)

    return timm.list_models(), build


LIBRARIES = {"torchvision": torchvision_models, "timm": timm_models}


@torch.no_grad()
def build_model(
    name: str, build: Callable[[int, int], nn.Module], channels: int, side: int, classes: int
) -> nn.Module:
    """A model on the CPU, tried on an image; `DDError` unless it makes logits of such."""
    size = f"{channels}x{side}x{side}"
    try:
        with torch.device("cpu"):  # some look at their weights, of which "meta" has none
            model = build(channels, classes)
            made: Any = model.eval()(torch.zeros(1, channels, side, side))
    except DDError:
        raise
    except Exception as error:  # whatever a library raises
        raise DDError(f"{name} takes no {size} images ({first_line(error)})") from error
    shape = list(getattr(made, "shape", [])) or type(made).__name__
    if shape != [1, classes]:
        raise DDError(f"{name} makes {shape} of an image; needed: [1, {classes}]")
    return model.train()
