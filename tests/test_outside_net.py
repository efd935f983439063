"""A researcher's own net, as written in a notebook: evaluated, teaching, in a pool, by name."""

import json

import pytest
import torch
from conftest import make_data, refused
from torch import nn

from ddlib import nets
from ddlib.config import DistillConfig, EvalConfig
from ddlib.data import random_real
from ddlib.distill import distill
from ddlib.evaluate import evaluate
from ddlib.nets import ConvNet, build_net, embedding, net_name, net_width, register_net
from ddlib.pool import Member, ModelPool
from ddlib.results import Results
from ddlib.support.rng import stream

SMALL = {"n_eval": 2, "progress": False, "epochs": 3, "width": 4, "depth": 1, "batch": 4}


class TwoLayers(nn.Module):
    """A two-layer CNN without any width option: only calling it is promised."""

    def __init__(self, channels, side, classes):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, stride=4)
        with torch.no_grad():
            size = self.conv(torch.zeros(1, channels, side, side)).numel()
        self.linear = nn.Linear(size, classes)

    def forward(self, images):
        return self.linear(torch.relu(self.conv(images)).flatten(1))


class Wide(nn.Sequential):
    """A net with an option of ddlib's and one of its own; the side does not matter to it."""

    def __init__(self, channels=3, classes=10, width=16, slope=0.1):
        layers = nn.Conv2d(channels, width, 3), nn.LeakyReLU(slope), nn.AdaptiveAvgPool2d(1)
        super().__init__(*layers, nn.Flatten(), nn.Linear(width, classes))


class AnyOptions(nn.Linear):
    def __init__(self, **options):
        self.options = options
        super().__init__(1, 1)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(nets, "NETS", dict(nets.NETS))


@pytest.fixture(params=["class", "name"])
def outside(request):
    """The net as a caller may give it."""
    return TwoLayers if request.param == "class" else register_net(TwoLayers).__name__


def test_it_is_evaluated_and_its_rows_are_found_again(data, synset, outside):
    results = Results()
    rows = evaluate(synset, data, [outside, "ConvNet"], results=results, **SMALL)
    assert rows["net"].tolist() == ["TwoLayers"] * 2 + ["ConvNet"] * 2
    own = rows[rows["net"] == "TwoLayers"]
    assert set(own["width"]) == {128}  # not named: this net has none
    assert own["accuracy"].between(0, 100).all() and not own["diverged"].any()
    again = evaluate(synset, data, [outside], results=results, **SMALL)
    assert again["seconds"].tolist() == own["seconds"].tolist()


def test_class_and_name_give_the_same_rows(data, synset):
    rows = [
        evaluate(synset, data, [net], **SMALL)["accuracy"].tolist()
        for net in (TwoLayers, register_net(TwoLayers).__name__)
    ]
    assert rows[0] == rows[1]


def test_it_learns(data):
    rows = evaluate(random_real(data, 10, 0), data, [TwoLayers], **(SMALL | {"epochs": 40}))
    assert rows["accuracy"].mean() > 60


def test_it_teaches(data, synset, outside):
    rows = evaluate(synset, data, ["ConvNet"], protocol="kd", teacher=outside, **SMALL)
    assert set(rows["teacher"]) == {"TwoLayers"} and set(rows["width"]) == {4}


def test_a_pool_draws_it_matches_on_it_and_goes_on(tmp_path, data, outside):
    pool = ModelPool(
        [Member(0.5, outside), Member(0.5, Wide, {"slope": [0.0, 0.2], "width": 4})],
        shape=data.shape,
    )
    saved = json.loads(json.dumps(pool.to_dict()))
    assert [m["net"] for m in saved["members"]] == ["TwoLayers", "Wide"]
    config = DistillConfig(ipc=1, pool="custom", iterations=6, outer=2, batch_real=4, batch_bn=2)
    whole = distill(config, data, pool, progress=False)
    distill(config, data, pool, store=tmp_path, progress=False, stop=lambda k: k == 3)
    resumed = distill(config, data, pool, store=tmp_path, progress=False)
    assert resumed.id == whole.id and torch.isfinite(whole.images).all()
    assert set(whole.log["architecture"]) == {"TwoLayers", "Wide"}


def test_build_gives_what_the_signature_names(data):
    net = build_net(Wide, stream(0, "net"), channels=1, side=28, classes=3, slope=0.5)
    assert net[0].in_channels == 1 and net[0].out_channels == 16 and net[1].negative_slope == 0.5
    assert build_net(AnyOptions, side=28, other=1).options == {"side": 28, "other": 1}


@pytest.mark.parametrize(
    ("net", "names"),
    [
        ("ConvNet", {"width", "depth"}),
        (ConvNet, {"width", "depth"}),
        ("AlexNet", {"width_factor"}),
        ("VGG11", {"width_factor"}),
        ("ResNet18", {"width_factor"}),
        ("MLP", set()),
        ("LeNet", set()),
        (TwoLayers, set()),
        (Wide, {"width"}),
        (AnyOptions, set()),
    ],
)
def test_width_options_are_those_a_net_has(net, names):
    offered = {"width": 5, "depth": 2, "width_factor": 0.5}
    assert net_width(net, EvalConfig(**offered)) == {name: offered[name] for name in names}


def test_registering_anew_replaces_the_class():
    """What happens when a notebook's cell runs again."""

    def cell():
        @register_net
        class Mine(TwoLayers):
            pass

        return Mine

    first, second = cell(), cell()
    assert type(build_net("Mine", channels=1, side=28, classes=2)) is second is not first
    assert net_name(second) == "Mine" and "Mine" in nets.NETS


def test_the_name_of_another_net_is_refused():
    class ConvNet(TwoLayers):
        pass

    for use in (register_net, build_net, net_name):
        with refused("'ConvNet'", "another name"):
            use(ConvNet)
    assert nets.NETS["ConvNet"] is not ConvNet


@pytest.mark.parametrize("net", [int, 3, TwoLayers(1, 28, 3), None])
def test_what_is_no_net_is_refused(data, synset, net):
    with refused("torch.nn.Module class", "ConvNet"):
        evaluate(synset, data, [net], **SMALL)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"side": 28, "classes": 3}, ("TwoLayers", "'channels'")),
        ({"width": 4}, ("option of TwoLayers", "'width'", "classes")),
    ],
)
def test_options_it_lacks_or_needs_are_named(options, words):
    with refused(*words):
        build_net(TwoLayers, **options)


def test_an_embedding_is_asked_for_in_one_line():
    images = torch.randn(2, 3, 32, 32)
    net = build_net("ConvNet", width=4)
    assert torch.equal(embedding(net)(images), net.embed(images))
    with refused("TwoLayers", "embed(images)", "[N, F]"):
        embedding(build_net(TwoLayers, channels=1, side=28, classes=3))


@pytest.mark.parametrize("side", [64, 128])
def test_depth_none_is_the_depth_of_the_side(side):
    """In evaluation and in pools; the rows name the depth that was meant."""
    data = make_data(per_class=2, side=side)
    settings = SMALL | {"n_eval": 1, "depth": None}
    rows = evaluate(random_real(data, 1, 0), data, **settings)
    assert rows["depth"].tolist() == [{64: 4, 128: 5}[side]]
    batches = {"batch_real": 2, "batch_bn": 2}
    config = DistillConfig(ipc=1, pool="main", iterations=1, width=4, depth=None, **batches)
    assert distill(config, data, progress=False).images.shape == (3, 1, side, side)
