"""What a notebook shows of sets, and their nearest real images."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_data, refused
from PIL import Image
from torch import nn

from ddlib.config import DistillConfig
from ddlib.data import random_real
from ddlib.distill import distill
from ddlib.nets import build_net
from ddlib.support.rng import stream
from ddlib.view.look import Watch, curve, look, nearest


def some_set(seed=0, iterations=(0, 5)):
    """A set at iteration 9 with a history, every frame with other pixels."""
    synset = random_real(make_data(channels=3), 2, seed)
    steps = [replace(synset, images=synset.images * 0 + k / 10, iteration=k) for k in iterations]
    return replace(synset, iteration=9, history=steps)


def frames_in(page):
    return json.loads(re.search(r"frames = (\{.*?\});\n", page).group(1))


def test_a_frame_for_each_iteration_and_set():
    shown = look(some_set(), some_set(1), names=("a", "</script>"))._repr_mimebundle_()
    frames = frames_in(shown["text/html"])
    labels = [label for label, _ in frames["a"]]
    assert labels == ["iteration 0", "iteration 5", "iteration 9"]
    assert len({picture for _, picture in frames["a"]}) == 3
    now, still = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
        for png in (frames["a"][-1][1], shown["image/png"])  # the latter where no script runs
    )
    twice = now[2:30, 2:30].repeat(2, 0).repeat(2, 1)  # a first image, behind a margin of 2
    assert np.array_equal(still[2:58, 2:58], twice) and twice.std() > 0
    assert shown["text/html"].count("</script>") == 1 and "&lt;/script&gt;" in shown["text/html"]
    picture = Image.open(io.BytesIO(base64.b64decode(frames["a"][0][1])))
    assert picture.size[1] > picture.size[0] > 2 * 28  # a class per row


def test_a_finished_set_is_its_last_frame_once():
    synset = some_set(iterations=(0, 9))
    labels = [
        label
        for label, _ in frames_in(look(synset)._repr_mimebundle_()["text/html"])[
            "random_real, ipc 2, seed 0"
        ]
    ]
    assert labels == ["iteration 0", "iteration 9"]


def test_the_same_set_is_the_same_page():
    one, two = (look(some_set())._repr_mimebundle_()["text/html"] for _ in range(2))
    assert one == two != look(some_set(1))._repr_mimebundle_()["text/html"]


@pytest.mark.parametrize("names", [("a", "a"), ("a",)])
def test_names_must_tell_sets_apart(names):
    with refused("needed: one each"):
        look(some_set(), some_set(1), names=names)
    with refused("0 sets"):
        look()


def test_a_copy_is_nearest_to_itself():
    data = make_data(channels=3)
    synset = random_real(data, 2, 3)
    rows, distances = nearest(synset, data, k=3)
    assert torch.equal(data.x_train[rows[:, 0]], synset.images)
    assert distances[:, 0].tolist() == [0.0] * 6
    for image, row, distance in zip(synset.images, rows, distances, strict=True):
        by_hand = ((data.x_train - image) ** 2).mean((1, 2, 3)).sqrt().double()
        torch.testing.assert_close(by_hand.sort()[0][:3], distance, atol=1e-5, rtol=0)
        assert by_hand[row[2]] == by_hand.sort()[0][2]


class Brightness(nn.Module):
    """Its embedding is the mean of an image."""

    def embed(self, images):
        return images.mean((1, 2, 3))[:, None]


def test_nearest_in_features_and_within_the_class():
    data = make_data()
    synset = random_real(data, 1, 0)
    rows, distances = nearest(synset, data, 4, Brightness(), same_class=True)
    for label, (row, distance) in enumerate(zip(rows, distances, strict=True)):
        assert (data.y_train[row] == label).all()
        own = data.x_train[data.y_train == label].mean((1, 2, 3)).double()
        away = (own - synset.images[label].mean().double()).abs().sort()[0][:4]
        torch.testing.assert_close(away, distance, atol=1e-6, rtol=0)


def test_a_net_to_look_with_is_left_as_it_is():
    data = make_data()
    size = {"channels": 1, "side": 28, "classes": 3, "width": 4, "norm": "batch"}
    net = build_net("ConvNet", stream(0, "net"), **size)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    _, distances = nearest(random_real(data, 2, 3), data, 1, net)
    torch.testing.assert_close(distances[:, 0], torch.zeros(6).double(), atol=1e-6, rtol=0)
    assert net.training and all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_what_does_not_fit_is_refused():
    data = make_data()
    with refused("k is 37", "1 to 36"):
        nearest(random_real(data, 1, 0), data, 37)
    with refused("k is 13", "1 to 12"):
        nearest(random_real(data, 1, 0), data, 13, same_class=True)
    with refused("[3, 28, 28]", "must agree"):
        nearest(random_real(make_data(channels=3), 1, 0), data)


def watched(every, watch=None, space="normalised"):
    """Three iterations seen by a `Watch`."""
    size = {"width": 4, "depth": 1, "batch_real": 4, "batch_bn": 4, "iterations": 3}
    data = replace(make_data(), space=space)
    distill(DistillConfig(**size), data, callback=watch or Watch(every), progress=False)


def test_a_terminal_gets_a_line_now_and_then_and_at_the_end(capsys):
    watched(2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["iteration 2 of 3", "iteration 3 of 3"]
    assert all(float(line.split()[-1]) > 0 for line in lines)


@pytest.fixture
def shown(monkeypatch):
    """What a notebook displays: kind and bundle."""
    import IPython
    import IPython.display

    shown = []

    class Handle:
        def update(self, bundle, raw):
            shown.append(("update", bundle))

    def display(bundle, raw, display_id):
        shown.append(("display", bundle))
        return Handle()

    monkeypatch.setattr(IPython, "get_ipython", lambda: True)
    monkeypatch.setattr(IPython.display, "display", display)
    return shown


def test_a_notebook_gets_one_picture_that_changes(shown):
    watch = Watch(1)
    watched(1, watch)
    assert [kind for kind, _ in shown] == ["display", "update", "update"]
    assert len({bundle["image/png"] for _, bundle in shown}) == 3
    points = re.search('points="(.*?)"', shown[-1][1]["text/html"]).group(1).split()
    assert len(points) == 3 and shown[-1][1]["text/plain"].startswith("iteration 3 of 3, loss")
    watched(1, watch)  # another run: a picture of its own
    assert [kind for kind, _ in shown[3:]] == ["display", "update", "update"]


def test_whitened_images_have_a_curve_and_no_picture(shown):
    watched(1, space="zca")
    assert [kind for kind, _ in shown] == ["display", "update", "update"]
    assert all("image/png" not in bundle and "<svg" in bundle["text/html"] for _, bundle in shown)
    with refused("zca"):
        look(replace(some_set(), space="zca"))


def test_the_curve_goes_from_0_to_the_highest_loss():
    points = re.search('points="(.*?)"', curve([4.0, 0.0, float("nan"), 2.0], 300, 62)).group(1)
    assert points == "0.0,1.0 100.0,61.0 300.0,31.0"
    assert "points" in curve([0.0]) and "points" in curve([])
