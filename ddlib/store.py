"""Files that are whole or absent: atomic writes, and tensors with their description in one safetensors file."""

import contextlib
import errno
import json
import math
import os
import struct
from pathlib import Path

import safetensors
from safetensors.torch import save as to_bytes

from .errors import DDError

ROOT = Path(__file__).resolve().parent.parent  # the repository


def write_atomic(path, content):
    """Write `content` (str or bytes) to `path` through a temporary file in the same folder and a rename.

    A reader sees the old file or the new one, never a part. Raises `DDError` when the disk is full or read-only; the old
    file is then untouched and the temporary one is gone.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reasons = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
        why = reasons.get(error.errno, error.strerror)
        raise DDError(f"cannot write {path}: {why}; what was there before is untouched") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def save_tensors(path, tensors, info):
    """Save named tensors and the JSON-able `info` as one safetensors file, atomically.

    The JSON travels in the file's own header, so that tensors and description can never come apart.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_atomic(path, to_bytes(tensors, metadata={"ddlib": json.dumps(info)}))


def load_tensors(path):
    """Read what `save_tensors` wrote: `(tensors, info)`. Raises `DDError` for a missing, damaged or foreign file."""
    path = Path(path)
    if not path.is_file():
        raise DDError(f"no file {path}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            info = json.loads((file.metadata() or {})["ddlib"])
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, info
    except KeyError as error:
        raise DDError(
            f"{path} is a safetensors file, but not one of ddlib's (no 'ddlib' entry in its header)"
        ) from error
    except (safetensors.SafetensorError, struct.error, ValueError, OSError) as error:
        raise DDError(
            f"{path} is damaged or no safetensors file ({str(error).splitlines()[0]})"
        ) from error


def dumps(info):
    """Readable JSON; NaN and infinities become null."""

    def clean(value):
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, dict):
            return {str(k): clean(v) for k, v in value.items()}
        return [clean(v) for v in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(clean(info), indent=1) + "\n"
