"""Nets trained on real images: trained as by hand, on training images alone, once."""

import contextlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import make_data, module, refused

from ddlib import EvalConfig, build_net
from ddlib.methods.realnets import cache, describe, pretrained, train_on_real
from ddlib.support.rng import stream
from ddlib.training import fresh_net

TINY = EvalConfig(epochs=3, width=4, batch=20, lr=0.05)


def test_training_is_sgd_without_a_drop(data):
    """By PyTorch's own optimiser, over all three epochs at one learning rate."""
    data = data.to(dtype=torch.float64)
    shape = {"channels": 1, "side": 28, "classes": 3}
    fast = pretrained("MLP", data, 2, replace(TINY, precision="float64"), progress=False).net
    net = build_net("MLP", stream(2, "pretrained", "MLP"), **shape).double()
    settings = {"momentum": 0.9, "weight_decay": 5e-4}
    optimizer = torch.optim.SGD(net.parameters(), 0.05, fused=False, **settings)
    generator = stream(2, "pretrained batches", "MLP")
    for _ in range(3):
        for rows in torch.randperm(36, generator=generator).split(20):
            optimizer.zero_grad()
            F.cross_entropy(net(data.x_train[rows]), data.y_train[rows]).backward()
            optimizer.step()
    for a, b in zip(fast.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert not a.requires_grad
    assert not fast.training


def test_it_is_trained_once(data, monkeypatch):
    first = pretrained("ConvNet", data, config=TINY, progress=False)
    monkeypatch.setattr("ddlib.methods.realnets.train_on_real", None)
    again = pretrained("ConvNet", data, config=TINY, progress=False)
    assert first.accuracy == again.accuracy
    for a, b in zip(first.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(a, b)
    others = [
        {"seed": 1},
        {"images": 30},
        {"config": replace(TINY, width=8)},
        {"config": replace(TINY, augment="dsa")},
        {"data": make_data(seed=1)},
        {"net": "MLP"},
    ]
    usual = {"net": "ConvNet", "data": data, "config": TINY, "progress": False}
    for change in others:
        with pytest.raises(TypeError):  # it would be trained, as None
            pretrained(**usual | change)
    assert len(list(cache().iterdir())) == 1


def test_settings_of_other_nets_and_protocols_are_irrelevant(data):
    pretrained("MLP", data, config=TINY, progress=False)
    pretrained("MLP", data, config=replace(TINY, width=8, tau=3.0), progress=False)
    assert len(list(cache().iterdir())) == 1


def test_the_precision_decides_on_the_type_of_the_weights(data):
    for precision, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        for given in (data, data.to(dtype=torch.float64)):
            config = replace(TINY, precision=precision)
            net = pretrained("MLP", given, config=config, progress=False).net
            assert {p.dtype for p in net.parameters()} == {dtype}


def test_its_accuracy_is_measured_in_its_precision(data, monkeypatch):
    within = []
    real = module("methods.realnets").products

    @contextlib.contextmanager
    def products(*args):
        within.append(args[0])
        with real(*args):
            yield
        within.append("")

    def measured(net, x, y, precision):
        assert within[-1] == precision
        return 50.0, False

    monkeypatch.setattr(module("methods.realnets"), "products", products)
    monkeypatch.setattr(module("methods.realnets"), "measure_accuracy", measured)
    assert pretrained("MLP", data, config=TINY, progress=False).accuracy == 50.0


def test_validation_and_test_images_are_never_seen(data):
    for name in ("x_val", "x_test"):
        setattr(data, name, torch.full_like(getattr(data, name), torch.nan))
    net = build_net("MLP", stream(0, "x"), channels=1, side=28, classes=3)
    seen = []
    train_on_real(net, data, 0, TINY, 30, each=seen.append, progress=False)
    assert seen == [1, 2, 3]
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_more_images_than_there_are(data):
    with refused("images is 40", "1 to 36"):
        pretrained("MLP", data, config=TINY, images=40, progress=False)


def test_no_epochs_are_fresh_weights_and_another_net(data):
    """Not the trained net of the same config, whichever is asked for first."""
    fresh = fresh_net("MLP", data, TINY, stream(0, "pretrained", "MLP")).state_dict()
    for _ in range(2):
        none = pretrained("MLP", data, config=TINY, progress=False, epochs=0).net.state_dict()
        usual = pretrained("MLP", data, config=TINY, progress=False).net.state_dict()
        assert all(torch.equal(none[name], fresh[name]) for name in fresh)
        assert not any(torch.equal(usual[name], fresh[name]) for name in fresh)
    assert len(list(cache().iterdir())) == 2


def test_nets_in_the_cache_keep_their_names(data):
    """A setting that does not matter to them must not orphan what took long to train."""
    about = describe("ConvNet", data, 0, EvalConfig(), None)
    assert about == describe("ConvNet", data, 0, EvalConfig(tau=4.0, teacher_lr=0.5), None)
    known = {"epochs", "lr", "momentum", "weight_decay", "batch", "augment", "precision"}
    named = {"net", "data", "digest", "shape", "seed", "images", "operations", "width", "depth"}
    assert set(about) == known | named
