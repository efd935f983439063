"""What a researcher adds in a notebook, without touching the package, works like what is inside."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from test_distill import assert_same_run, stopped_at

import ddlib
from ddlib import DistillConfig, distill
from ddlib.methods import METHODS, PUBLISHED
from ddlib.run import store_name
from ddlib.study import Study
from ddlib.study.plan import ImageSet

SMALL = {
    "ipc": 2,
    "width": 4,
    "width_factor": 0.05,
    "batch_real": 6,
    "batch_bn": 4,
    "iterations": 4,
}


# A method in ten lines: match the mean pixels of each class ---------------------------------------


class MeanPixels(ddlib.Objective):
    """Match the mean pixels of each class, less a margin."""

    def __init__(self, margin=0.0):
        self.margin = margin

    def class_loss(self, net, real, synthetic, label):
        return (real.mean(0) - self.margin - synthetic.mean(0)).square().sum()


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(METHODS, "mean-pixels", None)  # to be forgotten after the test
    ddlib.register_method("mean-pixels", MeanPixels, lr_images=1.0, momentum_images=0.0)


def config(**changes):
    return DistillConfig(**(SMALL | {"method": "mean-pixels"} | changes))


@pytest.mark.usefixtures("registered")
def test_a_method_of_ten_lines_lands_on_the_mean(data):
    result = distill(config(batch_real=12, iterations=1), data, progress=False)
    for label in range(3):
        mean = data.x_train[data.y_train == label].mean(0)
        torch.testing.assert_close(result.images[result.labels == label].mean(0), mean)
    assert result.config["method"] == "mean-pixels" and result.config["options"] == {"margin": 0.0}


@pytest.mark.usefixtures("registered")
def test_its_options_reach_it(data):
    settings = {"batch_real": 12, "iterations": 1}
    plain, other = (
        distill(config(**settings, options=options), data, progress=False)
        for options in ({}, {"margin": 0.5})
    )
    torch.testing.assert_close(plain.images - 0.5, other.images)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("pool", ["main", "total_random", "main_plus_similar"])
def test_it_works_in_pools_with_snapshots_and_resumed(tmp_path, data, pool):
    settings = config(pool=pool, main_prob=0.2, depth=1, snapshots=(0, 2), outer=2, inner=1)
    whole = distill(settings, data, progress=False)
    assert [s.iteration for s in whole.history] == [0, 2, 4] and len(whole.log) == 4
    assert (whole.log["architecture"].nunique() > 1) == (pool != "main")
    with stopped_at("match", 5):
        distill(settings, data, store=tmp_path, progress=False)
    assert_same_run(distill(settings, data, store=tmp_path, progress=False), whole)


@pytest.mark.usefixtures("registered")
def test_its_name_is_in_the_name_of_a_store(data):
    assert store_name(config(), data).startswith("tiny-mean-pixels-ipc2-")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("objective", [MeanPixels, MeanPixels()])
def test_an_objective_may_be_passed_instead(data, objective):
    """As a class or an object, which may serve several runs; the defaults are then those of the
    config.
    """
    settings = DistillConfig(**SMALL, lr_images=1.0, momentum_images=0.0)
    passed = distill(settings, data, objective=objective, progress=False)
    assert passed.id == distill(config(), data, progress=False).id
    assert passed.id == distill(settings, data, objective=objective, progress=False).id
    assert passed.config["method"] == "custom-MeanPixels"
    named = DistillConfig(**passed.config | {"method": "custom-mine", "snapshots": ()})
    again = distill(named, data, objective=objective, progress=False)
    assert again.id == passed.id and again.config["method"] == "custom-mine"


def test_a_passed_objective_takes_the_configs_defaults(data):
    settings = DistillConfig(**SMALL, method="dm")
    config = distill(settings, data, objective=MeanPixels, progress=False).config
    assert (config["method"], config["init"], config["lr_images"]) == (
        "custom-MeanPixels",
        "real",
        1.0,
    )
    assert config["options"] == {}


def test_a_method_that_is_only_named_is_refused(data):
    with refused("'custom-mine'", "objective"):
        distill(config(method="custom-mine"), data, progress=False)


def test_options_of_the_method_and_an_objective_are_refused_together(data):
    settings = DistillConfig(**SMALL, method="dm", options={"dm_scale": "main"})
    with refused("'dm_scale'", "'dm'", "objective"):
        distill(settings, data, objective=MeanPixels, progress=False)


def test_options_of_images_and_extras_hold_beside_an_objective(data):
    parts = {"images": "latents", "extras": ("metadd",), "iterations": 1}
    options = {"decoder_epochs": 2, "aux_epochs": 1}
    settings = DistillConfig(**SMALL | parts, options=options)
    kept = distill(settings, data, objective=MeanPixels, progress=False).config["options"]
    assert options.items() <= kept.items() and kept["layer"] == 0


@pytest.mark.usefixtures("registered")
def test_a_method_may_be_registered_again():
    """As a notebook does whose cell is run again."""
    ddlib.register_method("mean-pixels", MeanPixels, lr_images=2.0)
    assert config().resolved().lr_images == 2.0


def taking(setting):
    """A method with a setting."""
    space = {"Objective": ddlib.Objective}
    exec(f"class Own(Objective):\n  def __init__(self, {setting}): pass", space)
    return space["Own"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (lambda net, x, y: 0.0, ("float", "0-dim tensor with a gradient")),
        (lambda net, x, y: x.flatten(1).mean(1), ("tensor [6]", "0-dim")),
        (lambda net, x, y: x.detach().mean(), ("without a gradient",)),
        (lambda net, x, y: next(net.parameters()).sum(), ("does not depend on the synthetic",)),
    ],
)
def test_an_extra_that_cannot_be_descended_is_refused(data, extra, words):
    with refused(*words):
        distill(DistillConfig(**SMALL), data, extras=[extra], progress=False)


def test_a_pool_of_ones_own_decides_on_the_warmup(data):
    pool = ddlib.ModelPool([ddlib.Member(1.0, "MLP")], warmup=2, shape=data.shape)
    settings = DistillConfig(**SMALL, pool="custom", warmup=3)
    assert distill(settings, data, pool, progress=False).config["warmup"] == 2


def test_options_that_no_file_can_hold_are_refused(data):
    with refused("options of MLP", "numbers"):
        ddlib.ModelPool([ddlib.Member(1.0, "MLP", {"act": torch.nn.Tanh})], shape=data.shape)


@pytest.mark.parametrize(
    ("name", "objective", "defaults", "words"),
    [
        ("dm", MeanPixels, {}, ("'dm'", "taken")),
        ("mine", MeanPixels, {"lr_image": 1.0}, ("'lr_image'", "did you mean 'lr_images'", "init")),
        ("mine", MeanPixels, {"lr_images": -1.0}, ("lr_images is -1.0", "at least 0")),
        ("mine", MeanPixels(), {}, ("MeanPixels object", "subclass of Objective")),
        ("mine", dict, {}, ("dict", "subclass of Objective")),
        ("mine", taking("distance"), {}, ("'distance'", "a default")),
        ("mine", taking("distance=print"), {}, ("distance=<built-in", "a text")),
        ("mine", taking("**more"), {}, ("**more", "a name")),
    ],
)
def test_what_cannot_be_registered_is_refused(name, objective, defaults, words):
    with refused(*words):
        ddlib.register_method(name, objective, **defaults)
    assert METHODS == PUBLISHED


# What is edited is another ------------------------------------------------------------------------


def power(value):
    """A method whose code holds a number."""

    class Power(ddlib.Objective):
        def class_loss(self, net, real, synthetic, label):
            return (real.mean(0) - synthetic.mean(0)).abs().pow(value).sum()

    return Power


def test_a_study_does_not_take_the_sets_of_a_method_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "power", None)
    tiny = {"iterations": 2, "snapshots": [], "seeds": [0], "coresets": [], "elf_nets": []}
    tiny |= {"methods": {"power": {"method": "power", "iterations": 2}}}
    tiny |= {"batch_real": 4, "width": 4}
    one, found, study = ImageSet("power", "main", 1, 0, 2), [], None
    for value in (2.0, 1.0, 2.0):
        ddlib.register_method("power", power(value), lr_images=1.0)
        again = Study("quick", tiny, out=tmp_path, device="cpu", progress=False)
        study = study or again
        assert study.has(one) == again.has(one) == (len(found) == 2)
        study.do([one])
        found.append(study.load(one).images)
        assert torch.equal(again.load(one).images, found[-1])
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def smooth(net, pixels, labels, weight):
    return weight * (pixels[..., 1:] - pixels[..., :-1]).square().mean()


class Smooth:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, net, pixels, labels):
        return smooth(net, pixels, labels, self.weight)


@pytest.mark.parametrize("make", [lambda w: partial(smooth, weight=w), Smooth])
def test_values_within_an_extra_loss_tell_runs_apart(tmp_path, data, make):
    runs = [
        distill(DistillConfig(**SMALL), data, extras=[make(weight)], store=place, progress=False)
        for weight, place in ((0.1, tmp_path), (0.1, tmp_path), (1000.0, None))
    ]
    assert torch.equal(runs[0].images, runs[1].images)
    assert not torch.equal(runs[0].images, runs[2].images)
    assert runs[0].provenance["code"] != runs[2].provenance["code"] != ""
    with refused("code"):
        distill(DistillConfig(**SMALL), data, extras=[make(1000.0)], store=tmp_path, progress=False)


def test_an_object_is_known_by_its_settings_of_today(tmp_path, data):
    """A run leaves it as it is, and works on a copy of it."""
    own, settings = MeanPixels(0.0), DistillConfig(**SMALL, lr_images=1.0)
    before = dict(vars(own))
    first = distill(settings, data, objective=own, store=tmp_path, progress=False)
    assert vars(own) == before
    again = distill(settings, data, objective=own, store=tmp_path, progress=False)
    assert torch.equal(first.images, again.images)
    own.margin = 0.5
    with refused("code"):
        distill(settings, data, objective=own, store=tmp_path, progress=False)
    other = distill(settings, data, objective=own, progress=False)
    assert other.provenance["code"] != first.provenance["code"]
    assert not torch.equal(other.images, first.images)


def test_options_of_images_that_are_replaced_are_refused(data):
    options = {"images": "latents", "options": {"layer": 1}}
    with refused("'layer'", "images 'latents'", "images="):
        distill(DistillConfig(**SMALL, **options), data, images=ddlib.Pixels())


def test_settings_that_a_protocol_of_ones_own_may_use_tell_its_rows_apart(data, synset):
    def loss(logits, labels, targets, config, epoch):
        return F.cross_entropy(logits / config.tau, labels, label_smoothing=config.alpha)

    own, results = ddlib.Protocol("smooth", "never", loss), ddlib.Results()
    settings = {"epochs": 6, "progress": False, "lr": 0.1}
    for more in ({"tau": 1.0, "alpha": 0.0}, {"tau": 8.0}, {"tau": 1.0, "alpha": 0.5}):
        kept, fresh = (
            ddlib.evaluate(synset, data, "MLP", own, 1, **settings, **more, **where)
            for where in ({"results": results}, {})
        )
        assert kept["accuracy"].tolist() == fresh["accuracy"].tolist()
    assert len(results.rows()) == 3
