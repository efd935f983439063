"""Rows of results: one schema, the same rows after a trip through the file, and nothing else read as one."""

import os

import pandas as pd
import pytest
from conftest import refused

from ddlib.results import COLUMNS, KEYS, Results, read_rows, row_key


def row(**changes):
    values = {
        "dataset": "digits",
        "ipc": 1,
        "pool": "main",
        "iteration": 60,
        "distill_seed": 0,
        "protocol": "kd",
        "net": "ConvNet",
        "eval_seed": 3,
        "accuracy": 100 / 3,
        "diverged": False,
        "seconds": 1.25,
        "teacher": "ConvNet",
        "teacher_seed": 3,
        "alpha": 0.5,
        "tau": 1.5,
        "split": "test",
        "epochs": 301,
        "lr": 0.01,
        "batch": 256,
        "width": 32,
        "width_factor": None,
        "main_prob": 0.9,
        "warmup": 0,
        "similar_depth": None,
        "set_id": "0123456789ab",
        "precision": "float32",
        "distill_precision": "bfloat16",
        "device": "CPU, 2 threads",
        "python": "3.11.7",
        "torch": "2.14",
        "ddlib": "0.1.0",
        "revision": "",
    }
    values |= {c: 1 for c in KEYS if c not in values}
    return values | changes


# Sets whose fingerprints look like numbers, a plain-CE row, a diverged net, accuracies with no short decimal form.
ROWS = [
    row(),
    row(eval_seed=4, set_id="000000000012", accuracy=0.1 + 0.2, diverged=True),
    row(protocol="ce", teacher="", teacher_seed=None, alpha=None, tau=None, set_id="1234567e8901"),
    row(
        net="MLP",
        width=None,
        pool="unknown",
        main_prob=None,
        warmup=None,
        device="NA",
        revision="None",
    ),
]


def same(value, other):
    return (pd.isna(value) and pd.isna(other)) or (
        value == other and isinstance(other, str) == isinstance(value, str)
    )


@pytest.mark.parametrize(
    "rows", [ROWS, *([r] for r in ROWS)], ids=["all", "kd", "digits", "exponent", "empty"]
)
def test_rows_come_back_as_they_were(tmp_path, rows):
    results = Results(tmp_path / "results.csv")
    for r in rows:
        results.add(r)
    frame = read_rows(tmp_path / "results.csv")
    assert list(frame.columns) == list(COLUMNS) and frame["diverged"].dtype == bool
    for r, back in zip(rows, frame.to_dict("records"), strict=True):
        assert [c for c in COLUMNS if not same(r[c], back[c])] == []


def test_finished_rows_are_found_before_and_after_the_trip(tmp_path):
    results = Results(tmp_path / "results.csv")
    for r in ROWS:
        results.add(r)
    for known in (results, Results(tmp_path / "results.csv")):
        assert [known.get(r)["accuracy"] for r in ROWS] == [r["accuracy"] for r in ROWS]
        assert known.get(row(eval_seed=99)) is None


@pytest.mark.parametrize("key", KEYS)
def test_every_key_tells_experiments_apart(key):
    other = {str: "other", int: 77, float: 0.77, type(None): 7}[type(row()[key])]
    assert row_key(row(**{key: other})) != row_key(row())


@pytest.mark.parametrize("column", ["accuracy", "diverged", "seconds", "device", "revision"])
def test_outcome_and_machine_are_no_part_of_the_identity(column):
    assert row_key(row(**{column: "other"})) == row_key(row())


def test_adding_the_same_experiment_again_replaces_it(tmp_path):
    results = Results(tmp_path / "results.csv")
    for accuracy in (10.0, 20.0):
        results.add(row(accuracy=accuracy))
    assert read_rows(tmp_path / "results.csv")["accuracy"].tolist() == [20.0]


def test_an_added_row_is_on_disk_at_once_and_whole(tmp_path):
    results = Results(tmp_path / "new" / "results.csv")
    for n, r in enumerate(ROWS, 1):
        results.add(r)
        assert len(read_rows(tmp_path / "new" / "results.csv")) == n
    assert os.listdir(tmp_path / "new") == ["results.csv"]


def test_without_a_path_rows_stay_in_memory():
    results = Results()
    assert list(results.frame().columns) == list(COLUMNS) and len(results.frame()) == 0
    results.add(ROWS[0])
    assert len(results.frame()) == 1 and results.get(ROWS[0])["accuracy"] == ROWS[0]["accuracy"]


def test_keys_and_outcome_are_the_columns():
    assert set(KEYS) < set(COLUMNS) and len(set(COLUMNS)) == len(COLUMNS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.drop(columns="tau"), ("lacks ['tau']",)),
        (lambda f: f.assign(colour=1), ("unknown ['colour']",)),
        (lambda f: f.rename(columns={"net": "model"}), ("lacks ['net']", "unknown ['model']")),
    ],
)
def test_another_schema_is_refused(tmp_path, change, words):
    path = tmp_path / "results.csv"
    change(pd.DataFrame(ROWS)).to_csv(path, index=False)
    for read in (read_rows, Results):
        with refused("results.csv", "another schema", *words):
            read(path)


def test_missing_file_is_refused_but_starts_new_results(tmp_path):
    with refused("no file", "results.csv"):
        read_rows(tmp_path / "results.csv")
    assert len(Results(tmp_path / "results.csv").frame()) == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: b"\xff\xfe\x00\x01" + text,
        lambda text: text + b"1,2" * len(COLUMNS) + b"\n",
        lambda text: text + b'"open quote',
        lambda text: text[: text.rstrip().rindex(b",kd,")],
        lambda text: text.replace(b"33.3", b"abc"),
    ],
    ids=["empty", "binary", "ragged", "quote", "row cut short", "accuracy is a word"],
)
def test_damaged_csv_is_refused(tmp_path, damage):
    path = tmp_path / "results.csv"
    for r in ROWS:
        Results(path).add(r)
    path.write_bytes(damage(path.read_bytes()))
    with refused("results.csv"):
        read_rows(path)
