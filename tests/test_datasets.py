"""Data sets by name, read from small imitations of their published files; readers from outside."""

import gzip
import hashlib
import pickle
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from conftest import refused
from PIL import Image
from scipy.io import savemat

from ddlib import datasets
from ddlib.data import load_data
from ddlib.datasets import CIFAR10, IMAGENET, MNIST, SVHN, Arrays, register_dataset

CLASSES, TRAIN, TEST = 10, 40, 20
NAMES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]


def numbers(n, *shape, seed=0):
    """uint8 [n, *shape] images and labels 0, 1, ..., 9, 0, ... as a list."""
    images = np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.uint8)
    return images, [k % CLASSES for k in range(n)]


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(array):
    """An array in the IDX format of MNIST: magic, sizes, bytes."""
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim)
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(root, monkeypatch, kind, compressed=False):
    """The four files of MNIST or Fashion-MNIST; gives the pixels [N, 1, 28, 28] of both parts."""
    folder, parts, resources = root / kind / "raw", [], []
    folder.mkdir(parents=True)
    for part, n in (("train", TRAIN), ("t10k", TEST)):
        images, labels = numbers(n, 28, 28, seed=n)
        parts.append((images[:, None], labels))
        for name, array in (("images-idx3", images), ("labels-idx1", np.uint8(labels))):
            path = folder / f"{part}-{name}-ubyte{'.gz' * compressed}"
            path.write_bytes(gzip.compress(idx(array)) if compressed else idx(array))
            resources.append((f"{part}-{name}-ubyte.gz", md5(path)))
    monkeypatch.setattr(getattr(torchvision.datasets, kind), "resources", resources)
    return parts


def write_svhn(root, monkeypatch):
    """Two .mat files: X [32, 32, 3, N] and y [N, 1], in which 10 stands for the digit 0."""
    parts, split_list = [], {}
    for part, n in (("train", TRAIN), ("test", TEST)):
        images, labels = numbers(n, 32, 32, 3, seed=n)
        parts.append((images.transpose(0, 3, 1, 2), labels))
        path = root / f"{part}_32x32.mat"
        y = np.array([[label or 10] for label in labels], dtype=np.uint8)
        savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": y})
        split_list[part] = ["http://nowhere", path.name, md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", split_list)
    return parts


def write_cifar(root, monkeypatch, kind):
    """Python batches: pickled dicts with data uint8 [N, 3072], channel by channel, and labels."""
    cls, parts = getattr(torchvision.datasets, kind), []
    folder = root / cls.base_folder
    folder.mkdir()
    key, meta = (
        ("fine_labels", "fine_label_names") if kind == "CIFAR100" else ("labels", "label_names")
    )
    lists = {"train_list": ["data_batch_1", "data_batch_2"], "test_list": ["test_batch"]}
    if kind == "CIFAR100":
        lists = {"train_list": ["train"], "test_list": ["test"]}
    for name, files in lists.items():
        images, labels = numbers(
            TRAIN if name == "train_list" else TEST, 3, 32, 32, seed=len(files)
        )
        parts.append((images, labels))
        checked = []
        for rows, file in zip(
            np.array_split(np.arange(len(labels)), len(files)), files, strict=True
        ):
            batch = {"data": images[rows].reshape(len(rows), -1), key: [labels[k] for k in rows]}
            (folder / file).write_bytes(pickle.dumps(batch, protocol=2))
            checked.append([file, md5(folder / file)])
        monkeypatch.setattr(cls, name, checked)
    names = NAMES if kind == "CIFAR10" else [f"fine {k}" for k in range(CLASSES)]
    path = folder / cls.meta["filename"]
    path.write_bytes(pickle.dumps({meta: names}, protocol=2))
    monkeypatch.setattr(cls, "meta", cls.meta | {"md5": md5(path)})
    return parts


WNIDS = ["n03", "n01", "n02"]  # the published list isn't sorted either


def write_tiny_imagenet(root):
    """wnids.txt, train/<wnid>/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt, test/.

    An image is as bright as 60 times the number in its id, or 1 more; one training image is gray.
    """
    (root / "val" / "images").mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    lines = []
    for k, wnid in enumerate(WNIDS * 2):
        pixels = np.full((64, 64, 3), 60 * int(wnid[1:]) + k // 3, np.uint8)
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / f"{wnid}_boxes.txt").write_text(f"{wnid}_{k}.JPEG\t0\t0\t63\t63\n")
        for n in (0, 1):
            image = Image.fromarray(pixels if k or n else pixels[..., 0])
            image.save(folder / f"{wnid}_{2 * k + n}.JPEG")
        Image.fromarray(pixels).save(root / "val" / "images" / f"val_{k}.JPEG")
        lines.append(f"val_{k}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


def check(data, parts, mean, std):
    """The data hold the pixels and labels of the files, normalised as stated."""
    assert (data.mean, data.std) == (mean, std)
    (train, y_train), (test, y_test) = parts
    scale = [torch.tensor(v).view(-1, 1, 1) for v in (mean, std)]
    expected = (torch.tensor(test).float() / 255 - scale[0]) / scale[1]
    assert torch.equal(data.x_test, expected) and data.y_test.tolist() == y_test
    held = torch.cat([data.x_train, data.x_val]) * scale[1] + scale[0]
    labels = torch.cat([data.y_train, data.y_val]).tolist()
    pairs = {
        (x.mul(255).round().byte().numpy().tobytes(), y) for x, y in zip(held, labels, strict=True)
    }
    assert pairs == {(x.tobytes(), y) for x, y in zip(train, y_train, strict=True)}
    assert data.note == ""


@pytest.fixture
def no_network(monkeypatch):
    """Every download fails at once."""

    def fail(*args, **options):
        raise URLError("no network")

    for place in (torchvision.datasets.mnist, torchvision.datasets.cifar):
        monkeypatch.setattr(place, "download_and_extract_archive", fail)
    monkeypatch.setattr(torchvision.datasets.svhn, "download_url", fail)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "kind", "mean_std", "classes"),
    [
        ("mnist", "MNIST", MNIST, tuple("0123456789")),
        ("fashion-mnist", "FashionMNIST", ((0.2861,), (0.3530,)), None),
    ],
)
def test_mnist_files(tmp_path, monkeypatch, name, kind, mean_std, classes):
    parts = write_mnist(tmp_path, monkeypatch, kind)
    data = load_data(name, tmp_path)
    assert data.shape == (1, 28, 10) and data.name == name
    assert data.classes == (classes or tuple(torchvision.datasets.FashionMNIST.classes))
    check(data, parts, *mean_std)


def test_compressed_mnist_files_are_unpacked(tmp_path, monkeypatch):
    """As they are published, .gz: torchvision's own way of unpacking, without the network."""
    parts = write_mnist(tmp_path, monkeypatch, "MNIST", compressed=True)
    check(load_data("mnist", tmp_path), parts, *MNIST)


@pytest.mark.usefixtures("no_network")
def test_svhn_files(tmp_path, monkeypatch):
    parts = write_svhn(tmp_path, monkeypatch)
    data = load_data("svhn", tmp_path)
    assert data.shape == (3, 32, 10) and data.classes == tuple("0123456789")
    check(data, parts, *SVHN)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_files(tmp_path, monkeypatch, name):
    parts = write_cifar(tmp_path, monkeypatch, name.upper())
    data = load_data(name, tmp_path)
    assert data.shape == (3, 32, 10)
    assert data.classes == (
        tuple(NAMES) if name == "cifar10" else tuple(f"fine {k}" for k in range(CLASSES))
    )
    check(data, parts, *CIFAR10)


@pytest.mark.parametrize("folder", ["tiny-imagenet-200", "."])
def test_tiny_imagenet_folder(tmp_path, folder):
    write_tiny_imagenet(tmp_path / folder)
    data = load_data("tiny-imagenet", tmp_path, val_fraction=0.25)
    assert data.shape == (3, 64, 3) and data.classes == ("n01", "n02", "n03")
    assert (data.mean, data.std) == IMAGENET and data.note == ""
    assert data.counts() == [3] * 3 and data.y_test.tolist() == [2, 0, 1] * 2
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in IMAGENET)
    for x, y in (data.split(part) for part in ("train", "val", "test")):
        levels = ((x * std + mean) * 255).mean((1, 2, 3))
        torch.testing.assert_close(levels, 60.0 * (y + 1), atol=2, rtol=0)
    assert load_data("tiny-imagenet", tmp_path, side=32).note == "resized from 64x64 to 32x32"


def test_tiny_imagenet_is_the_same_in_whichever_order_its_files_are_found(tmp_path, monkeypatch):
    def digest(backwards):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "glob", lambda *a: sorted(glob(*a), reverse=backwards))
            return load_data("tiny-imagenet", tmp_path).digest

    write_tiny_imagenet(tmp_path)
    glob = Path.glob
    assert digest(backwards=True) == digest(backwards=False)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / "wnids.txt").unlink(), ("wnids.txt", "tiny-imagenet-200")),
        (lambda root: (root / "val" / "val_annotations.txt").unlink(), ("val_annotations.txt",)),
        (lambda root: (root / "wnids.txt").write_text("n01\nn02\n"), ("damaged", "'n03'")),
        (
            lambda root: (root / "val" / "val_annotations.txt").write_text("val_0.JPEG"),
            ("val_annotations.txt", "damaged"),
        ),
        (lambda root: (root / "val" / "images" / "val_1.JPEG").unlink(), ("val_1.JPEG",)),
        (
            lambda root: (root / "train" / "n02").rename(root / "train" / "n04"),
            ("'n02'", "no training"),
        ),
        (
            lambda root: (root / "train" / "n02" / "images" / "n02_4.JPEG").write_bytes(b"none"),
            ("n02_4.JPEG", "damaged"),
        ),
    ],
)
def test_tiny_imagenet_that_is_not_whole_is_refused(tmp_path, damage, words):
    write_tiny_imagenet(tmp_path)
    damage(tmp_path)
    with refused(*words):
        load_data("tiny-imagenet", tmp_path)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mnist", ("MNIST", "as torchvision names them")),
        ("fashion-mnist", ("FashionMNIST",)),
        ("svhn", ("SVHN",)),
        ("cifar10", ("CIFAR10", "cifar-10-batches-py")),
        ("cifar100", ("CIFAR100", "cifar-100-python")),
    ],
)
def test_without_files_or_network_it_says_what_to_do(tmp_path, name, words):
    with refused(*words, tmp_path, "could not be downloaded", "no network", "--data-root"):
        load_data(name, tmp_path)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("keep", [0, 3, 100])
def test_cut_mnist_file_is_refused(tmp_path, monkeypatch, keep):
    write_mnist(tmp_path, monkeypatch, "MNIST")
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:keep])
    with refused("MNIST is not whole", tmp_path):
        load_data("mnist", tmp_path)


def test_normalisations_are_the_fields():
    """Those of the DC family's get_dataset, digit by digit: published sets live in this space."""
    cifar = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    assert {name: (d.mean, d.std) for name, d in datasets.DATASETS.items()} == {
        "digits": (None, None),
        "mnist": ((0.1307,), (0.3081,)),
        "fashion-mnist": ((0.2861,), (0.3530,)),
        "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
        "cifar10": cifar,
        "cifar100": cifar,
        "tiny-imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }


# From outside -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    registered = dict(datasets.DATASETS)
    for module in ("datasets", "data"):
        monkeypatch.setattr(f"ddlib.{module}.DATASETS", registered)


def stripes(root):
    images, labels = numbers(TRAIN, 28, 28)
    return images, labels, images[:TEST], labels[:TEST]


def test_a_registered_reader_is_loaded_by_name(tmp_path):
    seen = []

    def read(root):
        seen.append(root)
        return stripes(root)

    register_dataset("stripes", read, mean=[0.5], std=[0.2], classes=list("abcdefghij"))
    data = load_data("stripes", tmp_path)
    assert seen == [tmp_path] and data.name == "stripes" and data.classes == tuple("abcdefghij")
    assert (data.mean, data.std) == ((0.5,), (0.2,)) and data.shape == (1, 28, 10)
    images, _, _, _ = stripes(tmp_path)
    expected = torch.tensor(images[:TEST, None]).float() / 255
    assert torch.equal(data.x_test, (expected - 0.5) / 0.2)


def test_what_is_not_stated_comes_from_the_data(tmp_path):
    register_dataset("stripes", lambda root: Arrays(*stripes(root), classes=NAMES))
    data = load_data("stripes", tmp_path)
    assert data.classes == tuple(NAMES) and data.x_train.std().item() == pytest.approx(1, abs=0.05)
    register_dataset("stripes", stripes, side=64)
    again = load_data("stripes", tmp_path)
    assert again.shape[1] == 64 and again.note == "resized from 28x28 to 64x64"
    assert load_data("stripes", tmp_path, side=32).shape[1] == 32


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"side": 48}, ("48", "28, 32, 64, 128")),
        ({"mean": (0.5,) * 3, "std": (0.2,) * 3}, ("'train': 1", "'mean': 3", "'std': 3")),
        ({"mean": (0.5,), "std": (0.2, 0.2)}, ("'mean': 1", "'std': 2")),
        ({"classes": ("a", "b")}, ("0 to 9", "allowed: 0 to 1")),
    ],
)
def test_what_does_not_fit_the_images_is_refused(tmp_path, about, words):
    register_dataset("stripes", stripes, **about)
    with refused(*words):
        load_data("stripes", tmp_path)


def test_the_name_of_one_of_ddlibs_own_is_refused():
    with refused("'cifar10'", "another name"):
        register_dataset("cifar10", stripes)
