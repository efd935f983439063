"""Coresets: chosen as by hand from what a net sees, on training images alone."""

from dataclasses import replace

import pytest
import torch
from conftest import make_data, refused
from torch import nn

import ddlib
from ddlib import EvalConfig, coreset, pretrained, random_real
from ddlib.baselines.coresets import CORESETS, EARLY, easiest, herding, k_center
from ddlib.identity import describe_set

TINY = EvalConfig(epochs=2, width=4, depth=1, batch=20)


def chosen(data, ipc=3, seed=1, method="herding", **settings):
    settings = {"config": TINY, "progress": False} | settings
    return coreset(data, ipc, seed, method, **settings)


def dist(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


def mean(points):
    return [sum(column) / len(points) for column in zip(*points, strict=True)]


def herding_by_hand(points, logits, label):
    rows = []
    while len(rows) < 3:
        free = [i for i in range(len(points)) if i not in rows]
        ways = {i: dist(mean([points[j] for j in [*rows, i]]), mean(points)) for i in free}
        rows.append(min(free, key=ways.get))
    return rows


def k_center_by_hand(points, logits, label):
    rows = [min(range(len(points)), key=lambda i: dist(points[i], mean(points)))]
    while len(rows) < 3:
        free = [i for i in range(len(points)) if i not in rows]
        rows.append(max(free, key=lambda i: min(dist(points[i], points[j]) for j in rows)))
    return rows


def easiest_by_hand(points, logits, label):
    onehot = [float(c == label) for c in range(3)]
    scores = [dist(torch.softmax(torch.tensor(row), 0).tolist(), onehot) for row in logits]
    return sorted(range(len(scores)), key=scores.__getitem__)[:3]


BY_HAND = {"herding": herding_by_hand, "k-center": k_center_by_hand, "easiest": easiest_by_hand}


@pytest.mark.parametrize("method", CORESETS)
def test_chosen_as_by_hand(method):
    data = make_data().to(dtype=torch.float64)
    settings = replace(TINY, precision="float64")
    net, _ = pretrained("ConvNet", data, 1, settings, progress=False)
    synset = chosen(data, method=method, config=settings)
    for label in range(3):
        images = data.x_train[data.y_train == label]
        rows = BY_HAND[method](net.embed(images).tolist(), net(images).tolist(), label)
        assert torch.equal(synset.images[synset.labels == label], images[rows])
    assert synset.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_on_a_line():
    points = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0])[:, None]
    assert k_center(points, 5).tolist() == [3, 4, 0, 1, 2]  # the mean is 3.2; 1 and 2 tie
    assert herding(points, 4).tolist() == [3, 2, 1, 4]  # means 3, 2.5, 2, 4
    assert easiest(points - 2.4, 5).tolist() == [2, 3, 1, 0, 4]


@pytest.mark.parametrize("choose", [herding, k_center, easiest])
def test_images_that_look_the_same_are_not_chosen_twice(choose):
    assert sorted(choose(torch.ones(4, 2), 4).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("method", CORESETS)
def test_validation_and_test_images_have_no_influence(data, method, monkeypatch, tmp_path):
    first = chosen(data, method=method)
    monkeypatch.setenv("DDLIB_CACHE", str(tmp_path))
    for name in ("x_val", "x_test"):
        setattr(data, name, torch.full_like(getattr(data, name), torch.nan))
    again = chosen(data, method=method)
    assert torch.equal(first.images, again.images) and again.images.isfinite().all()
    assert chosen(data, method=method, seed=2).id != first.id


def test_it_is_called_as_random_real_is(data):
    real, synset = random_real(data, 3, 1), chosen(data, method="k-center", config=EARLY, net="MLP")
    assert synset.config == real.config | {"method": "k-center", "options": {"net": "MLP"}}
    assert synset.provenance == real.provenance and synset.classes == real.classes
    about = chosen(data).config["options"]
    assert about == {"epochs": 2, "augment": "", "width": 4, "depth": 1, "batch": 20}
    assert "k-center" in repr(synset) and describe_set(synset, data)["method"] == "k-center"
    rows = ddlib.evaluate(synset, data, ["MLP"], n_eval=1, epochs=1, progress=False)
    assert rows["method"].tolist() == ["k-center"]


class Blind(nn.Module):
    """A net without `embed`."""

    def __init__(self, channels, side, classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, classes))

    def forward(self, images):
        return self.layers(images)


def test_what_it_cannot_do_is_refused(data):
    with refused("'herdin'", "herding, k-center, easiest"):
        chosen(data, method="herdin")
    with refused("ipc is 13", "1 to 12"):
        chosen(data, ipc=13)
    with refused("Blind has no method embed"):
        chosen(data, net=Blind)
    assert len(chosen(data, net=Blind, method="easiest")) == 9
