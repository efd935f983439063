"""Methods of distillation by name: an objective, and the settings it comes with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import DDError, check_choice
from .distribution import Distribution
from .gradient import Gradient
from .images import Images, Pixels
from .objective import Objective, Part

__all__ = [
    "METHODS",
    "Images",
    "Objective",
    "Part",
    "Pixels",
    "get_method",
    "register_method",
]


@dataclass(frozen=True)
class Method:
    """An objective, and its defaults for what a `DistillConfig` leaves open."""

    objective: type[Objective]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """The objective's own settings and their defaults: what its `__init__` takes."""
        parameters = inspect.signature(self.objective).parameters
        return {name: parameter.default for name, parameter in parameters.items()}

    def build(self, options: Mapping[str, Any]) -> Objective:
        """The objective with `options`; `DDError` for a name or value that it does not know."""
        for name in options:
            check_choice(f"option of {self.objective.__name__}", name, self.options())
        return self.objective(**options)


PUBLISHED = {
    "dc": Method(Gradient),
    "dm": Method(Distribution, {"init": "real", "lr_images": 1.0, "iterations": 20_000}),
}
METHODS = dict(PUBLISHED)


def register_method(name: str, objective: type[Objective], **defaults: Any) -> None:
    """Make `DistillConfig(method=name)` valid; `defaults` are for settings that it leaves open.

    A name may be registered again, as when a notebook's cell is run again. Raises `DDError` for the
    name of a published method, or defaults that no config can have.

    >>> register_method("mean-pixels", MeanPixels, init="real", lr_images=1.0)
    """
    from ..config import OPEN, DistillConfig  # which knows the methods

    if name in PUBLISHED:
        raise DDError(f"method {name!r} is taken; choose another name")
    if not (isinstance(objective, type) and issubclass(objective, Objective)):
        raise DDError(f"the objective is {objective!r}; needed: a subclass of ddlib.Objective")
    for setting in defaults:
        check_choice(f"default of method {name!r}", setting, OPEN)
    DistillConfig(**defaults)  # checks their values
    METHODS[name] = Method(objective, defaults)


def get_method(name: str) -> Method:
    """A method by name; one that starts with "custom" is an objective that `distill` is given."""
    if name not in METHODS and name.startswith("custom"):
        return Method(Objective)
    return METHODS[check_choice("method", name, METHODS)]
