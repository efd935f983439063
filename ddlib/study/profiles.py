"""Profiles: the settings of a whole study, as data in one place.

Any setting can be overridden by name (`get_profile("quick", {"iterations": 50})`); an unknown name is an error at once.
"""

import json
from dataclasses import dataclass, fields, replace

from ..config import DistillConfig, EvalConfig, check_types, coerce
from ..errors import DDError, check_choice, check_range
from ..nets import NETS
from ..pool import PRESETS


@dataclass(frozen=True)
class Profile:
    """A whole study: what is distilled, what is evaluated, and at which scale. `note` says how it differs from the paper."""

    name: str
    note: str
    dataset: str
    val_fraction: float = 0.1
    ipcs: tuple[int, ...] = (1, 10)
    seeds: tuple[int, ...] = (0, 1, 2)  # distillation seeds
    iterations: int = 3000
    snapshots: tuple[int, ...] = (1000, 2000, 3000)
    report: tuple[int, ...] = (
        1000,
        2000,
    )  # iterations that the tables show besides the last; each is a snapshot too
    pools: tuple[str, ...] = (
        "total_random",
        "main_plus_others",
        "main_plus_similar",
    )  # 02: Table 5, beside the main model
    main_prob: float = 0.9
    main_probs: tuple[
        float, ...
    ] = ()  # 02: more points of the curve over the main model's probability
    warmup: int = 0
    similar_depth: int | None = None
    batch_real: int = 256
    batch_bn: int = 16
    width: int = 128
    width_factor: float = 1.0
    outer: int | None = None
    inner: int | None = None
    nets: tuple[str, ...] = tuple(NETS)
    n_eval: int = 10  # nets per set, architecture and protocol
    n_audit: int = 10  # the same for the released code's losses (authors-2023)
    epochs: int = 301
    alpha: float = 0.5
    tau: float = 1.5  # used where nothing is chosen
    taus: tuple[float, ...] = (
        1.0,
        1.5,
        2.0,
        4.0,
        8.0,
    )  # candidates of the sweep on validation images
    n_sweep: int = 2  # nets per candidate
    full_nets: tuple[str, ...] = ()  # nets trained on the full data
    full_epochs: int = 20
    precision: str = "float32"  # of the distillation
    eval_precision: str = "float32"
    slice_size: int | None = None

    def __post_init__(self):
        check_types(self)
        if not set(self.reported) <= {*self.snapshots, self.iterations}:
            raise DDError(
                f"report is {self.report}; allowed: {(*self.snapshots, self.iterations)} (snapshots, iterations)"
            )
        for pool in self.pools:
            check_choice("pool", pool, PRESETS)
        for net in (*self.nets, *self.full_nets):
            check_choice("net", net, NETS)
        for name in ("ipcs", "seeds", "nets", "taus"):
            if not getattr(self, name):
                raise DDError(f"{name} is empty; it needs at least one value")
        check_range("n_eval", self.n_eval, 1)
        check_range("n_audit", self.n_audit, 1)
        check_range("n_sweep", self.n_sweep, 1)
        check_range("val_fraction", self.val_fraction, 0, 0.9)
        check_range("full_epochs", self.full_epochs, 1)
        for value in self.main_probs:
            check_range("main_probs", value, 0, 1)
        for ipc in self.ipcs:
            for seed in self.seeds:
                self.distill_config("main", seed, ipc)
        for tau in (self.tau, *self.taus):
            self.eval_config(tau=tau)

    @property
    def reported(self):
        """The iterations that the tables show: those of `report` that are reached, and the last."""
        return (*(k for k in self.report if k < self.iterations), self.iterations)

    def distill_config(self, pool, seed, ipc=None, **changes):
        """The `DistillConfig` of one distillation of this study."""
        names = (
            "iterations",
            "main_prob",
            "warmup",
            "similar_depth",
            "batch_real",
            "batch_bn",
            "width",
            "width_factor",
            "outer",
            "inner",
            "precision",
            "slice_size",
        )
        settings = {n: getattr(self, n) for n in names} | {
            "ipc": self.ipcs[0] if ipc is None else ipc,
            "pool": pool,
            "seed": seed,
        }
        snapshots = tuple(k for k in self.snapshots if k <= self.iterations)
        return DistillConfig(**(settings | {"snapshots": snapshots} | changes))

    def eval_config(self, **changes):
        """The `EvalConfig` of this study."""
        names = ("epochs", "width", "width_factor", "alpha", "tau")
        settings = {n: getattr(self, n) for n in names} | {"precision": self.eval_precision}
        return EvalConfig(**(settings | changes))


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="quick",
            note="scikit-learn's digits at 32x32, slim nets: the pipeline and the effect in minutes on a laptop",
            dataset="digits",
            val_fraction=0.2,
            ipcs=(1,),
            seeds=(0, 1),
            iterations=40,
            snapshots=(0, 10, 20, 40),
            report=(),
            main_probs=(0.5,),
            batch_real=32,
            width=32,
            width_factor=0.25,
            n_eval=2,
            n_audit=1,
            epochs=61,
            taus=(1.5, 4.0),
            n_sweep=1,
            full_nets=("ConvNet", "MLP", "LeNet"),
            full_epochs=20,
        ),
        Profile(
            name="cifar10-small",
            note="CIFAR-10 on a laptop CPU: ipc 1, slim nets, fewer iterations",
            dataset="cifar10",
            ipcs=(1,),
            seeds=(0, 1),
            iterations=300,
            snapshots=(0, 100, 200, 300),
            report=(),
            batch_real=32,
            width=32,
            width_factor=0.25,
            n_eval=2,
            n_audit=1,
            epochs=151,
            taus=(1.5, 4.0),
            n_sweep=1,
            full_nets=("ConvNet", "MLP", "LeNet"),
            full_epochs=5,
        ),
        Profile(
            name="paper",
            note="the paper's settings: full width, 256 real images a class",
            dataset="cifar10",
            snapshots=(0, 100, 200, 500, 1000, 2000, 3000),
            precision="bfloat16",
            eval_precision="bfloat16",
            main_probs=(0.5, 0.7, 0.8),
            full_nets=tuple(NETS),
            full_epochs=100,
        ),
    )
}


def get_profile(name, settings=None):
    """The profile `name` with `settings` (a dict of overrides) applied. Raises `DDError` for an unknown name or a bad value."""
    profile = PROFILES[check_choice("profile", name, PROFILES)]
    known = [f.name for f in fields(Profile) if f.name not in ("name", "note")]
    for key in settings or {}:
        check_choice("setting", key, known)
    return replace(profile, **{k: coerce(Profile, k, v) for k, v in (settings or {}).items()})


def parse_settings(pairs):
    """`["iterations=50", "ipcs=1,10"]` as a dict for `get_profile`. Values are JSON, or words; commas make lists."""
    settings = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise DDError(f"--set {pair!r} has no '='; needed: name=value")
        settings[name.strip()] = parse_value(text.strip())
    return settings


def parse_value(text):
    if "," in text and not text.startswith("["):
        return [parse_value(part.strip()) for part in text.split(",") if part.strip()]
    try:
        return json.loads({"None": "null", "True": "true", "False": "false"}.get(text, text))
    except json.JSONDecodeError:
        return text
