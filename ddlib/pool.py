"""The model pool: which architecture an iteration of distillation matches gradients on (arXiv 2402.13007, section 3.2)."""

from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from .errors import DDError, check_choice
from .nets import build_net, net_name

PRESETS = ("main", "total_random", "main_plus_others", "main_plus_similar")
OTHERS = ("LeNet", "AlexNet", "VGG11")
SIMILAR = {
    "activation": ["relu", "sigmoid", "leakyrelu", "swish"],
    "norm": ["instance", "batch", "layer", "group"],
    "pooling": ["average", "max"],
}


@dataclass(frozen=True)
class Member:
    """One entry of a pool: a probability, a net (name or class), its options. An option that is a list is drawn uniformly."""

    probability: float
    net: str | type[nn.Module]
    options: dict = field(default_factory=dict)


class ModelPool:
    """Architectures with probabilities; the first member is the main model.

    `members`: a list of `Member`s whose probabilities sum to 1. `warmup`: the first so many iterations use the main model
    only (the paper: 0; its released code: 500). `shape`: (channels, side, classes) of the nets that `sample` builds. `name`:
    what rows of results will say; one that starts with "custom" for a pool of your own.
    Raises `DDError` for an empty pool, probabilities that do not sum to 1, or a member that cannot be built.

    >>> pool = ModelPool([Member(0.9, "ConvNet"), Member(0.1, "ConvNet", {"activation": ["sigmoid", "swish"]})])
    """

    def __init__(self, members, warmup=0, shape=(3, 32, 10), name="custom"):
        self.members, self.warmup, self.shape, self.name = (
            tuple(members),
            warmup,
            tuple(shape),
            name,
        )
        self.nets = {net_name(m.net): m.net for m in self.members}  # classes too by their names
        if not self.members:
            raise DDError("the pool is empty; it needs at least one Member")
        self.probabilities = torch.tensor(
            [m.probability for m in self.members], dtype=torch.float64
        )
        if not (
            (self.probabilities >= 0).all() and abs(float(self.probabilities.sum()) - 1) <= 1e-6
        ):
            values = [m.probability for m in self.members]
            raise DDError(
                f"pool probabilities {values} sum to {sum(values):g}; they must be at least 0 and sum to 1"
            )
        with torch.device(
            "meta"
        ):  # every member must build, found out now and not at iteration 900
            for member in self.members:
                for option in [k for k, v in member.options.items() if isinstance(v, list)] or [
                    None
                ]:
                    for choice in member.options.get(option, [None]):
                        first = {
                            k: v[0] if isinstance(v, list) else v for k, v in member.options.items()
                        }
                        self.build(
                            {"net": net_name(member.net)}
                            | first
                            | ({option: choice} if option else {})
                        )

    @classmethod
    def preset(
        cls,
        name,
        main_prob=0.9,
        width=128,
        depth=3,
        width_factor=1.0,
        similar_depth=None,
        warmup=0,
        shape=(3, 32, 10),
    ):
        """One of the paper's pools: `main`, `total_random`, `main_plus_others` or `main_plus_similar`.

        `main_prob` is the main model's probability in the last two. `similar_depth` is the depth of the similar ConvNets
        (None: as deep as the main one, the paper's text; its released code has 1). `width` and `depth` belong to the
        ConvNets, `width_factor` scales AlexNet and VGG11.
        """
        check_choice("pool", name, PRESETS)
        convnet = {"width": width, "depth": depth}
        others = [(net, {} if net == "LeNet" else {"width_factor": width_factor}) for net in OTHERS]
        rest = 1 - main_prob
        members = {
            "main": [Member(1.0, "ConvNet", convnet)],
            "total_random": [
                Member(0.25, "ConvNet", convnet),
                *(Member(0.25, net, o) for net, o in others),
            ],
            "main_plus_others": [
                Member(main_prob, "ConvNet", convnet),
                *(Member(rest / len(others), net, o) for net, o in others),
            ],
            "main_plus_similar": [
                Member(main_prob, "ConvNet", convnet),
                Member(
                    rest, "ConvNet", {"width": width, "depth": similar_depth or depth, **SIMILAR}
                ),
            ],
        }[name]
        return cls(members, warmup, shape, name)

    def draw(self, generator, iteration=None):
        """Draw a description such as `{"net": "ConvNet", "width": 128, ...}`; `iteration` (from 1) decides on the warm-up."""
        if iteration is not None and iteration <= self.warmup:
            member = self.members[0]
        else:
            member = self.members[
                int(torch.multinomial(self.probabilities, 1, generator=generator))
            ]
        choices = {}
        for option, value in member.options.items():
            if isinstance(value, list):
                value = value[int(torch.randint(len(value), (), generator=generator))]
            choices[option] = value
        return {"net": net_name(member.net), **choices}

    def build(self, description, generator=None):
        """The net of a description, freshly initialised from `generator`."""
        channels, side, classes = self.shape
        options = {k: v for k, v in description.items() if k != "net"}
        return build_net(
            self.nets.get(description["net"], description["net"]),
            generator,
            channels=channels,
            side=side,
            classes=classes,
            **options,
        )

    def sample(self, generator, iteration=None, weights=None):
        """Draw an architecture from `generator` and fresh weights from `weights` (default: the same generator).

        Returns `(description, net)`.
        """
        description = self.draw(generator, iteration)
        return description, self.build(description, weights or generator)

    def to_dict(self):
        """The pool as JSON-able data; `ModelPool.from_dict` is its inverse."""
        return {
            "name": self.name,
            "warmup": self.warmup,
            "shape": list(self.shape),
            "members": [asdict(m) | {"net": net_name(m.net)} for m in self.members],
        }

    @classmethod
    def from_dict(cls, data):
        """A pool from `to_dict`'s data."""
        return cls(
            [Member(**m) for m in data["members"]], data["warmup"], data["shape"], data["name"]
        )


def label(description):
    """A short name for a description: `ConvNet-relu-instance-average`, `VGG11`."""
    parts = [str(description[k]) for k in ("activation", "norm", "pooling") if k in description]
    return "-".join([description["net"], *parts])
