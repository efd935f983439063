"""The networks: the ConvNet family that the pool draws from, and the five other nets of the evaluation.

Shapes: every net maps images [N, channels, side, side] in normalised pixel space to logits [N, classes]; `embed` gives the
flattened features [N, F] before the classifier. Sides 28 and 32 are supported: at 28 the first convolution of every
convolutional net but LeNet pads two pixels more, which makes the feature maps those of a 32x32 image.
"""

import functools
import inspect

import torch
import torch.nn.functional as F
from torch import nn

from .errors import DDError, check_choice, check_range
from .rng import torch_seeded_by

ACTIVATIONS = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "leakyrelu": lambda: nn.LeakyReLU(0.01),
    "swish": nn.SiLU,
}
NORMS = {
    "none": lambda width, side: nn.Identity(),
    "instance": lambda width, side: nn.GroupNorm(
        width, width
    ),  # as many groups as channels, affine
    "batch": lambda width, side: nn.BatchNorm2d(width),
    "layer": lambda width, side: nn.LayerNorm([width, side, side]),
    "group": lambda width, side: nn.GroupNorm(4, width),
}
SIDES = (28, 32)


class MeanPool(nn.Module):
    """2x2 average pooling, [N, C, H, W] to [N, C, H / 2, W / 2]; H and W even.

    On the CPU as a product with a constant matrix: PyTorch's own kernel takes a third of a bfloat16 backward pass there
    (measured: 337 to 244 ms for ConvNet-D3-W128 over 256 images on 2 cores). On a GPU as `avg_pool2d`, which is the plain path.
    """

    def forward(self, images):
        if images.device.type != "cpu":
            return F.avg_pool2d(images, 2)
        n, channels, height, width = images.shape
        pairs_of_rows = images.reshape(-1, 2 * width)
        return (pairs_of_rows @ pooling_matrix(width, images.dtype)).view(
            n, channels, height // 2, width // 2
        )


@functools.cache
def pooling_matrix(width, dtype):
    """[2 * width, width / 2]: maps two image rows laid end to end to the means of their 2x2 squares."""
    column = torch.arange(width)
    matrix = torch.zeros(2, width, width // 2)
    matrix[:, column, column // 2] = 0.25
    return matrix.view(2 * width, width // 2).to(dtype)


class MaxPool(nn.Module):
    """2x2 max pooling, [N, C, H, W] to [N, C, H / 2, W / 2]; H and W even.

    PyTorch's own kernel is slow on a CPU unless channels come last. There, the rows and then the columns of a square are
    compared as whole tensors, and the greatest pixels gathered: the same values, and the same gradients but for ties, where
    another one of the equal pixels may get it (measured: 211 to 171 ms for a bfloat16 backward pass of VGG11 over 64 images
    on 2 cores). Elsewhere as `max_pool2d`, which is the plain path.
    """

    def forward(self, images):
        if images.device.type != "cpu" or images.is_contiguous(memory_format=torch.channels_last):
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
            within = (is_lower.to(torch.uint8) * width + is_right).view(
                pooled
            )  # from a square's first pixel
            index = within + first_pixels(height, width)
        return images.flatten(2).gather(2, index.flatten(2)).view(pooled)


@functools.cache
def first_pixels(height, width):
    """int64 [H / 2, W / 2]: where in the flattened image each 2x2 square begins."""
    return torch.arange(height * width).view(height, width)[::2, ::2].clone()


POOLINGS = {
    "none": nn.Identity,
    "average": MeanPool,
    "max": MaxPool,
}


class Net(nn.Module):
    """Features, then one classifier. Subclasses set `features` and `classifier`.

    `channels_last`: how a CPU lays out the activations in memory. Convolutions and max pooling are quicker so, GroupNorm is
    many times slower.
    """

    channels_last = False

    def embed(self, images):
        """Flattened features [N, F] before the classifier."""
        if self.channels_last and images.device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        return self.features(images).flatten(1)

    def forward(self, images):
        return self.classifier(self.embed(images))


class ConvNet(Net):
    """`depth` blocks of conv3x3(width) - norm - activation - 2x2 pooling, then one linear layer.

    The defaults are the main model of DC (Zhao et al., ICLR 2021): ConvNet-D3-W128, instance norm, relu, average pooling;
    320,010 parameters on CIFAR-10. The other choices are the members of the paper's pool (arXiv 2402.13007, section 3.2).
    """

    def __init__(
        self,
        width=128,
        depth=3,
        activation="relu",
        norm="instance",
        pooling="average",
        channels=3,
        side=32,
        classes=10,
    ):
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("norm", norm, NORMS)
        check_choice("pooling", pooling, POOLINGS)
        check_range("ConvNet width", width, 1)
        check_range("ConvNet depth", depth, 1, 5)
        if norm == "group" and width % 4:
            raise DDError(f"ConvNet width is {width}; group norm needs a multiple of 4")
        size, layers = 32, []
        for block in range(depth):
            layers += [
                nn.Conv2d(
                    channels if block == 0 else width,
                    width,
                    3,
                    padding=1 + extra_padding(side) * (block == 0),
                ),
                NORMS[norm](width, size),
                ACTIVATIONS[activation](),
                POOLINGS[pooling](),
            ]
            size = size if pooling == "none" else size // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * size * size, classes)


class MLP(Net):
    """Three linear layers, pixels-128-128-classes, relu. No norm, no convolution."""

    def __init__(self, channels=3, side=32, classes=10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * side * side, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(128, classes)


class LeNet(Net):
    """6 and 16 5x5 filters, each with relu and 2x2 max pooling, then 120-84-classes. No norm."""

    channels_last = True

    def __init__(self, channels=3, side=32, classes=10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=extra_padding(side)),
            nn.ReLU(),
            MaxPool(),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            MaxPool(),
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(84, classes)


class AlexNet(Net):
    """AlexNet for 32x32 images: five convolutions (128, 192, 256, 192, 192), three max poolings, one linear layer.

    No norm by default, as in the DC family's evaluation; `norm` may be any of `NORMS`. `width_factor` scales all widths.
    """

    def __init__(self, width_factor=1.0, norm="none", channels=3, side=32, classes=10):
        super().__init__()
        pad = 2 + extra_padding(side)
        a, b, c = (scaled(width, width_factor) for width in (128, 192, 256))
        self.features = nn.Sequential(
            *conv_block(channels, a, norm, 32, kernel=5, padding=pad),
            MaxPool(),
            *conv_block(a, b, norm, 16, kernel=5, padding=2),
            MaxPool(),
            *conv_block(b, c, norm, 8),
            *conv_block(c, b, norm, 8),
            *conv_block(b, b, norm, 8),
            MaxPool(),
        )
        self.classifier = nn.Linear(b * 16, classes)
        self.channels_last = norm == "none"


class VGG11(Net):
    """VGG11 for 32x32 images: eight 3x3 convolutions, five max poolings, one linear layer from 512.

    Instance norm (as GroupNorm) by default, as in the DC family's evaluation; `norm` may be any of `NORMS`.
    `width_factor` scales all widths.
    """

    def __init__(self, width_factor=1.0, norm="instance", channels=3, side=32, classes=10):
        super().__init__()
        layers, size, previous = [], 32, channels
        for stage in ([64], [128], [256, 256], [512, 512], [512, 512]):
            for width in (scaled(w, width_factor) for w in stage):
                layers += conv_block(
                    previous, width, norm, size, padding=1 + extra_padding(side) * (not layers)
                )
                previous = width
            layers.append(MaxPool())
            size //= 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(previous, classes)


class ResNet18(Net):
    """ResNet18 for 32x32 images: 3x3 stem, no max pooling, four stages of two basic blocks, average pooling, linear.

    Instance norm (as GroupNorm) by default, as in the DC family's evaluation; `norm` may be any of `NORMS`.
    `width_factor` scales all widths.
    """

    def __init__(self, width_factor=1.0, norm="instance", channels=3, side=32, classes=10):
        super().__init__()
        widths = [scaled(width, width_factor) for width in (64, 128, 256, 512)]
        blocks = conv_block(
            channels, widths[0], norm, 32, padding=1 + extra_padding(side), bias=False
        )
        previous, size = widths[0], 32
        for stage, width in enumerate(widths):
            for stride in (1 if stage == 0 else 2, 1):
                size //= stride
                blocks.append(BasicBlock(previous, width, stride, norm, size))
                previous = width
        self.features = nn.Sequential(*blocks, nn.AvgPool2d(4))
        self.classifier = nn.Linear(previous, classes)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al., CVPR 2016); `size` is the side of its output."""

    def __init__(self, inputs, width, stride, norm, size):
        super().__init__()
        self.residual = nn.Sequential(
            *conv_block(inputs, width, norm, size, stride=stride, bias=False),
            *conv_block(width, width, norm, size, bias=False)[:2],
        )
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride=stride, bias=False), NORMS[norm](width, size)
            )

    def forward(self, x):
        return torch.relu(self.residual(x) + self.shortcut(x))


def conv_block(inputs, width, norm, size, kernel=3, padding=1, stride=1, bias=True):
    """Convolution, norm, relu, as a list of layers."""
    check_choice("norm", norm, NORMS)
    convolution = nn.Conv2d(inputs, width, kernel, stride=stride, padding=padding, bias=bias)
    return [convolution, NORMS[norm](width, size), nn.ReLU()]


def scaled(width, factor):
    """`width` times `factor`, a multiple of 4 and at least 4, so that every norm still fits."""
    check_range("width_factor", factor, 0.01, 8)
    return max(4, 4 * round(width * factor / 4))


def extra_padding(side):
    """Pixels of padding that bring a first convolution from 28 to 32; raises `DDError` for any side but 28 and 32."""
    check_choice("image side", side, SIDES)
    return (32 - side) // 2


NETS = {net.__name__: net for net in (ConvNet, MLP, LeNet, AlexNet, VGG11, ResNet18)}


def build_net(name, generator=None, **options):
    """A fresh net by name: ConvNet, MLP, LeNet, AlexNet, VGG11 or ResNet18.

    `options` are the class's own (`channels`, `side`, `classes`, `width`, `norm`, `width_factor`, ...). The weights are
    PyTorch's default initialisation, drawn from `generator` if one is given. Raises `DDError` for an unknown name,
    option, choice or an image side that the net cannot take.
    """
    net = NETS[check_choice("net", name, NETS)]
    allowed = [p for p in inspect.signature(net.__init__).parameters if p != "self"]
    for option in options:
        check_choice(f"option of {name}", option, allowed)
    check_choice("image side", options.get("side", 32), SIDES)
    if generator is None:
        return net(**options)
    with torch_seeded_by(generator):
        return net(**options)
