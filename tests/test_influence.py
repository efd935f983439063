"""What each synthetic image is worth to a net."""

import pytest
import torch
from conftest import refused

from ddlib.data import random_real
from ddlib.evaluate import evaluate
from ddlib.report import figures
from ddlib.view.influence import influence, without

QUICK = {"epochs": 5, "nets": ["MLP", "LeNet"], "progress": False}


def test_the_cost_is_what_nets_lose_that_begin_alike(data, synset):
    costs = influence(synset, data, n_eval=2, **QUICK)
    assert len(costs) == len(synset) * 2 and set(costs["n"]) == {2}
    assert costs["label"].tolist() == [label for label in synset.labels.tolist() for _ in range(2)]
    for i in (0, 3):
        one = without(synset, i)
        assert (
            len(one) == len(synset) - 1
            and not (one.images == synset.images[i]).all((1, 2, 3)).any()
        )
        rows = [evaluate(s, data, n_eval=2, **QUICK) for s in (synset, one)]
        means = [r[r["net"] == "LeNet"]["accuracy"].mean() for r in rows]
        found = costs[(costs["image"] == i) & (costs["net"] == "LeNet")]["cost"].item()
        assert found == pytest.approx(means[0] - means[1])
    assert costs["cost"].abs().max() > 0


def test_copies_are_worth_the_same_and_a_class_is_not_emptied(data, synset):
    synset.images[1] = synset.images[0]
    costs = influence(synset, data, **QUICK | {"nets": "MLP"}).set_index("image")["cost"]
    assert costs[0] == costs[1]
    with refused("ipc is 1", "at least 2"):
        influence(random_real(data, 1, 0), data)


def test_the_map_shows_each_image_of_each_class(data, synset):
    costs = influence(synset, data, **QUICK)
    figure = figures.influence_maps(costs, synset.classes, "title")
    mlp, lenet = figure.axes[:2]
    assert (mlp.get_title(loc="left"), lenet.get_title(loc="left")) == ("MLP", "LeNet")
    grid = torch.tensor(lenet.images[0].get_array().tolist())
    own = costs[costs["net"] == "LeNet"].sort_values("image")["cost"]
    assert grid.flatten().tolist() == pytest.approx(own.tolist())
    assert [t.get_text() for t in mlp.get_yticklabels()] == ["a", "b", "c"]
    assert "n = 1" in figure.get_suptitle()
