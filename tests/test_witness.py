"""No fast path without a witness: weights, accuracies, pixels equal those of `benchmarks/plain.py`.

Its loops know nothing of channels last, fused optimisers, pooling by matrix products or whole
tensors, slices of the real batch, nets side by side on threads, bfloat16. Images have three
colours, an epoch several batches (the last one smaller), training goes on after lr's drop.
"""

import functools
import itertools
import sys
from collections.abc import Iterable
from dataclasses import replace
from statistics import median

import pytest
import torch
from conftest import make_data
from torch import Tensor, nn

import ddlib
from ddlib import Data, DistillConfig, EvalConfig, Member, ModelPool, SyntheticSet
from ddlib.augment import OPERATIONS as OPERATION_NAMES
from ddlib.losses import PROTOCOLS
from ddlib.support.rng import Streams, stream
from ddlib.support.store import ROOT
from ddlib.training import Training, fresh_net, measure_accuracy, train_nets

sys.path.insert(0, str(ROOT / "benchmarks"))

import plain

OPERATIONS = tuple(OPERATION_NAMES)

NETS = {"ConvNet": {"width": 8}, "MLP": {}, "LeNet": {}}
NETS |= {name: {"width_factor": 0.05} for name in ("AlexNet", "VGG11", "ResNet18")}
ACTIVATIONS = "relu", "sigmoid", "leakyrelu", "swish"
NORMS = "none", "instance", "batch", "layer", "group"
POOLINGS = "none", "average", "max"

# Largest errors of an update, in proportion to it. Measured: 3e-10; 2e-4, or 1e-2 where a rounding
# tips a relu; 0.2, and 0.5 (VGG11), 0.3 (ResNet18) at a rate so low that roundings hardly grow:
# theirs are large where an instance norm sees nearly constant maps, in PyTorch's own kernels no
# less (0.2 to 0.6 of the first gradient). Gradients in a wrong layout give more than 1.
EXACT, FLOAT32, BFLOAT16 = 1e-9, 1e-2, 0.3
ROUGH = {"VGG11": 0.9, "ResNet18": 0.7}
GENTLE = 3e-4


@functools.cache
def colours() -> Data:
    """Three classes of 40 images, blotches of colour under noise; the test images are the same."""
    data = make_data(classes=3, per_class=40, channels=3, side=32).to(dtype=torch.float64)
    blotches = torch.randn(3, 3, 4, 4, generator=stream(0, "blotches"), dtype=torch.float64)
    images = data.x_train + blotches.repeat_interleave(8, 2).repeat_interleave(8, 3)[data.y_train]
    return replace(data, x_train=images, x_test=images, y_test=data.y_train)


@functools.cache
def small_set() -> SyntheticSet:
    return ddlib.random_real(colours(), 3, 0)


def error(fast: Iterable[Tensor], slow: Iterable[Tensor], start: Iterable[Tensor]) -> float:
    """How far apart two results are, in proportion to their way from the start."""
    flat = (torch.cat([t.detach().double().flatten() for t in one]) for one in (fast, slow, start))
    fast, slow, start = flat
    return float((fast - slow).norm() / (slow - start).norm())


def words(options: dict[str, object]) -> str:
    return "-".join(map(str, options.values()))


# Evaluation -------------------------------------------------------------------------------------

STUDENT, TEACHER = ("eval", "batches"), ("teacher", "teacher batches")  # streams: weights, batches
SCHEDULE = {"epochs": 4, "lr": 0.02, "momentum": 0.9, "weight_decay": 5e-3, "batch": 4}
KNOWLEDGE = {"alpha": 0.7, "tau": 2.0}
TRAINING = EvalConfig(**SCHEDULE, **KNOWLEDGE, width=8, width_factor=0.05, precision="float64")
TRAINED = [(name, protocol) for name in NETS for protocol in ("ce", "kd")]
TRAINED += [(name, "authors-2023") for name in ("ConvNet", "LeNet")]


def untrained(name: str, seed: int, role: str = "eval") -> nn.Module:
    return fresh_net(name, colours(), TRAINING, stream(seed, role, name))


@functools.cache
def plainly(
    name: str,
    seed: int,
    protocol: str = "ce",
    roles: tuple[str, str] = STUDENT,
    lr: float = TRAINING.lr,
) -> nn.Module:
    """The net that `evaluate` draws from these streams, trained by the plain loop in float64."""
    teacher, images = None, small_set().images.double()
    if protocol != "ce":
        teacher = plain.logits(plainly("ConvNet", seed, roles=TEACHER), images)
    net = plain.build(name, untrained(name, seed, roles[0]), 3, 3, **NETS[name])
    loss = plain.protocol_loss(protocol, small_set().labels, teacher, **KNOWLEDGE)
    plain.train(net, images, loss, stream(seed, roles[1], name), **SCHEDULE | {"lr": lr})
    return net


def accuracies(name: str, protocol: str, n_eval: int, config: EvalConfig) -> list[float]:
    """Those of nets that ddlib trains on the small set."""
    data, quiet = colours().to(dtype=torch.float32), {"progress": False}
    rows = ddlib.evaluate(small_set(), data, [name], protocol, n_eval, config=config, **quiet)
    return rows["accuracy"].tolist()


@pytest.mark.parametrize(("name", "protocol"), TRAINED)
def test_nets_are_trained_and_tested_as_by_the_plain_loop(trainings, name, protocol):
    """Two of them side by side, a thread each."""
    torch.set_num_threads(2)
    try:
        fast = accuracies(name, protocol, 2, TRAINING)
    finally:
        torch.set_num_threads(1)
    expected = [("ConvNet", seed, "ce", TEACHER) for seed in (0, 1) if protocol != "ce"]
    expected += [(name, seed, protocol, STUDENT) for seed in (0, 1)]
    for training, (of, seed, loss, roles) in zip(trainings, expected, strict=True):
        start = untrained(of, seed, roles[0])
        nets = training.net, plainly(of, seed, loss, roles), start
        assert error(*(one.parameters() for one in nets)) <= EXACT
    slow = (plainly(name, seed, protocol) for seed in (0, 1))
    assert fast == [plain.accuracy(net, colours().x_test, colours().y_test) for net in slow]


@pytest.mark.parametrize("name", NETS)
def test_augmented_training_is_the_plain_loop(trainings, name):
    accuracies(name, "ce", 1, replace(TRAINING, augment="dsa"))
    start = untrained(name, 0)
    slow = plain.build(name, start, 3, 3, **NETS[name])
    loss = plain.protocol_loss("ce", small_set().labels)
    how = {"operations": OPERATIONS, "augmentation": stream(0, "augment", name)}
    images, batches = small_set().images.double(), stream(0, "batches", name)
    plain.train(slow, images, loss, batches, **SCHEDULE, **how)
    assert error(*(one.parameters() for one in (trainings[0].net, slow, start))) <= EXACT


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETS)
def test_low_precision_trains_nearly_the_same_nets(trainings, name, precision):
    """The median of three: now and then a rounding tips a relu, and all goes another way."""
    accuracies(name, "ce", 3, replace(TRAINING, precision=precision, lr=GENTLE))
    errors = []
    for seed, training in enumerate(trainings):
        nets = training.net, plainly(name, seed, lr=GENTLE), untrained(name, seed)
        errors.append(error(*(one.parameters() for one in nets)))
    assert len(errors) == 3
    assert median(errors) <= (FLOAT32 if precision == "float32" else ROUGH.get(name, BFLOAT16))


@pytest.mark.parametrize(
    "variant", [*itertools.product(ACTIVATIONS, NORMS, POOLINGS)], ids="-".join
)
def test_every_convnet_is_trained_as_by_the_plain_loop(variant):
    """And tested, with the statistics of batch norms."""
    choices = dict(zip(("activation", "norm", "pooling"), variant, strict=True))
    options, schedule = {"width": 8, **choices}, SCHEDULE | {"epochs": 1}
    net = ddlib.build_net("ConvNet", stream(0, "weights"), classes=3, **options).double()
    slow, start = (plain.build("ConvNet", net, 3, 3, **options) for _ in range(2))
    images, loss = small_set().images.double(), plain.protocol_loss("ce", small_set().labels)
    how = small_set().labels, PROTOCOLS["ce"], EvalConfig(**schedule)
    train_nets([Training(net, images, *how, generators=[stream(0, "batches")])])
    plain.train(slow, images, loss, stream(0, "batches"), **schedule)
    assert error(*(one.state_dict().values() for one in (net, slow, start))) <= EXACT
    tested = colours().x_test[::4], colours().y_test[::4]
    assert measure_accuracy(net, *tested) == (plain.accuracy(slow, *tested), False)


# Distillation -----------------------------------------------------------------------------------

LOOP = {"outer": 2, "inner": 2, "batch_real": 6, "batch_bn": 4, "batch_train": 4}
RATES = {"lr_images": 0.1, "momentum_images": 0.5, "lr_net": 0.001}
SEED = 13  # draws AlexNet and LeNet from "all"
DISTILLATION = DistillConfig(ipc=2, seed=SEED, iterations=2, slice_size=4, **LOOP, **RATES)


def pool_of(net: str, **options: object) -> ModelPool:
    return ModelPool([Member(1.0, net, options)], shape=colours().shape)


POOLS = {
    f"{activation}-{norm}-{pooling}": pool_of(
        "ConvNet", width=8, depth=2, activation=activation, norm=norm, pooling=pooling
    )
    for (norm, pooling), activation in zip(
        itertools.product(NORMS, POOLINGS), itertools.cycle(ACTIVATIONS), strict=False
    )
}
POOLS |= {name: pool_of(name, **NETS[name]) for name in ("LeNet", "AlexNet", "VGG11")}
EVERY = ModelPool.preset("total_random", width=8, width_factor=0.05, shape=colours().shape)
POOLS["all"] = ModelPool(EVERY.members, shape=colours().shape)


# What plain.distill does for a method, and how large its steps are: with frozen statistics images
# run away at DM's usual ones
METHODS = {"dc": {}, "dsa": {"operations": OPERATIONS}}
METHODS |= {"dm": {"method": "dm", "operations": OPERATIONS, "lr_images": 30.0}}
METHODS |= {"dm-frozen": METHODS["dm"] | {"method": "dm-frozen", "lr_images": 0.3}}


@functools.cache
def distilled_plainly(name: str, method: str = "dc") -> tuple[Tensor, Tensor, list[float]]:
    """Pixels at the start and at the end, and the loss of each iteration."""
    generators, how = Streams(SEED), LOOP | RATES | METHODS[method]
    nets = plain.draw_nets(POOLS[name], DISTILLATION.iterations, generators, torch.float64)
    real = [colours().x_train[colours().y_train == label] for label in range(3)]
    start = torch.randn(6, 3, 32, 32, generator=stream(SEED, "init")).double()
    return start, *plain.distill(nets, start, real, generators, **how)


def distillation_errors(name: str, precision: str, method: str = "dc") -> tuple[float, float]:
    """Those of the pixels and of the losses."""
    lr = METHODS[method].get("lr_images", DISTILLATION.lr_images)
    options = {"dm_batchnorm": "frozen"} if method == "dm-frozen" else {}
    method_of = {"method": method.removesuffix("-frozen"), "options": options}
    config = replace(DISTILLATION, precision=precision, init="noise", lr_images=lr, **method_of)
    fast = ddlib.distill(config, colours(), POOLS[name], progress=False)
    start, images, losses = distilled_plainly(name, method)
    ratios = [own / slow for own, slow in zip(fast.log["loss"], losses, strict=True)]
    return error([fast.images], [images], [start]), max(abs(ratio - 1) for ratio in ratios)


@pytest.mark.parametrize("name", POOLS)
def test_distillation_is_the_plain_loop(name):
    """A set has pixels in float32; the second loss has seen the first update in float64."""
    pixels, losses = distillation_errors(name, "float64")
    assert pixels <= 2e-5 and losses <= EXACT


OTHERS = [*itertools.product(POOLS, ["dsa", "dm"])]
OTHERS += [(name, "dm-frozen") for name in POOLS if "-batch-" in name]


@pytest.mark.parametrize(("name", "method"), OTHERS)
def test_other_methods_are_the_plain_loop(name, method):
    """Augmentation is drawn and done there image by image."""
    pixels, losses = distillation_errors(name, "float64", method)
    assert pixels <= 2e-5 and losses <= EXACT


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [n for n in POOLS if not n.endswith("none") and n != "VGG11"])
def test_low_precision_distils_nearly_the_same_pixels(name, precision):
    """Without VGG11 and nets that do not pool: second derivatives make much of their roundings."""
    assert distillation_errors(name, precision)[0] <= (
        FLOAT32 if precision == "float32" else BFLOAT16
    )
