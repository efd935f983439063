"""Nothing lost, nothing silently wrong: changed data, damage, foreign files, bad calls, full disks.

Each test was red before what it tests was mended.
"""

import io
import itertools
import json
import os
import shutil
import signal
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision  # noqa: F401 (so that no test times its import)
from conftest import make_data, module, refused
from PIL import Image

import ddlib
from ddlib.data import load_data, random_real
from ddlib.distill import distill
from ddlib.evaluate import evaluate
from ddlib.exchange.load import load_synset
from ddlib.methods.realnets import REAL, pretrained
from ddlib.pool import Member, ModelPool
from ddlib.results import Results, read_results
from ddlib.run import store_name
from ddlib.study import Study, launcher
from ddlib.support.errors import DDError
from ddlib.support.rng import stream
from ddlib.support.store import ROOT, load_tensors, save_tensors, write_atomic
from ddlib.synset import SyntheticSet

SMALL = {"width": 4, "depth": 1, "batch_real": 6, "batch_bn": 4, "iterations": 3}
CONFIG = ddlib.DistillConfig(**SMALL)
EVAL = {"nets": ["MLP"], "n_eval": 1, "epochs": 2, "progress": False}


def save_npz(path, labels, side=32, n=12, **more):
    pixels = np.random.default_rng(0).integers(0, 256, (n, side, side)).astype(np.uint8)
    arrays = {"x_train": pixels, "y_train": labels, "x_test": pixels, "y_test": labels}
    np.savez(path, **(arrays | more))
    return path


# 2. Changed data ----------------------------------------------------------------------------------

HALF = np.arange(12) % 2


def test_other_labels_are_another_data_set(tmp_path):
    """The same name, counts, mean and std."""
    one, two = (
        load_data(save_npz(tmp_path / "my.npz", y), val_fraction=0) for y in (HALF, 1 - HALF)
    )
    assert (one.counts(), one.mean, one.std) == (two.counts(), two.mean, two.std)
    assert store_name(CONFIG, one) != store_name(CONFIG, two)
    store, results = tmp_path / "store", Results(tmp_path / "rows")
    distill(CONFIG, one, store=store, progress=False)
    with refused("another data"):
        distill(CONFIG, two, store=store, progress=False)
    synset = random_real(one, 1, 0)
    evaluate(synset, one, results=results, **EVAL)
    assert len(results.rows()) == 1
    evaluate(synset, two, results=results, **EVAL)
    assert len(results.rows()) == 2


@pytest.mark.parametrize("part", ["x_train", "y_train", "x_val", "y_val", "x_test", "y_test"])
@pytest.mark.parametrize("how", ["replace", "in place", "assign"])
def test_any_change_of_images_or_labels_changes_the_identity(data, part, how):
    before, changed = data.content, getattr(data, part).clone()
    changed[-1] = changed[0] if part == "y_test" else changed[-1] * 0 + changed[-1].max() - 1
    if part == "y_train":  # stays sorted
        changed = torch.tensor([0] * 11 + [1] * 13 + [2] * 12)
    if how == "replace":
        data = replace(data, **{part: changed})
    elif how == "assign":
        setattr(data, part, changed)
    else:
        getattr(data, part).copy_(changed)
    assert data.content != before and len(before) == 16
    assert data.to(dtype=torch.float64).content == data.content == replace(data).content


def test_published_digits_keep_the_identity_of_their_name():
    digits = load_data("digits")
    assert digits.content == "" == digits.to(dtype=torch.float64).content
    assert set(digits.about()) == {"name", "train", "mean", "std"}
    assert "data" not in evaluate(random_real(digits, 1, 0), digits, **EVAL)
    assert replace(digits, y_test=digits.y_test.flip(0)).content
    assert load_data("digits", side=28).content and load_data("digits", val_fraction=0.2).content


def test_the_accuracy_of_a_kept_net_is_of_the_test_images_at_hand(data):
    config = replace(REAL, epochs=1, augment="")
    one = pretrained("MLP", data, config=config, progress=False)
    other = replace(data, y_test=data.y_test * 0)
    two = pretrained("MLP", other, config=config, progress=False)
    assert one.accuracy == pretrained("MLP", data, config=config, progress=False).accuracy
    assert one.accuracy != two.accuracy
    assert all(map(torch.equal, one.net.parameters(), two.net.parameters()))


def test_labels_out_of_order_are_refused(data):
    with refused("not sorted"):
        replace(data, y_train=data.y_train.flip(0))


# 3. Seeds -----------------------------------------------------------------------------------------


def test_neighbouring_large_seeds_are_three_experiments(tmp_path, data, synset):
    results = Results(tmp_path / "rows")
    rows = evaluate(synset, data, seed=2**52, results=results, **(EVAL | {"n_eval": 3}))
    results.write(tmp_path)
    assert rows["eval_seed"].tolist() == [2**52 + i for i in range(3)]
    assert read_results(tmp_path)["eval_seed"].tolist() == rows["eval_seed"].tolist()


@pytest.mark.parametrize("seed", [-1, 2**53 + 1, 1.5, True, "1", None, float("nan")])
def test_seeds_out_of_range_are_refused(data, synset, seed):
    with refused("seed"):
        evaluate(synset, data, seed=seed, **EVAL)
    with refused("seed"):
        random_real(data, 1, seed)
    with refused("seed"):
        ddlib.DistillConfig(seed=seed)


def test_the_last_net_has_a_seed_too(data, synset):
    with refused("seed", str(2**53 - 3)):
        evaluate(synset, data, seed=2**53 - 2, **(EVAL | {"n_eval": 3}))


# 5. Damage of our own -----------------------------------------------------------------------------


def flip(path, at, bit=0):
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1 << bit
    path.write_bytes(content)


def positions(path, n=40):
    """Bytes of a file: some at random, and its first and last."""
    size = path.stat().st_size
    return [0, 7, 8, 9, size - 1, *np.random.default_rng(0).integers(0, size, n).tolist()]


def read_set(folder):
    synset = SyntheticSet.load(folder / "it00003")
    return synset.id, synset.config, synset.mean, synset.classes


def read_checkpoint(folder):
    tensors, info = load_tensors(folder / "checkpoint.safetensors")
    return {k: t.tolist() for k, t in tensors.items()}, info


@pytest.mark.parametrize(("name", "read"), [("it00003", read_set), ("checkpoint", read_checkpoint)])
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, data, name, read):
    distill(CONFIG, data, store=tmp_path, progress=False)
    path = tmp_path / f"{name}.safetensors"
    right, content, told = read(tmp_path), path.read_bytes(), []
    for at in positions(path):
        flip(path, at, at % 8)
        try:
            assert read(tmp_path) == right, at
        except DDError as error:
            told.append(str(error))
        path.write_bytes(content)
    assert len(told) > 30 and all(path.name in line and "\n" not in line for line in told)


def test_a_damaged_tensor_is_named_as_such(tmp_path):
    path = save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(9), "b": torch.ones(9)}, {})
    flip(path, -1)
    with refused("x.safetensors", "does not hold what was written"):
        load_tensors(path)
    assert load_tensors(path, ["a"])[0]["a"].tolist() == [0.0] * 9


@pytest.mark.parametrize("path", sorted((ROOT / "paper" / "sets").glob("*.safetensors")))
def test_committed_sets_are_those_of_their_ids(tmp_path, path):
    """They were made before files had fingerprints; the JSON beside them has the id."""
    for file in (path, path.with_suffix(".json")):
        shutil.copy(file, tmp_path)
    copy = tmp_path / path.name
    assert SyntheticSet.load(copy).id == json.loads(copy.with_suffix(".json").read_text())["id"]
    flip(copy, -1000)
    with refused(path.name, "damaged"):
        SyntheticSet.load(copy)


def test_a_checkpoint_of_before_is_read(tmp_path, data):
    """Without fingerprints, its log beside it."""
    whole = distill(CONFIG, data, progress=False)
    distill(CONFIG, data, store=tmp_path, progress=False, stop=lambda k: k == 2)
    path = tmp_path / "checkpoint.safetensors"
    tensors, info = load_tensors(path)
    info.pop("log")
    path.write_bytes(safetensors_save(tensors, {"ddlib": json.dumps(info)}))
    again = distill(CONFIG, data, store=tmp_path, progress=False)
    assert again.id == whole.id and len(again.log) == 3


def safetensors_save(tensors, metadata):
    from safetensors.torch import save

    return save(tensors, metadata)


def test_a_changed_log_is_not_believed(tmp_path, data):
    first = distill(CONFIG, data, store=tmp_path, progress=False)
    path = tmp_path / "log.csv"
    path.write_text(path.read_text().replace("ConvNet", "LeNet"))
    again = distill(CONFIG, data, store=tmp_path, progress=False)
    assert again.log.equals(first.log)


def test_published_tables_know_what_was_written(tmp_path, data, synset):
    results = Results()
    evaluate(synset, data, results=results, **EVAL)
    results.write(tmp_path)
    rows = read_results(tmp_path)
    for name in ("rows.csv", "sets.csv"):
        content = (tmp_path / name).read_bytes()
        flip(tmp_path / name, -8)
        with refused(name, "damaged"):
            read_results(tmp_path)
        (tmp_path / name).write_bytes(content)
    assert read_results(tmp_path).equals(rows)


# 5. Foreign sets ----------------------------------------------------------------------------------


def pt(path, images, labels):
    torch.save({"data": [[images, labels]]}, path)
    return path


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.full((10, 3, 32, 32), float("nan")), torch.arange(10)),
        (torch.full((10, 3, 32, 32), 1e30), torch.arange(10)),
        (torch.zeros(10, 3, 32, 32), torch.arange(10) + 0.5),
        (torch.zeros(10, 3, 32, 32), torch.arange(10) * 10**8),
        (torch.zeros(10, 3, 32, 32), torch.full((10,), 2**63 - 1)),
        (torch.zeros(1).expand(10**7, 3, 32, 32), torch.zeros(1).expand(10**7)),
    ],
    ids=["nan", "huge", "half labels", "many classes", "largest label", "expanded"],
)
def test_foreign_sets_that_cannot_be_right_are_refused(tmp_path, images, labels):
    with refused("x.pt"):
        load_synset(pt(tmp_path / "x.pt", images, labels), dataset=None)


@pytest.fixture
def little_memory(monkeypatch):
    """256 MiB, of which 16 million numbers may be read."""
    monkeypatch.setattr(os, "sysconf", lambda name: 2**14)


@pytest.mark.usefixtures("little_memory")
def test_a_foreign_zip_bomb_is_refused(tmp_path):
    path = pt(tmp_path / "x.pt", torch.zeros(10, 3, 32, 32), torch.arange(10))
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file,
        file.open("archive/data/9", "w", force_zip64=True) as member,
    ):
        member.write(bytes(2**27))
    with refused("x.pt", "numbers", "allowed"):
        load_synset(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"images": torch.zeros(2, 1, 8, 8).long()},
        {"labels": torch.tensor([0.0, 1.0])},
        {"labels": torch.tensor([0, 2])},
        {"labels": torch.tensor([-1, 0])},
        {"images": None},
        {"images": [[1.0]]},
        {"std": None},
        {"mean": 0.5},
        {"classes": 3},
    ],
    ids=str,
)
def test_a_set_that_makes_no_sense_is_refused(changes):
    about = {"images": torch.zeros(2, 1, 8, 8), "labels": torch.arange(2), "classes": ("a", "b")}
    about |= {"mean": (0.5,), "std": (0.5,), "dataset": "mine"}
    assert len(SyntheticSet(**about)) == 2
    with refused(""):
        SyntheticSet(**(about | changes))


# 6. Own images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 32, 32, 4), (12, 4, 32, 32), (12, 32, 32, 2)])
def test_arrays_of_other_channels_are_refused(tmp_path, shape):
    pixels = np.zeros(shape, np.uint8)
    with refused("allowed", "C 1 or 3"):
        load_data(save_npz(tmp_path / "a.npz", HALF, x_train=pixels, x_test=pixels), side=32)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.int8])
def test_arrays_of_other_types_are_refused(tmp_path, kind):
    pixels = (np.arange(12 * 32 * 32) % 2).reshape(12, 32, 32).astype(kind)
    with refused(np.dtype(kind).name, "uint8"):
        load_data(save_npz(tmp_path / "a.npz", HALF, x_train=pixels, x_test=pixels))


def tree(folder, image, suffix="png"):
    for part in ("train", "test"):
        for c in "ab":
            (folder / part / c).mkdir(parents=True)
            image.save(folder / part / c / f"0.{suffix}")
    return folder


def image_of(mode, fill):
    return Image.fromarray(
        np.full((32, 32, *([] if np.isscalar(fill) else [len(fill)])), fill, mode)
    )


@pytest.mark.parametrize(
    ("image", "suffix", "words"),
    [
        (image_of(np.uint16, 40000), "png", ("I;16", "8 bits")),
        (image_of(np.float32, 0.5), "tiff", ("mode F", "8 bits")),
        (image_of(np.uint8, (1, 2, 3, 100)), "png", ("transparent",)),
    ],
    ids=["16 bits", "floats", "transparent"],
)
def test_image_files_that_would_be_misread_are_refused(tmp_path, image, suffix, words):
    with refused(f"0.{suffix}", *words):
        load_data(tree(tmp_path / "my", image, suffix))


def test_opaque_images_lose_nothing(tmp_path):
    data = load_data(tree(tmp_path / "my", image_of(np.uint8, (51, 102, 153, 255))), val_fraction=0)
    assert data.shape == (3, 32, 2) and data.mean == pytest.approx((0.2, 0.4, 0.6))


# 7. PNGs ------------------------------------------------------------------------------------------


def set_of(*classes):
    n = len(classes)
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return SyntheticSet(images, torch.arange(n), (0.0,), (1.0,), classes, "mine")


@pytest.mark.parametrize(
    "classes",
    [
        ("../../slip", "/etc/slip", "..", "."),
        ("a/b", "a\\b", "A-b", "a-b"),
        ("", "x" * 300, "x" * 301, "\0"),
        ("cat", "cat-0", "Cat", "cat"),
    ],
)
def test_pngs_stay_in_their_folder_and_apart(tmp_path, classes):
    one = set_of(*classes)
    paths = one.export_pngs(tmp_path / "a" / "png")
    assert {p.resolve().parent for p in paths} == {tmp_path / "a" / "png"}
    assert len({p.name.lower() for p in paths}) == 4
    assert sorted(tmp_path.rglob("*.png")) == sorted(paths)


def test_channels_that_a_png_lacks_are_refused(tmp_path):
    one = SyntheticSet(torch.zeros(1, 2, 8, 8), torch.zeros(1).long(), None, None, ("a",), "mine")
    with refused("2 channels", "1 or 3"):
        replace(one, mean=(0.0, 0.0), std=(1.0, 1.0)).export_pngs(tmp_path)


# 8. Memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [10**9, 2**63 - 1, 2**64 - 1, -1])
@pytest.mark.parametrize("part", ["y_train", "y_test"])
def test_a_label_beyond_all_bounds_is_refused_at_once(tmp_path, label, part):
    labels = np.array([label] * 12, np.int64 if label < 2**63 else np.uint64)
    started = time.perf_counter()
    with refused(part, str(label)):
        load_data(save_npz(tmp_path / "a.npz", HALF, **{part: labels}))
    assert time.perf_counter() - started < 2


def test_an_array_that_claims_too_much_is_refused_before_it_is_made(tmp_path, monkeypatch):
    path, header = save_npz(tmp_path / "a.npz", HALF), io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 32, 32)}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in (parts | {"x_train.npy": header.getvalue()}).items():
            new.writestr(name, content)
    monkeypatch.setattr(np, "load", None)
    with refused("x_train.npy", "1.02e+12 numbers"):
        load_data(path)


@pytest.mark.parametrize("side", [9000, 20000])
def test_a_large_image_is_refused_before_it_is_decoded(tmp_path, side):
    Image.new("1", (side, side)).save(tmp_path / "0.png")
    tree(tmp_path / "my", image_of(np.uint8, 7))
    shutil.copy(tmp_path / "0.png", tmp_path / "my" / "train" / "a" / "1.png")
    started = time.perf_counter()
    with refused("1.png"):
        load_data(tmp_path / "my", side=32)
    assert time.perf_counter() - started < 2


def test_a_pipe_among_images_is_not_waited_for(tmp_path):
    os.mkfifo(tree(tmp_path / "my", image_of(np.uint8, 7)) / "train" / "a" / "1.png")
    with refused("1.png", "no file"):
        load_data(tmp_path / "my")


def test_a_pipe_among_rows_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "0123.json")
    with refused("0123.json", "damaged"):
        Results(tmp_path)


# 9. Folders ---------------------------------------------------------------------------------------


def test_reading_a_finished_run_writes_nothing(tmp_path, data):
    distill(CONFIG, data, store=tmp_path, progress=False)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    distill(CONFIG, data, store=tmp_path, progress=False)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_written_to_is_found_out_at_once(tmp_path, data, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(module("methods.gradient"), "real_gradient", None)
    with refused("cannot write", "file"):
        distill(CONFIG, data, store=tmp_path / "file" / "x", progress=False)


def test_a_folder_that_vanishes_is_made_anew_with_all_that_was_in_it(tmp_path, data, monkeypatch):
    config = replace(CONFIG, snapshots=(0, 1))
    store = tmp_path / "run"

    def vanish(iteration, run):
        if iteration == 2:
            shutil.rmtree(store)

    first = distill(config, data, store=store, progress=False, callback=vanish)
    monkeypatch.setattr(module("methods.gradient"), "real_gradient", None)
    again = distill(config, data, store=store, progress=False)
    assert [s.id for s in again.history] == [s.id for s in first.history] and len(again.log) == 3


def test_rows_of_a_folder_that_vanishes_are_written_again(tmp_path, data, synset):
    results = Results(tmp_path / "rows")
    evaluate(synset, data, results=results, **EVAL)
    shutil.rmtree(tmp_path / "rows")
    evaluate(synset, data, results=results, **(EVAL | {"n_eval": 2}))
    assert len(Results(tmp_path / "rows").rows()) == 2


# 10. The public boundary --------------------------------------------------------------------------


def test_a_misspelt_setting_is_an_error_that_suggests_the_right_one(data):
    with refused("'itrations'", "did you mean 'iterations'"):
        ddlib.DistillConfig(itrations=5)
    with refused("'epoch'", "did you mean 'epochs'"):
        ddlib.EvalConfig(epoch=5)
    with refused("'stor'", "did you mean 'store'"):
        distill(CONFIG, data, stor="x")


@pytest.mark.parametrize("nets", ["MLP", ddlib.MLP])
def test_one_net_need_not_be_a_list(data, synset, nets):
    assert evaluate(synset, data, **(EVAL | {"nets": nets}))["net"].tolist() == ["MLP"]


@pytest.mark.parametrize(
    "call",
    [
        lambda d, s: evaluate(s, d, nets=[]),
        lambda d, s: evaluate([], d),
        lambda d, s: evaluate([3], d),
        lambda d, s: evaluate(s, None),
        lambda d, s: evaluate(s, d, n_eval=10**9),
        lambda d, s: evaluate(s, d, results="rows"),
        lambda d, s: evaluate(),
        lambda d, s: distill(CONFIG, d, objective=3),
        lambda d, s: distill(CONFIG, d, images="pixels"),
        lambda d, s: distill(CONFIG, d, store=3),
        lambda d, s: load_data(None),
        lambda d, s: load_data("digits", device=""),
        lambda d, s: load_data("digits", device="cpu:x"),
        lambda d, s: s.to("nowhere"),
        lambda d, s: ModelPool(np.zeros(3)),
        lambda d, s: load_data("digits", val_fraction="x"),
        lambda d, s: load_synset(None),
        lambda d, s: random_real(d, "1", 0),
        lambda d, s: ddlib.build_net("ConvNet", channels=0),
        lambda d, s: ddlib.build_net("ConvNet", width=10**9),
        lambda d, s: ddlib.ConvNet(width=2.5),
        lambda d, s: Member("x", "ConvNet"),
        lambda d, s: ModelPool([Member(1.0, "ConvNet", {"norm": []})]),
        lambda d, s: ddlib.summarise(None, ["net"]),
        lambda d, s: s.save("/proc/x/y"),
        lambda d, s: s.save("a\0b"),
        lambda d, s: Results().add([{}], [{}]),
    ],
)
def test_a_bad_call_is_one_line(data, synset, call):
    with refused(""):
        call(data, synset)


# 11. Studies --------------------------------------------------------------------------------------


def test_every_variant_of_a_pool_is_built_beforehand():
    options = {"width": [8, 6], "norm": ["instance", "group"]}  # 6 has no four groups
    with refused("ConvNet width is 6", "multiple of 4"):
        ModelPool([Member(1.0, "ConvNet", options)])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["val_fraction=0"], ["val_fraction is 0", "needed: more"]),
        (["iterations=0"], ["iterations is 0", "at least 1"]),
        (["batch_real=1000"], ["batch_real is 1000"]),
        (["ipcs=1000"], ["ipc is 1000"]),
        (["nets=MLP"], ["nets is ('MLP',)", "ConvNet"]),
        (["pools=[]"], ["pools is ()"]),
        (["seeds=0,0"], ["seeds is (0, 0)", "each once"]),
    ],
)
@pytest.mark.parametrize("command", ["notebooks", "work"])
def test_a_study_that_cannot_end_does_not_begin(
    tmp_path, capsys, monkeypatch, command, words, named
):
    if command == "work" and words[0] in ("nets=MLP", "pools=[]"):
        words = ["val_fraction=0"]  # tasks of one net, or of no other pool, can be done
        named = ["val_fraction is 0"]
    for name in ("execute", "run_plan"):
        monkeypatch.setattr(launcher, name, None)
    settings = [f"--set={word}" for word in ("snapshots=0", *words)]
    assert launcher.main([command, "--out", str(tmp_path), *settings]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and [part for part in named if part not in error] == []


def test_the_machine_is_that_of_the_main_thread(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module("study.study"), "device_name", asked.append)
    assert asked == [Study("quick", out=tmp_path, device="cpu").device]


# 12. Small things ---------------------------------------------------------------------------------


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "rows.csv").symlink_to(tmp_path / "elsewhere" / "rows.csv")
    write_atomic(tmp_path / "rows.csv", "new")
    assert (tmp_path / "rows.csv").is_symlink()
    assert (tmp_path / "elsewhere" / "rows.csv").read_text() == "new"


@pytest.mark.parametrize(
    "make", [Results, lambda folder: distill(CONFIG, make_data(), store=folder)]
)
def test_what_killed_writers_left_is_removed_in_time(tmp_path, make):
    for name, age in ((".old.tmp", 7200), (".new.tmp", 60)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    make(tmp_path)
    assert {p.name for p in tmp_path.glob(".*")} == {".new.tmp"}


@pytest.mark.parametrize(
    ("words", "named"), [(["--n", "0"], "n is 0"), (["--until", "-1"], "until is -1")]
)
def test_limits_of_nothing_are_refused(tmp_path, capsys, words, named):
    assert launcher.main(["status", "--out", str(tmp_path), *words]) == 2
    assert named in capsys.readouterr().err


# 13. Ctrl-C ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False])
def test_ctrl_c_says_where_it_stopped_and_how_to_go_on(tmp_path, data, stored):
    def interrupt(iteration, run):
        if iteration == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        distill(CONFIG, data, store=tmp_path if stored else None, callback=interrupt)
    said = str(caught.value)
    assert "stopped at iteration 2" in said and ("call again" in said) == stored
    assert caught.value.__suppress_context__ and len(caught.traceback) <= 5


@pytest.mark.parametrize("kept", [True, False])
def test_ctrl_c_says_how_many_nets_are_kept(tmp_path, data, synset, monkeypatch, kept):
    """A real signal while the third of four nets is trained."""
    training, begun = module("training"), []
    real = training.train_nets

    def interrupted(trainings):
        begun.append(1)
        if len(begun) == 3:
            signal.raise_signal(signal.SIGINT)
        real(trainings)

    results = Results(tmp_path) if kept else None
    how = {"n_eval": 2, "epochs": 1, "split": "both", "progress": False}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_nets", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            ddlib.evaluate(synset, data, ["MLP", "LeNet"], results=results, **how)
    signal.signal(signal.SIGINT, before)
    said = str(caught.value)
    assert said.startswith("2 of 4 nets are ") and said.count("\n") == 0
    assert ("kept in results; call again" in said) == kept == ("lost" not in said)
    assert caught.value.__suppress_context__ and len(caught.traceback) <= 5
    assert len(Results(tmp_path).rows()) == (4 if kept else 0)


# 10. What a maintainer found ----------------------------------------------------------------------


def test_a_run_goes_on_with_as_many_threads_as_it_began_with(tmp_path):
    """Sums depend on them, and a study's last set is left alone with all of them."""
    data, begun = make_data(channels=3, side=32), torch.get_num_threads()
    config = ddlib.DistillConfig(iterations=4, width=16, batch_real=12, batch_bn=12)
    try:
        torch.set_num_threads(1)
        whole = distill(config, data, progress=False)
        distill(config, data, store=tmp_path, stop=lambda k: k == 2, progress=False)
        torch.set_num_threads(2)
        seen = []
        resumed = distill(
            config,
            data,
            store=tmp_path,
            progress=False,
            callback=lambda k, run: seen.append(torch.get_num_threads()),
        )
        assert torch.get_num_threads() == 2 and seen == [1, 1]
    finally:
        torch.set_num_threads(begun)
    assert torch.equal(resumed.images, whole.images)


def test_a_preset_of_other_settings_needs_a_name_of_its_own(data):
    """Rows say the config's settings of a preset."""
    preset = ModelPool.preset("main_plus_similar", 0.1, width=4, depth=1, shape=data.shape)
    with refused("main_plus_similar", "other settings", "name of its own"):
        distill(CONFIG, data, pool=preset)
    own = ModelPool(preset.members, shape=data.shape)
    named = distill(replace(CONFIG, iterations=1), data, pool=own, progress=False)
    assert named.config["pool"] == "custom"
    agreed = replace(CONFIG, main_prob=0.1, iterations=1)
    same = distill(agreed, data, pool=preset, progress=False)
    assert torch.equal(
        same.images,
        distill(replace(agreed, pool="main_plus_similar"), data, progress=False).images,
    )


class Around(torch.nn.Module):
    """A net that builds one of ddlib's within."""

    def __init__(self, channels, side, classes):
        super().__init__()
        shape = {"channels": channels, "side": side, "classes": classes}
        self.body = ddlib.build_net("MLP", stream(0, "body"), **shape)

    def forward(self, x):
        return self.body(x)


def test_a_net_may_build_a_net(data, synset):
    found = evaluate(synset, data, **(EVAL | {"nets": [Around]}))
    assert found["accuracy"].between(0, 100).all()


@pytest.mark.parametrize("command", [["work", "--part", "full_data"], []])
def test_a_place_that_cannot_be_written_to_is_found_out_before_any_work(
    command, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(module("training"), "train_nets", None)
    (tmp_path / "file").write_text("")
    where = "--store" if command else "--out"
    place = str(tmp_path / "file" / "store")
    assert launcher.main([*command, where, place, *(["--profile", "quick"])]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and "cannot write" in said.err and len(said.err) < 300
    assert "failed" not in said.out


def test_all_settings_of_a_study_lie_beside_its_results(tmp_path):
    study = Study("quick", {"iterations": np.int64(5)}, out=tmp_path, progress=False)
    study.begin()
    path = study.runs / "settings.json"
    about, written = json.loads(path.read_text()), path.stat().st_mtime_ns
    assert about["iterations"] == 5 and about["name"] == "quick" and about["dataset"] == "digits"
    study.begin()
    assert path.stat().st_mtime_ns == written


def test_an_extra_named_twice_is_refused():
    with refused("extras", "metadd", "once"):
        ddlib.DistillConfig(**SMALL, extras=("metadd", "metadd"))


def test_what_json_cannot_hold_is_refused(tmp_path, synset):
    with refused("JSON", "float32"):
        replace(synset, recipe={"lrs": [np.float32(0.1)]}).save(tmp_path / "set")


def test_a_protocol_may_give_its_outputs_as_a_list(data, synset):
    def loss(outputs, labels, targets, config, epoch):
        return torch.nn.functional.cross_entropy(outputs[0], labels)

    own = ddlib.Protocol("listed", "never", loss, forward=lambda net, x, *_: [net(x), x.mean()])
    found = evaluate(synset, data, protocol=own, **EVAL)
    assert found["accuracy"].between(0, 100).all()


def test_a_folder_is_named_with_what_follows_its_dot(tmp_path):
    """CIFAR-10.1 is another test set than CIFAR-10."""
    for split, label in itertools.product(("train", "test"), ("cat", "dog")):
        folder = tmp_path / "cifar10.1" / split / label
        folder.mkdir(parents=True)
        for k in range(3):
            Image.fromarray(np.full((8, 8, 3), 50 * k, np.uint8)).save(folder / f"{k}.png")
    assert load_data(tmp_path / "cifar10.1", side=32, val_fraction=0).name == "cifar10.1"
