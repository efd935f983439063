"""Gradient matching: the distance by hand, slices against the whole batch, BatchNorm's frozen
statistics.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import make_data

from ddlib.config import DistillConfig
from ddlib.methods.gradient import (
    Gradient,
    gradient_distance,
    matched_parameters,
    real_gradient,
    synthetic_gradient,
)
from ddlib.methods.images import as_leaf
from ddlib.methods.objective import batchnorms, freeze_batchnorm
from ddlib.nets import build_net
from ddlib.support.fast import default_slice
from ddlib.support.rng import Streams, stream


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def small_net(**options):
    options = {"width": 4, "depth": 1, "channels": 1, "side": 28, "classes": 3} | options
    return build_net("ConvNet", stream(0, "net"), **options)


def prepared(data, ipc=2, **settings):
    """DC's objective on data, at its first step."""
    objective = Gradient()
    settings = {"ipc": ipc, "batch_real": 4, "batch_bn": 4} | settings
    objective.prepare(DistillConfig(**settings).resolved(), data, Streams(0))
    return objective


def noise(n=6, dtype=torch.float32):
    return torch.randn(n, 1, 28, 28, generator=stream(0, "images"), dtype=dtype)


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
    """Its gradient is a row of zeros, where a norm has no derivative; the pixels differentiate
    through it.
    """
    net = small_net(norm="none")
    with torch.no_grad():
        net.features[0].bias[dead] = -1e3
    syn = noise(2).requires_grad_()
    gradient = synthetic_gradient(net, syn, 1)
    assert (gradient[0][dead] == 0).all()
    target = real_gradient(net, noise(4), 1)
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
    images, labels = data.x_train[16:32], data.y_train[16:32]
    expected = torch.autograd.grad(
        F.cross_entropy(net(images), labels), [p for p in net.parameters() if p.ndim > 1]
    )
    for sliced, whole in zip(real_gradient(net, images, 1, slice_size), expected, strict=True):
        torch.testing.assert_close(sliced, whole, rtol=1e-9, atol=1e-12)
        assert not sliced.requires_grad


def test_a_cpu_slices_and_a_gpu_need_not():
    """Ten classes of 256 images at once take a gigabyte on a CPU and are slower."""
    assert 8 <= default_slice("cpu") <= 64 and default_slice("cuda") is None


def test_bfloat16_gradient_points_the_same_way():
    data, net = make_data(), small_net()
    one, two = (real_gradient(net, data.x_train, 1, None, p) for p in ("float32", "bfloat16"))
    for a, b in zip(one, two, strict=True):
        assert b.dtype == torch.float32
        assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99
    assert not torch.equal(one[0], two[0])


def test_matching_gradient_is_that_of_the_loss_it_returns():
    """Finite differences in some pixels, the random real batches held fixed."""
    data = make_data(per_class=6).to(dtype=torch.float64)
    net = small_net(activation="swish").double()
    images = as_leaf(noise(dtype=torch.float64))

    def loss(at):
        return prepared(data)(net, at)

    loss(images)
    gradient = images.grad.clone()
    for index in [(0, 0, 3, 4), (3, 0, 20, 11), (5, 0, 27, 27)]:
        up, down = as_leaf(images), as_leaf(images)
        up.data[index] += 1e-5
        down.data[index] -= 1e-5
        assert (loss(up) - loss(down)) / 2e-5 == pytest.approx(
            float(gradient[index]), rel=1e-4, abs=1e-8
        )


def test_the_gradient_is_added_to_what_is_there():
    """So that other losses can add to it too."""
    data, net, images = make_data(), small_net(), as_leaf(noise())
    prepared(data)(net, images)
    again = as_leaf(images)
    again.grad += 1
    prepared(data)(net, again)
    assert torch.equal(again.grad, images.grad + 1)


def test_matching_leaves_the_net_alone():
    data, net = make_data(), small_net()
    before = [p.clone() for p in net.parameters()]
    prepared(data)(net, as_leaf(noise()))
    assert all(
        torch.equal(a, b) and b.grad is None for a, b in zip(before, net.parameters(), strict=True)
    )


def test_a_class_is_matched_on_its_own_images_only():
    """A change in the images of class 2 leaves the gradient of the others as it was."""
    data, net, gradients = make_data(), small_net(), []
    for shift in (0, 1):
        moved = as_leaf(noise())
        moved.data[4:] += shift
        prepared(data)(net, moved)
        gradients.append(moved.grad)
    assert torch.equal(gradients[0][:4], gradients[1][:4])
    assert not torch.equal(gradients[0][4:], gradients[1][4:])


def test_a_step_has_a_batch_of_every_class_of_different_images():
    data = make_data()
    objective = prepared(data)
    objective(small_net(), as_leaf(noise()))
    assert [data.y_train[rows].unique().tolist() for rows in objective.rows] == [[0], [1], [2]]
    assert all(len(rows.unique()) == 4 for rows in objective.rows)


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
    objective, images = prepared(data), as_leaf(noise())
    objective(net, images)
    freeze_batchnorm(net, data.x_train[objective.rows_bn.flatten()])
    before = [layer.running_mean.clone() for layer in batchnorms(net)]
    objective.match(net)
    after = [layer.running_mean.clone() for layer in batchnorms(net)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    objective.train(net, images.detach(), torch.arange(3).repeat_interleave(2))
    after = [layer.running_mean for layer in batchnorms(net)]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
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
        objective = prepared(data, ipc=12, inner=3, precision=precision)
        objective.train(net, data.x_train, data.y_train)
        assert {p.dtype for p in net.parameters()} == {torch.float32}
        steps.append(
            torch.cat(
                [(p.detach() - b).flatten() for p, b in zip(net.parameters(), before, strict=True)]
            )
        )
    one, two = steps
    assert F.cosine_similarity(one, two, dim=0) > 0.99
    assert not torch.equal(one, two)
