"""The machine: which device, what it is called, which versions run, and how the C library hands out memory."""

import ctypes
import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .errors import DDError, check_choice
from .store import ROOT


def pick_device(name="auto"):
    """`"auto"` (a GPU if there is one), `"cpu"` or `"cuda"` as a `torch.device`; `DDError` if it is not there."""
    check_choice("device", str(name).split(":")[0], ("auto", "cpu", "cuda"))
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if str(name).startswith("cuda") and not torch.cuda.is_available():
        raise DDError(f"device is {name!r}, but PyTorch sees no GPU; allowed here: cpu")
    return torch.device(name)


@functools.cache
def keep_freed_memory():
    """Tell glibc to keep freed memory, in one place for all threads, instead of giving it back; does nothing elsewhere.

    Every large tensor on the CPU is otherwise mapped, zeroed by the kernel page by page and unmapped again: half of the time
    of a training step (measured: 972 to 527 ms for a backward pass of ConvNet-D3-W128 over 256 images on 2 cores).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # malloc.h
    mallopt(m_arena_max, 1)
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)


@functools.cache
def git_revision():
    """Short git revision of the checkout that ddlib runs from ("+" behind it if changed), or "" outside one."""
    try:

        def git(*words):
            return subprocess.run(
                ["git", "-C", ROOT, *words], capture_output=True, text=True, check=True
            ).stdout.strip()

        return git("rev-parse", "--short=10", "HEAD") + "+" * bool(
            git("status", "--porcelain", "--", "ddlib")
        )
    except (OSError, subprocess.CalledProcessError):
        return ""


@functools.cache
def device_name(device):
    """What a person would call the device: "NVIDIA H200", "AMD EPYC (2 threads)"."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
            model,
        )
    except OSError:
        pass
    return f"{model} ({torch.get_num_threads()} threads)"


@functools.cache
def own_version():
    try:
        return version("ddlib")
    except PackageNotFoundError:
        return "source"


def environment(device):
    """Hardware and versions, as recorded in every artifact and every row of results."""
    return {
        "device": device_name(torch.device(device)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ddlib": own_version(),
        "revision": git_revision(),
    }
