"""One exception for everything a user can get wrong, and the checks that raise it."""

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")
MOST = 100  # names that a message lists


class DDError(ValueError):
    """A mistake that a person can mend. Its message is one line: the value, and what is allowed."""

    def __init__(self, message: object = "") -> None:
        super().__init__(" ".join(str(message).splitlines()))  # of values that are shown in several


def check_choice(kind: str, value: T, allowed: Iterable[Any]) -> T:
    """Return `value` if it is one of `allowed`; else raise a `DDError` that lists them."""
    allowed = list(allowed)
    if value in allowed:
        return value
    lower = {str(a).lower(): str(a) for a in allowed}
    near = difflib.get_close_matches(str(value).lower(), lower, n=1)
    hint = f" (did you mean {lower[near[0]]!r}?)" if near else ""
    names, more = [str(a) for a in allowed[:MOST]], ", ..." * (len(allowed) > MOST)
    raise DDError(f"unknown {kind} {value!r}{hint}; valid: {', '.join(names)}{more}")


def check_range(name: str, value: T, low: float, high: float = float("inf")) -> T:
    """Return `value` if low <= value <= high; else raise a `DDError` that says so."""
    if isinstance(value, (int, float)) and low <= value <= high:
        return value
    allowed = f"at least {low}" if high == float("inf") else f"{low} to {high}"
    raise DDError(f"{name} is {value!r}; allowed: {allowed}")


def check_loss(whose: str, loss: Any) -> Any:
    """Return `loss` if it can be descended: a tensor of one number, with a gradient."""
    made = type(loss).__name__
    if hasattr(loss, "requires_grad") and hasattr(loss, "backward"):
        if loss.numel() == 1 and loss.requires_grad:
            return loss
        made = f"tensor {list(loss.shape)}" + " without a gradient" * (not loss.requires_grad)
    raise DDError(f"the loss of {whose} is a {made}; needed: a 0-dim tensor with a gradient")


def first_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
