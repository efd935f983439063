"""Settings: every profile builds, and a wrong name or value fails at once with what is allowed."""

import json
from dataclasses import field, make_dataclass, replace

import numpy as np
import pytest
import torch
from conftest import refused

from ddlib.config import DistillConfig, EvalConfig, check_known, to_dict
from ddlib.distill import distill
from ddlib.methods import METHODS, Method
from ddlib.methods.distribution import Distribution
from ddlib.methods.gradient import Gradient
from ddlib.pool import ModelPool
from ddlib.run import store_name
from ddlib.study.profiles import PROFILES, get_profile, parse_settings, study_name
from ddlib.support.errors import check_choice, check_range
from ddlib.support.machine import environment, pick_device


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_builds_all_its_configs_and_pools(name):
    profile = get_profile(name)
    for ipc in profile.ipcs:
        for pool in (*profile.pools, "main"):
            config = profile.distill_config(pool, profile.seeds[0], ipc)
            assert (config.ipc, config.pool, config.seed) == (ipc, pool, profile.seeds[0])
            assert max(config.snapshots, default=0) <= config.iterations == profile.iterations
            ModelPool.preset(
                config.pool, config.main_prob, config.width, config.depth, config.width_factor
            )
    assert profile.eval_config().epochs == profile.epochs
    assert profile.note and profile.name == name


def test_paper_profile_is_the_papers():
    distill, evaluate = (
        get_profile("paper").distill_config("main_plus_similar", 0, 10).resolved(),
        get_profile("paper").eval_config(),
    )
    assert (
        distill.width,
        distill.depth,
        distill.main_prob,
        distill.warmup,
        distill.similar_depth,
    ) == (128, 3, 0.9, 0, None)
    assert (distill.batch_real, distill.batch_bn, distill.batch_train) == (256, 16, 256)
    assert (distill.lr_images, distill.momentum_images, distill.lr_net, Gradient.loops(10)) == (
        0.1,
        0.5,
        0.01,
        (10, 50),
    )
    assert (evaluate.epochs, evaluate.lr, evaluate.momentum, evaluate.weight_decay) == (
        301,
        0.01,
        0.9,
        5e-4,
    )
    assert (evaluate.batch, evaluate.alpha, evaluate.tau, evaluate.drop_epoch) == (
        256,
        0.5,
        1.5,
        151,
    )
    assert get_profile("paper").reported == (1000, 2000, 3000) and get_profile("paper").n_eval == 10
    assert set(get_profile("paper").reported) <= set(get_profile("paper").snapshots)


def test_a_profile_can_be_overridden():
    profile = get_profile(
        "quick", {"iterations": 20, "seeds": 5, "ipcs": [1, 2], "tau": 4, "outer": None}
    )
    assert (profile.iterations, profile.seeds, profile.ipcs, profile.tau, profile.outer) == (
        20,
        (5,),
        (1, 2),
        4.0,
        None,
    )
    assert isinstance(profile.tau, float)
    assert PROFILES["quick"].iterations != 20


def test_fewer_iterations_drop_the_snapshots_beyond():
    profile = get_profile("paper", {"iterations": 1500})
    assert profile.distill_config("main", 0).snapshots == (0, 100, 200, 500, 1000)


def test_changes_reach_the_configs():
    profile = get_profile("quick")
    assert profile.distill_config("main", 1, 2, warmup=3, snapshots=()).warmup == 3
    assert profile.eval_config(tau=8.0, epochs=2).tau == 8.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"iteration": 5}, ("'iteration'", "did you mean 'iterations'", "snapshots", "n_eval")),
        ({"name": "mine"}, ("'name'", "dataset")),
        ({"iterations": "x"}, ("iterations is 'x'", "int")),
        ({"iterations": 2.5}, ("iterations is 2.5", "int")),
        ({"iterations": True}, ("iterations is True", "int")),
        ({"alpha": "0.5"}, ("alpha is '0.5'", "float")),
        ({"seeds": ["a"]}, ("seeds is ['a']", "int")),
        ({"nets": ["ConvNet", "lenet"]}, ("'lenet'", "did you mean 'LeNet'", "VGG11")),
        ({"pools": "mian"}, ("'mian'", "did you mean 'main'", "total_random")),
        ({"seeds": []}, ("seeds", "at least one")),
        ({"seeds": [1, 1]}, ("seeds is (1, 1)", "each once")),
        ({"lrs": []}, ("lrs", "at least one")),
        ({"lrs": [0.01, -0.1]}, ("lr is -0.1", "at least 0")),
        ({"later_ipcs": [0]}, ("ipc is 0", "at least 1")),
        ({"ipcs": 0}, ("ipc is 0", "at least 1")),
        ({"ipcs": [1, 0]}, ("0", "at least 1")),
        ({"n_eval": 0}, ("n_eval is 0", "1 to 1000")),
        ({"alpha": 1.5}, ("alpha is 1.5", "0 to 1")),
        ({"tau": 0}, ("tau is 0", "at least")),
        ({"taus": [1.5, 0.0]}, ("tau", "0.0", "at least")),
        ({"main_prob": -0.1}, ("main_prob is -0.1", "0 to 1")),
        ({"main_probs": [0.5, 1.5]}, ("1.5", "0 to 1")),
        ({"seeds": [0, -1]}, ("-1", "0 to 9007199254740992")),
        ({"precision": "float16"}, ("'float16'", "bfloat16")),
        ({"full_epochs": 0}, ("0", "at least 1")),
        ({"val_fraction": 2.0}, ("val_fraction is 2.0", "0.9")),
        ({"width_factor": 0.0}, ("width_factor", "0.0", "0.01 to 8")),
        ({"methods": {"dm": 3}}, ("methods is {'dm': 3}", "dict[str, dict[str, Any]]")),
        ({"methods": {"dm": {"metod": "dm"}}}, ("'metod'", "did you mean 'method'")),
        ({"method_protocols": "kdd"}, ("'kdd'", "ce, kd")),
        ({"coreset_images": -1}, ("coreset_images is -1", "at least 0")),
    ],
    ids=lambda value: (
        ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else ""
    ),
)
def test_a_wrong_setting_fails_at_once(settings, words):
    with refused(*words):
        get_profile("quick", settings)


def test_unknown_profile_is_refused():
    with refused("'Quick'", "did you mean 'quick'", "paper"):
        get_profile("Quick")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ipc": 0}, ("ipc is 0", "at least 1")),
        ({"ipc": 1.0}, ("ipc is 1.0", "int")),
        ({"batch_real": 0}, ("batch_real is 0", "at least 1")),
        ({"slice_size": 0}, ("slice_size is 0", "at least 1")),
        ({"outer": 0}, ("outer is 0", "at least 1")),
        ({"seed": -1}, ("seed is -1", "0 to 9007199254740992")),
        ({"snapshots": (5, 11), "iterations": 10}, ("snapshots is 11", "0 to 10")),
        ({"snapshots": ["a"]}, ("snapshots is ['a']", "int")),
        ({"pool": "mian"}, ("'mian'", "did you mean 'main'", "custom")),
        ({"init": "random"}, ("'random'", "noise, real")),
        ({"precision": "fp32"}, ("'fp32'", "float32, tf32, bfloat16, float64")),
        ({"on_divergence": "go"}, ("'go'", "skip, stop")),
        ({"main_prob": float("nan")}, ("main_prob is nan", "0 to 1")),
        ({"lr_images": "fast"}, ("lr_images is 'fast'", "float")),
        ({"lr_images": -0.1}, ("lr_images is -0.1", "at least 0")),
        ({"momentum_images": -0.5}, ("momentum_images is -0.5", "0")),
        ({"method": "dmm"}, ("'dmm'", "did you mean 'dm'", "dc, dsa, dm")),
        ({"method": None}, ("method is None", "str")),
        ({"method": "dm", "options": {"dm_scal": "main"}}, ("'dm_scal'", "'dm_scale'")),
        ({"method": "dm", "options": {"dm_scale": "all"}}, ("'all'", "none, main")),
        ({"options": {"dm_scale": "main"}}, ("'dm_scale'", "Gradient")),
        ({"options": ["dm_scale"]}, ("options is ['dm_scale']", "dict")),
        ({"method": "dm", "snapshots": (20_001,)}, ("snapshots is 20001", "0 to 20000")),
    ],
    ids=lambda value: (
        ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else ""
    ),
)
def test_a_wrong_distillation_setting_is_refused(settings, words):
    with refused(*words):
        DistillConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, ("epochs is 0", "at least 1")),
        ({"epochs": "many"}, ("epochs is 'many'", "int")),
        ({"alpha": 1.1}, ("alpha is 1.1", "0 to 1")),
        ({"tau": -1.0}, ("tau is -1.0", "at least")),
        ({"precision": "half"}, ("'half'", "bfloat16")),
        ({"lr": -0.1}, ("lr is -0.1", "at least 0")),
        ({"momentum": -0.9}, ("momentum is -0.9", "0")),
    ],
    ids=lambda value: (
        ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else ""
    ),
)
def test_a_wrong_evaluation_setting_is_refused(settings, words):
    with refused(*words):
        EvalConfig(**settings)


def test_1_and_1_0_are_one_setting(data):
    """In every name of a run or study; what is an int stays one."""

    def same(a, b):
        return repr(a) == repr(b)

    one, other = (DistillConfig(lr_images=lr, width_factor=lr) for lr in (1, 1.0))
    assert same(one.lr_images, 1.0) and store_name(one, data) == store_name(other, data)
    assert same(EvalConfig(tau=4, teacher_lr=1), EvalConfig(tau=4.0, teacher_lr=1.0))
    assert same(EvalConfig(epochs=4, norm=None).epochs, 4)
    assert EvalConfig(tau=10**400).tau == 10**400  # beyond a float
    mtt = [DistillConfig(method="mtt", options={"lr_start": lr, "steps": 5}) for lr in (1, 1.0)]
    assert store_name(mtt[0], data) == store_name(mtt[1], data)
    assert same(mtt[0].identity()["options"], {"steps": 5, "lr_start": 1.0})
    names = [study_name(get_profile("quick", {"lr_images": v, "taus": [v]})) for v in (2, 2.0)]
    assert names[0] == names[1]


def test_defaults_are_the_papers():
    config = DistillConfig().resolved()
    assert (config.iterations, config.pool, config.main_prob, config.similar_depth) == (
        1000,
        "main_plus_similar",
        0.9,
        None,
    )


def test_what_is_left_open_is_the_methods():
    config = DistillConfig(method="dm", iterations=5)
    assert (config.iterations, config.init) == (5, None)
    config = config.resolved()
    assert (config.iterations, config.init, config.lr_images) == (5, "real", 1.0)
    assert config.resolved() == config


def test_a_config_can_be_changed_after_it_was_made():
    """What is left open follows the method that it gets."""
    config = replace(DistillConfig(ipc=2, seed=3), method="dm")
    assert config == DistillConfig(ipc=2, seed=3, method="dm")
    assert replace(config, method="dc").resolved() == DistillConfig(ipc=2, seed=3).resolved()


DM = {"method": "dm", "init": "real", "augment": "dsa", "lr_images": 1.0, "iterations": 20_000}
BATCH = {"dm_batchnorm": "batch"}  # not what runs did before there was the option
OTHER_DM = {"method": "dm", "augment": "dsa", "lr_images": 0.2}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        ({"lr_images": 0.1, "iterations": 1000, "pool": "main_plus_similar"}, {}),
        ({"lr_images": 0.2, "snapshots": (1, 2)}, {"lr_images": 0.2, "snapshots": [1, 2]}),
        ({"method": "dm"}, DM | {"options": BATCH}),
        ({"method": "dm", "options": {"dm_batchnorm": "frozen"}}, DM),
        ({"method": "dm", "lr_images": 1.0, "init": "real"}, DM | {"options": BATCH}),
        (
            {"method": "dm", "iterations": 1000, "init": "noise", "lr_images": 0.2},
            OTHER_DM | {"options": BATCH},
        ),
        ({"method": "dm", "options": {"dm_scale": "none"}}, DM | {"options": BATCH}),
        (
            {"method": "dm", "options": {"dm_scale": "main"}},
            DM | {"options": BATCH | {"dm_scale": "main"}},
        ),
    ],
)
def test_identity_holds_what_differs_from_the_defaults(settings, expected):
    """Left open or given as the method has it is the same."""
    config = DistillConfig(**settings)
    assert config.identity() == config.resolved().identity() == expected


def test_a_new_setting_finds_yesterdays_run(tmp_path, data):
    """With its default it changes no identity; another value does."""
    new = [("brightness", float, field(default=0.0)), ("steps", tuple[int, ...], field(default=()))]
    later = make_dataclass("Later", new, bases=(DistillConfig,), frozen=True)
    small = {"width": 4, "depth": 1, "batch_real": 6, "batch_bn": 4, "iterations": 3}
    assert store_name(DistillConfig(**small), data) == store_name(later(**small), data)
    assert store_name(later(**small, brightness=0.5), data) != store_name(later(**small), data)
    whole = distill(later(**small), data, progress=False)
    store = {"store": tmp_path, "progress": False}
    distill(DistillConfig(**small), data, stop=lambda k: k == 2, **store)
    again = distill(later(**small), data, **store)
    assert again.id == whole.id and again.log["iteration"].tolist() == [1, 2, 3]
    with refused("another brightness"):
        distill(later(**small, brightness=0.5), data, **store)
    finished = distill(later(**small), data, stop=lambda k: pytest.fail("it is done"), **store)
    assert finished.id == whole.id


def test_a_config_shows_what_differs():
    assert repr(DistillConfig()) == "DistillConfig()"
    assert (
        repr(DistillConfig(ipc=10, seed=2, pool="main"))
        == "DistillConfig(ipc=10, pool='main', seed=2)"
    )


def test_other_defaults_of_a_method_never_find_its_earlier_runs(data, monkeypatch):
    name = store_name(DistillConfig(method="dm"), data)
    monkeypatch.setitem(
        METHODS, "dm", Method(Distribution, {**METHODS["dm"].defaults, "lr_images": 5.0})
    )
    assert store_name(DistillConfig(method="dm"), data) != name
    assert store_name(DistillConfig(method="dm", lr_images=1.0), data) == name


def test_a_new_option_finds_yesterdays_run(data, monkeypatch):
    class Later(Distribution):
        def __init__(self, dm_scale="none", dm_batchnorm="batch", dm_power=2):
            super().__init__(dm_scale, dm_batchnorm)

    configs = [DistillConfig(method="dm", options=o) for o in ({}, {"dm_scale": "main"})]
    names = [store_name(config, data) for config in configs]
    monkeypatch.setitem(METHODS, "dm", Method(Later, METHODS["dm"].defaults))
    assert [store_name(config, data) for config in configs] == names
    other = DistillConfig(method="dm", options={"dm_power": 1})
    assert store_name(other, data) not in names


def test_to_dict_is_json():
    config = DistillConfig(snapshots=(1, 2))
    again = json.loads(json.dumps(to_dict(config)))
    assert (
        again == to_dict(config)
        and DistillConfig(**(again | {"snapshots": tuple(again["snapshots"])})) == config
    )


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], {}),
        (["iterations=50"], {"iterations": 50}),
        (["ipcs=1,10", "seeds=0"], {"ipcs": [1, 10], "seeds": 0}),
        (["pools=main, total_random"], {"pools": ["main", "total_random"]}),
        (["main_probs=[0.5, 0.7]"], {"main_probs": [0.5, 0.7]}),
        (["outer=None", "inner=null"], {"outer": None, "inner": None}),
        (["dataset=my/pictures", "alpha = 0.25"], {"dataset": "my/pictures", "alpha": 0.25}),
        (["dataset=a=b"], {"dataset": "a=b"}),
        (["seeds=3,"], {"seeds": [3]}),
        (["iterations=1", "iterations=2"], {"iterations": 2}),
    ],
)
def test_parse_settings(pairs, expected):
    assert parse_settings(pairs) == expected


def test_parsed_settings_make_a_profile():
    pairs = ["ipcs=1,10", "taus=1,2", "outer=None", "pools=main", "seeds=7"]
    profile = get_profile("quick", parse_settings(pairs))
    assert (profile.ipcs, profile.taus, profile.outer) == ((1, 10), (1.0, 2.0), None)
    assert (profile.pools, profile.seeds) == (("main",), (7,))
    pair = 'methods={"dm": {"method": "dm", "iterations": 3, "options": {"dm_scale": "main"}}}'
    config = get_profile("quick", parse_settings([pair])).distill_config("main", 0, method="dm")
    assert (config.method, config.iterations) == ("dm", 3)
    assert config.options == {"dm_scale": "main"}


@pytest.mark.parametrize("pair", ["iterations", "iterations 5", ""])
def test_a_setting_without_a_value_is_refused(pair):
    with refused(repr(pair), "name=value"):
        parse_settings([pair])


@pytest.mark.parametrize("pair", ["iterations=x", "ipcs=1,x", "=5", "alpha=NaN", "main_probs=[1,2"])
def test_a_parsed_value_that_makes_no_sense_is_refused(pair):
    with refused(pair.split("=")[0]):
        get_profile("quick", parse_settings([pair]))


def test_check_known_names_what_is_valid():
    check_known(EvalConfig, ["tau", "lr"])
    with refused("'taus'", "did you mean 'tau'", "EvalConfig", "epochs"):
        check_known(EvalConfig, ["lr", "taus"])


def test_check_choice_and_check_range_return_what_is_right():
    assert check_choice("letter", "a", "abc") == "a" and check_range("n", 3, 1, 3) == 3
    with refused("unknown letter 'x'", "valid: a, b"):
        check_choice("letter", "x", "ab")
    with refused("n is 4", "allowed: 1 to 3"):
        check_range("n", 4, 1, 3)
    with refused("n is '4'", "allowed: at least 1"):
        check_range("n", "4", 1)


def test_a_message_lists_a_hundred_names_at_most():
    names = [f"net{k}" for k in range(1000)]
    with refused("'net5x'", "did you mean", "net99, ..."):
        check_choice("net", "net5x", names)


@pytest.mark.parametrize(
    ("name", "words"), [("gpu", ("'gpu'", "auto, cpu, cuda")), ("tpu:0", ("'tpu'", "cuda"))]
)
def test_unknown_device_is_refused(name, words):
    with refused(*words):
        pick_device(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == pick_device("cpu") == torch.device("cpu")
    with refused("'cuda:0'", "no GPU", "cpu"):
        pick_device("cuda:0")


def test_a_gpu_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with refused("'cuda:2'", "GPUs 0 to 1"):
        pick_device("cuda:2")


def test_numbers_of_numpy_are_pythons_in_a_config():
    """Or a run's settings could not be written."""
    config = DistillConfig(
        seed=np.int64(3),
        snapshots=[np.int64(2)],
        method="mtt",
        options={"steps": np.int64(5), "latest": np.int64(7), "lr_start": np.float32(0.5)},
    )
    assert json.loads(json.dumps(config.identity()))["options"]["steps"] == 5
    assert type(config.seed) is type(config.snapshots[0]) is int and config.seed == 3


def test_environment_names_machine_and_versions():
    about = environment("cpu")
    assert (
        set(about) == {"device", "python", "torch", "ddlib", "revision"}
        and about["torch"] == torch.__version__
    )
    assert json.loads(json.dumps(about)) == about
