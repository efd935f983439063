"""Methods side by side: names, the table, what the pool adds to each, ELF beside its controls."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import ARMS, make_data, study_rows

from ddlib import random_real
from ddlib.report import figures
from ddlib.report.audit import CONTRADICTED, SUPPORTED
from ddlib.report.methods import (
    elf_arms,
    elf_effects,
    extent_table,
    gains_by_seed,
    methods_table,
    ordered,
    pool_effects,
    pool_verdicts,
    renamed,
)
from ddlib.report.publish import rows_of_methods
from ddlib.report.selection import images_name
from ddlib.report.sentences import mean_gains_sentence
from ddlib.study import PROFILES

NETS = ("MLP", "LeNet")


def rows_of(method, accuracies, base="", seeds=3, n_eval=3, augment="", **about):
    """Rows of a method's sets under CE, with a pool each; `about`: columns of the sets."""
    pools = {(pool, "CE"): accuracy for pool, accuracy in accuracies.items()}
    about |= {"method": method, "base": base, "settings": {"augment": augment}}
    return study_rows(pools, NETS, seeds, n_eval, **about)


POOLS_OF_40 = {"main": 40.0, "main_plus_similar": 40.0}


def noisy(level):
    """Sets that differ, and nets that differ by set, so that differences have an interval."""
    return lambda net, d, e: level + d + 0.1 * e + 0.05 * ((3 * d + 2 * e + len(net)) % 4)


def test_what_readers_call_the_images():
    assert images_name("dc", "", "main") == "baseline"
    assert images_name("dm", "", "main") == "DM"
    assert images_name("dm", "", "main_plus_similar") == "DM, model pool"
    assert images_name("metadd", "dm", "main") == "MetaDD on DM"
    assert images_name("herding", "", "") == "herding"
    assert images_name("mine", "", "total_random") == "mine total_random"


def test_tables_list_real_images_first_and_pools_after_their_method():
    names = ["MTT", "mine", "DM, model pool", "MetaDD on DM", "DM", "herding", "DC"]
    expected = ["random real images", "herding", "DC", "DM", "DM, model pool", "MetaDD on DM"]
    assert ordered([*names, "random real images"]) == [*expected, "MTT", "mine"]


def test_pool_effects_are_paired_per_method_and_arm():
    rows = pd.concat(
        [
            rows_of("dc", {"main": noisy(30), "main_plus_similar": noisy(33)}),
            rows_of("dm", {"main": noisy(40), "main_plus_similar": noisy(40.2)}),
            rows_of("dm", {"main": noisy(42), "main_plus_similar": noisy(41)}, augment="dsa"),
        ]
    )
    assert set(renamed(rows)["images"]) == {"DC", "DC, model pool", "DM", "DM, model pool"}
    effects = pool_effects(rows, NETS)
    found = effects.set_index(["method", "arm", "net"])["mean"]
    assert found["DC", "CE", "mean"] == pytest.approx(3)
    assert found["DM", "CE", "LeNet"] == pytest.approx(0.2)
    assert found["DM", "CE, augmented", "MLP"] == pytest.approx(-1)
    verdicts = pool_verdicts(effects).set_index(["method", "trained with"])
    assert verdicts.loc[("DC", "CE"), "verdict"] == SUPPORTED
    assert verdicts.loc[("DM", "CE"), "verdict"] == CONTRADICTED
    assert verdicts.loc[("DM", "CE, augmented"), "verdict"] == CONTRADICTED
    assert (verdicts["measured"] == "2 of 2 nets").all() and (verdicts["n"] == "3×3").all()


def test_sets_of_two_iterations_never_meet_in_a_cell():
    levels = {"main": noisy(40), "main_plus_similar": noisy(44)}
    later = {"main": noisy(45), "main_plus_similar": noisy(43)}
    parts = [rows_of("dm", levels, iteration=2000), rows_of("dm", later, iteration=9000)]
    rows = pd.concat(parts, ignore_index=True)
    table = methods_table(rows)
    assert table["iterations"].tolist() == ["2000", "9000"] * 2 and set(table["n"]) == {"3×3"}
    effects = pool_effects(rows, NETS)
    found = effects[effects["net"] == "mean"].set_index("comparison")["mean"].round(6).to_dict()
    assert found == {"DM, CE, iteration 2000": 4, "DM, CE, iteration 9000": -2}
    verdicts = pool_verdicts(effects).set_index("iterations")["verdict"]
    assert verdicts.to_dict() == {2000: SUPPORTED, 9000: CONTRADICTED}


def test_the_mean_gain_of_every_method_is_one_sentence():
    parts = [rows_of("dm", {"main": 40.0, "main_plus_similar": noisy(44)}, iteration=2000)]
    parts.append(rows_of("dsa", {"main": noisy(40), "main_plus_similar": 40.0}))
    parts.append(rows_of("dsa", {"main": noisy(40), "main_plus_similar": 9.0}, augment="dsa"))
    verdicts = pool_verdicts(pool_effects(pd.concat(parts, ignore_index=True), NETS))
    text = mean_gains_sentence(verdicts)
    start = "What the model pool adds, mean over 2 nets, plain cross-entropy, n 3×3: DSA −0.1 ["
    assert text.startswith(start) and text.count("DSA") == 1
    assert ", DM +4.1 [" in text and text.endswith("(supported).\n")


def test_the_n_of_a_mean_gain_is_that_of_the_nets_it_is_of():
    rows = rows_of("dm", {"main": 40.0, "main_plus_similar": noisy(43)}, seeds=2)
    rows = rows[(rows["net"] != "LeNet") | (rows["eval_seed"] % 1000 == 0)]
    verdicts = pool_verdicts(pool_effects(rows, NETS))
    assert verdicts["n"].tolist() == ["2×1-3"]


def test_how_far_pixels_are():
    one = random_real(make_data(), 2, 3)
    images = one.images.abs() * 0 + torch.linspace(1, 2, len(one)).view(-1, 1, 1, 1)
    images[0, 0, 0, 0] = -4e12
    about = {"method": "dm", "pool": "main", "seed": 3, "options": {"dm_batchnorm": "batch"}}
    pools = [about | {"pool": "main_plus_similar", "options": {"dm_batchnorm": "frozen"}}, about]
    table = extent_table([replace(one, images=images, config=config) for config in pools])
    sizes = {"seed": 3, "median": "1.6", "largest": "4e+12"}
    assert table.to_dict("records") == [
        {"images": "DM", "batch norm": ""} | sizes,
        {"images": "DM, model pool", "batch norm": "frozen"} | sizes,
    ]


def test_what_the_pool_adds_stands_seed_by_seed():
    """On the sets of each seed alone: five nets on them give an interval, two give none."""
    pools = {"main": 40.0, "main_plus_similar": lambda net, d, e: 43.0 + d + 0.1 * e}
    rows = rows_of("dm", pools, seeds=2, n_eval=5, iteration=2000)
    rows = rows[(rows["net"] == "MLP") | (rows["eval_seed"] % 1000 < 2)]
    found = gains_by_seed(rows, (*NETS, "VGG11"))
    assert found["seed"].tolist() == [0, 1] and set(found["trained with"]) == {"CE"}
    assert found["MLP"].str[:5].tolist() == ["+3.0 "] * 2 and "[" in found["MLP"].iloc[0]
    assert found["LeNet"].str.contains("no interval").all() and set(found["VGG11"]) == {""}


def test_without_the_pool_there_is_nothing_to_say_of_it():
    rows = rows_of("dm", {"main": 40.0})
    assert gains_by_seed(rows).empty and "MLP" in gains_by_seed(rows)
    assert mean_gains_sentence(pool_verdicts(pool_effects(rows, NETS))) == ""
    assert figures.effects(pool_effects(rows, NETS), "title") is None
    few = rows_of("dm", POOLS_OF_40).query("net == 'MLP'")
    assert mean_gains_sentence(pool_verdicts(pool_effects(few, NETS))) == ""
    assert figures.effects(elf_effects(rows, NETS), "title") is None


def test_methods_stand_beside_images_that_are_given_at_their_ipc():
    rows = pd.concat(
        [
            rows_of("dm", {"main": 40.0}, ipc=10),
            rows_of("dc", {"main": 50.0}, ipc=10),
            study_rows({("random_real", "CE"): 25.0}, NETS, ipc=10),
            study_rows({("random_real", "CE"): 15.0}, NETS, ipc=1),
            rows_of("dc-released", {"main": 50.0}, ipc=10),
            study_rows({("main", "KD"): 45.0}, NETS, ipc=10, method="dm"),
        ],
        ignore_index=True,
    )
    found = rows_of_methods(rows, PROFILES["paper"])
    assert set(zip(found["method"], found["ipc"], found["protocol"], strict=True)) == {
        ("dm", 10, "ce"),
        ("random_real", 10, "ce"),
    }


def test_a_net_that_lacks_is_said():
    rows = rows_of("dm", {"main": noisy(40), "main_plus_similar": noisy(44)})
    verdicts = pool_verdicts(pool_effects(rows, (*NETS, "VGG11")))
    assert verdicts["measured"].tolist() == ["2 of 3 nets"]
    assert verdicts["verdict"].tolist() != [SUPPORTED]


def test_the_table_has_a_line_per_images_and_arm():
    rows = pd.concat(
        [
            rows_of("dm", {"main": 40.0}),
            rows_of("dm", {"main": 42.0}, augment="dsa"),
            study_rows({("random_real", "CE"): 25.0}, NETS, 3, 3),
        ]
    )
    table = methods_table(rows)
    assert table["trained with"].tolist() == ["CE", "CE", "CE, augmented"]
    assert table["images"].tolist() == ["random real images", "DM", "DM"]
    assert table["MLP"].tolist()[1].startswith("41.1 ±") and (table["n"] == "3×3").all()


def elf_rows():
    """One set, five nets: CE 30, KD 34, ELF 36, without its feature term 33, F untrained 31."""
    arms = {
        "ce": ({}, 30.0),
        "kd-real": ({"feature_epochs": 3}, 34.0),
        "elf": ({"feature_epochs": 3}, 36.0),
        "elf 0": ({"feature_epochs": 3, "lambda_feature": 0.0}, 33.0),
        "elf fresh": ({"feature_epochs": 0}, 31.0),
    }
    parts = []
    for name, (options, accuracy) in arms.items():
        ARMS[name] = (name.split()[0], {})
        own = {"settings": {"augment": "dsa"} | options, "method": "dm"}
        parts.append(study_rows({("main", name): accuracy}, ("VGG11",), 1, 5, **own))
        del ARMS[name]
    return pd.concat(parts, ignore_index=True)


def test_elf_stands_beside_kd_from_the_same_net():
    rows = elf_rows()
    assert elf_arms(rows).groupby("arm")["accuracy"].min().to_dict() == {
        "CE": 30.0,
        "KD from F": 34.0,
        "ELF": 36.0,
        "ELF without its feature term": 33.0,
        "ELF, F untrained": 31.0,
    }
    found = elf_effects(rows, ["VGG11"])
    later = pd.concat([elf_rows(), elf_rows().assign(iteration=9000)], ignore_index=True)
    names = elf_effects(later, ["VGG11"])["comparison"]
    assert {name[-4:] for name in names} == {"1000", "9000"} and len(set(names)) == 10
    own = found[found["net"] == "VGG11"].set_index("comparison")["mean"].round(6).to_dict()
    assert own == {
        "ELF − CE": 6,
        "KD from F − CE": 4,
        "ELF − KD from F": 2,
        "ELF − ELF without its feature term": 3,
        "ELF − ELF, F untrained": 5,
    }
