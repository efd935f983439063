"""The paper-scale run in slices: its order, its budget, and that it can be interrupted, moved and resumed."""

import shutil
import time
import zipfile

import pandas as pd
import pytest
from conftest import module, refused

from ddlib.results import KEYS, read_rows
from ddlib.study import archive
from ddlib.study.paper import (
    Distillation,
    Evaluation,
    Slices,
    duration,
    forward_flops,
    main,
    parse_duration,
    plan,
)
from ddlib.study.profiles import get_profile
from ddlib.synset import load_synset

TINY = {
    "dataset": "digits",
    "val_fraction": 0.2,
    "ipcs": (1,),
    "seeds": (0,),
    "iterations": 4,
    "snapshots": (2, 4),
    "report": (2,),
    "pools": ("main_plus_similar",),
    "batch_real": 8,
    "batch_bn": 2,
    "width": 4,
    "width_factor": 0.05,
    "nets": ("ConvNet", "MLP"),
    "n_eval": 2,
    "n_audit": 1,
    "n_sweep": 1,
    "epochs": 2,
    "taus": (1.5, 4.0),
    "precision": "float32",
    "eval_precision": "float32",
}


def slices(folder, **options):
    return Slices(folder, TINY, "cpu", ipc=[1], **options)


def outcome(folder):
    rows = read_rows(next(folder.glob("runs/*/rows.csv")))
    return (
        rows.drop(columns="seconds")
        .sort_values(list(KEYS), na_position="first")
        .reset_index(drop=True)
    )


def test_the_order_is_the_most_valuable_first():
    pieces = plan(get_profile("paper"))
    made = [p for p in pieces if isinstance(p, Distillation)]
    assert made[:2] == [Distillation(pool, 1, 0, 1000) for pool in ("main", "main_plus_similar")]

    def first(**want):
        return next(
            i
            for i, p in enumerate(pieces)
            if isinstance(p, Distillation) and all(getattr(p, k) == v for k, v in want.items())
        )

    released = (("similar_depth", 1), ("warmup", 500))
    order = [
        first(ipc=1),
        first(ipc=10),
        first(pool="total_random"),
        first(changes=released),
        first(seed=1),
        first(ipc=50),
    ]
    assert order == sorted(order)
    assert {(m.pool, m.ipc, m.seed, m.iteration) for m in made if not m.changes} == {
        (pool, ipc, seed, k)
        for pool in ("main", "main_plus_similar", "total_random", "main_plus_others")
        for ipc in (1, 10, 50)
        for seed in (0, 1, 2)
        for k in (1000, 2000, 3000)
    }


def test_every_evaluation_comes_after_what_it_needs():
    pieces = plan(get_profile("paper"))
    place = {p: i for i, p in reversed(list(enumerate(pieces)))}
    for p in pieces:
        if isinstance(p, Evaluation):
            assert all(place[one] < place[p] for one in p.sweep)
            later = {m for m in place if isinstance(m, Distillation) and place[m] > place[p]}
            assert p.made not in later


def test_three_protocols_six_nets_ten_times():
    pieces = [
        p
        for p in plan(get_profile("paper"))
        if isinstance(p, Evaluation) and p.made == Distillation("main", 10, 0, 2000)
    ]
    cells = {(p.protocol, p.teacher, p.net): p.n for p in pieces}
    protocols = {
        ("ce", None),
        ("kd", "ConvNet"),
        ("authors-2023", None),
        ("authors-2023", "ConvNet"),
    }
    assert (
        {c[:2] for c in cells} == protocols and len(cells) == 4 * 6 and set(cells.values()) == {10}
    )


def test_interrupted_moved_and_resumed_gives_the_same_numbers(tmp_path, monkeypatch):
    """One slice here; then a slice at a time, each in a fresh folder that gets nothing but the archives."""
    monkeypatch.setattr(module("run"), "CHECKPOINT_SECONDS", -1)
    slices(tmp_path / "whole").run(600, say=lambda text: None)
    here = tmp_path / "0"
    for i in range(1, 40):
        work = slices(here)
        if not any(work.left(p) for p in work.pieces):
            break
        ticks = iter(range(10**6))
        monkeypatch.setattr(
            "ddlib.study.paper.time.monotonic", lambda ticks=ticks: next(ticks)
        )  # the budget: so many looks at the clock
        work.run(8 + 16 * i, say=lambda text: None)
        monkeypatch.undo()
        monkeypatch.setattr(module("run"), "CHECKPOINT_SECONDS", -1)
        there = tmp_path / str(i)
        shutil.copytree(here / "slices", there / "slices")
        here = there
    assert 3 < i < 39  # several moves
    pd.testing.assert_frame_equal(outcome(here), outcome(tmp_path / "whole"))


def test_a_slice_ends_at_its_budget_and_the_next_goes_on(tmp_path):
    said = []
    slices(tmp_path).run(0, say=said.append)
    assert said == []
    slices(tmp_path, until=2).run(600, say=said.append)
    assert "distil main, ipc 1, seed 0, to iteration 2: done" in said[0] and not any(
        "iteration 4" in line for line in said
    )
    before = len(read_rows(next(tmp_path.glob("runs/*/rows.csv"))))
    said.clear()
    slices(tmp_path).run(600, say=said.append)
    assert (
        "to iteration 4: done" in said[0]
        and len(read_rows(next(tmp_path.glob("runs/*/rows.csv")))) > before
    )
    said.clear()
    assert slices(tmp_path).run(600, say=said.append) == [] and said == []


def test_distillations_side_by_side_give_the_same_sets(tmp_path):
    one, two = slices(tmp_path / "1", until=2), slices(tmp_path / "2", until=2, jobs=3)
    assert len(two.together(0)) == 2 and len(one.together(0)) == 1
    for work in (one, two):
        work.side_by_side(work.together(0), float("inf"))
    one.work(one.pieces[1], float("inf"))
    for piece in one.pieces[:2]:
        assert one.load(piece).id == two.load(piece).id


@pytest.mark.parametrize(("sign", "best"), [(1, 4.0), (-1, 1.5)])
def test_tau_is_the_best_on_validation_images_whatever_the_test_images_say(
    tmp_path, monkeypatch, sign, best
):
    work = slices(tmp_path)
    piece = next(p for p in work.pieces if isinstance(p, Evaluation) and p.sweep)
    monkeypatch.setattr(work, "left", lambda piece: 0)
    values = {"val": sign, "test": -sign}
    monkeypatch.setattr(
        work,
        "rows",
        lambda piece, tau: [
            {"split": name, "accuracy": 50 + value * tau} for name, value in values.items()
        ],
    )
    assert work.tau(piece) == best


def test_published_are_the_rows_and_both_methods_latest_sets(tmp_path):
    work = slices(tmp_path / "store")
    for piece in work.pieces[:3]:
        work.work(piece, float("inf"))
    written = work.publish(tmp_path / "paper")
    name = work.study.name
    assert [p.stem for p in written[1:]] == [
        f"{name}-ipc1-main-s0",
        f"{name}-ipc1-main_plus_similar-s0",
    ]
    assert load_synset(written[1]).iteration == 2
    pd.testing.assert_frame_equal(read_rows(written[0]), work.study.results.frame())


def test_status_counts_pieces_and_knows_times_once_something_was_measured(tmp_path, capsys):
    work = slices(tmp_path, until=2)
    before = work.status()
    assert (
        before["done"].sum() == 0
        and before["pieces"].sum() == len(work.pieces)
        and before["seconds"].isna().all()
    )
    work.run(600, say=lambda text: None)
    after = work.status()
    assert (after["done"] == after["pieces"]).all() and after["seconds"].sum() == 0
    assert slices(tmp_path).status()["seconds"].between(0, 600).all()


def test_forward_flops_by_hand():
    """ConvNet-D3-W128: three convolutions and the classifier, two operations a product."""
    by_hand = 2 * (27 * 128 * 1024 + 1152 * 128 * 256 + 1152 * 128 * 64 + 2048 * 10)
    assert forward_flops("ConvNet", 128, 1.0, (3, 32, 10)) == by_hand


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("8m", 480), ("1.5h", 5400)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "8 m", "-1m", "m"])
def test_no_duration(text):
    with refused("budget", repr(text), "8m"):
        parse_duration(text)


def test_durations_for_people():
    assert [duration(s) for s in (40, 720, 12600, float("nan"))] == [
        "40 s",
        "12 min",
        "3.5 h",
        "unknown",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "8"], "budget"),
        (["--ipc", "3"], "ipc"),
        (["--net", "ResNet"], "ResNet18"),
        (["--set", "epoch=1"], "epochs"),
    ],
)
def test_mistakes_end_with_one_line(words, message, tmp_path, capsys):
    assert main(["run", "--store", str(tmp_path), *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


# Archives -------------------------------------------------------------------------------------------------------------


def test_archives_stay_small_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "BYTES", 1000)
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "a").mkdir(parents=True)
    contents = {f"a/{i}.bin": bytes([i]) * 400 for i in range(5)}
    for name, content in contents.items():
        (one / name).write_bytes(content)
    made = archive.pack(one, tmp_path / "slices", 0)
    assert [len(zipfile.ZipFile(p).namelist()) for p in made] == [2, 2, 1]
    two.mkdir()
    archive.unpack(two, tmp_path / "slices")
    assert {p.relative_to(two).as_posix(): p.read_bytes() for p in two.rglob("*.bin")} == contents


def test_only_what_changed_is_packed(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "old").write_text("x")
    later = (tmp_path / "runs" / "old").stat().st_mtime + 10
    assert archive.pack(tmp_path / "runs", tmp_path / "slices", later) == []


def test_a_damaged_or_hostile_archive_is_refused(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "slices").mkdir()
    path = tmp_path / "slices" / "slice-0001-1.zip"
    path.write_bytes(b"no zip")
    with refused("slice-0001-1.zip", "damaged"):
        archive.unpack(tmp_path / "runs", tmp_path / "slices")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../outside", "x")
    with refused("outside"):
        archive.unpack(tmp_path / "runs", tmp_path / "slices")
    assert not (tmp_path / "outside").exists()


def test_a_group_of_nets_starts_only_if_all_of_it_fits(tmp_path, monkeypatch):
    work, asked = slices(tmp_path), []
    piece = next(p for p in work.pieces if isinstance(p, Evaluation) and work.ready(p))
    monkeypatch.setattr(module("study.paper"), "groups", lambda seeds, device: [[0, 1, 2]])
    monkeypatch.setattr(
        work, "rates", lambda: {"evaluation": work.flops(piece) / piece.n}
    )  # a second per net
    monkeypatch.setattr(work, "evaluate", lambda piece, tau, stop: asked.append(stop()))
    for seconds in (2, 4):
        work.work(piece, time.monotonic() + seconds)
    assert asked == [True, False]
