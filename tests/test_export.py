"""Sets as others read them: each export is opened by its reader, and by `load_synset`."""

import csv
import hashlib
import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import refused, study_rows
from scipy import stats
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ddlib import SyntheticSet, load_synset
from ddlib.datasets import CIFAR10, CIFAR10_CLASSES
from ddlib.exchange.export import export
from ddlib.exchange.ranking import dd_ranking


@pytest.fixture
def one():
    """Two images a class, some of whose pixels lie outside [0, 1], with all that a set may have."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(20, 3, 32, 32, generator=generator), torch.arange(10)
    soft = torch.randn(20, 10, generator=generator)
    about = (*CIFAR10, CIFAR10_CLASSES, "cifar10")
    config = {"ipc": 2, "method": "dc", "pool": "main"}
    more = {"config": config, "soft_labels": soft, "lr": 1 / 64, "recipe": {"epochs": 300}}
    return SyntheticSet(images, labels.repeat_interleave(2), *about, **more)


@pytest.fixture
def hard(one):
    return replace(one, soft_labels=None, lr=None)


def opened(path):
    return torch.load(path, weights_only=True)


def test_dc_is_what_dcs_code_reads(tmp_path, hard):
    [path] = export(hard, tmp_path, "dc")
    assert path.name == "res_cifar10_2ipc.pt"
    images, labels = opened(path)["data"][-1]
    assert torch.equal(images, hard.images) and torch.equal(labels, hard.labels)
    assert load_synset(path).id == hard.id


def test_mtt_is_what_mtts_code_reads(tmp_path, one, hard):
    paths = export(one, tmp_path / "soft", "mtt")
    assert sorted(p.name for p in paths) == ["images_best.pt", "labels_best.pt", "lr_best.pt"]
    images, logits, lr = (opened(p) for p in sorted(paths))
    assert torch.equal(images, one.images) and torch.equal(logits, one.soft_labels)
    assert lr.shape == () and float(lr) == one.lr
    again = load_synset(tmp_path / "soft", space="normalised")
    assert torch.equal(again.soft_labels, one.soft_labels) and again.lr == one.lr
    assert torch.equal(again.images, one.images) and again.soft_kind == "logits"
    paths = export(hard, tmp_path / "hard", "mtt")
    assert [p.name for p in paths] == ["images_best.pt", "labels_best.pt"]
    assert load_synset(tmp_path / "hard", space="normalised").id == hard.id


def test_probabilities_leave_as_logits_of_the_same_softmax(tmp_path, one):
    sharp = torch.eye(10).repeat_interleave(2, 0)  # with zeros
    probabilities = replace(one, soft_labels=sharp, soft_kind="probabilities")
    export(probabilities, tmp_path, "mtt")
    again = load_synset(tmp_path, space="normalised")
    assert again.soft_kind == "logits" and torch.isfinite(again.soft_labels).all()
    torch.testing.assert_close(again.targets(), sharp)


def test_whitened_images_leave_where_they_can(tmp_path, hard):
    white = replace(hard, space="zca")
    export(white, tmp_path / "mtt", "mtt")
    assert load_synset(tmp_path / "mtt", space="zca").id == white.id
    for format in ("dc", "hugging-face"):
        with refused("whitened", format, "mtt"):
            export(white, tmp_path / "no", format)
    assert not (tmp_path / "no").exists()
    export(white, tmp_path / "ranking", "dd-ranking")
    assert yaml.safe_load((tmp_path / "ranking" / "config.yaml").read_text())["use_zca"] is True


@pytest.mark.parametrize("format", ["dc", "mtt"])
def test_a_part_of_a_larger_tensor_leaves_alone(tmp_path, hard, format):
    images = hard.images.repeat(50, 1, 1, 1)[:20]
    paths = export(replace(hard, images=images), tmp_path, format)
    assert sum(path.stat().st_size for path in paths) < 2 * hard.images.numel() * 4


def test_soft_labels_do_not_fit_into_dc(tmp_path, one):
    with refused("soft labels", "mtt, dd-ranking"):
        export(one, tmp_path, "dc")


def test_an_unknown_format_is_refused(tmp_path, one):
    with refused("'hf'", "dc, mtt, dd-ranking, hugging-face"):
        export(one, tmp_path, "hf")


# DD-Ranking ---------------------------------------------------------------------------------------


def test_dd_ranking(tmp_path, one):
    """Sorted by class, logits in the same order, every key that its code looks up."""
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    parts = {name: getattr(one, name)[order] for name in ("images", "labels", "soft_labels")}
    export(replace(one, **parts), tmp_path, "dd-ranking")
    images, labels, lr = (opened(tmp_path / f"{n}.pt") for n in ("images", "labels", "lr"))
    for k in range(10):  # within a class any order
        rows = slice(2 * k, 2 * k + 2)
        same = images[rows].flatten(1) @ one.images[rows].flatten(1).T > 2000
        assert same.sum(0).tolist() == same.sum(1).tolist() == [1, 1]
        assert torch.equal(labels[rows], same.float() @ one.soft_labels[rows])
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (float(lr), config["default_lr"], config["soft_label_mode"]) == (1 / 64, 1 / 64, "S")
    expected = {"dataset": "CIFAR10", "ipc": 2, "im_size": [32, 32], "model_name": "ConvNet-3"}
    expected |= {"optimizer": "sgd", "step_size": 500, "num_epochs": 1000, "weight_decay": 5e-4}
    expected |= {"momentum": 0.9, "eval_full_data": True, "dist": False, "use_zca": False}
    expected |= {"custom_train_trans": None, "custom_val_trans": None}
    assert {name: config[name] for name in expected} == expected
    assert load_synset(tmp_path / "images.pt", space="normalised").lr == one.lr


def test_dd_ranking_of_hard_labels(tmp_path, hard):
    export(hard, tmp_path, "dd-ranking")
    labels = opened(tmp_path / "labels.pt")
    assert labels.dtype == torch.int64 and torch.equal(labels, hard.labels)
    assert not (tmp_path / "lr.pt").exists()
    assert "soft_label_mode" not in (tmp_path / "config.yaml").read_text()


def test_numbers_are_written_as_float32(tmp_path, one):
    wide = replace(one, images=one.images.double(), soft_labels=one.soft_labels.double())
    for kind, name in (("mtt", "images_best.pt"), ("dd-ranking", "labels.pt")):
        export(wide, tmp_path, kind)
        assert opened(tmp_path / name).dtype == torch.float32


def test_dd_ranking_needs_a_known_data_set_and_equal_classes(tmp_path, hard):
    with refused("'mine'", "cifar10, cifar100"):
        export(replace(hard, dataset="mine"), tmp_path, "dd-ranking")
    short = replace(hard, images=hard.images[1:], labels=hard.labels[1:])
    with refused("[1, 2, 2", "equally many"):
        export(short, tmp_path, "dd-ranking")


# Hugging Face -------------------------------------------------------------------------------------


def test_hugging_face_images_are_those_of_the_set(tmp_path, one):
    """By torchvision's ImageFolder, by our reader of folders, and by metadata.csv."""
    export(one, tmp_path)
    expected = one.images01()
    seen = ImageFolder(tmp_path / "data" / "train", transforms.ToTensor())
    assert [label for _, label in seen] == one.labels.tolist()
    assert (torch.stack([image for image, _ in seen]) - expected).abs().max() <= 0.5 / 255 + 1e-6
    own = load_synset(tmp_path / "data" / "train")
    assert torch.equal(own.labels, one.labels) and own.classes == one.classes
    assert (own.images01() - expected).abs().max() <= 0.5 / 255 + 1e-6
    with open(tmp_path / "data" / "train" / "metadata.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    names = [str(path).split("data/train/")[1] for path, _ in seen.samples]
    assert [line["file_name"] for line in lines] == names
    assert [int(line["label"]) for line in lines] == one.labels.tolist()
    assert lines[2]["class"] == "automobile"


def test_hugging_face_folder_holds_the_set_itself(tmp_path, one):
    export(one, tmp_path)
    again = load_synset(tmp_path)
    assert again.id == one.id and (again.lr, again.recipe) == (one.lr, one.recipe)


def test_the_card_says_what_eight_bits_lose(tmp_path, one):
    export(one, tmp_path, license="mit")
    text = (tmp_path / "README.md").read_text()
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()
    about = yaml.safe_load(front)
    assert about["license"] == "mit" and about["task_categories"] == ["image-classification"]
    assert about["pretty_name"] == "cifar10, 2 images per class (dc, main)"
    assert about["size_categories"] == ["n<1K"] and "dataset-distillation" in about["tags"]
    [place] = about["configs"][0]["data_files"]
    assert sorted((tmp_path).glob(place["path"] + "/*.png")) and place["split"] == "train"
    mean, std = (np.array(v).reshape(3, 1, 1) for v in CIFAR10)
    pixels = one.images.numpy() * std + mean
    outside = 100 * ((pixels < 0) | (pixels > 1)).mean()
    rms = np.sqrt((np.clip(pixels, 0, 1) - pixels).__pow__(2).mean())
    said = re.search(r"([\d.]+)% of the pixel values lie outside", body)
    assert outside > 1 and float(said[1]) == pytest.approx(outside, abs=0.06)
    said = re.search(r"differ from the set\nby ([\d.]+) ", body)
    assert float(said[1]) == pytest.approx(rms, abs=0.002)
    assert one.id in body and "0.015625" in body and "soft_labels" in body and '"main"' in body


def test_croissant_names_files_that_are_there(tmp_path, one):
    export(one, tmp_path)
    about = json.loads((tmp_path / "croissant.json").read_text())
    assert about["@type"] == "sc:Dataset" and about["conformsTo"].endswith("croissant/1.0")
    for part in about["distribution"]:
        content = (tmp_path / part["contentUrl"]).read_bytes()
        assert part["sha256"] == hashlib.sha256(content).hexdigest()
    [records] = about["recordSet"]
    table = pd.read_csv(tmp_path / "data" / "train" / "metadata.csv")
    assert [f["source"]["extract"]["column"] for f in records["field"]] == list(table)
    known = {part["@id"] for part in about["distribution"]}
    assert {f["source"]["fileObject"]["@id"] for f in records["field"]} <= known


def test_a_set_without_a_normalisation_has_no_pictures(tmp_path, hard):
    with refused("normalisation", "unknown"):
        export(replace(hard, mean=None, std=None), tmp_path)


# DD-Ranking's scores ------------------------------------------------------------------------------


def rows_of(accuracy, **options):
    return study_rows({("main", "CE"): accuracy}, ("ConvNet", "MLP"), **options)


def values(scores, net="ConvNet"):
    return scores[scores["net"] == net].set_index("score")[["mean", "low", "high"]].T.to_dict()


def test_scores_by_hand():
    """Without spread: 80, 50 and 30 % give HLR 30, IOR 20 and, half and half, alpha -0.05."""
    full, own, random = (rows_of(lambda *_, a=a: a) for a in (80.0, 50.0, 30.0))
    found = values(dd_ranking(full, own, random))
    lrs = (math.exp(-0.05) - math.exp(-1)) / (math.e - math.exp(-1))
    for score, value in (("HLR", 30.0), ("IOR", 20.0), ("LRS", lrs)):
        assert found[score] == pytest.approx(dict.fromkeys(("mean", "low", "high"), value))
    found = values(dd_ranking(full, own, random, weight=1.0))
    assert found["LRS"]["mean"] == pytest.approx(
        (math.exp(0.2) - 1 / math.e) / (math.e - 1 / math.e)
    )


def test_the_best_and_the_worst_score():
    full, none = (rows_of(lambda *_, a=a: a) for a in (100.0, 0.0))
    assert values(dd_ranking(full, full, none, weight=1.0))["LRS"]["mean"] == pytest.approx(1)
    assert values(dd_ranking(full, none, none, weight=0.0))["LRS"]["mean"] == pytest.approx(0)


def test_the_interval_is_welchs():
    """Against scipy's, of the means of four and three sets."""
    full = rows_of(lambda net, d, e: [90.0, 91.0, 93.0, 90.5][d], seeds=4, n_eval=1)
    own = rows_of(lambda net, d, e: [50.0, 54.0, 49.0][d], seeds=3, n_eval=1)
    random = rows_of(lambda *_: 20.0)
    found = values(dd_ranking(full, own, random))["HLR"]
    test = stats.ttest_ind([90.0, 91.0, 93.0, 90.5], [50.0, 54.0, 49.0], equal_var=False)
    low, high = test.confidence_interval(0.95)
    assert found == pytest.approx({"mean": 91.125 - 51, "low": low, "high": high})


def test_lines_are_those_of_nets_in_common_and_intervals_need_sets():
    full, own = rows_of(80.0), rows_of(50.0)
    random = study_rows({("main", "CE"): 20.0}, ("MLP", "LeNet"), seeds=1, n_eval=1)
    scores = dd_ranking(full, own, random)
    assert scores["net"].tolist() == ["MLP"] * 3 and scores["n"].tolist() == ["2×2, 2×2, 1×1"] * 3
    assert scores.set_index("score")["low"].isna().to_dict() == {
        "HLR": False,
        "IOR": True,
        "LRS": True,
    }
    with refused("no net in common"):
        dd_ranking(full[full["net"] == "ConvNet"], own, random)
