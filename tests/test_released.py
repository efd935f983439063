"""The authors' released sets: found by name, checked by hash, never another's in their place."""

import hashlib
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import refused, study_rows

from ddlib.identity import identity_of
from ddlib.report.audit import Scope
from ddlib.report.released import control, released_compatible, released_table
from ddlib.report.selection import images_name
from ddlib.report.sentences import (
    control_sentence,
    half_ce_by_ipc,
    large_gains_sentence,
    other_half_sentence,
)
from ddlib.report.tables import NETS, table
from ddlib.study import released
from ddlib.study.plan import ImageSet
from ddlib.study.released import released_set
from ddlib.study.study import Study


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A file as the authors': three sets, told apart by their pixels, and its hash for theirs."""
    path = tmp_path / "released" / "modelpool_res_DC_CIFAR10_ConvNet_1ipc_3000.pt"
    path.parent.mkdir()
    entries = [[torch.full((10, 3, 32, 32), float(k)), torch.arange(10)] for k in range(3)]
    torch.save({"data": entries, "accs_all_exps": {"MLP": [0.25]}}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(released, "SHA256", released.SHA256 | {path.name: digest})
    return path.parent


def test_entries_are_the_iterations(folder):
    for k, iteration in enumerate((1000, 2000, 3000)):
        synset = released_set(folder, "main_plus_similar", 1, iteration)
        assert synset.iteration == iteration and (synset.images == k).all()
    named = identity_of(synset)
    assert (named["method"], named["pool"], named["seed"]) == (
        "dc-released",
        "main_plus_similar",
        0,
    )
    assert images_name("dc-released", "", named["pool"]) == "released model pool"
    assert synset.provenance["accuracies"] == {"MLP": [25.0]}


def test_another_file_is_refused(folder):
    with refused("no file", "public repository"):
        released_set(folder, "main", 1, 1000)
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes() + b" ")
    with refused("SHA-256"):
        released_set(folder, "main_plus_similar", 1, 1000)
    for pool, ipc, iteration in (("main", 50, 1000), ("main", 1, 500), ("total_random", 1, 1000)):
        with refused("no released set"):
            released_set(folder, pool, ipc, iteration)


def test_a_study_loads_them(folder, tmp_path):
    study = Study("paper", out=tmp_path, data_root=folder.parent)
    images = ImageSet("dc-released", "main_plus_similar", 1, 0, 2000)
    assert study.has(images) and (study.load(images).images == 1).all()


def released_rows(accuracy, arm, iteration):
    """Ten nets on the released baseline set."""
    about = {"method": "dc-released", "iteration": iteration}
    return study_rows({("main", arm): accuracy}, NETS, seeds=1, n_eval=10, **about)


def test_the_table_sets_ours_beside_what_is_printed_and_stored():
    own = study_rows({("main", "CE"): 50.0}, NETS)
    rows = pd.concat(
        [own, released_rows(17.02, "CE", 3000), released_rows(14.0, "½ CE", 1000)],
        ignore_index=True,
    )
    lines = released_table(rows).set_index(["iteration", "accuracy of"])["ResNet18"]
    assert lines.to_dict() == {
        (1000, "printed without KD"): "14.3",
        (1000, "printed with KD"): "18.7",
        (1000, "ours, ½ CE"): "14.4 ± 0.2†",
        (3000, "printed without KD"): "14.3",
        (3000, "printed with KD"): "19.0",
        (3000, "stored, CE"): "19.1",
        (3000, "ours, CE"): "17.5 ± 0.2†",
    }
    assert not table(rows, 4)["images"].str.startswith("released").any()


def test_agreement_is_judged_at_every_iteration_of_the_released_sets_alone():
    rows = pd.concat(
        [study_rows({("main", "CE"): 18.7}, NETS), released_rows(14.0, "½ CE", 2000)],
        ignore_index=True,
    )
    found = released_compatible(rows, Scope((1,), (1000, 2000), ("ResNet18",)))
    assert set(found["iteration"]) == {2000} and set(found["arm"]) == {"½ CE"}
    assert found.set_index("printed")["agrees"].to_dict() == {"baseline": "yes", "KD": "no"}


def test_table_5_is_the_control_of_our_evaluation():
    """It prints 27.24 for MLP and 25.11 for VGG11, plain cross-entropy on the very pool sets."""

    def reached(net, d, e):
        return {"MLP": 27.0, "VGG11": 30.0}[net] + 0.1 * e

    arms_of = {("main_plus_similar", "CE"): reached, ("main_plus_similar", "½ CE"): 1.0}
    rows = study_rows(arms_of, ("MLP", "VGG11"), 1, 5, method="dc-released")
    own = study_rows({("main_plus_similar", "CE"): 1.0}, ("LeNet",), 1, 5)
    found = control(pd.concat([rows, own], ignore_index=True))
    assert found.set_index("net")["agrees"].to_dict() == {"MLP": "yes", "VGG11": "no"}
    text = control_sentence(found)
    assert "agrees for 1 of 2" in text and "not for VGG11 at ipc 1 (printed 25.1, ours 30.2" in text
    assert control_sentence(control(own)) == control_sentence(found.iloc[:0])
    lines = released_table(rows).set_index("accuracy of")
    assert lines.loc["printed in Table 5, CE", "VGG11"] == "25.1"


def test_the_gain_of_a_whole_cross_entropy_beside_that_of_kd_ipc_by_ipc():
    """KD is printed to bring VGG11 −1.3 at ipc 1 and +5.2 at ipc 10, on the baseline's images."""

    def whole(net, d, e):
        return 25.2 + 0.1 * e + 0.02 * (e % 3)

    accuracies = {("main", "CE"): whole, ("main", "½ CE"): lambda net, d, e: 20.0 + 0.1 * e}
    both = [
        study_rows(accuracies, ("VGG11",), 1, 5, method="dc-released", ipc=ipc) for ipc in (1, 10)
    ]
    rows, scope = pd.concat(both, ignore_index=True), Scope((1, 10), (1000,), ("VGG11",))
    text = other_half_sentence(rows, scope)
    assert "At ipc 1 it is not excluded in 0 of 1 cells, but in the others (VGG11, baseline" in text
    assert "sets at ipc 1: +5.2 [" in text and "], printed −1.3). At ipc 10 it is not" in text
    assert "At ipc 10 it is not excluded in 1 of 1 cells. Gains below" in text
    large = large_gains_sentence(rows, scope)  # two more of VGG11, model pool, are printed
    assert large.startswith("Table 4 prints 2 gains by KD of a point or more.")
    assert "half a one as much, within the noise, in 1 (VGG11, baseline sets at ipc 10: " in large
    assert "; another amount in 0; in 0 the interval holds both" in large
    assert large.endswith("; not judged: VGG11, model pool sets at ipc 10.\n")
    wide = rows.assign(accuracy=rows["accuracy"].where(rows["eval_seed"] > 0, 10.0))
    found = large_gains_sentence(wide[wide["ipc"] == 10], scope)
    print(found)
    small = rows[rows["ipc"] == 10].assign(net="MLP")  # KD is printed to bring it +0.6
    assert large_gains_sentence(small, replace(scope, nets=("MLP",))) == ""
    own = rows.assign(method="dc")
    told = half_ce_by_ipc(own, scope)
    for ipc, printed in ((1, "26.5% without KD, 25.2% with"), (10, "30.4% without KD, 35.6% with")):
        start = (
            f"VGG11 reaches, at ipc {ipc}, without any teacher, on baseline images 20.2% with half"
        )
        assert start in told and f"(printed: {printed} it)" in told


def test_the_net_that_is_told_of_is_where_both_differ_most_and_leave_0_out():
    """AlexNet differs most of all, and its interval holds 0."""
    gains = {"MLP": -1.0, "VGG11": -5.0, "AlexNet": 6.0}

    def whole(net, d, e):
        return 20.0 + gains[net] + 0.02 * (e % 3) + 30.0 * (net == "AlexNet") * (e % 2)

    accuracies = {("main", "CE"): whole, ("main", "½ CE"): 20.0}
    rows, scope = study_rows(accuracies, tuple(gains), 1, 5), Scope((1,), (1000,), tuple(gains))
    assert "leave 0 out: VGG11 reaches" in half_ce_by_ipc(rows, scope)
    assert half_ce_by_ipc(rows[rows["net"] == "AlexNet"], scope) == ""
