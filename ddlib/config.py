"""The settings of one distillation and of one evaluation, checked when they are made."""

import typing
from dataclasses import asdict, dataclass

from .errors import DDError, check_choice, check_range
from .pool import PRESETS

# Outer steps and inner epochs by ipc (Zhao et al., ICLR 2021; methods of the DC family).
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
PRECISIONS = ("float32", "tf32", "bfloat16", "float64")
PROTOCOLS = ("ce", "kd", "authors-2023")
ON_DIVERGENCE = ("skip", "stop")


def loops(ipc):
    """(outer steps, inner epochs) for an ipc; between the published values, those of the next lower one, at most ipc outer."""
    outer, inner = LOOPS[max(k for k in LOOPS if k <= ipc)]
    return outer, inner


@dataclass(frozen=True)
class DistillConfig:
    """One distillation. The defaults are the paper's (DC with the pool of arXiv 2402.13007, section 3.2).

    Snapshots are taken at the given iterations and at the last. `outer` and `inner` None follow `loops(ipc)`.
    """

    ipc: int = 1
    pool: str = "main_plus_similar"
    seed: int = 0
    iterations: int = 1000
    snapshots: tuple[int, ...] = ()
    main_prob: float = 0.9  # probability of the main model in main_plus_*
    warmup: int = 0  # so many first iterations use the main model only (released code: 500)
    width: int = 128  # ConvNets of the pool
    depth: int | None = 3  # None: by the images' side, `nets.DEPTHS`
    similar_depth: int | None = None  # None: as deep as the main model (released code: 1)
    width_factor: float = 1.0  # AlexNet and VGG11 of the pool
    outer: int | None = None
    inner: int | None = None
    batch_real: int = 256  # real images per class
    batch_bn: int = 16  # real images per class that set BatchNorm's statistics
    batch_train: int = 256
    lr_images: float = 0.1
    momentum_images: float = 0.5
    lr_net: float = 0.01
    init: str = "noise"  # or "real"
    precision: str = "float32"  # bfloat16: autocast where nothing is differentiated twice; tf32: a GPU's products
    slice_size: int | None = (
        None  # real images per backward pass; None: as the device likes it, see `matching.default_slice`
    )
    on_divergence: str = "skip"  # or "stop"

    def __post_init__(self):
        check_types(self)
        for name in ("ipc", "batch_real", "batch_bn", "batch_train", "width"):
            check_range(name, getattr(self, name), 1)
        for name in ("iterations", "warmup", "seed"):
            check_range(name, getattr(self, name), 0)
        for name in ("outer", "inner", "depth", "similar_depth", "slice_size"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1)
        check_range("main_prob", self.main_prob, 0, 1)
        check_range("momentum_images", self.momentum_images, 0, 1)
        for name in ("lr_images", "lr_net"):
            check_range(name, getattr(self, name), 0)
        check_range("width_factor", self.width_factor, 0.01, 8)
        for k in self.snapshots:
            check_range("snapshots", k, 0, self.iterations)
        if not self.pool.startswith("custom"):  # a user's own pool may be called custom-something
            check_choice("pool", self.pool, (*PRESETS, "custom"))
        check_choice("init", self.init, ("noise", "real"))
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("on_divergence", self.on_divergence, ON_DIVERGENCE)

    @property
    def loops(self):
        """(outer steps, inner epochs) of this distillation."""
        outer, inner = loops(self.ipc)
        return self.outer or outer, self.inner or inner


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
    alpha: float = 0.5  # weight of the distillation term (the released code's default)
    tau: float = 1.5  # temperature (the released code's default)
    precision: str = "float32"  # bfloat16: training and testing under autocast; tf32 as above

    def __post_init__(self):
        check_types(self)
        for name in ("epochs", "batch", "width", "depth"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1)
        check_range("alpha", self.alpha, 0, 1)
        check_range("tau", self.tau, 1e-3)
        check_range("momentum", self.momentum, 0, 1)
        for name in ("lr", "weight_decay"):
            check_range(name, getattr(self, name), 0)
        check_range("width_factor", self.width_factor, 0.01, 8)
        check_choice("precision", self.precision, PRECISIONS)

    @property
    def drop_epoch(self):
        """The epoch index after which lr drops and the momentum is reset: 151 of 0..300."""
        return (self.epochs - 1) // 2 + 1


def coerce(cls, name, value):
    """A list as a tuple, one value for a tuple as a tuple of one, an int for a float as a float."""
    kind = typing.get_type_hints(cls)[name]
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(float(v) if item is float and type(v) is int else v for v in values)
    return float(value) if kind is float and type(value) is int else value


def check_types(config):
    """Raise `DDError` unless every field holds what its annotation says."""
    for name, kind in typing.get_type_hints(type(config)).items():
        value, items = getattr(config, name), typing.get_args(kind)
        if typing.get_origin(kind) is tuple:
            right = isinstance(value, tuple) and all(is_a(v, items[0]) for v in value)
        else:
            right = any(is_a(value, k) for k in (items or (kind,)))
        if not right:
            raise DDError(
                f"{name} is {value!r}; needed: {getattr(kind, '__name__', kind) if not items else kind}"
            )


def is_a(value, kind):
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is kind if kind in (int, bool) else isinstance(value, kind)


def to_dict(config):
    """A config as JSON-able data."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def check_known(cls, names):
    """Raise `DDError` for the first of `names` that is no setting of `cls`."""
    known = typing.get_type_hints(cls)
    for name in names:
        check_choice(f"setting of {cls.__name__}", name, known)
