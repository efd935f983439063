"""The nets: sizes derived by hand, shapes, sides, norms, and weights from a named generator."""

import pytest
import torch
import torch.nn.functional as F
from conftest import refused

from ddlib.nets import (
    ACTIVATIONS,
    DEPTHS,
    NETS,
    NORMS,
    SIDES,
    MaxPool,
    MeanPool,
    build_net,
)
from ddlib.support.pooling import pooling_matrix
from ddlib.support.rng import stream, torch_seeded_by

SMALL = {  # options that make each net cheap
    "ConvNet": {"width": 4, "depth": 2},
    "MLP": {},
    "LeNet": {},
    "AlexNet": {"width_factor": 0.05},
    "VGG11": {"width_factor": 0.05},
    "ResNet18": {"width_factor": 0.05},
}
MAIN = (9 * 3 * 128 + 128) + 2 * (9 * 128 * 128 + 128) + 3 * 2 * 128 + (128 * 4 * 4 * 10 + 10)
VGG_CONVS = (
    (9 * 3 * 64 + 64)
    + (9 * 64 * 128 + 128)
    + (9 * 128 * 256 + 256)
    + (9 * 256 * 256 + 256)
    + (9 * 256 * 512 + 512)
    + 3 * (9 * 512 * 512 + 512)
)
RESNET_CONVS = (
    9 * 3 * 64
    + 4 * 9 * 64 * 64
    + (9 * 64 * 128 + 3 * 9 * 128 * 128 + 64 * 128)
    + (9 * 128 * 256 + 3 * 9 * 256 * 256 + 128 * 256)
    + (9 * 256 * 512 + 3 * 9 * 512 * 512 + 256 * 512)
)
RESNET_NORMS = 2 * (64 + 4 * 64 + 5 * 128 + 5 * 256 + 5 * 512)
SIZES = [
    ("ConvNet", {}, 320010),
    ("ConvNet", {}, MAIN),
    ("ConvNet", {"classes": 100}, MAIN + 90 * (128 * 4 * 4 + 1)),
    ("ConvNet", {"channels": 1, "side": 28}, MAIN - 9 * 2 * 128),
    ("ConvNet", {"norm": "none"}, MAIN - 3 * 2 * 128),
    ("ConvNet", {"norm": "batch"}, MAIN),
    ("ConvNet", {"norm": "group"}, MAIN),
    ("ConvNet", {"norm": "layer"}, MAIN - 3 * 2 * 128 + 2 * 128 * (32 * 32 + 16 * 16 + 8 * 8)),
    ("ConvNet", {"width": 8, "depth": 1}, (9 * 3 * 8 + 8) + 2 * 8 + (8 * 16 * 16 * 10 + 10)),
    (
        "ConvNet",
        {"width": 8, "depth": 1, "pooling": "none"},
        (9 * 3 * 8 + 8) + 2 * 8 + (8 * 32 * 32 * 10 + 10),
    ),
    ("MLP", {}, (3072 * 128 + 128) + (128 * 128 + 128) + (128 * 10 + 10)),
    ("MLP", {"channels": 1, "side": 28}, (784 * 128 + 128) + (128 * 128 + 128) + (128 * 10 + 10)),
    (
        "LeNet",
        {},
        (25 * 3 * 6 + 6)
        + (25 * 6 * 16 + 16)
        + (400 * 120 + 120)
        + (120 * 84 + 84)
        + (84 * 10 + 10),
    ),
    (
        "AlexNet",
        {},
        (25 * 3 * 128 + 128)
        + (25 * 128 * 192 + 192)
        + (9 * 192 * 256 + 256)
        + (9 * 256 * 192 + 192)
        + (9 * 192 * 192 + 192)
        + (192 * 4 * 4 * 10 + 10),
    ),
    ("VGG11", {}, VGG_CONVS + 2 * (64 + 128 + 2 * 256 + 4 * 512) + (512 * 10 + 10)),
    ("VGG11", {"norm": "none"}, VGG_CONVS + (512 * 10 + 10)),
    ("ResNet18", {}, RESNET_CONVS + RESNET_NORMS + (512 * 10 + 10)),
    (
        "ResNet18",
        {"norm": "batch", "classes": 100},
        RESNET_CONVS + RESNET_NORMS + (512 * 100 + 100),
    ),
]


def on_meta(name, **options):
    """A net of full size that costs nothing: shapes without numbers."""
    with torch.device("meta"):
        return build_net(name, **options)


@pytest.mark.parametrize(("name", "options", "size"), SIZES)
def test_parameter_count_is_the_one_derived_by_hand(name, options, size):
    assert sum(p.numel() for p in on_meta(name, **options).parameters()) == size


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("side", [28, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("ConvNet", 2048),
        ("MLP", 128),
        ("LeNet", 84),
        ("AlexNet", 3072),
        ("VGG11", 512),
        ("ResNet18", 512),
    ],
)
def test_shapes_of_logits_and_embedding(name, features, channels, side, classes):
    net = on_meta(name, channels=channels, side=side, classes=classes)
    images = torch.empty(2, channels, side, side, device="meta")
    assert net(images).shape == (2, classes)
    assert net.embed(images).shape == (2, features)


@pytest.mark.parametrize("name", NETS)
def test_logits_are_the_classifier_of_the_embedding(name):
    net, images = build_net(name, stream(0, name), **SMALL[name]).eval(), torch.randn(2, 3, 32, 32)
    assert torch.equal(net(images), net.classifier(net.embed(images)))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["ConvNet", "AlexNet", "VGG11", "ResNet18"])
def test_every_norm_fits_every_net(name, norm):
    net = build_net(name, stream(0, name), norm=norm, **SMALL[name])
    logits = net(torch.randn(3, 3, 32, 32, generator=stream(0, "images")))
    assert logits.shape == (3, 10) and torch.isfinite(logits).all()


@pytest.mark.parametrize("name", ["ConvNet", "LeNet", "AlexNet", "VGG11", "ResNet18"])
def test_28_pixels_are_treated_as_32_with_a_black_border(name):
    images = torch.randn(2, 1, 28, 28, generator=stream(0, "images"))
    small = build_net(name, stream(0, name), channels=1, side=28, **SMALL[name])
    large = build_net(name, stream(0, name), channels=1, side=32, **SMALL[name])
    torch.testing.assert_close(small(images), large(F.pad(images, (2, 2, 2, 2))))


@pytest.mark.parametrize(
    ("norm", "over"),
    [("instance", (3, 4)), ("group", (2, 3, 4)), ("layer", (1, 2, 3, 4)), ("batch", (0, 3, 4))],
)
def test_a_norm_normalises_over_the_dimensions_it_is_named_for(norm, over):
    x = torch.randn(5, 8, 6, 6, generator=stream(0, "x")) * 3 + 2
    y = NORMS[norm](8, 6)(x).view(5, 4, 2, 6, 6)  # 4 groups of 2 channels
    if norm in ("instance", "batch"):
        y = y.flatten(1, 2)[:, :, None].expand(-1, -1, 1, -1, -1)
    mean = y.mean(over)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(over, correction=0), torch.ones_like(mean), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("activation", "at_minus_one"),
    [("relu", 0.0), ("sigmoid", 0.26894142), ("leakyrelu", -0.01), ("swish", -0.26894142)],
)
def test_activation_at_minus_one(activation, at_minus_one):
    assert ACTIVATIONS[activation]()(torch.tensor(-1.0)).item() == pytest.approx(at_minus_one)


@pytest.mark.parametrize("name", NETS)
def test_same_generator_same_weights_and_the_global_one_is_untouched(name):
    before = torch.get_rng_state()
    one, two, other = (
        build_net(name, stream(seed, "net"), **SMALL[name]).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)
    assert torch.equal(before, torch.get_rng_state())


def test_a_generator_gives_another_net_each_time():
    generator = stream(0, "nets")
    one, two = (build_net("MLP", generator).classifier.weight for _ in range(2))
    assert not torch.equal(one, two)


def test_streams_depend_on_seed_and_names_alone():
    def draw(*key):
        return torch.randn(4, generator=stream(*key)).tolist()

    keys = [(0, "eval", 1), (0, "eval", 2), (0, "pool", 1), (1, "eval", 1), (0, "eval")]
    assert draw(*keys[0]) == draw(*keys[0])
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_torch_seeded_by_gives_the_global_generator_back():
    before = torch.get_rng_state()
    with torch_seeded_by(stream(0, "x")):
        torch.randn(3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("Convnet", {}, ("'Convnet'", "did you mean 'ConvNet'", "LeNet")),
        ("ConvNet", {"widht": 4}, ("'widht'", "did you mean 'width'", "depth")),
        ("LeNet", {"width": 4}, ("'width'", "LeNet", "classes")),
        ("ConvNet", {"norm": "batchnorm"}, ("'batchnorm'", "instance", "layer")),
        ("VGG11", {"norm": "batchnorm"}, ("'batchnorm'", "instance", "layer")),
        ("ConvNet", {"activation": "gelu"}, ("'gelu'", "swish")),
        ("ConvNet", {"pooling": "sum"}, ("'sum'", "average")),
        ("ConvNet", {"width": 6, "norm": "group"}, ("6", "multiple of 4")),
        ("ConvNet", {"width": 0}, ("0", "1 to 4096")),
        ("ConvNet", {"depth": 6}, ("6", "1 to 5")),
        ("ConvNet", {"depth": 8, "side": 128}, ("8", "1 to 7")),
        ("AlexNet", {"width_factor": 0}, ("0", "width_factor")),
        ("MLP", {"side": 48}, ("48", "28, 32, 64, 128")),
        ("ConvNet", {"side": 30}, ("30", "28, 32, 64, 128")),
    ],
)
def test_what_a_net_cannot_be_is_refused(name, options, words):
    with refused(*words):
        build_net(name, **options)


@pytest.mark.parametrize("name", NETS)
def test_the_class_itself_refuses_other_sides(name):
    with refused("48", "28, 32, 64, 128"):
        NETS[name](side=48)


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("ConvNet", (2048, 2048, 2048, 2048)),
        ("MLP", (128, 128, 128, 128)),
        ("LeNet", (84, 84, 84, 84)),
        ("AlexNet", (3072, 3072, 12288, 49152)),
        ("VGG11", (512, 512, 2048, 8192)),
        ("ResNet18", (512, 512, 512, 512)),
    ],
)
def test_larger_images_have_larger_maps_and_the_same_features_elsewhere(name, features):
    for side, count in zip(SIDES, features, strict=True):
        net = on_meta(name, side=side)
        assert net.embed(torch.empty(2, 3, side, side, device="meta")).shape == (2, count)


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("norm", ["instance", "layer"])
@pytest.mark.parametrize("name", NETS)
def test_larger_images_have_logits_and_gradients(name, norm, side):
    options = {} if name in ("MLP", "LeNet") else {"norm": norm, **SMALL[name]}
    net = build_net(name, stream(0, name), side=side, **options)
    images = torch.randn(2, 3, side, side, generator=stream(0, "images")).requires_grad_()
    logits = net(images)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), images)
    assert logits.shape == (2, 10) and torch.isfinite(logits).all() and gradient.abs().sum() > 0


@pytest.mark.parametrize(("side", "depth"), [(28, 3), (32, 3), (64, 4), (128, 5)])
def test_depth_grows_with_the_side_unless_it_is_given(side, depth):
    def convolutions(**options):
        layers = on_meta("ConvNet", side=side, width=4, **options).features
        return sum(isinstance(layer, torch.nn.Conv2d) for layer in layers)

    assert DEPTHS[side] == convolutions() == convolutions(depth=None) == depth
    assert convolutions(depth=2) == 2


def test_a_net_that_was_looked_at_without_gradients_can_be_trained():
    """What a first pass keeps for later ones must serve training too."""
    images = torch.randn(2, 3, 28, 28)
    pooling_matrix.cache_clear()
    with torch.inference_mode():
        build_net("ConvNet", width=4, side=28)(images)
    build_net("ConvNet", width=4, side=28)(images).sum().backward()


@pytest.mark.parametrize("side", [2, 8, 32])
def test_mean_pooling_is_average_pooling(side):
    images = torch.randn(
        3, 5, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    ours, plain = MeanPool()(images), F.avg_pool2d(images, 2)
    assert torch.allclose(ours, plain, rtol=1e-12, atol=1e-15)
    weights = torch.randn(
        ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    mine, theirs = (torch.autograd.grad((out * weights).sum(), images)[0] for out in (ours, plain))
    assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 5, 2, 2), (3, 5, 8, 4), (2, 1, 32, 32), (1, 1, 128, 128)])
def test_max_pooling_is_max_pooling(shape, layout):
    """Values, gradients and the gradients' own derivatives, which matching needs."""
    images = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=layout).requires_grad_()
    found = []
    for pool in (MaxPool(), torch.nn.MaxPool2d(2)):
        pooled = pool(images)
        (gradient,) = torch.autograd.grad((pooled**3).sum(), images, create_graph=True)
        found.append((pooled, gradient, *torch.autograd.grad((gradient**2).sum(), images)))
    with torch.no_grad():
        assert torch.equal(MaxPool()(images), found[1][0])
    assert all(torch.equal(ours, plain) for ours, plain in zip(*found, strict=True))


def test_one_of_several_greatest_pixels_gets_the_gradient():
    images = torch.ones(1, 1, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(MaxPool()(images).sum(), images)
    assert F.max_pool2d(gradient, 2).eq(1).all() and gradient.sum() == 4


@pytest.mark.parametrize("name", ["LeNet", "AlexNet"])
def test_channels_last_changes_the_speed_only(name):
    net = build_net(
        name, stream(0, "x"), **({"width_factor": 0.1} if name == "AlexNet" else {})
    ).double()
    images = torch.randn(
        4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    assert net.channels_last
    found = []
    for net.channels_last in (True, False):
        logits = net(images)
        found.append([logits, *torch.autograd.grad(logits.square().sum(), list(net.parameters()))])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["AlexNet", "VGG11", "ResNet18"])
def test_nets_with_group_norm_keep_channels_first(name):
    """PyTorch's GroupNorm is many times slower with channels last."""
    assert not build_net(name, width_factor=0.1, norm="instance").channels_last
