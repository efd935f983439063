"""Fingerprints of what a user writes: its code and the values in it, since a name does not tell one
version from the next.
"""

import functools
import hashlib
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .store import digest

PLAIN = (bool, int, float, complex, str, bytes, type(None))
CACHED = type(functools.cache(len))
WRITTEN = (types.FunctionType, type, functools.partial, CACHED)
FIXED = (*PLAIN, *WRITTEN, tuple, torch.Tensor, torch.nn.Module)
# The last one is what copying an object leaves with its class
UNWRITTEN = (
    *("__module__", "__dict__", "__weakref__", "__doc__", "__firstlineno__", "__slotnames__"),
)


def code_of(thing: Any) -> str:
    """A fingerprint of a function, a class or an object; "" for None, and for a class or function
    of a library.

    It covers bytecode, defaults, the methods and attributes of a class and its bases, an object's
    attributes, and what a function's closure holds and its module has under the names in it: code
    in turn, numbers, texts, tensors, not what may grow as it runs. Nor what lies in libraries.
    Other versions of Python give others.
    """
    parts = [text for text in walk(thing, set()) if text.strip()] if thing is not None else []
    return digest("\n".join(parts))[:12] if parts else ""


def walk(thing: Any, seen: set[int]) -> Iterator[str]:
    """What the fingerprint is made of, each function, class or object once."""
    if isinstance(thing, PLAIN):
        yield repr(thing)
    elif isinstance(thing, torch.Tensor):
        numbers = thing.detach().cpu()
        numbers = numbers.float() if numbers.dtype == torch.bfloat16 else numbers
        yield hashlib.sha256(numbers.contiguous().numpy().tobytes()).hexdigest()
    elif isinstance(thing, tuple | list | set | frozenset | Mapping):
        items = thing.items() if isinstance(thing, Mapping) else thing
        texts = [" ".join(walk(item, seen)) for item in items]
        yield from sorted(texts) if isinstance(thing, set | frozenset) else texts
    elif isinstance(thing, types.CodeType):
        yield f"{thing.co_code.hex()} {thing.co_names} {thing.co_varnames}"
        yield from walk(thing.co_consts, seen)
    elif id(thing) not in seen:
        seen.add(id(thing))
        yield from walk_written(thing, seen)


def walk_written(thing: Any, seen: set[int]) -> Iterator[str]:
    """`walk` of a function, a class or an object."""
    if isinstance(thing, staticmethod | classmethod | types.MethodType):
        yield from walk(thing.__func__, seen)
    elif isinstance(thing, functools.partial):
        yield from walk([thing.func, thing.args, thing.keywords], seen)
    elif isinstance(thing, property):
        yield from walk([thing.fget, thing.fset], seen)
    elif isinstance(thing, CACHED):
        yield from walk(thing.__wrapped__, seen)
    elif isinstance(thing, functools.cached_property):
        yield from walk(thing.func, seen)
    elif isinstance(thing, type):
        if not is_library(thing):
            yield thing.__qualname__
            own = {name: value for name, value in vars(thing).items() if name not in UNWRITTEN}
            yield from walk([own, thing.__bases__], seen)
    elif isinstance(thing, types.FunctionType):
        if not is_library(thing):
            held = [value for cell in thing.__closure__ or () for value in contents(cell)]
            around, code = thing.__globals__, thing.__code__
            named = [around[name] for name in names_in(code) if name in around]
            fixed = [value for value in (*held, *named) if isinstance(value, FIXED)]
            yield from walk([code, thing.__defaults__, thing.__kwdefaults__, fixed], seen)
    elif isinstance(thing, torch.nn.Module):
        yield from walk([type(thing), dict(thing.state_dict())], seen)
    elif hasattr(thing, "__dict__") and is_part(type(thing)):
        yield from walk([type(thing), vars(thing)], seen)


def names_in(code: types.CodeType) -> Iterator[str]:
    """The names of globals and attributes in code, and in the lambdas and loops within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


def contents(cell: types.CellType) -> list[Any]:
    """What a cell of a closure holds; nothing yet where the name is assigned later."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def is_part(cls: type) -> bool:
    """Whether a class is ddlib's or somebody's own: its objects' attributes are settings."""
    return not is_library(cls) or cls.__module__.split(".")[0] == "ddlib"


def is_library(thing: Any) -> bool:
    """Whether a class or function comes with Python, with ddlib, or from an installed package."""
    root = (getattr(thing, "__module__", None) or "builtins").split(".")[0]
    if root == "__main__":  # a notebook or a script, whatever started it
        return False
    if root in ("ddlib", "builtins") or root in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file
