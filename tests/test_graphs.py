"""The GPU's path on a stand-in (`standin`): recorded work does what plain work does, to the bit."""

import gc
import itertools
import threading
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import make_data, module, refused
from standin import gpu  # noqa: F401  (a fixture)

import ddlib
from ddlib import DistillConfig, EvalConfig, Member, ModelPool
from ddlib.evaluate import Training, train_nets
from ddlib.fast import LANES, WARMUP, Recorder, lanes, on_streams, products
from ddlib.losses import PROTOCOLS
from ddlib.methods.gradient import Gradient
from ddlib.nets import ACTIVATIONS, NORMS, POOLINGS, build_net
from ddlib.rng import stream

PRECISIONS = "float32", "bfloat16", "float64"
SLIM = {"width": 8, "width_factor": 0.05}


@pytest.fixture
def colours():
    return make_data(channels=3, side=32)


@pytest.fixture
def eagerly(monkeypatch):
    """Switches recording off for a call."""

    def call(work):
        with monkeypatch.context() as patch:
            patch.setenv("DDLIB_GRAPHS", "0")
            return work()

    return call


def same(one, other):
    """Whether two lists of tensors hold the same numbers, NaN being one."""
    return all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(one, other, strict=True))


# Evaluation -------------------------------------------------------------------------------------

CONVNETS = list(zip(itertools.product(NORMS, POOLINGS), itertools.cycle(ACTIVATIONS)))
SCHEDULE = EvalConfig(epochs=12, lr=0.02, batch=4)  # its lr drops after epoch 7


def weights(nets):
    return [tensor.clone() for net in nets for tensor in net.state_dict().values()]


def trained(data, config=SCHEDULE, protocol="ce", net="ConvNet", operations=(), **options):
    """The weights of two nets that train side by side."""
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    synset, trainings = ddlib.random_real(data, 2, 0), []
    for seed in (0, 1):
        model = build_net(net, stream(seed, "net"), classes=3, **options).to(dtype=dtype)
        how = synset.labels, PROTOCOLS[protocol], config
        targets = torch.randn(6, 3, generator=stream(seed, "targets")).to(dtype)
        generators = [stream(seed, "batches"), stream(seed, "augment")]
        images = synset.images.to(dtype)
        trainings.append(Training(model, images, *how, targets, generators, operations))
    train_nets(trainings)
    return weights(training.net for training in trainings)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("choice", "activation"), CONVNETS, ids=str)
def test_every_convnet_is_trained_as_without_graphs(gpu, colours, eagerly, choice, activation, precision):
    options = {"width": 8, "depth": 2, "norm": choice[0], "pooling": choice[1]}
    work = partial(
        trained, colours, replace(SCHEDULE, precision=precision), activation=activation, **options
    )
    recorded = work()
    assert gpu.captures == 2 and gpu.replays == 12 - WARMUP
    assert same(recorded, eagerly(work)) and gpu.captures == 2


@pytest.mark.parametrize("batch", [4, 6])
@pytest.mark.parametrize("operations", [(), ("color", "crop", "flip", "rotate")], ids=str)
@pytest.mark.parametrize("protocol", ["ce", "kd", "authors-2023"])
def test_every_protocol_is_trained_as_without_graphs(gpu, colours, eagerly, protocol, operations, batch):
    """Sets of one batch and of two, also augmented."""
    config = replace(SCHEDULE, batch=batch)
    work = partial(trained, colours, config, protocol, operations=operations, width=8)
    assert same(work(), eagerly(work)) and gpu.captures == 2


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 6, 7, 8])
def test_however_few_epochs(gpu, colours, eagerly, epochs):
    """The drop comes before, with and after the first recording."""
    config = replace(SCHEDULE, epochs=epochs)
    work = partial(trained, colours, config, width=8, norm="batch")
    assert same(work(), eagerly(work))


@pytest.mark.parametrize("protocol", ["ce", "kd", "authors-2023", "elf", "kd-real"])
def test_evaluation_gives_the_rows_of_one_without_graphs(gpu, colours, eagerly, trainings, protocol):
    nets = ["ConvNet"] if protocol == "elf" else ["ConvNet", "MLP", "LeNet", "AlexNet"]
    nets += [] if protocol == "elf" else ["VGG11", "ResNet18"]
    own = {"elf": {"feature_epochs": 2}, "kd-real": {"feature_epochs": 2, "on_the_fly": True}}
    about = SLIM | {"epochs": 8, "batch": 4, "augment": "dsa"} | own.get(protocol, {})

    def work():
        trainings.clear()
        synset = ddlib.random_real(colours, 2, 0)
        rows = ddlib.evaluate(synset, colours, nets, protocol, 2, progress=False, **about)
        return [torch.tensor(rows["accuracy"].values), *weights(one.net for one in trainings)]

    assert same(work(), eagerly(work)) and gpu.captures >= 2 * len(nets)
    assert len(gpu.alive()) == 0


def test_the_stand_in_trains_nearly_what_a_cpu_does(colours, request):
    """The GPU's own lines (poolings, augmentation, the counted epoch) compute the same."""
    config = replace(SCHEDULE, precision="float64")
    works = [
        partial(trained, colours, config, protocol, operations=("crop", "scale"), width=8)
        for protocol in ("ce", "authors-2023")
    ]
    on_cpu = [work() for work in works]
    request.getfixturevalue("gpu")
    for work, expected in zip(works, on_cpu, strict=True):
        torch.testing.assert_close(work(), expected, rtol=1e-9, atol=1e-12)


# Distillation -----------------------------------------------------------------------------------

LOOP = {"outer": 3, "inner": 3, "batch_real": 6, "batch_bn": 4, "batch_train": 4}
METHODS = {
    "dc": {},
    "dsa": {},
    "dm": {"lr_images": 1.0, "options": {"dm_scale": "main"}},
    "dc of a pool": {"pool": "main_plus_similar", "main_prob": 0.5},
}


def distilled(data, method="dc", iterations=6, pool=None, **changes):
    """Pixels and losses."""
    about = LOOP | {"width": 8, "width_factor": 0.05} | METHODS.get(method, {}) | changes
    config = DistillConfig(ipc=2, method=method.split()[0], iterations=iterations, **about)
    synset = ddlib.distill(config, data, pool, progress=False)
    return [synset.images, torch.tensor(synset.log["loss"].values)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
def test_distillation_is_the_one_without_graphs(gpu, colours, eagerly, method, precision):
    work = partial(distilled, colours, method, precision=precision)
    recorded = work()
    assert gpu.captures >= 1 and gpu.replays > gpu.captures
    assert same(recorded, eagerly(work))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("choice", "activation"), CONVNETS, ids=str)
def test_every_member_of_a_pool_is_matched_as_without_graphs(
    gpu, colours, eagerly, choice, activation, precision
):
    about = {"norm": choice[0], "pooling": choice[1], "activation": activation}
    pool = ModelPool([Member(1.0, "ConvNet", about | {"width": 8, "depth": 2})], shape=colours.shape)
    work = partial(distilled, colours, "dc", 3, pool, precision=precision)
    recorded = work()
    assert gpu.captures == (3 if choice[0] == "batch" else 2)
    assert same(recorded, eagerly(work))


@pytest.mark.parametrize("net", ["LeNet", "AlexNet", "VGG11", "ResNet18"])
def test_every_other_net_is_matched_as_without_graphs(gpu, colours, eagerly, net):
    options = {} if net == "LeNet" else {"width_factor": 0.05}
    pool = ModelPool([Member(1.0, net, options)], shape=colours.shape)
    work = partial(distilled, colours, "dsa", 2, pool)
    recorded = work()
    assert gpu.captures >= 2 and same(recorded, eagerly(work))


def test_metadd_sees_a_drawn_net_with_frozen_statistics(gpu, colours, eagerly):
    """A replay sets BatchNorm's statistics, and not the mode that uses them."""
    pool = ModelPool([Member(1.0, "ConvNet", {"width": 8, "norm": "batch"})], shape=colours.shape)
    own = {"auxiliaries": "ConvNet_LeNet", "backbone": "drawn", "aux_epochs": 1, "r_ai": 1.0}
    work = partial(distilled, colours, "dc", 4, pool, extras=("metadd",), options=own)
    assert same(work(), eagerly(work)) and gpu.captures == 3
