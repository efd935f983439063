"""Randomness: named generators, all derived from one seed. Nothing in ddlib draws from anywhere else."""

import contextlib
import hashlib
import threading

import torch

_global_generator = threading.Lock()  # distillations side by side share the process


def stream(seed, *names):
    """A CPU generator that depends on `seed` and `names` alone: `stream(0, "eval", "LeNet", 3)`.

    Different names give independent sequences, so that one consumer drawing more never shifts another's numbers.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def streams(seed, names):
    """A dict of named generators, one per name."""
    return {name: stream(seed, name) for name in names}


@contextlib.contextmanager
def torch_seeded_by(generator):
    """Within the block torch's global generator follows `generator`; outside nothing changes.

    PyTorch's layers initialise themselves from the global generator. This gives them a named one for the moment, which
    keeps the library's own, tested initialisation.
    """
    with _global_generator:
        before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        try:
            yield
        finally:
            torch.default_generator.set_state(before)
