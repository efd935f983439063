"""Data: shapes, normalisation, splits, sampling; what layouts a user may bring, and mistakes."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_data, refused
from PIL import Image

import ddlib
from ddlib.data import full_real, load_data, random_real
from ddlib.datasets import DATASETS, Dataset
from ddlib.evaluate import evaluate
from ddlib.support.rng import stream

PER_CLASS = 8


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def pixels(n_classes=2, per_class=PER_CLASS, side=32, channels=3, seed=0):
    """uint8 [N, side, side, channels], brighter by class, and labels in mixed order."""
    random = np.random.default_rng(seed)
    labels = np.tile(np.arange(n_classes), per_class)
    images = (
        random.integers(0, 100, (len(labels), side, side, channels))
        + 70 * labels[:, None, None, None]
    )
    return images.astype(np.uint8), labels


def save_npz(path, images, labels, test_images=None, test_labels=None, **more):
    arrays = {
        "x_train": images,
        "y_train": labels,
        "x_test": images if test_images is None else test_images,
        "y_test": labels if test_labels is None else test_labels,
    }
    np.savez(path, **(arrays | more))
    return path


def save_tree(folder, images, labels, classes, suffix="png"):
    for part in ("train", "test"):
        for k, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = folder / part / classes[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{k:03d}.{suffix}")
    return folder


# Digits -------------------------------------------------------------------------------------------


def test_digits_have_the_documented_sizes(digits):
    assert (
        digits.shape == (1, 32, 10)
        and digits.name == "digits"
        and digits.classes == tuple("0123456789")
    )
    assert len(digits.x_train) + len(digits.x_val) + len(digits.x_test) == 1797
    assert torch.bincount(digits.y_test).tolist() == [50] * 10
    assert sum(digits.counts()) == len(digits.x_train) and digits.x_train.dtype == torch.float32


def test_training_images_are_normalised_by_their_own_mean_and_std(digits):
    assert digits.x_train.mean().item() == pytest.approx(0, abs=0.02)
    assert digits.x_train.std().item() == pytest.approx(1, abs=0.02)
    back = digits.x_train * digits.std[0] + digits.mean[0]
    assert back.min() > -1e-5 and back.max() < 1 + 1e-5


def test_splits_are_disjoint_and_together_the_whole(digits):
    prints = [
        {x.numpy().tobytes() for x in digits.split(name)[0]} for name in ("train", "val", "test")
    ]
    train, val, test = prints
    assert not (train & val or train & test or val & test)
    assert [len(p) for p in prints] == [len(digits.x_train), len(digits.x_val), len(digits.x_test)]


def test_validation_takes_its_fraction_of_each_class(digits):
    held_out = torch.bincount(digits.y_val, minlength=10)
    total = held_out + torch.tensor(digits.counts())
    assert held_out.tolist() == [round(0.1 * n) for n in total.tolist()]


def test_training_images_are_sorted_by_class(digits):
    assert torch.equal(digits.y_train, digits.y_train.sort().values)


def test_loading_twice_holds_out_the_same(digits):
    again = load_data("digits")
    assert torch.equal(digits.x_val, again.x_val) and torch.equal(digits.x_train, again.x_train)


def test_a_net_learns_the_digits(digits):
    """Images and labels belong together, in training as in test."""
    rows = evaluate(
        full_real(digits), digits, ["MLP"], n_eval=1, epochs=4, batch=64, progress=False
    )
    assert rows["accuracy"][0] > 85


def test_side_is_resized_to(digits):
    small = load_data("digits", side=28)
    assert small.shape == (1, 28, 10) and len(small.x_train) == len(digits.x_train)
    assert small.note == "resized from 8x8 to 28x28"
    assert digits.note == "resized from 8x8 to 32x32"


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_validation_fraction_is_the_users(fraction):
    data = load_data("digits", val_fraction=fraction)
    assert len(data.x_val) / (len(data.x_val) + len(data.x_train)) == pytest.approx(
        fraction, abs=0.01
    )


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_impossible_validation_fraction_is_refused(fraction):
    with refused("val_fraction", fraction, "0.0 to 0.9"):
        load_data("digits", val_fraction=fraction)


# Sampling -----------------------------------------------------------------------------------------


def test_sample_gives_only_the_class_and_no_image_twice(data):
    own = {x.numpy().tobytes() for x in data.x_train[data.y_train == 1]}
    for k in range(5):
        drawn = [x.numpy().tobytes() for x in data.sample(1, 9, stream(k, "sample"))]
        assert len(set(drawn)) == 9 and set(drawn) <= own


def test_sample_reaches_every_image_of_a_class(data):
    generator = stream(0, "sample")
    drawn = {x.numpy().tobytes() for _ in range(40) for x in data.sample(2, 3, generator)}
    assert drawn == {x.numpy().tobytes() for x in data.x_train[data.y_train == 2]}


def test_sample_of_more_than_a_class_holds_is_refused(data):
    with refused("13", "'b'", "12"):
        data.sample(1, 13, stream(0, "sample"))


def test_to_changes_the_type_of_images_only(data):
    data.sample(0, 1, stream(0, "x"))  # fills a cache that must not travel
    double = data.to(dtype=torch.float64)
    assert (
        double.x_train.dtype == double.x_test.dtype == torch.float64
        and double.y_val.dtype == torch.int64
    )
    assert torch.equal(double.x_val.float(), data.x_val)
    assert double.sample(0, 2, stream(0, "x")).dtype == torch.float64


def test_repr_is_two_lines_that_say_what_the_data_are(data):
    assert repr(data) == (
        "Data('tiny': 1x28x28, 3 classes; 36 train (12 a class), 6 val, 12 test;\n"
        "  mean (0.5,), std (0.25,))"
    )


def test_repr_names_the_smallest_and_the_largest_class(digits):
    counts = digits.counts()
    assert min(counts) < max(counts)
    assert f"({min(counts)} to {max(counts)} a class)" in repr(digits)
    assert repr(digits).endswith("; resized from 8x8 to 32x32)")


def test_digest_follows_training_images_and_labels_and_nothing_else(data):
    other = {
        name: tensor.clone() for name, tensor in vars(data).items() if name[:2] in ("x_", "y_")
    }
    same = replace(data, name="other", note="resized", x_test=data.x_test + 1, y_val=data.y_val * 0)
    other["y_train"][11] = 1
    label = replace(data, y_train=other["y_train"])
    other["x_train"][3, 0, 5, 5] += 1e-6
    pixel = replace(data, x_train=other["x_train"])
    assert len(data.digest) == 64 and data.digest == same.digest
    assert len({data.digest, label.digest, pixel.digest}) == 3
    assert data.to(dtype=torch.float64).digest == data.digest


def test_digest_is_computed_once(data, monkeypatch):
    first = data.digest
    monkeypatch.setattr("ddlib.data.fingerprint", None)
    assert data.digest == first


def test_other_splits_and_mirrors_are_other_data():
    """Rows name a data set of ddlib's own by its name alone only where the split is the usual."""
    usual, other = (ddlib.load_data("digits", val_fraction=part) for part in (0.1, 0.3))
    assert usual.content == "" != other.content
    mirrored = replace(usual, mirrors=not usual.mirrors)
    assert mirrored.content not in ("", replace(usual).content)


def test_a_precision_decides_the_type_of_the_data(data):
    assert data.in_precision("bfloat16") is data
    assert data.in_precision("float64").x_train.dtype == torch.float64
    assert data.to(dtype=torch.bfloat16).in_precision("float32").x_test.dtype == torch.float32


@pytest.mark.parametrize("kind", [">f4", "longdouble", "float16", ">f8"])
def test_npz_of_any_byte_order_and_width(tmp_path, kind):
    arrays = {f"x_{part}": np.full((4, 28, 28), 0.5, kind) for part in ("train", "test")}
    arrays |= {f"y_{part}": np.array([0, 0, 1, 1], ">i2") for part in ("train", "test")}
    np.savez(tmp_path / "mine.npz", **arrays)
    assert ddlib.load_data(tmp_path / "mine.npz").x_train.dtype == torch.float32


@pytest.mark.parametrize(("given", "word"), [(None, "a NoneType"), ((1, 2), "a tuple of 2")])
def test_a_reader_that_gives_no_arrays_is_named(monkeypatch, given, word):
    monkeypatch.setitem(DATASETS, "mine", Dataset(lambda root: given))
    with refused(f"the reader of 'mine' gave {word}", "x_train, y_train, x_test, y_test"):
        ddlib.load_data("mine")


def test_labels_that_are_no_whole_numbers_are_refused(data):
    with refused("y_train is torch.float32", "int64"):
        replace(data, y_train=data.y_train.float())


def test_unknown_split_is_refused(data):
    with refused("'valid'", "did you mean 'val'", "train"):
        data.split("valid")


def test_random_real_takes_ipc_different_images_of_each_class(data):
    one, same, other = (random_real(data, 3, seed) for seed in (0, 0, 1))
    assert one.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and one.ipc == 3
    for c in range(3):
        own = {x.numpy().tobytes() for x in data.x_train[data.y_train == c]}
        drawn = {x.numpy().tobytes() for x in one.images[one.labels == c]}
        assert len(drawn) == 3 and drawn <= own
    assert one.id == same.id != other.id
    assert (
        one.config == {"ipc": 3, "method": "random_real", "pool": "", "seed": 0}
        and one.dataset == data.name
    )


@pytest.mark.parametrize("ipc", [0, 13])
def test_random_real_of_an_impossible_ipc_is_refused(data, ipc):
    with refused(f"ipc is {ipc}", "1 to 12", "'a'"):
        random_real(data, ipc, 0)


def test_full_real_is_all_training_images(data):
    whole = full_real(data)
    assert torch.equal(whole.images, data.x_train) and torch.equal(whole.labels, data.y_train)
    assert whole.config["method"] == "full_data"


# A user's own arrays ------------------------------------------------------------------------------

LAYOUTS = {
    "uint8 NHWC": lambda x: x,
    "uint8 NCHW": lambda x: x.transpose(0, 3, 1, 2),
    "float32 NHWC": lambda x: x.astype(np.float32) / 255,
    "float64 NCHW": lambda x: x.transpose(0, 3, 1, 2) / 255,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_npz_layouts_give_the_same_data(tmp_path, layout):
    images, labels = pixels()
    data = load_data(save_npz(tmp_path / "mine.npz", LAYOUTS[layout](images), labels))
    assert data.shape == (3, 32, 2) and data.name == "mine" and data.classes == ("0", "1")
    expected = torch.tensor(images.transpose(0, 3, 1, 2) / 255, dtype=torch.float32)
    torch.testing.assert_close(
        data.mean, tuple(expected.mean((0, 2, 3)).tolist()), rtol=1e-5, atol=1e-6
    )
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
    torch.testing.assert_close(data.x_test * std + mean, expected, rtol=1e-5, atol=1e-6)
    assert data.y_test.tolist() == labels.tolist()


@pytest.mark.parametrize("float_pixels", [False, True])
@pytest.mark.parametrize("side", [28, 32])
def test_npz_of_gray_images_without_a_channel(tmp_path, side, float_pixels):
    images, labels = pixels(side=side, channels=1)
    images = images[..., 0] / 255 if float_pixels else images[..., 0]
    data = load_data(save_npz(tmp_path / "gray.npz", images, labels))
    assert data.shape == (1, side, 2)
    back = data.x_test[:, 0] * data.std[0] + data.mean[0]
    torch.testing.assert_close(
        back, torch.tensor(images / (1 if float_pixels else 255)).float(), rtol=1e-5, atol=1e-6
    )


def test_labels_stay_with_their_images(tmp_path):
    """Class 1 is brighter by construction, in whichever order and split it comes."""
    data = load_data(save_npz(tmp_path / "mine.npz", *pixels()), val_fraction=0.25)
    for part in ("train", "val", "test"):
        x, y = data.split(part)
        assert ((x.mean((1, 2, 3)) > 0) == (y == 1)).all()
    assert data.counts() == [6, 6] and len(data.x_val) == 4


def test_npz_may_name_its_classes(tmp_path):
    data = load_data(save_npz(tmp_path / "mine.npz", *pixels(), classes=np.array(["cat", "dog"])))
    assert data.classes == ("cat", "dog")


@pytest.mark.parametrize(("side", "asked"), [(40, 32), (32, 28), (28, 32), (20, 64), (64, 128)])
def test_images_are_resized_to_the_side_that_is_asked_for_and_the_data_say_so(
    tmp_path, side, asked
):
    data = load_data(save_npz(tmp_path / "mine.npz", *pixels(side=side)), side=asked)
    assert data.shape[1] == asked == data.x_test.shape[2]
    assert data.note == f"resized from {side}x{side} to {asked}x{asked}"
    assert data.note in repr(data) and data.to(dtype=torch.float64).note == data.note


@pytest.mark.parametrize("side", [28, 32, 64, 128])
@pytest.mark.parametrize("named", [False, True])
def test_images_of_a_side_that_nets_take_are_left_as_they_are(tmp_path, side, named):
    images, labels = pixels(side=side, per_class=2)
    data = load_data(save_npz(tmp_path / "mine.npz", images, labels), side=side if named else None)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
    expected = torch.tensor(images.transpose(0, 3, 1, 2)).float() / 255
    assert torch.equal(data.x_test, (expected - mean) / std) and data.note == ""


@pytest.mark.parametrize(
    ("shape", "test_shape", "words"),
    [
        ((40, 40), (40, 40), ("40x40", "side=", "28, 32, 64, 128")),
        ((32, 28), (32, 28), ("32x28", "side=")),
        ((32, 32), (28, 28), ("28x28, 32x32", "side=")),
    ],
)
def test_images_are_never_resized_without_a_word(tmp_path, shape, test_shape, words):
    images, tests = (np.zeros((4, *size, 3), np.uint8) for size in (shape, test_shape))
    labels = np.array([0, 1, 0, 1])
    path = save_npz(tmp_path / "mine.npz", images, labels, tests, labels)
    with refused(*words):
        load_data(path)
    assert load_data(path, side=32).shape == (3, 32, 2)


def test_validation_holds_out_at_least_one_image_of_a_small_class(tmp_path):
    """A tenth of 4 rounds to 0; the docstring promises one."""
    data = load_data(save_npz(tmp_path / "mine.npz", *pixels(per_class=4)), val_fraction=0.1)
    assert torch.bincount(data.y_val, minlength=2).tolist() == [1, 1]


def test_a_class_of_one_image_keeps_it_for_training(tmp_path):
    data = load_data(save_npz(tmp_path / "mine.npz", *pixels(per_class=1)), val_fraction=0.5)
    assert data.counts() == [1, 1]


IMAGES, LABELS = pixels()
GRAY = IMAGES[..., :1]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ((IMAGES / 127.5 - 1, LABELS), ("pixels", "-1", "0 to 1")),
        ((IMAGES.astype(np.int64), LABELS), ("int64", "uint8", "0 to 1")),
        (
            (np.where(IMAGES[0, 0, 0, 0] == IMAGES, np.nan, IMAGES / 255), LABELS),
            ("pixels", "nan", "0 to 1"),
        ),
        ((IMAGES[0], LABELS), ("y_train", "[16]", "32 images")),
        ((IMAGES[None], LABELS), ("[1, 16, 32, 32, 3]", "[N, C, H, W]")),
        ((IMAGES[:0], LABELS), ("[0,", "N at least 1")),
        ((IMAGES, LABELS[:-1]), ("y_train", "[15]", "16")),
        ((IMAGES, LABELS.astype(float)), ("y_train", "float64", "integers")),
        ((IMAGES, LABELS - 1), ("y_train", "-1 to 0", "0 to")),
        ((IMAGES, LABELS, IMAGES, LABELS + 1), ("y_test", "1 to 2", "0 to 1")),
        ((IMAGES, LABELS, IMAGES, LABELS + 0.5), ("y_test", "float64", "integers")),
        ((IMAGES, LABELS, IMAGES, LABELS[:3]), ("y_test", "[3]", "16")),
        ((IMAGES, LABELS, GRAY, LABELS), ("channels", "'train': 3", "'test': 1")),
        ((IMAGES, LABELS * 2), ("'1'", "no training images")),
        ((IMAGES.astype(str), LABELS), ("<U", "uint8")),
    ],
    ids=[
        "from -1 to 1",
        "integers",
        "nan",
        "one image",
        "5-D",
        "none",
        "labels too few",
        "label floats",
        "negative label",
        "label too large",
        "test label floats",
        "test labels too few",
        "channels differ",
        "empty class",
        "text",
    ],
)
def test_arrays_that_make_no_data_set_are_refused(tmp_path, arrays, words):
    path = save_npz(tmp_path / "mine.npz", *arrays)
    with refused(*words):
        load_data(path)


@pytest.mark.parametrize("classes", [["cat"], ["cat", "dog", "cow"]])
def test_class_names_must_fit_the_labels(tmp_path, classes):
    path = save_npz(tmp_path / "mine.npz", IMAGES, LABELS, classes=np.array(classes))
    with refused("0 to 0" if len(classes) == 1 else "'cow'"):
        load_data(path)


def test_npz_that_lacks_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "mine.npz", x_train=IMAGES, y_train=LABELS)
    with refused("mine.npz", "lacks x_test, y_test", "x_train"):
        load_data(tmp_path / "mine.npz")


def test_pickled_objects_are_refused(tmp_path):
    path = save_npz(tmp_path / "mine.npz", np.array([{"a": 1}], dtype=object), LABELS)
    with refused("mine.npz", "plain arrays"):
        load_data(path)


@pytest.mark.parametrize("damage", ["empty", "text", "half", "flipped", "npy"])
def test_damaged_npz_is_refused(tmp_path, damage):
    path = save_npz(tmp_path / "mine.npz", IMAGES, LABELS)
    content = bytearray(path.read_bytes())
    content[2000] ^= 255
    if damage == "npy":
        with open(path, "wb") as file:
            np.save(file, IMAGES)
    else:
        path.write_bytes(
            {
                "empty": b"",
                "text": b"hello",
                "half": content[: len(content) // 2],
                "flipped": content,
            }[damage]
        )
    with refused("mine.npz", "damaged"):
        load_data(path)
    gc.collect()  # a file left open would warn here


# A tree of images ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "side", "asked"), [(3, 32, None), (1, 32, None), (3, 20, 28)])
def test_image_folder(tmp_path, channels, side, asked):
    images, labels = pixels(side=side, channels=channels)
    tree = save_tree(
        tmp_path / "pets", images if channels == 3 else images[..., 0], labels, ["cat", "dog"]
    )
    data = load_data(tree, side=asked, val_fraction=0.25)
    assert (
        data.shape == (3, asked or 32, 2) and data.classes == ("cat", "dog") and data.name == "pets"
    )
    assert data.note == ("" if side == 32 else "resized from 20x20 to 28x28")
    assert data.counts() == [6, 6] and len(data.x_val) == 4 and len(data.x_test) == 16
    for part in ("train", "val", "test"):
        x, y = data.split(part)
        assert ((x.mean((1, 2, 3)) > 0) == (y == 1)).all()
    if side == 32:
        back = data.x_test[0] * torch.tensor(data.std).view(-1, 1, 1) + torch.tensor(
            data.mean
        ).view(-1, 1, 1)
        expected = torch.tensor(images[0].transpose(2, 0, 1) / 255).float().expand(3, -1, -1)
        torch.testing.assert_close(back, expected, rtol=1e-5, atol=1e-5)


def test_files_of_several_sizes_are_resized_only_when_asked(tmp_path):
    sizes, (images, labels) = [(40, 30), (64, 64), (28, 20), (50, 50)], pixels(side=64)
    tree = save_tree(
        tmp_path / "pets",
        [images[k][: sizes[k % 4][0], : sizes[k % 4][1]] for k in range(len(images))],
        labels,
        ["cat", "dog"],
    )
    with refused("28x20, 40x30, 50x50, ...", "side=", "28, 32, 64, 128"):
        load_data(tree)
    data = load_data(tree, side=32)
    assert (
        data.shape == (3, 32, 2) and data.note == "resized from 28x20, 40x30, 50x50, ... to 32x32"
    )
    for x, y in (data.split("train"), data.split("test")):
        assert ((x.mean((1, 2, 3)) > 0) == (y == 1)).all()


def test_folder_without_test_images_is_refused(tmp_path):
    tree = save_tree(tmp_path / "pets", *pixels(), ["cat", "dog"])
    (tree / "test").rename(tree / "rest")
    with refused("pets", "needed", "test/<class>/"):
        load_data(tree)


def test_hidden_folders_are_no_classes(tmp_path):
    tree = save_tree(tmp_path / "pets", *pixels(), ["cat", "dog"])
    for part in ("train", "test"):
        (tree / part / ".ipynb_checkpoints").mkdir()
        (tree / part / ".ipynb_checkpoints" / "a.png").write_bytes(b"no image")
    assert load_data(tree).classes == ("cat", "dog")


def test_folder_with_an_empty_class_is_refused(tmp_path):
    tree = save_tree(tmp_path / "pets", *pixels(), ["cat", "dog"])
    (tree / "train" / "eel").mkdir()
    with refused("train", "eel", "needed"):
        load_data(tree)


def test_folder_whose_parts_have_other_classes_is_refused(tmp_path):
    tree = save_tree(tmp_path / "pets", *pixels(), ["cat", "dog"])
    (tree / "test" / "dog").rename(tree / "test" / "cow")
    with refused("['cat', 'dog']", "['cat', 'cow']"):
        load_data(tree)


def test_folder_with_a_damaged_image_is_refused(tmp_path):
    tree = save_tree(tmp_path / "pets", *pixels(), ["cat", "dog"])
    (tree / "train" / "cat" / "000.png").write_bytes(b"no image")
    with refused("000.png"):
        load_data(tree)


# Names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imagenet", "missing.npz", "no/such/folder"])
def test_unknown_data_set_is_refused(name):
    with refused(name, "cifar10", "digits", ".npz"):
        load_data(name)


@pytest.mark.parametrize("side", [0, 16, 48])
def test_a_side_that_nets_cannot_take_is_refused(side):
    with refused(side, "28, 32, 64, 128"):
        load_data("digits", side=side)


def test_helper_data_is_what_the_tests_take_it_for():
    data = make_data(classes=4, per_class=5)
    assert data.counts() == [5] * 4 and data.shape == (1, 28, 4)
