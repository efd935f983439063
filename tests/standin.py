"""A stand-in for a GPU: ddlib takes the lines that it takes on a GPU, with the CPU's tensors.

A `Tape` stands for a CUDA graph. Recording notes every kernel with the tensors it was given, and
puts the memory back afterwards, since a GPU runs nothing then; a replay runs the same kernels on
the same memory. As there, what looks at a value cannot be recorded, streams must be joined, and a
replay finds garbage in all that was made by recordings of the same pool. Stricter than there, two
kernels that touch the same numbers, one of them writing, must be in order: on one stream, or on
two of which the later has waited.
"""

import contextlib
import functools
import gc
import sys
import weakref
from collections import Counter, defaultdict

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddlib.support import fast, machine

aten = torch.ops.aten
LOOKS = {aten._local_scalar_dense, aten.nonzero, aten.equal, aten.lift_fresh}  # at or from the host


def tensors(*things):
    """The tensors with memory of their own in nested arguments, each with where it lies."""
    leaves = (leaf for leaf in tree_leaves(things) if isinstance(leaf, torch.Tensor))
    return [(leaf.untyped_storage().data_ptr(), leaf) for leaf in leaves if leaf.numel()]


@functools.cache
def writing(func):
    """Positions and names of the arguments that a kernel writes to; None if it moves nothing."""
    schema = func._schema
    if any(one.alias_info and not one.alias_info.is_write for one in schema.returns):
        return None  # a view
    written = [one.alias_info is not None and one.alias_info.is_write for one in schema.arguments]
    return {x for i, one in enumerate(schema.arguments) if written[i] for x in (i, one.name)}


def touched(func, args, kwargs, output):
    """What a kernel reads or writes: where it lies, its first and last byte, if it is written."""
    if (written := writing(func)) is None:
        return
    parts = [(arg, key in written) for key, arg in [*enumerate(args), *kwargs.items()]]
    for part, is_written in [*parts, (output, True)]:
        for place, tensor in tensors(part):
            last = sum(
                (n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)
            )
            size, first = tensor.element_size(), tensor.storage_offset()
            yield place, first * size, (first + last + 1) * size - 1, is_written


class Stream:
    """Notes who waits for whom. In a recording, who waits for a recorded stream is recorded too.

    `seen`: how many kernels of each stream are over when the next of this one begins.
    """

    device = torch.device("cpu")

    def __init__(self, gpu):
        self.gpu, self.seen = gpu, Counter()

    def wait_stream(self, other):
        self.gpu.waits.append((self, other))
        self.seen |= other.seen
        recorded = self.gpu.recorded
        if other in recorded:
            recorded.add(self)
            self.gpu.unjoined = self.gpu.unjoined - {other} | {self}
        elif self in recorded:
            raise RuntimeError("dependency created on uncaptured work in another stream")


class Tape(TorchDispatchMode):
    """Stands for `torch.cuda.CUDAGraph`; as a mode, it records."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu, self.calls, self.before, self.made = gpu, [], {}, {}
        self.touches = defaultdict(dict)
        gpu.tapes.append(weakref.ref(self))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket in LOOKS:
            raise RuntimeError("operation not permitted when stream is capturing")
        if self.gpu.current not in self.gpu.recorded:
            raise RuntimeError("work on a stream that is not captured")
        for place, tensor in tensors(args, kwargs):
            if place not in self.made and place not in self.before:
                memory = tensor.untyped_storage()
                self.before[place] = memory, memory.clone()
        output = func(*args, **kwargs)
        self.made |= {p: t.untyped_storage() for p, t in tensors(output) if p not in self.before}
        self.calls.append((func, args, kwargs, output))
        self.order(func, touched(func, args, kwargs, output))
        return output

    def order(self, func, touches):
        """Refuse a kernel that may run beside one that it should follow."""
        here = self.gpu.current
        here.seen[here] += 1
        for place, *touch in touches:
            first, last, is_written = touch
            for (stream, a, b, was_written), tick in self.touches[place].items():
                apart = b < first or last < a or not (is_written or was_written)
                if not apart and tick > here.seen[stream]:
                    raise RuntimeError(f"{func} runs beside a kernel that it should follow")
            self.touches[place][here, *touch] = here.seen[here]

    def restore(self):
        for memory, copy in self.before.values():
            memory.copy_(copy)
        self.before = {place: None for place in self.before}

    def replay(self):
        self.gpu.replays += 1
        assert not self.gpu.recorded, "a replay within a recording"
        for tape in filter(None, (ref() for ref in self.gpu.tapes)):
            for memory in tape.made.values() if tape.pool is self.pool else ():
                memory.fill_(255)
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, output in self.calls:
                again = func(*args, **kwargs)
                for (place, old), (new_place, new) in zip(
                    tensors(output), tensors(again), strict=True
                ):
                    if place != new_place:
                        old.copy_(new)


class Recording:
    """Stands for `torch.cuda.graph`: one that fails raises as it ends, and leaves its stream."""

    def __init__(self, graph, pool=None, stream=None, capture_error_mode="global"):
        assert capture_error_mode == "thread_local"
        self.tape, self.gpu, self.stream = graph, graph.gpu, stream
        graph.pool = pool

    def __enter__(self):
        assert not gc.isenabled(), "a collection may fall into the recording"
        others = [ref().pool for ref in self.gpu.tapes if ref() and ref() is not self.tape]
        if self.tape.pool in self.gpu.pools and self.tape.pool not in others:
            raise RuntimeError("the pool has died with its last graph")
        self.gpu.pools.append(self.tape.pool)
        self.before, self.gpu.current = self.gpu.current, self.stream
        self.gpu.recorded, self.gpu.unjoined = {self.stream}, set()
        self.tape.__enter__()
        if self.gpu.fails():
            raise self.end(RuntimeError("out of memory"))

    def end(self, error):
        """Back to where it began, but for the stream if there is an error."""
        self.tape.__exit__(None, None, None)
        self.tape.restore()
        unjoined, self.gpu.recorded = self.gpu.unjoined - {self.stream}, set()
        if unjoined and not error:
            error = RuntimeError("capturing stream has unjoined work")
        if not error:
            self.gpu.current = self.before
            self.gpu.captures += 1
        return error

    def __exit__(self, kind, error, trace):
        if isinstance(failed := self.end(error), RuntimeError):
            raise RuntimeError(
                "operation failed due to a previous error during capture"
            ) from failed
        self.gpu.current = self.before


class GPU:
    """What the stand-in has seen. `fails()`: whether the next recording runs out of memory."""

    def __init__(self):
        self.default = self.current = Stream(self)
        self.waits, self.tapes, self.pools = [], [], []
        self.recorded, self.unjoined, self.captures, self.replays = set(), set(), 0, 0
        self.fails = lambda: False

    def set_stream(self, stream):
        self.current = stream

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def alive(self):
        return [ref() for ref in self.tapes if ref()]


def cuda_for_cpu(device):
    """`machine.kind` with a GPU in the CPU's place."""
    return {"cpu": "cuda"}.get(torch.device(device).type, torch.device(device).type)


def stands_for(gpu):
    """What takes the place of parts of `torch.cuda`, by name."""
    return {
        "CUDAGraph": lambda: Tape(gpu),
        "graph": Recording,
        "graph_pool_handle": object,
        "Stream": lambda device: Stream(gpu),
        "current_stream": lambda device: gpu.current,
        "set_stream": gpu.set_stream,
        "stream": gpu.stream,
    }


@pytest.fixture
def gpu(monkeypatch):
    """From here on ddlib takes CPU tensors for a GPU's."""
    found, real = GPU(), machine.kind
    for name, module in list(sys.modules.items()):
        if name.startswith("ddlib") and getattr(module, "kind", None) is real:
            monkeypatch.setattr(module, "kind", cuda_for_cpu)
    for name, value in stands_for(found).items():
        monkeypatch.setattr(torch.cuda, name, value)
    fast.lanes.cache_clear()
    yield found
    fast.lanes.cache_clear()
