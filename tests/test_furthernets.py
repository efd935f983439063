"""DenseNet-121, MobileNetV2 and torchvision's own nets: built, trained as by the plain loop."""

import subprocess
import sys
import types
from dataclasses import replace

import pytest
import torch
import torchvision
from conftest import make_data, refused
from torch import nn

from ddlib import EvalConfig, Member, ModelPool, evaluate, random_real
from ddlib.nets import FURTHER, NETS, SIDES, build_net, net_class, net_name, net_width
from ddlib.study import PROFILES
from ddlib.support.rng import stream
from ddlib.support.store import ROOT
from ddlib.training import fresh_net

sys.path.insert(0, str(ROOT / "benchmarks"))

import plain

# A rate at which roundings hardly grow; at 0.02 MobileNetV2's become 2% of an update in 9 steps.
# Of 9 images batches of 5 and 4: of 1x1 maps, batch norm needs two images at least
SCHEDULE = {"epochs": 3, "lr": 0.002, "momentum": 0.9, "weight_decay": 5e-3, "batch": 5}
SLIM = {"width_factor": 0.1, "precision": "float64"}
EXACT = 1e-9  # as in test_witness.py: of an update, in proportion to it


@pytest.fixture(scope="module")
def colours():
    return make_data(classes=3, per_class=4, channels=3, side=32)


def plain_densenet():
    """torchvision's with the stem of small images, growth 4 (a tenth of 32, of which 4 is left)."""
    net = torchvision.models.DenseNet(4, (6, 12, 24, 16), 8, num_classes=3)
    net.features.conv0 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    net.features.pool0 = nn.Identity()
    return net


def plain_mobilenet():
    """torchvision's of a tenth of the width with strides 1 in the stem and the second stage."""
    stages = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1]]
    stages += [[6, 160, 3, 2], [6, 320, 1, 1]]
    net = torchvision.models.MobileNetV2(3, 0.1, stages, round_nearest=4, dropout=0.0)
    net.features[0][0].stride = (1, 1)
    return net


class Squeeze(torchvision.models.SqueezeNet):
    """A net of torchvision made one of ddlib's in two lines; without dropout, which is random."""

    def __init__(self, classes):
        super().__init__("1_1", classes, dropout=0.0)


def flat(net):
    """All weights and statistics of batch norm, in one row."""
    return torch.cat([t.double().flatten() for t in net.state_dict().values()])


def plain_resnet():
    return torchvision.models.resnet18(num_classes=3)


PLAIN = {"DenseNet121": plain_densenet, "MobileNetV2": plain_mobilenet}
OF_LIBRARY = "torchvision:resnet18"


@pytest.mark.parametrize("name", [*FURTHER, Squeeze, OF_LIBRARY], ids=net_name)
def test_they_are_trained_and_tested_as_by_the_plain_loop(colours, trainings, name):
    """SGD written out, a parameter at a time, on contiguous images and one thread; all weights, and
    the statistics of batch norm, after six steps and lr's drop.
    """
    wide, config = colours.to(dtype=torch.float64), EvalConfig(**SCHEDULE, **SLIM)
    start = fresh_net(name, wide, config, stream(0, "eval", net_name(name)))
    plain_nets = {Squeeze: lambda: Squeeze(3), OF_LIBRARY: plain_resnet} | PLAIN
    slow = plain_nets[name]().double()
    slow.load_state_dict(getattr(start, "model", start).state_dict())
    synset = random_real(colours, 3, 0)
    rows = evaluate(synset, colours, [name], n_eval=1, config=config, progress=False)
    loss = plain.protocol_loss("ce", synset.labels)
    images = synset.images.double().contiguous()
    plain.train(slow, images, loss, stream(0, "batches", net_name(name)), **SCHEDULE)
    fast, plainly, before = (flat(net) for net in (trainings[0].net, slow, start))
    assert not rows["diverged"].any()
    assert (fast - plainly).norm() <= EXACT * (plainly - before).norm()
    assert rows["accuracy"].tolist() == [plain.accuracy(slow, wide.x_test, wide.y_test)]


@pytest.mark.parametrize(
    ("name", "parameters", "features"),
    [("DenseNet121", 6_956_426, 1024), ("MobileNetV2", 2_236_682, 1280)],
)
def test_they_are_of_the_published_size(name, parameters, features):
    """Of torchvision's own, but for the 3x3 stem and the classifier of 10 classes."""
    with torch.device("meta"):
        net = build_net(name, channels=3, side=32, classes=10)
        whole = getattr(torchvision.models, name.lower().replace("v2", "_v2"))()
    count = sum(p.numel() for p in net.parameters())
    own = sum(p.numel() for p in whole.parameters()) - 990 * (features + 1)
    stem = {"DenseNet121": 64 * 3 * (49 - 9), "MobileNetV2": 0}[name]
    assert count == parameters == own - stem


@pytest.mark.parametrize("name", FURTHER)
@pytest.mark.parametrize("side", SIDES)
def test_features_are_what_the_classifier_reads(name, side):
    net = build_net(name, stream(0, "x"), channels=1, side=side, classes=3, width_factor=0.1).eval()
    images = torch.randn(2, 1, side, side)
    with torch.no_grad():
        assert torch.allclose(net.classifier(net.embed(images)), net(images), atol=1e-5)
        maps = net.features(images).shape[-1]
    assert maps == {28: 4, 32: 4, 64: 8, 128: 16}[side]


@pytest.mark.parametrize("name", FURTHER)
def test_they_are_known_by_name_and_the_same_every_time(name):
    one, two = (build_net(name, stream(3, "x"), width_factor=0.1).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert net_name(name) == name
    assert net_width(name, EvalConfig(width=5, width_factor=0.5)) == {"width_factor": 0.5}
    with refused("48", "28, 32, 64, 128"):
        build_net(name, side=48)


def test_no_table_has_them_unless_it_is_asked():
    assert not set(FURTHER) & set(NETS) and len(NETS) == 6
    assert all(not set(FURTHER) & set(profile.nets) for profile in PROFILES.values())
    code = "import sys, ddlib; print('ddlib.furthernets' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_a_misspelt_name_is_refused_with_them_among_the_valid():
    with refused("'DenseNet12'", "did you mean 'DenseNet121'", "MobileNetV2"):
        build_net("DenseNet12")


def test_torchvisions_class_of_that_name_is_another_net():
    """Its rows would be found as those of ours."""
    with refused("'MobileNetV2'", "another name"):
        build_net(torchvision.models.MobileNetV2)


def test_a_class_of_torchvision_goes_wherever_a_name_goes(colours):
    """It gets the number of classes as `num_classes`."""
    net = torchvision.models.SqueezeNet
    assert build_net(net, classes=3)(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    rows = evaluate(random_real(colours, 1, 0), colours, [net], n_eval=2, epochs=1, progress=False)
    assert rows["net"].tolist() == ["SqueezeNet"] * 2 and not rows["diverged"].any()


def test_an_object_has_no_fresh_weights_for_each_seed(colours):
    with refused("object of type Squeeze", "torch.nn.Module class"):
        evaluate(random_real(colours, 1, 0), colours, [Squeeze(3)])


# Models of libraries by name ----------------------------------------------------------------------


def test_a_model_by_name_is_one_class_that_rows_name():
    cls = net_class("torchvision:squeezenet1_1")
    assert cls is net_class("torchvision:squeezenet1_1") is net_class(cls)
    assert net_name(cls) == "torchvision:squeezenet1_1"
    assert net_width(cls, EvalConfig(width=5)) == {}
    one, two = (build_net(cls, stream(3, "x"), side=64, classes=7) for _ in range(2))
    assert one.training and one.model.training
    assert torch.equal(flat(one), flat(two)) and one.model.num_classes == 7


def test_one_with_outputs_beside_its_logits_is_built_without_them():
    net = build_net("torchvision:googlenet", classes=3)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("torchvision:resnet81", {}, ("'resnet81'", "did you mean 'resnet18'")),
        ("torch:resnet18", {}, ("library of nets 'torch'", "torchvision, timm")),
        ("torchvision:resnet18", {"channels": 1}, ("channels", "1", "3")),
        ("torchvision:inception_v3", {}, ("torchvision:inception_v3 takes no 3x32x32 images",)),
        ("torchvision:fcn_resnet50", {}, ("'fcn_resnet50'",)),  # no classifier
        ("timm:resnet18", {}, ("timm is not installed", "pip install timm")),
        ("resnet18", {}, ("torchvision:<model>", "timm:<model>")),
    ],
)
def test_what_no_library_can_give_is_refused_in_a_line(monkeypatch, name, options, told):
    monkeypatch.setitem(sys.modules, "timm", None)
    with refused(*told):
        build_net(name, **options)


def test_timms_models_get_channels_and_classes(monkeypatch, colours):
    """By a stand-in with timm's two functions; timm is no dependency of these tests."""

    def create_model(name, pretrained, in_chans, num_classes):
        assert (name, pretrained) == ("tiny", False)
        shape = num_classes if in_chans == 3 else 99
        return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 32 * 32, shape))

    timm = types.SimpleNamespace(create_model=create_model, list_models=lambda: ["tiny"])
    monkeypatch.setitem(sys.modules, "timm", timm)
    before = torch.get_rng_state()
    rows = evaluate(random_real(colours, 1, 0), colours, ["timm:tiny"], n_eval=1, epochs=2)
    assert rows["net"].tolist() == ["timm:tiny"]
    assert torch.equal(before, torch.get_rng_state())  # also where it is tried beforehand
    with refused("'huge'", "tiny"):
        build_net("timm:huge")
    with refused("timm:tiny makes [1, 99] of an image", "[1, 3]"):
        build_net("timm:tiny", channels=1, classes=3)


def test_profiles_take_them():
    assert replace(PROFILES["quick"], nets=("ConvNet", OF_LIBRARY)).nets[1] == OF_LIBRARY
    with refused("'resnet81'"):
        replace(PROFILES["quick"], nets=("torchvision:resnet81",))


def test_a_net_that_cannot_be_built_is_refused_before_others_are_trained(colours, trainings):
    nets = ["LeNet", "torchvision:inception_v3"]
    for how in ({"nets": nets}, {"nets": nets[:1], "protocol": "kd", "teacher": nets[1]}):
        with refused("torchvision:inception_v3 takes no 3x32x32 images"):
            evaluate(random_real(colours, 1, 0), colours, n_eval=1, epochs=1, **how)
    assert trainings == []


def test_one_that_looks_at_its_weights_can_be_tried_without_numbers():
    with torch.device("meta"):
        net = build_net("torchvision:regnet_y_400mf", side=32, classes=3)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    pool = ModelPool([Member(1.0, "torchvision:regnet_y_400mf")], shape=(3, 32, 3))
    assert pool.members[0].name == "torchvision:regnet_y_400mf"
