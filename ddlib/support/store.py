"""Files that are whole or absent: atomic writes, and tensors with their description in one file,
with fingerprints by which damage shows.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import platform
import struct
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from .errors import DDError, first_line

ROOT = Path(__file__).resolve().parents[2]  # the repository
# What reading a file that is not what it should be may raise
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OSError, MemoryError)


def write_atomic(path: str | Path, content: str | bytes) -> Path:
    """Write `content` to `path` through a temporary file in the same folder and a rename.

    A reader sees the old file or the new one, never a part, whoever else writes; a link stays one.
    Raises `DDError` when the disk is full or read-only; the old file is then untouched, the
    temporary one gone.
    """
    try:
        path = Path(os.path.realpath(path))
    except ValueError as error:  # a name with a null character
        raise DDError(f"cannot write {path!r}: {error}") from error
    writer = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reasons = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
        why = reasons.get(error.errno or 0, error.strerror)
        raise DDError(f"cannot write {path}: {why}; what was there before is untouched") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def fill(page: Path, parts: Mapping[str, str]) -> Path:
    """Write texts into a page, each between its markers, `<!-- name -->` and `<!-- end name -->`;
    those of which it has none are left out. Raises `DDError` for a marker without an end.
    """
    text = page.read_text()
    for name, content in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        head, marker, rest = text.partition(begin)
        if marker and end not in rest:
            raise DDError(f"{page.name} has {begin.strip()!r} without {end!r} after it")
        text = f"{head}{marker}{content}{end}{rest.partition(end)[2]}" if marker else text
    return write_atomic(page, text)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], info: Any) -> Path:
    """Write what `packed` makes, atomically."""
    return write_atomic(path, packed(tensors, info))


def packed(tensors: Mapping[str, Tensor], info: Any) -> bytes:
    """Named tensors and the JSON-able `info` as one safetensors file.

    The JSON travels in the file's own header: tensors and description can never come apart. So do
    fingerprints of all of them.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        text = json.dumps(info)
    except TypeError as error:
        raise DDError(f"a description of tensors must be JSON: {first_line(error)}") from error
    digests = {"": digest(text)} | {name: tensor_digest(x) for name, x in plain.items()}
    return to_bytes(plain, {"ddlib": text, "sha256": json.dumps(digests)})


def digest(content: str | bytes) -> str:
    """A short hash of a file's content, by which damage shows; its beginning names things."""
    content = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(content).hexdigest()[:20]


def tensor_digest(tensor: Tensor) -> str:
    """`digest` of a tensor on the CPU: its type, shape and numbers."""
    numbers = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return digest(f"{tensor.dtype} {list(tensor.shape)} ".encode() + numbers)


def load_tensors(
    path: str | Path, names: Iterable[str] | None = None
) -> tuple[dict[str, Tensor], Any]:
    """Read what `save_tensors` wrote, all tensors or those of these names: `(tensors, info)`.

    Raises `DDError` for a missing or foreign file, and for one that does not hold what was written
    (files of before 2026-11-22 have no fingerprints, and only damage to their form shows).
    """
    path = Path(path)
    if not path.is_file():
        raise DDError(f"no file {path}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            info, digests = json.loads(header["ddlib"]), json.loads(header.get("sha256", "{}"))
            wanted = [*(names or sorted({*file.keys(), *digests} - {""}))]
            tensors = {name: file.get_tensor(name) for name in wanted}
        found = {"": digest(header["ddlib"])} | {k: tensor_digest(t) for k, t in tensors.items()}
        if digests and any(digests.get(name) != found[name] for name in found):
            raise ValueError("it does not hold what was written; delete it or get it anew")
        return tensors, info
    except KeyError as error:
        raise DDError(
            f"{path} is a safetensors file, but not one of ddlib's (no 'ddlib' entry in its header)"
        ) from error
    except (safetensors.SafetensorError, struct.error, *UNREADABLE) as error:
        reason = first_line(error)
        raise DDError(f"{path} is damaged or no safetensors file ({reason})") from error


def check_size(what: object, numbers: int) -> None:
    """Raise `DDError` for more numbers than a computer of this memory works with: 2**31, and no
    more than a sixteenth of its bytes (a number takes 4, and there are copies).
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if numbers > (allowed := min(2**31, memory // 16)):
        raise DDError(f"{what} holds {numbers:.3g} numbers; allowed here: up to {allowed:.3g}")


def clear_temporaries(folder: Path) -> None:
    """Remove what writers that were killed left in a folder more than an hour ago."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()


def is_json(value: object) -> bool:
    """Whether JSON can hold a value."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def canonical(settings: dict) -> str:
    """Settings as JSON text, the same for the same settings."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


def dumps(info: Any) -> str:
    """Readable JSON; NaN and infinities become null."""
    return json.dumps(_finite(info), indent=1) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def locked(path: str | Path, stop: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Within the block no other process holds the lock of this file.

    Waits for that; False if `stop()` says True first. The lock is the kernel's: it ends with its
    process, and over a network with its host. A file system that has no locks counts as free.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        yield _lock(file, stop)


def _lock(file: IO[str], stop: Callable[[], bool]) -> bool:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if stop():
                return False
            time.sleep(0.2)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                return True
            raise
