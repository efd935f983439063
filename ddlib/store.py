"""Files that are whole or absent: atomic writes, and tensors with their description in one file."""

import contextlib
import errno
import fcntl
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
from safetensors.torch import save as to_bytes
from torch import Tensor

from .errors import DDError

ROOT = Path(__file__).resolve().parent.parent  # the repository


def write_atomic(path: str | Path, content: str | bytes) -> Path:
    """Write `content` to `path` through a temporary file in the same folder and a rename.

    A reader sees the old file or the new one, never a part, whoever else writes. Raises `DDError`
    when the disk is full or read-only; the old file is then untouched, the temporary one gone.
    """
    path = Path(path)
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


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], info: Any) -> Path:
    """Save named tensors and the JSON-able `info` as one safetensors file, atomically.

    The JSON travels in the file's own header: tensors and description can never come apart.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_atomic(path, to_bytes(plain, metadata={"ddlib": json.dumps(info)}))


def load_tensors(
    path: str | Path, names: Iterable[str] | None = None
) -> tuple[dict[str, Tensor], Any]:
    """Read what `save_tensors` wrote, all tensors or those of these names: `(tensors, info)`.

    Raises `DDError` for a missing, damaged or foreign file.
    """
    path = Path(path)
    if not path.is_file():
        raise DDError(f"no file {path}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            info = json.loads((file.metadata() or {})["ddlib"])
            return {name: file.get_tensor(name) for name in names or list(file.keys())}, info
    except KeyError as error:
        raise DDError(
            f"{path} is a safetensors file, but not one of ddlib's (no 'ddlib' entry in its header)"
        ) from error
    except (safetensors.SafetensorError, struct.error, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DDError(f"{path} is damaged or no safetensors file ({reason})") from error


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
