"""What makes it fast, and every side effect on the process: memory, products, threads, graphs.

`products` and `side_by_side` undo what they set; `keep_freed_memory` cannot be undone.

A training step of a small net is some sixty kernels of a few microseconds; launched one by one from
Python, they leave a GPU idle most of the time. Recorded once as a CUDA graph and replayed, they
follow each other without Python. `side_by_side` fills what one small net leaves idle with others.
"""

import contextlib
import ctypes
import functools
import gc
import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any, TypeVar

import torch

from .errors import DDError, first_line
from .machine import kind

T = TypeVar("T")
LANES = 10
WARMUP = 3  # calls before recording: libraries choose algorithms, optimisers make their buffers


@functools.cache
def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory, in one place for all threads; does nothing elsewhere.

    Every large tensor on the CPU is otherwise mapped, zeroed by the kernel page by page and
    unmapped again: half of the time of a training step (measured: 972 to 527 ms for a backward pass
    of ConvNet-D3-W128 over 256 images on 2 cores). Holds for the whole process, and to its end.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # malloc.h
    mallopt(m_arena_max, 1)
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)


def default_slice(device: torch.device | str) -> int | None:
    """Real images per pass: on a CPU few (64 are no faster and take twice the memory), else all."""
    return 32 if kind(device) == "cpu" else None


# Precision ----------------------------------------------------------------------------------------

_gpu = threading.RLock()


@contextlib.contextmanager
def products(precision: str, device: torch.device | str) -> Iterator[None]:
    """Within the block, float32 products use a GPU's TF32 units for `tf32` and `bfloat16` only.

    On a GPU cuDNN also tries which of its algorithms is the fastest. These settings, the streams
    and the libraries' workspaces are the process's: another thread on a GPU is a `DDError`.
    """
    if kind(device) == "cuda" and not _gpu.acquire(blocking=False):
        raise DDError(
            "another thread of this process uses the GPU; allowed: one (start other processes)"
        )
    places = *tf32_settings(), (torch.backends.cudnn, "benchmark")
    before = [getattr(*place) for place in places]
    try:
        set_products(precision, device)
        yield
    finally:
        if kind(device) == "cuda":
            for place, value in zip(places, before, strict=True):
                setattr(*place, value)
            _gpu.release()


def set_products(precision: str, device: torch.device | str) -> None:
    """Set what `products` sets for good; `DDError` for `tf32` on a CPU."""
    if kind(device) == "cuda":
        for place in tf32_settings():
            setattr(*place, "tf32" if precision in ("tf32", "bfloat16") else "ieee")
        torch.backends.cudnn.benchmark = True
    elif precision == "tf32":
        raise DDError(
            "precision is 'tf32', which needs a GPU; allowed on a CPU: float32, bfloat16, float64"
        )


def tf32_settings() -> list[tuple[Any, str]]:
    """Where PyTorch keeps how float32 products are done; `allow_tf32` warns in some versions."""
    cudnn: Any = torch.backends.cudnn
    return [(at, "fp32_precision") for at in (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)]


def mixed_precision(
    precision: str, device: torch.device | str
) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16 if `precision` says so, else nothing.

    For real gradients, embeddings, the inner loop and evaluation; weights, sums and what is
    differentiated twice stay float32.
    """
    if precision != "bfloat16":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


# Recorded work ------------------------------------------------------------------------------------


class Recorder:
    """`recorder(work, *arguments)` does `work(*arguments)`: plainly on a CPU, recorded on a GPU.

    There the first `WARMUP` calls run as they are, the next one records, all later replay. What is
    recorded must work on tensors that stay where they are and must not look at a value (that would
    wait for the GPU); what it returns is overwritten by the next replay of any work, since the
    works of a recorder share their memory. What cannot be recorded runs as it is, after a warning;
    DDLIB_GRAPHS=0 in the environment, or `wanted` False, records nothing.
    """

    def __init__(self, device: torch.device | str, wanted: bool = True) -> None:
        self.device, on = torch.device(device), os.environ.get("DDLIB_GRAPHS") != "0"
        self.records = wanted and on and kind(device) == "cuda"
        self.calls: Counter[Any] = Counter()
        self.replays: dict[Any, Callable[[], Any]] = {}
        self.pool: Any = None

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> Any:
        if not self.records:
            return work(*arguments)
        key, call = (work, arguments), functools.partial(work, *arguments)
        if key not in self.replays:
            self.calls[key] += 1
            if self.calls[key] <= WARMUP:
                return on_streams([call], self.device, recording=True)[0]
            self.replays[key] = self.record(call)
        return self.replays[key]()

    def fork(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Do independent parts of a work that this recorder is at; returns what they return.

        Where nothing is recorded one after another, so that the memory of one serves the next. Else
        on up to `LANES` streams, whose memory is not shared: that of as many parts is taken at
        once. What parts return may be used by the work, in order, since it waits for all of them;
        they must read what was there before and write to places of their own.
        """
        return on_streams(works, self.device) if self.records else [work() for work in works]

    def record(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """What replays the work; the work itself if it cannot be recorded."""
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        # thread_local: other threads may go on meanwhile
        how = {"pool": self.pool, "capture_error_mode": "thread_local"}
        try:
            with uncollected(), torch.cuda.graph(graph, stream=lanes(here.device)[0], **how):
                output = work()
        except Exception as error:
            self.pool = None  # it may have died with the recording
            first = error.__context__ or error  # the end of a broken recording is an error too
            why = f"{type(first).__name__}: {first_line(first)}"
            warnings.warn(f"goes on without a CUDA graph: {why}", RuntimeWarning, stacklevel=2)
            return work
        finally:  # a recording that fails leaves its own
            torch.cuda.set_stream(here)

        def replay() -> Any:
            graph.replay()
            return output

        return replay

    def close(self) -> None:
        """Let go of what was recorded, and of its memory."""
        self.replays.clear()
        self.calls.clear()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No cyclic garbage within the block: a dead graph that is collected ends a recording."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# Side by side -------------------------------------------------------------------------------------


def side_by_side(works: Sequence[Callable[[], T]], device: torch.device | str) -> list[T]:
    """Do independent works at the same time; returns what they return, in order.

    On a GPU each has a stream. On a CPU each has its share of the threads: the layers of small nets
    are done before several threads have shared them out; one net per thread keeps all of them busy.
    """
    if kind(device) == "cuda":
        return on_streams(works, device)
    threads = torch.get_num_threads()
    if len(works) == 1 or threads == 1:
        return [work() for work in works]
    share, (first, *others) = max(1, threads // len(works)), works
    started = [helpers().submit(on_threads, share, work) for work in others]
    try:
        return [on_threads(share, first), *(work.result() for work in started)]
    finally:
        torch.set_num_threads(threads)


@functools.cache
def helpers() -> ThreadPoolExecutor:
    """The Python threads beside the main one."""
    return ThreadPoolExecutor(thread_name_prefix="ddlib")


def on_threads(number: int, work: Callable[[], T]) -> T:
    """`work()` with so many threads for its layers; set for the Python thread that calls this."""
    torch.set_num_threads(number)
    return work()


def on_streams(
    works: Sequence[Callable[[], T]], device: torch.device | str, recording: bool = False
) -> list[T]:
    """Each work on a stream of its own, after what is under way and before what follows.

    `recording`: on the stream on which work is recorded, which so gets its workspaces.
    """
    here, outputs, used = torch.cuda.current_stream(device), [], []
    recorded, *others = lanes(here.device)
    try:
        for work, lane in zip(works, cycle([recorded] if recording else others), strict=False):
            lane.wait_stream(here)
            used.append(lane)
            with torch.cuda.stream(lane):
                outputs.append(work())
    finally:
        for lane in dict.fromkeys(used):
            here.wait_stream(lane)
    return outputs


@functools.cache
def lanes(device: torch.device) -> list[torch.cuda.Stream]:
    """The streams of a GPU, always the same: one for recordings, ten for works side by side."""
    return [torch.cuda.Stream(device) for _ in range(1 + LANES)]
