"""Distilled sets of others, each in a file that is written here in its publisher's layout."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_data, refused
from PIL import Image

import ddlib
from ddlib import SyntheticSet, evaluate, load_synset, random_real
from ddlib.datasets import CIFAR10, CIFAR10_CLASSES
from ddlib.exchange import layouts
from ddlib.exchange.whiten import whitened

MEAN, STD = (torch.tensor(v).view(-1, 1, 1) for v in CIFAR10)
LABELS = torch.arange(10).repeat_interleave(2)
NORMALISED = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PIXELS = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LOGITS = 5 * F.one_hot(LABELS, 10).float() + torch.linspace(0, 1, 10)


def saved(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def mtt(folder, images=NORMALISED, labels=LABELS, name="images_best.pt", **more):
    for part, content in {"labels": labels, **more}.items():
        saved(folder / f"{part}_best.pt", content)
    return saved(folder / name, images)


def same(one, images, labels=LABELS):
    torch.testing.assert_close(one.images, images, rtol=0, atol=2e-6)
    assert torch.equal(one.labels, labels) and one.images.dtype == torch.float32


# Each layout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["auto", "dc"])
def test_dc(tmp_path, layout):
    path = saved(tmp_path / "x.pt", {"data": [[PIXELS, LABELS], [NORMALISED, LABELS]]})
    one = load_synset(path, layout=layout)
    same(one, NORMALISED)
    assert (one.space, one.soft_labels, one.lr, one.provenance["layout"]) == (
        *("normalised", None, None),
        "dc",
    )


@pytest.mark.parametrize("layout", ["auto", "datadam"])
@pytest.mark.parametrize("space", ["normalised", "zca"])
def test_datadam(tmp_path, layout, space):
    path = saved(tmp_path / "syn_data_CIFAR10_ipc_2.pt", {"data": [NORMALISED, LABELS]})
    one = load_synset(path, layout=layout, space=space)
    same(one, NORMALISED)
    assert one.space == space and one.provenance["layout"] == "datadam"
    with refused("syn_data", "space", "normalised, pixels, zca"):
        load_synset(path, layout=layout)


@pytest.mark.parametrize("layout", ["auto", "mtt"])
@pytest.mark.parametrize("place", ["file", "folder"])
def test_mtt(tmp_path, layout, place):
    path = mtt(tmp_path / "run")
    one = load_synset(path if place == "file" else path.parent, layout=layout, space="normalised")
    same(one, NORMALISED)
    assert (one.lr, one.soft_labels, one.config["pool"]) == (None, None, "run")
    with refused("images_best.pt", "space="):
        load_synset(path, layout=layout)


def test_mtt_other_iterations_have_their_own_labels(tmp_path):
    saved(tmp_path / "labels_5000.pt", LABELS.flip(0))
    mtt(tmp_path)
    path = saved(tmp_path / "images_5000.pt", NORMALISED)
    same(load_synset(path, space="normalised"), NORMALISED, LABELS.flip(0))


def test_datm_has_logits_and_a_learning_rate(tmp_path):
    path = mtt(tmp_path, labels=LOGITS, lr=torch.tensor(1 / 128))
    one = load_synset(path, space="zca")
    same(one, NORMALISED)
    assert (one.lr, one.soft_kind, one.space) == (1 / 128, "logits", "zca")
    assert torch.equal(one.soft_labels, LOGITS)
    torch.testing.assert_close(one.targets(), LOGITS.softmax(1))
    assert "lr 0.007812, soft labels (logits), whitened (zca)" in repr(one)


def test_probabilities_are_told_from_logits(tmp_path):
    one = load_synset(mtt(tmp_path, labels=LOGITS.softmax(1)), space="normalised")
    assert one.soft_kind == "probabilities" and one.targets() is one.soft_labels


def test_mtt_unwhitened_images_are_pixels(tmp_path):
    """images_zca_* is what the inverse of the whitening makes of them: not whitened any more."""
    one = load_synset(mtt(tmp_path, PIXELS, name="images_zca_best.pt"))
    same(one, (PIXELS - MEAN) / STD)
    assert one.space == "normalised" and one.mean == CIFAR10[0]


@pytest.mark.parametrize("layout", ["auto", "idc"])
@pytest.mark.parametrize("kind", [list, tuple])
def test_idc(tmp_path, layout, kind):
    one = load_synset(saved(tmp_path / "data.pt", kind((PIXELS, LABELS))), layout=layout)
    same(one, (PIXELS - MEAN) / STD)
    torch.testing.assert_close(one.images01(), PIXELS, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 4])
def test_idc_tiles_become_images(tmp_path, factor):
    """Each tile, cut out by hand and resized alone."""
    one = load_synset(saved(tmp_path / "data.pt", [PIXELS, LABELS]), factor=factor)
    small = 32 // factor
    expected = [
        F.interpolate(
            image[None, :, i * small : (i + 1) * small, j * small : (j + 1) * small],
            size=32,
            mode="bilinear",
        )
        for image in PIXELS
        for i in range(factor)
        for j in range(factor)
    ]
    same(one, (torch.cat(expected) - MEAN) / STD, LABELS.repeat_interleave(factor**2))
    assert one.ipc == 2 * factor**2 and one.provenance["factor"] == factor


def test_tiles_keep_their_soft_labels(tmp_path):
    one = load_synset(mtt(tmp_path, labels=LOGITS), space="normalised", factor=2)
    assert torch.equal(one.soft_labels[4:8], LOGITS[1].expand(4, 10)) and len(one) == 80


@pytest.mark.parametrize("layout", ["auto", "hmdc"])
@pytest.mark.parametrize("factor", [1, 2])
def test_hmdc(tmp_path, layout, factor):
    content = {"synthetic_images": NORMALISED.view(10, 2, 3, 32, 32), "factor": factor, "n_ipc": 2}
    one = load_synset(saved(tmp_path / "img.pt", content), layout=layout)
    assert torch.equal(one.labels, LABELS.repeat_interleave(factor**2))
    if factor == 1:
        same(one, NORMALISED)
    else:
        corner = F.interpolate(NORMALISED[:1, :, :16, 16:], size=32, mode="bilinear")
        torch.testing.assert_close(one.images[1:2], corner)


CHALLENGE_MEAN, CHALLENGE_STD = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)


@pytest.mark.parametrize("layout", ["auto", "eccv2024"])
def test_eccv2024(tmp_path, layout):
    images = torch.randn(1000, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    path, labels = saved(tmp_path / "c100.pt", images), torch.arange(100).repeat_interleave(10)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CHALLENGE_MEAN, CHALLENGE_STD))
    shown = images * std + mean  # in [0, 1]; the data set here is normalised by other numbers
    one = load_synset(path, dataset="cifar100", layout=layout)
    assert one.mean == CIFAR10[0] and one.dataset == "cifar100"
    own_mean, own_std = (torch.tensor(v).view(3, 1, 1) for v in (one.mean, one.std))
    torch.testing.assert_close(one.images * own_std + own_mean, shown)
    assert torch.equal(one.labels, labels) and not torch.allclose(one.images, images, atol=1e-3)
    unknown = load_synset(path, dataset=None, layout=layout)
    same(unknown, images, labels)
    assert (unknown.mean, unknown.std) == (CHALLENGE_MEAN, CHALLENGE_STD)


def folder_of(root, names):
    """Two PNGs of each class; returns their pixels in the order of `names`."""
    shown = np.random.default_rng(0).integers(0, 256, (2 * len(names), 32, 32, 3)).astype(np.uint8)
    for k, image in enumerate(shown):
        (root / names[k // 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / names[k // 2] / f"{k % 2}.png")
    (root / "notes.txt").write_text("no image")
    return torch.from_numpy(shown).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("layout", ["auto", "folder"])
@pytest.mark.parametrize(
    "names",
    [CIFAR10_CLASSES, tuple("0123456789"), [f"n{k:08d}" for k in range(10)]],
    ids=["names", "numbers", "other names"],
)
def test_class_folders(tmp_path, layout, names):
    pixels = folder_of(tmp_path / "syn", names)
    one = load_synset(tmp_path / "syn", layout=layout)
    same(one, (pixels - MEAN) / STD)
    assert one.classes == CIFAR10_CLASSES


def test_folders_of_some_classes_have_the_labels_of_their_names(tmp_path):
    folder_of(tmp_path / "syn", ("dog", "ship"))
    assert load_synset(tmp_path / "syn").labels.tolist() == [5, 5, 8, 8]


def test_numbered_folders_are_in_the_order_of_their_numbers(tmp_path):
    pixels = folder_of(tmp_path / "syn", [str(k) for k in range(12)])
    same(load_synset(tmp_path / "syn", dataset=None), pixels, torch.arange(12).repeat_interleave(2))


def test_folders_of_unknown_classes_name_them(tmp_path):
    pixels = folder_of(tmp_path / "syn", ("cat", "zebra"))
    one = load_synset(tmp_path / "syn", dataset=None)
    same(one, pixels, torch.tensor([0, 0, 1, 1]))
    assert (one.classes, one.mean, one.std) == (("cat", "zebra"), (0.0,) * 3, (1.0,) * 3)
    with refused("cat, zebra", "airplane"):
        load_synset(tmp_path / "syn")


def test_folders_of_which_some_have_known_names_must_all_have_them(tmp_path):
    """In alphabetical order a car would be an automobile, and a plane a horse."""
    names = list(CIFAR10_CLASSES)
    names[:2] = "plane", "car"
    folder_of(tmp_path / "syn", names)
    with refused("car", "airplane"):
        load_synset(tmp_path / "syn")


def test_what_a_layout_has_no_use_for_is_refused(tmp_path):
    path = mtt(tmp_path / "mtt")
    with refused("index is 3", "'mtt'", "'dc'"):
        load_synset(path, index=3, space="normalised")
    own = random_real(make_data(name="digits"), 1, 0).save(tmp_path / "own")
    assert load_synset(own, dataset="digits", space="normalised").dataset == "digits"
    settings = {"index": 0, "factor": 2, "space": "zca", "dataset": "cifar100"}
    for name, value in settings.items():
        with refused(name, "of a set" if name in ("index", "factor") else "of this set", value):
            load_synset(own, **{name: value})


def test_pixels_that_are_named_so_are_no_others(tmp_path):
    """The challenge's sets have a normalisation of their own unless told otherwise."""
    path = saved(tmp_path / "images.pt", PIXELS.repeat(50, 1, 1, 1))
    one = load_synset(path, layout="eccv2024", dataset="cifar100", space="pixels")
    torch.testing.assert_close(one.pixels01(), PIXELS.repeat(50, 1, 1, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("layout", ["auto", "npz"])
def test_npz(tmp_path, layout):
    eight = (PIXELS * 255).byte()
    for name, images in (("chw", eight), ("hwc", eight.permute(0, 2, 3, 1))):
        np.savez(tmp_path / f"{name}.npz", images=images.numpy(), labels=LABELS.numpy())
        one = load_synset(tmp_path / f"{name}.npz", layout=layout)
        same(one, (eight / 255 - MEAN) / STD)
    np.savez(tmp_path / "floats.npz", images=NORMALISED.numpy(), labels=LABELS.numpy())
    same(load_synset(tmp_path / "floats.npz", layout=layout, space="normalised"), NORMALISED)
    with refused("floats.npz", "space="):
        load_synset(tmp_path / "floats.npz", layout=layout)


def test_own_files_and_folders(tmp_path):
    one = load_synset(mtt(tmp_path / "mtt"), space="normalised")
    one.save(tmp_path / "hub" / "set")
    folder_of(tmp_path / "hub" / "images", ("cat",))
    for path in (tmp_path / "hub" / "set.safetensors", tmp_path / "hub"):
        assert load_synset(path).id == load_synset(path, layout="ddlib").id == one.id


# What is refused ----------------------------------------------------------------------------------


def test_images_without_labels_are_ambiguous(tmp_path):
    path = saved(tmp_path / "images_best.pt", NORMALISED)
    with refused("images_best.pt", "layout='mtt'", "labels_best.pt", "layout='eccv2024'"):
        load_synset(path)
    with refused("labels_best.pt"):
        load_synset(path, layout="mtt", space="normalised")
    assert load_synset(path, layout="eccv2024").ipc == 0  # two classes of CIFAR-10


CONTENTS = {
    "dc": {"data": [[NORMALISED, LABELS]]},
    "datadam": {"data": [NORMALISED, LABELS]},
    "idc": [PIXELS, LABELS],
    "hmdc": {"synthetic_images": NORMALISED.view(10, 2, 3, 32, 32)},
    "eccv2024": NORMALISED,
    "mtt": NORMALISED,
    "npz": None,
    "folder": None,
}


@pytest.mark.parametrize("layout", CONTENTS)
@pytest.mark.parametrize("content", ["dc", "idc", "hmdc"])
def test_a_wrong_layout_is_one_line_with_the_valid_ones(tmp_path, layout, content):
    path = saved(tmp_path / "x.pt", CONTENTS[content])
    if layout == content:
        assert len(load_synset(path, layout=layout)) == 20
        return
    with refused("x.pt"):
        load_synset(path, layout=layout, space="normalised")


@pytest.mark.parametrize(
    ("content", "how", "words"),
    [
        ("dc", {"layout": "dm"}, ("layout 'dm'", "auto, ddlib, dc, datadam, mtt, idc")),
        ("dc", {"layout": "idc"}, ("layout 'idc'", "valid layouts: auto, ddlib, dc")),
        ("dc", {"space": "rgb"}, ("space 'rgb'", "normalised, pixels, zca")),
        ("dc", {"factor": 0}, ("factor is 0", "1 to 16")),
        ("dc", {"factor": 3}, ("32 pixels", "no 3 equal parts")),
        ("dc", {"factor": 16, "layout": "datadam"}, ("'datadam'",)),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, content, how, words):
    with refused(*words):
        load_synset(saved(tmp_path / "x.pt", CONTENTS[content]), **how)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([NORMALISED, LABELS], ("pixels from", "not in [0, 1]", "space=")),
        (NORMALISED[:7], ("images alone", "eccv2024")),
        ({"state_dict": {}}, ("dict of state_dict", "valid layouts", "hmdc")),
        ({"data": [NORMALISED, LABELS[:5]]}, ("datadam", "labels [5]", "[N, classes]")),
        ({"data": [NORMALISED, LABELS + 0.5]}, ("no integers",)),
        ({"data": [NORMALISED, LABELS.view(20, 1, 1)]}, ("no integers",)),
        ({"data": [NORMALISED, LOGITS / 0]}, ("not finite",)),
        ({"data": [NORMALISED * 1e9, LABELS]}, ("beyond 1000",)),
        ({"synthetic_images": NORMALISED}, ("hmdc",)),
        ({"synthetic_images": NORMALISED.view(10, 2, 3, 32, 32), "factor": 10**9}, ("numbers",)),
    ],
)
def test_contents_that_cannot_be_right_are_one_line(tmp_path, content, words):
    with refused("x.pt", *words):
        load_synset(saved(tmp_path / "x.pt", content))


def test_a_list_beyond_pixels_is_read_if_its_space_is_named(tmp_path):
    path = saved(tmp_path / "x.pt", [NORMALISED, LABELS])
    same(load_synset(path, space="normalised"), NORMALISED)


def test_a_factor_other_than_the_files_is_refused(tmp_path):
    content = CONTENTS["hmdc"] | {"factor": 2}
    with refused("factor 2", "not 4"):
        load_synset(saved(tmp_path / "x.pt", content), factor=4)


@pytest.mark.parametrize("layout", ["datadam", "idc", "hmdc", "eccv2024", "mtt"])
def test_expanded_tensors_are_refused_before_they_are_read(tmp_path, monkeypatch, layout):
    monkeypatch.setitem(layouts.READERS, layout, None)
    huge = torch.zeros(1).expand(10**8, 3, 32, 32)
    contents = {"datadam": {"data": [huge, LABELS]}, "idc": [huge, LABELS], "mtt": huge}
    contents |= {"hmdc": {"synthetic_images": huge.view(10, 10**7, 3, 32, 32)}, "eccv2024": huge}
    saved(tmp_path / "labels_best.pt", LABELS)
    name = "images_best.pt" if layout == "mtt" else "x.pt"
    with refused(name, "numbers", "allowed"):
        load_synset(saved(tmp_path / name, contents[layout]), layout=layout)


def test_a_folder_without_images_is_refused(tmp_path):
    with refused("valid layouts"):
        load_synset(tmp_path)
    folder_of(tmp_path, ("a", "b"))
    Image.new("RGB", (16, 16)).save(tmp_path / "b" / "9.png")
    with refused("9.png", "another size"):
        load_synset(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text"])
def test_damaged_npz_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with refused("x.npz", "npz"):
        load_synset(tmp_path / "x.npz")


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_npz_of_objects_is_refused_and_not_executed(tmp_path):
    evil = np.array([Evil(f"echo > {tmp_path}/executed")], object)
    np.savez(tmp_path / "x.npz", images=evil, labels=np.arange(1))
    with refused("x.npz", "npz"):
        load_synset(tmp_path / "x.npz")
    assert os.listdir(tmp_path) == ["x.npz"]


# What a set carries -------------------------------------------------------------------------------


@pytest.fixture
def tiny():
    """Data of three classes, and a set of six of its images with soft labels that are not hard."""
    data = make_data(channels=3, side=32)
    one = random_real(data, 2, 0)
    soft = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    return data, replace(one, soft_labels=soft, lr=0.02, recipe={"epochs": 3})


def test_a_set_with_everything_survives_a_file(tmp_path, tiny):
    one = replace(tiny[1], space="zca")
    two = SyntheticSet.load(one.save(tmp_path / "set"))
    assert torch.equal(two.soft_labels, one.soft_labels) and two.id == one.id
    for name in ("space", "soft_kind", "lr", "recipe"):
        assert getattr(two, name) == getattr(one, name)


def test_a_set_without_them_is_saved_as_before(tmp_path, tiny):
    """Byte for byte the header of yesterday's files, which load as they did."""
    one = replace(tiny[1], soft_labels=None, lr=None, recipe={})
    info = one.save(tmp_path / "set").with_suffix(".json").read_text()
    assert [k for k in ("space", "soft_kind", "lr", "recipe") if f'"{k}"' in info] == []
    assert SyntheticSet.load(tmp_path / "set").space == "normalised"


def test_ids_tell_soft_labels_and_spaces_apart(tiny):
    one = tiny[1]
    plain = replace(one, soft_labels=None)
    sets = [plain, one, replace(plain, space="zca")]
    sets += [replace(one, soft_labels=one.soft_labels + 1e-6)]
    sets += [
        replace(one, soft_labels=one.targets(), soft_kind=k) for k in ("logits", "probabilities")
    ]
    assert len({s.id for s in sets}) == 6
    assert replace(plain, lr=0.5, recipe={"a": 1}).id == plain.id


def test_the_id_of_a_set_without_them_is_what_it_was():
    one = SyntheticSet(
        torch.arange(12.0).view(2, 1, 2, 3), torch.tensor([0, 1]), None, None, ("a", "b"), "x"
    )
    assert one.id == "c4f489dfd0fa"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"soft_labels": torch.zeros(6, 4)}, ("[6, 4]", "[6, 3]")),
        ({"soft_labels": torch.full((6, 3), torch.inf)}, ("finite",)),
        ({"soft_labels": torch.ones(6, 3), "soft_kind": "probabilities"}, ("sum to 1",)),
        ({"soft_kind": "odds"}, ("'odds'", "logits, probabilities")),
        ({"space": "pixels"}, ("'pixels'", "normalised, zca")),
        ({"lr": "fast"}, ("lr is 'fast'",)),
    ],
)
def test_what_a_set_cannot_carry_is_refused(tiny, changes, words):
    with refused(*words):
        replace(tiny[1], **changes)


def test_soft_labels_move_with_the_set_and_pictures_do_without(tiny):
    """The picture of the first ten of each class."""
    plain = random_real(tiny[0], 12, 0)
    one = replace(plain, soft_labels=torch.zeros(36, 3))
    assert one.thumbnails() == plain.thumbnails()
    double = replace(one, images=one.images.double(), soft_labels=one.soft_labels)
    assert double.soft_labels.dtype == torch.float64 and one.to("cpu").id == one.id


def test_ce_trains_on_soft_labels(tiny, trainings):
    """On their probabilities, whichever kind they are; other labels give other nets."""
    data, one = tiny
    how = {"n_eval": 1, "epochs": 3, "width": 4, "progress": False}
    evaluate(one, data, **how)
    evaluate(replace(one, soft_labels=one.targets(), soft_kind="probabilities"), data, **how)
    evaluate(replace(one, soft_labels=None), data, **how)
    first, second, hard = ([*t.net.parameters()] for t in trainings)
    torch.testing.assert_close(trainings[0].targets, one.soft_labels.softmax(1))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first, second, strict=True))
    assert not torch.allclose(first[-1], hard[-1], atol=1e-4)


def test_rows_of_a_set_with_soft_labels_are_its_own(tiny):
    data, one = tiny
    rows = evaluate([one, replace(one, soft_labels=None)], data, n_eval=1, epochs=1, width=4)
    assert rows["set"].nunique() == 2


@pytest.mark.parametrize("protocol", ["kd", "authors-2023", "elf", "kd-real"])
def test_protocols_without_a_use_for_soft_labels_refuse_them(tiny, protocol):
    data, one = tiny
    with refused(protocol, "soft labels", "valid: ce", "soft_labels=None"):
        evaluate(one, data, protocol=protocol)


def test_soft_labels_of_other_classes_are_refused(tiny):
    with refused("3 classes", "the data 4"):
        evaluate(tiny[1], make_data(classes=4, channels=3, side=32))


def test_the_learning_rate_counts_only_if_asked_for(tiny):
    data, one = tiny
    how = {"n_eval": 1, "epochs": 1, "width": 4, "progress": False}
    assert evaluate(one, data, **how)["lr"].tolist() == [0.01]
    assert evaluate(one, data, lr=one.lr, **how)["lr"].tolist() == [0.02]


# Whitening ----------------------------------------------------------------------------------------


def test_whitening_by_hand():
    """(x - m) (S + eps)^-1/2 of pixels in [0, 1], with m and S of the training images alone."""
    data = make_data(side=28, per_class=300)
    x = (data.x_train * 0.25 + 0.5).flatten(1).double().numpy()
    test = (data.x_test * 0.25 + 0.5).flatten(1).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False) + 0.1 * np.eye(784))
    transform = vectors @ np.diag(values**-0.5) @ vectors.T
    white = whitened(data)
    for own, given in ((white.x_train, x), (white.x_test, test)):
        expected = ((given - x.mean(0)) @ transform).reshape(own.shape)
        np.testing.assert_allclose(own.numpy(), expected, atol=2e-5)
    assert (white.space, white.mean, white.std) == ("zca", (0.0,), (1.0,))
    assert "zca, eps 0.1" in white.note and torch.equal(white.y_train, data.y_train)


def test_whitened_pixels_are_uncorrelated():
    covariance = torch.cov(whitened(make_data(per_class=2000, side=28), 1e-6).x_train.flatten(1).T)
    assert (covariance - torch.eye(784)).abs().max() < 1e-3


def test_whitened_data_are_known_by_what_they_are_made_of():
    data = make_data()
    white, again, other = whitened(data), whitened(data), whitened(data, 0.2)
    assert white.content == again.content != other.content and white.content != data.content
    assert whitened(make_data(seed=1)).content != white.content
    assert white.to("cpu").content == white.content and white.to("cpu").space == "zca"


def test_roundings_of_another_machine_do_not_count(monkeypatch):
    data, exact = make_data(), torch.linalg.eigh
    white = whitened(data)
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: tuple(x * (1 + 1e-6) for x in exact(a)))
    other = whitened(data)
    assert not torch.equal(other.x_train, white.x_train) and other.content == white.content


def test_spaces_must_agree(data, synset):
    one, white = synset, whitened(data)
    with refused("'normalised'", "'zca'", "ddlib.whitened"):
        evaluate(one, white)
    with refused("'zca'", "'normalised'"):
        evaluate(random_real(white, 1, 0), data)
    rows = evaluate(random_real(white, 1, 0), white, n_eval=1, epochs=1, width=4, progress=False)
    assert len(rows) == 1 and not rows["diverged"].any()
    with refused("normalised", "zca"):
        ddlib.nearest(one, white, k=1)
    with refused("whitened already"):
        whitened(white)


def test_what_is_distilled_from_whitened_images_says_so(data):
    config = ddlib.DistillConfig(
        ipc=1, pool="main", iterations=1, width=4, batch_real=2, batch_bn=2, outer=1
    )
    one = ddlib.distill(config, whitened(data), progress=False)
    assert one.space == "zca" and "image/png" not in one._repr_mimebundle_()
    with refused("zca", "cannot be shown"):
        one.images01()


@pytest.mark.parametrize(
    ("scale", "fits"), [(1.0, True), (2.0, True), (255.0, False), (-1.5, False)]
)
def test_pixels_that_cannot_be_are_refused(tmp_path, scale, fits):
    """A learned set may overshoot 0 to 1 a little; bytes and normalised numbers go further."""
    path = tmp_path / "set.pt"
    torch.save([scale * torch.rand(20, 3, 32, 32), torch.arange(10).repeat(2)], path)
    if fits:
        assert len(load_synset(path, space="pixels")) == 20
    else:
        with refused("holds numbers from", "space='pixels' means 0 to 1"):
            load_synset(path, space="pixels")
