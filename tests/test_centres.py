"""Class means and k-means centres, by hand."""

import pytest
import torch
from conftest import make_data, refused

from ddlib.baselines.centres import CENTRES, centres, unit_contrast
from ddlib.identity import identity_of


def test_one_image_per_class_is_the_mean_of_its_training_images():
    data = make_data(channels=3)
    synset = centres(data, 1, seed=5)
    for label in range(3):
        own = [image for image, y in zip(data.x_train, data.y_train, strict=True) if y == label]
        torch.testing.assert_close(synset.images[label], sum(own) / len(own))
    assert synset.labels.tolist() == [0, 1, 2]
    assert synset.id == centres(data, 1, seed=6).id  # no seed changes it
    named = identity_of(synset)
    assert (named["method"], named["pool"], named["ipc"]) == ("class-means", "", 1)


def test_centres_are_means_of_the_images_nearest_to_them():
    data = make_data(classes=2, per_class=40, side=4)
    synset = centres(data, 3, seed=1)
    assert synset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for label in range(2):
        own = data.x_train[data.y_train == label].flatten(1).double()
        found = synset.images[synset.labels == label].flatten(1).double()
        nearest = torch.cdist(own, found).argmin(1)
        means = torch.stack([own[nearest == k].mean(0) for k in range(3)])
        torch.testing.assert_close(found, means, atol=1e-5, rtol=0)
    assert synset.id == centres(data, 3, seed=1).id != centres(data, 3, seed=2).id


def test_contrast_of_one():
    data = make_data(channels=3)
    plain, scaled = (centres(data, 2, method=method) for method in CENTRES)
    for before, after in zip(plain.images, scaled.images, strict=True):
        torch.testing.assert_close(after.mean(), before.mean())
        torch.testing.assert_close(after.std(), torch.tensor(1.0))
        shape = torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]
        torch.testing.assert_close(shape, torch.tensor(1.0))
    flat = torch.zeros(1, 1, 2, 2)
    assert torch.equal(unit_contrast(flat), flat)


@pytest.mark.parametrize(
    ("ipc", "method", "words"),
    [(13, "class-means", ("ipc is 13", "1 to 12")), (1, "class-mean", ("did you mean",))],
)
def test_refused(ipc, method, words):
    with refused(*words):
        centres(make_data(), ipc, method=method)
