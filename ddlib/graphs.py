"""Work that is the same at every call: a plain call on a CPU, a recorded CUDA graph on a GPU.

A training step of a small net is some sixty kernels of a few microseconds; launched one by one from Python, they leave a GPU
idle most of the time. Recorded once and replayed, they follow each other without Python. Whatever is recorded must work on
tensors that stay where they are, must not look at a value (that would wait for the GPU), and returns nothing.
"""

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
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other threads may go on meanwhile
                self.work()
        self.graph.replay()


def on_streams(works, device):
    """Do several independent works, on a GPU side by side, each on a stream of its own; one after the other on a CPU."""
    if torch.device(device).type != "cuda":
        for work in works:
            work()
        return
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
