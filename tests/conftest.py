"""What test files share: tiny data, results by hand, fixtures and short helpers."""

import contextlib
import gc
import importlib
import itertools
import os

os.environ["TQDM_DISABLE"] = "1"

import pandas as pd
import pytest
import torch
from standin import gpu  # noqa: F401  (a fixture)

from ddlib.data import Data, random_real
from ddlib.results import ROWS, SETS, flat
from ddlib.study.plan import FREE
from ddlib.support.errors import DDError
from ddlib.support.store import canonical

torch.set_num_threads(1)  # tensors of a few hundred numbers: threads cost more than they give


def pytest_collection_finish():
    """Garbage collections, one before each recording of work on a GPU, need not look at all that
    was imported.
    """
    gc.freeze()


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


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Nets trained on real images lie in a folder of the test's own."""
    monkeypatch.setenv("DDLIB_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def trainings(monkeypatch):
    """Every `Training` that `evaluate` does, teachers before students."""
    training, calls = module("training"), []
    real = training.train_nets

    def recorded(group):
        real(group)
        calls.extend(group)

    monkeypatch.setattr(training, "train_nets", recorded)
    return calls


@pytest.fixture
def data():
    return make_data()


@pytest.fixture
def synset(data):
    return random_real(data, 2, 0)


ARMS = {  # how a net was trained -> protocol and settings, as a row of results has them
    "CE": ("ce", {}),
    "tuned": ("ce", {"lr": 0.02}),
    "KD": ("kd", {"teacher": "ConvNet", "alpha": 0.5, "tau": 1.5}),
    "½ CE": ("authors-2023", {"alpha": 0.5}),
    "released KD": ("authors-2023", {"teacher": "ConvNet", "alpha": 0.5, "tau": 1.5}),
}


def study_rows(accuracies, nets=("MLP",), seeds=2, n_eval=2, **changes):
    """A flat frame of results. `accuracies`: (pool or method, arm) -> accuracy, or a function of
    net, seed and eval seed.

    A second seed is 1 point better and a second net 0.1, in all methods alike, so that paired
    differences are exact. `changes`: columns of the sets or rows; `settings` (of the rows) and
    `set_settings` are added to.
    """
    entries, rows = {}, []
    more = {
        "evaluation": 2,
        "diverged": False,
        "seconds": 1.0,
        "machine": "a CPU",
        "revision": "",
        "split": "test",
    }
    about = {"base": "", "dataset": "cifar10", "ipc": 1, "iteration": 1000, "seconds": 1.0}
    for ((pool, arm), accuracy), net, d, e in itertools.product(
        accuracies.items(), nets, range(seeds), range(n_eval)
    ):
        free = pool in ("full_data", *FREE)
        entry = about | {
            "method": pool if free else "dc",
            "pool": "" if free else pool,
            "seed": d,
            "machine": "",
            "revision": "",
        }
        entry |= {k: v for k, v in changes.items() if k in SETS} | (
            {"iteration": 0} if free else {}
        )
        entry["settings"] = canonical(changes.get("set_settings", {}))
        entry["set"] = "-".join(
            str(entry[k]) for k in ("method", "pool", "ipc", "iteration", "seed", "settings")
        )
        protocol, settings = ARMS[arm]
        value = accuracy(net, d, e) if callable(accuracy) else accuracy + d + 0.1 * e
        row = more | {
            "set": entry["set"],
            "net": net,
            "protocol": protocol,
            "eval_seed": e,
            "accuracy": value,
        }
        row |= {k: v for k, v in changes.items() if k in ROWS and k not in ("settings", "set")}
        row["settings"] = canonical(settings | changes.get("settings", {}))
        entries[entry["set"]] = entry
        rows.append(row)
    return flat(
        pd.DataFrame(entries.values(), columns=list(SETS)), pd.DataFrame(rows, columns=list(ROWS))
    )
