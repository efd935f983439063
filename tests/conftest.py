"""Tiny data and the two helpers that every test file uses."""

import contextlib
import importlib
import os

os.environ["TQDM_DISABLE"] = "1"

import pytest
import torch

from ddlib.data import Data, random_real
from ddlib.errors import DDError

torch.set_num_threads(1)  # tensors of a few hundred numbers: threads cost more than they give


def make_data(classes=3, per_class=12, channels=1, side=28, seed=0, name="tiny"):
    """Random images, a little brighter from class to class, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)

    def part(n):
        labels = torch.arange(classes).repeat_interleave(n)
        noise = torch.randn(len(labels), channels, side, side, generator=generator)
        return noise + 0.5 * labels.view(-1, 1, 1, 1), labels

    splits = part(per_class), part(2), part(4)
    tensors = [tensor for split in splits for tensor in split]
    return Data(
        name, tuple("abcdefghij"[:classes]), (0.5,) * channels, (0.25,) * channels, *tensors
    )


def module(name):
    """A module of ddlib, also where the package has a function of the same name."""
    return importlib.import_module(f"ddlib.{name}")


@contextlib.contextmanager
def refused(*words):
    """The block must raise a `DDError` of one line that holds all of `words`."""
    with pytest.raises(DDError) as caught:
        yield
    message = str(caught.value)
    assert message.strip() and "\n" not in message
    assert [word for word in words if str(word) not in message] == [], message


@pytest.fixture
def data():
    return make_data()


@pytest.fixture
def synset(data):
    return random_real(data, 2, 0)


@pytest.fixture(autouse=True)
def fresh_teachers(monkeypatch):
    """Teachers are shared within a process; no test may lean on another's."""
    monkeypatch.setattr(module("evaluate"), "_teachers", {})
