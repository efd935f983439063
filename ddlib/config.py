"""The settings of one distillation and of one evaluation, checked when they are made."""

import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .augment import operations_of
from .methods import build_parts, get_method, options_of, part_classes
from .nets import NORMS
from .pool import PRESETS
from .support.errors import DDError, check_choice, check_range
from .support.public import adapted, public

PRECISIONS = ("float32", "tf32", "bfloat16", "float64")
ON_DIVERGENCE = ("skip", "stop")


def by_method(default: Any) -> Any:
    """A setting that is left open (None): the method's value holds, or else `default`."""
    return field(default=None, metadata={"open": default})


@public
@dataclass(frozen=True, repr=False)
class DistillConfig:
    """One distillation. The defaults are the paper's: DC with a pool (arXiv 2402.13007, 3.2).

    Settings of `by_method` may be None, which stands for the method's value; `resolved` fills them
    in. `outer` and `inner` None: the method's for this ipc. `options`: settings of the method, the
    images or an extra alone, such as `{"dm_scale": "main"}`. Snapshots are taken at the given
    iterations and at the last. Defaults are not part of a run's `identity`: to change one confuses
    finished runs.
    """

    ipc: int = 1
    method: str = "dc"
    pool: str = "main_plus_similar"
    seed: int = 0
    iterations: int = by_method(1000)
    snapshots: tuple[int, ...] = ()
    main_prob: float = 0.9  # probability of the main model in main_plus_*
    warmup: int = 0  # so many first iterations use the main model only (released code: 500)
    width: int = 128  # ConvNets of the pool
    depth: int | None = 3  # None: by the images' side, `nets.DEPTHS`
    similar_depth: int | None = None  # None: as deep as the main model (released code: 1)
    width_factor: float = 1.0  # AlexNet and VGG11 of the pool
    outer: int | None = None  # steps of the pixels per iteration
    inner: int | None = None  # epochs of the net between them
    batch_real: int = by_method(256)  # real images per class
    batch_bn: int = by_method(16)  # real images per class that set BatchNorm's statistics
    batch_train: int = by_method(256)
    lr_images: float = by_method(0.1)
    momentum_images: float = by_method(0.5)
    lr_net: float = by_method(0.01)
    init: str = by_method("noise")  # or "real"
    augment: str = by_method("")  # of real and synthetic images: see `augment.operations_of`
    precision: str = "float32"  # bfloat16: autocast where nothing is differentiated twice
    slice_size: int | None = None  # real images per pass; None: see `fast.default_slice`
    on_divergence: str = "skip"  # or "stop"
    images: str = "pixels"  # what is learned, see `methods.IMAGES`
    extras: tuple[str, ...] = ()  # losses beside the method's, see `methods.EXTRAS`
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if len(set(self.extras)) < len(self.extras):
            raise DDError(f"extras is {self.extras}; needed: each of them once")
        self.parts()
        if any(getattr(self, name) is None for name in OPEN):
            self.resolved()  # which checks them all
        else:
            self._check_values()

    def _check_values(self) -> None:
        for name in ("ipc", "batch_real", "batch_bn", "batch_train"):
            check_range(name, getattr(self, name), 1)
        for name in ("iterations", "warmup", "lr_images", "lr_net"):
            check_range(name, getattr(self, name), 0)
        for name in ("outer", "inner", "depth", "similar_depth", "slice_size"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1)
        check_range("main_prob", self.main_prob, 0, 1)
        check_range("momentum_images", self.momentum_images, 0, 1)
        check_range("width_factor", self.width_factor, 0.01, 8)
        for k in self.snapshots:
            check_range("snapshots", k, 0, self.iterations)
        if not self.pool.startswith("custom"):  # a user's own pool may be called custom-something
            check_choice("pool", self.pool, (*PRESETS, "custom"))
        check_choice("init", self.init, ("noise", "real"))
        operations_of(self.augment)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("on_divergence", self.on_divergence, ON_DIVERGENCE)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.identity().items())
        return f"{type(self).__name__}({settings})"

    def parts(self) -> dict[str, Any]:
        """The objective, the images and the extras that this names, new ones, by role."""
        return build_parts(part_classes(self.method, self.images, self.extras), self.options)

    def usual_options(self) -> dict[str, Any]:
        """All options of these parts and their defaults."""
        return options_of(*part_classes(self.method, self.images, self.extras).values())

    def resolved(self) -> "DistillConfig":
        """The same with the method's values for what was left open, all of its options included."""
        method = get_method(self.method)
        values = {name: method.defaults.get(name, OPEN[name]) for name in OPEN}
        gaps = {name: value for name, value in values.items() if getattr(self, name) is None}
        usual = self.usual_options()
        own = {name: adapted(value, type(usual[name])) for name, value in self.options.items()}
        return replace(self, **gaps, options=usual | own)

    def identity(self) -> dict[str, Any]:
        """What tells this distillation from others: what differs from DC's defaults, JSON-able.

        A setting or option that is added later, with a default, changes no earlier identity; if
        the default is not what runs did before, `Part.before` has that.
        """
        parts = part_classes(self.method, self.images, self.extras).values()
        usual, resolved = self.usual_options(), self.resolved()
        for part in parts:
            usual |= part.before
        differing = differences(resolved, type(self)().resolved())
        differing["options"] = {k: v for k, v in resolved.options.items() if v != usual[k]}
        return {name: value for name, value in differing.items() if value != {}}


OPEN = {f.name: f.metadata["open"] for f in fields(DistillConfig) if "open" in f.metadata}


@public
@dataclass(frozen=True)
class EvalConfig:
    """How a net is trained on a synthetic set and tested. The defaults are the DC family's."""

    epochs: int = 301  # 0..300; lr x 0.1 after the middle one, see `drop_epoch`
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 256
    width: int = 128  # ConvNet
    depth: int | None = 3  # None: by the images' side, `nets.DEPTHS`
    width_factor: float = 1.0  # AlexNet, VGG11, ResNet18
    norm: str | None = None  # not MLP, LeNet: see `nets.NORMS`; None: the net's own
    alpha: float = 0.5  # weight of the distillation term (the released code's default)
    tau: float = 1.5  # temperature (the released code's default)
    teacher_lr: float | None = None  # of a teacher trained on the set; None: `lr`
    augment: str = ""  # of the synthetic images in training: see `augment.operations_of`
    precision: str = "float32"  # bfloat16: training and testing under autocast
    # settings of the protocol alone, such as {"lambda_feature": 0.5} of "elf"
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "depth"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1)
        operations_of(self.augment)
        check_range("alpha", self.alpha, 0, 1)
        check_range("tau", self.tau, 1e-3)
        check_range("momentum", self.momentum, 0, 1)
        for name in ("lr", "weight_decay", "teacher_lr"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0)
        check_range("width_factor", self.width_factor, 0.01, 8)
        if self.norm is not None:
            check_choice("norm", self.norm, NORMS)
        check_choice("precision", self.precision, PRECISIONS)

    @property
    def drop_epoch(self) -> int:
        """The epoch index after which lr drops and the momentum is reset: 151 of 0..300."""
        return (self.epochs - 1) // 2 + 1


def coerce(cls: type, name: str, value: Any) -> Any:
    """One value for a tuple as a tuple of one."""
    meant = typing.get_origin(typing.get_type_hints(cls)[name]) is tuple
    return (value,) if meant and not isinstance(value, list | tuple) else value


def to_dict(config: Any) -> dict[str, Any]:
    """A config as JSON-able data."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def differences(config: Any, default: Any) -> dict[str, Any]:
    """The settings of a config that differ from those of `default`, JSON-able."""
    usual = to_dict(default)
    return {name: value for name, value in to_dict(config).items() if value != usual[name]}


def check_known(cls: type, names: Iterable[str], also: Iterable[str] = ()) -> None:
    """Raise `DDError` for the first of `names` that is no setting of `cls`, nor one of `also`."""
    known = (*typing.get_type_hints(cls), *also)
    for name in names:
        check_choice(f"setting of {cls.__name__}", name, known)
