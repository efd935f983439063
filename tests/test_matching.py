"""Gradient matching: the distance by hand, slices against the whole batch, BatchNorm's frozen statistics."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import make_data

from ddlib.config import DistillConfig
from ddlib.distill import train_on
from ddlib.matching import (
    batchnorms,
    default_slice,
    draw_batches,
    freeze_batchnorm,
    gradient_distance,
    matched_parameters,
    matching_step,
    real_gradient,
    synthetic_gradient,
)
from ddlib.nets import build_net
from ddlib.rng import stream


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def small_net(**options):
    options = {"width": 4, "depth": 1, "channels": 1, "side": 28, "classes": 3} | options
    return build_net("ConvNet", stream(0, "net"), **options)


@pytest.mark.parametrize(
    ("syn", "real", "expected"),
    [
        ([[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 0.5]], 0.0),
        ([[1.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [0.0, -1.0]], 1.0 + 2.0),
        ([[3.0, 4.0]], [[1.0, 0.0]], 1 - 3 / 5),
        ([[1.0, 1.0]], [[1.0, 0.0]], 1 - 1 / math.sqrt(2)),
        ([[0.0, 0.0]], [[1.0, 5.0]], 1.0),
        ([[0.0, 0.0]], [[0.0, 0.0]], 1.0),
    ],
)
def test_distance_of_a_matrix_by_hand(syn, real, expected):
    assert float(gradient_distance([double(syn)], [double(real)])) == pytest.approx(
        expected, abs=2e-6
    )


def test_small_number_is_in_the_denominator():
    row = double([[1e-3, 0.0]])
    assert float(gradient_distance([row], [row])) == pytest.approx(1 - 1e-6 / (1e-6 + 1e-6))


def test_vectors_are_ignored_and_layers_are_added():
    one, two = double([[1.0, 0.0]]), double([[0.0, 1.0]])
    bias = double([1.0, 2.0])
    assert float(gradient_distance([one, bias, one], [two, -bias, two])) == pytest.approx(2.0)
    assert float(gradient_distance([bias], [-bias])) == 0.0


def test_a_convolution_has_one_row_per_filter_and_layer_norm_one_per_channel():
    ones = torch.ones(2, 3, 2, 2, dtype=torch.float64)
    turned = ones.clone()
    turned[1] *= -1
    assert float(gradient_distance([ones], [turned])) == pytest.approx(2.0, abs=1e-5)
    layer = ones[:, 0]  # [C, H, W]
    assert float(gradient_distance([layer], [turned[:, 0]])) == pytest.approx(2.0, abs=1e-5)


def test_distance_equals_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 3, 3), (4,), (4, 5, 5), (10, 16), (10,)]
    syn, real = (
        [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for _ in range(2)
    )
    expected = 0.0
    for a, b in zip(syn, real, strict=True):
        for x, y in zip(a.tolist(), b.tolist(), strict=True) if a.ndim > 1 else []:
            x, y = double(x).flatten().tolist(), double(y).flatten().tolist()
            dot = sum(p * q for p, q in zip(x, y, strict=True))
            expected += 1 - dot / (
                math.sqrt(sum(p * p for p in x)) * math.sqrt(sum(q * q for q in y)) + 1e-6
            )
    assert float(gradient_distance(syn, real)) == pytest.approx(expected, rel=1e-12)


def test_distance_can_be_differentiated():
    generator = torch.Generator().manual_seed(1)
    syn, real = (
        torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(2)
    )
    assert torch.autograd.gradcheck(lambda s, r: gradient_distance([s], [r]), (syn, real))


@pytest.mark.parametrize("dead", [0, slice(None)])
def test_a_dead_filter_gives_no_nan_in_the_pixels(dead):
    """Its gradient is a row of zeros, where a norm has no derivative; the pixels differentiate through it."""
    net = small_net(norm="none")
    with torch.no_grad():
        net.features[0].bias[dead] = -1e3
    images, labels = torch.randn(2, 1, 28, 28, generator=stream(0, "images")), torch.tensor([0, 1])
    syn = images.clone().requires_grad_()
    gradient = synthetic_gradient(net, syn, labels)
    assert (gradient[0][dead] == 0).all()
    target = real_gradient(net, images.flip(0), labels)
    pixels = torch.autograd.grad(gradient_distance(gradient, target), syn)[0]
    assert torch.isfinite(pixels).all()
    assert bool((pixels != 0).any()) == (dead == 0)


def test_only_matrices_are_matched():
    net = small_net(norm="layer")
    assert [p.ndim for p in matched_parameters(net)] == [4, 3, 3, 2]


@pytest.mark.parametrize("slice_size", [1, 5, 16, None])
@pytest.mark.parametrize("norm", ["instance", "layer", "batch"])
def test_gradient_in_slices_is_that_of_the_whole_batch(slice_size, norm):
    data = make_data(per_class=16).to(dtype=torch.float64)
    net = small_net(norm=norm, depth=2).double()
    if norm == "batch":
        freeze_batchnorm(net, data.x_train)
    images, labels = data.x_train[:16], data.y_train[:16]
    expected = torch.autograd.grad(
        F.cross_entropy(net(images), labels), [p for p in net.parameters() if p.ndim > 1]
    )
    for mine, whole in zip(real_gradient(net, images, labels, slice_size), expected, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-9, atol=1e-12)
        assert not mine.requires_grad


def test_a_cpu_slices_and_a_gpu_need_not():
    """Ten classes of 256 images at once take a gigabyte on a CPU and are slower."""
    assert 8 <= default_slice("cpu") <= 64 and default_slice("cuda") is None


def test_bfloat16_gradient_points_the_same_way():
    data, net = make_data(), small_net()
    one, two = (
        real_gradient(net, data.x_train, data.y_train, None, p) for p in ("float32", "bfloat16")
    )
    for a, b in zip(one, two, strict=True):
        assert b.dtype == torch.float32
        assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99
    assert not torch.equal(one[0], two[0])


def test_matching_gradient_is_that_of_the_loss_it_returns():
    """Finite differences in some pixels, the random real batches held fixed."""
    data = make_data(per_class=6).to(dtype=torch.float64)
    net = small_net(activation="swish").double()
    labels = torch.arange(3).repeat_interleave(2)
    images = torch.randn(
        6, 1, 28, 28, generator=stream(0, "images"), dtype=torch.float64
    ).requires_grad_()

    def loss(at):
        return matching_step(net, at, labels, data, draw_batches(data, 4, stream(0, "batch")))

    loss(images)
    gradient = images.grad.clone()
    for index in [(0, 0, 3, 4), (3, 0, 20, 11), (5, 0, 27, 27)]:
        up, down = (images.detach().clone().requires_grad_() for _ in range(2))
        up.data[index] += 1e-5
        down.data[index] -= 1e-5
        assert (loss(up) - loss(down)) / 2e-5 == pytest.approx(
            float(gradient[index]), rel=1e-4, abs=1e-8
        )


def test_matching_leaves_the_net_alone():
    data, net = make_data(), small_net()
    before = [p.clone() for p in net.parameters()]
    images = torch.randn(3, 1, 28, 28).requires_grad_()
    matching_step(net, images, torch.arange(3), data, draw_batches(data, 4, stream(0, "batch")))
    assert all(
        torch.equal(a, b) and b.grad is None for a, b in zip(before, net.parameters(), strict=True)
    )


def test_a_class_is_matched_on_its_own_images_only():
    """A change in the images of class 2 leaves the gradient of the others as it was."""
    data, net, labels = make_data(), small_net(), torch.arange(3).repeat_interleave(2)
    images = torch.randn(6, 1, 28, 28, generator=stream(0, "images"))
    gradients = []
    for shift in (0, 1):
        moved = images.clone()
        moved[4:] += shift
        moved.requires_grad_()
        matching_step(net, moved, labels, data, draw_batches(data, 4, stream(0, "batch")))
        gradients.append(moved.grad)
    assert torch.equal(gradients[0][:4], gradients[1][:4])
    assert not torch.equal(gradients[0][4:], gradients[1][4:])


def test_a_step_has_a_batch_of_every_class_of_different_images():
    data = make_data()
    index = draw_batches(data, 4, stream(0, "batch"))
    assert [data.y_train[rows].unique().tolist() for rows in index] == [[0], [1], [2]]
    assert all(len(rows.unique()) == 4 for rows in index)


def test_batchnorm_takes_the_statistics_of_the_real_batch():
    net, real = small_net(norm="batch"), make_data().x_train
    freeze_batchnorm(net, real)
    (layer,) = batchnorms(net)
    inside = net.features[0](real)
    torch.testing.assert_close(layer.running_mean, inside.mean((0, 2, 3)))
    torch.testing.assert_close(layer.running_var, inside.var((0, 2, 3)))
    assert not layer.training and layer.momentum == 0.1


def test_batchnorm_is_frozen_in_matching_and_thaws_in_training():
    data, net = make_data(), small_net(norm="batch", depth=2)
    freeze_batchnorm(net, data.x_train)
    before = [layer.running_mean.clone() for layer in batchnorms(net)]
    images, labels = (
        torch.randn(6, 1, 28, 28).requires_grad_(),
        torch.arange(3).repeat_interleave(2),
    )
    matching_step(net, images, labels, data, draw_batches(data, 4, stream(0, "batch")))
    assert all(
        torch.equal(a, layer.running_mean) for a, layer in zip(before, batchnorms(net), strict=True)
    )
    train_on(images.detach(), labels, net, 1, DistillConfig(), stream(0, "train"))
    assert not any(
        torch.equal(a, layer.running_mean) for a, layer in zip(before, batchnorms(net), strict=True)
    )
    assert all(layer.training for layer in batchnorms(net))


def test_freezing_again_forgets_the_earlier_statistics():
    one, two = small_net(norm="batch"), small_net(norm="batch")
    real = make_data().x_train
    freeze_batchnorm(one, real + 7)
    freeze_batchnorm(one, real)
    freeze_batchnorm(two, real)
    assert torch.equal(batchnorms(one)[0].running_mean, batchnorms(two)[0].running_mean)
    assert torch.equal(batchnorms(one)[0].running_var, batchnorms(two)[0].running_var)


def test_the_inner_loop_in_bfloat16_moves_the_same_way():
    """Weights stay float32, else a step of 1% of a gradient would be lost in their rounding."""
    data, steps = make_data(), []
    for precision in ("float32", "bfloat16"):
        net = small_net()
        before = [p.detach().clone() for p in net.parameters()]
        train_on(
            data.x_train,
            data.y_train,
            net,
            3,
            DistillConfig(precision=precision),
            stream(0, "train"),
        )
        assert {p.dtype for p in net.parameters()} == {torch.float32}
        steps.append(
            torch.cat(
                [(p.detach() - b).flatten() for p, b in zip(net.parameters(), before, strict=True)]
            )
        )
    one, two = steps
    assert F.cosine_similarity(one, two, dim=0) > 0.99
    assert not torch.equal(one, two)
