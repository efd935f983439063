"""Work that is the same at every call: a plain call on a CPU, a recorded CUDA graph on a GPU.

A training step of a small net is some sixty kernels of a few microseconds; launched one by one from Python, they leave a GPU
idle most of the time. Recorded once and replayed, they follow each other without Python. Whatever is recorded must work on
tensors that stay where they are, must not look at a value (that would wait for the GPU), and returns nothing.
`side_by_side` fills what one small net leaves idle with others: a GPU by streams, a CPU by threads.
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import torch

WARMUP = 3  # calls before the recording: libraries choose their algorithms, optimisers make their buffers


class Graph:
    """Do `work()` once per call. On a GPU the first `WARMUP` calls run as they are, the next one records, all later replay."""

    def __init__(self, work, device):
        self.work, self.device = work, torch.device(device)
        self.calls, self.graph = 0, None

    def __call__(self):
        if self.device.type != "cuda":
            return self.work()
        if self.graph is None and self.calls < WARMUP:
            self.calls += 1
            return on_streams([self.work], self.device)
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                self.graph, capture_error_mode="thread_local"
            ):  # other threads may go on meanwhile
                self.work()
        self.graph.replay()


def side_by_side(works, device):
    """Do independent works at the same time, on a GPU each on a stream, on a CPU each on its share of the threads.

    The layers of small nets are done before several threads have shared them out; one net per thread keeps all of them busy.
    Returns what they return, in order (on a GPU nothing: see above).
    """
    if torch.device(device).type == "cuda":
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
def helpers():
    """The Python threads beside the main one."""
    return ThreadPoolExecutor(thread_name_prefix="ddlib")


def on_threads(number, work):
    """`work()` with so many threads for its layers; the setting holds for the Python thread that calls this."""
    torch.set_num_threads(number)
    return work()


def on_streams(works, device):
    """Each work on a stream of its own, all of them after what is under way and before what follows."""
    here = torch.cuda.current_stream(device)
    streams = [torch.cuda.Stream(device) for _ in works]
    for work, stream in zip(works, streams, strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            work()
    for stream in streams:
        here.wait_stream(stream)


class Epoch:
    """One pass over a set of `n` items in batches of `size`: `step(batch)` for each, `batch` indexing the set.

    A set that fits into one batch is taken whole and in order; otherwise every pass has a new order from `generator`.
    Calling it does a pass, recorded; `shuffle` and `run` are its parts, for whoever records several together.
    """

    def __init__(self, step, n, size, device):
        self.step, self.n, self.size = step, n, size
        self.order = torch.arange(n, device=device)
        self.graph = Graph(self.run, device)

    def __call__(self, generator):
        self.shuffle(generator)
        self.graph()

    def shuffle(self, generator):
        if self.n > self.size:
            self.order.copy_(torch.randperm(self.n, generator=generator), non_blocking=True)

    def run(self):
        for batch in [slice(None)] if self.n <= self.size else self.order.split(self.size):
            self.step(batch)
