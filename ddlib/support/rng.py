"""Randomness: named generators, all derived from one seed. Nothing draws from elsewhere."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator

import torch

# Distillations side by side share the process; a net may build another
_global_generator = threading.RLock()


def stream(seed: int, *names: object) -> torch.Generator:
    """A CPU generator that depends on `seed` and `names` alone: `stream(0, "eval", "LeNet", 3)`.

    Different names give independent sequences: one consumer drawing more never shifts another's.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Streams(dict[str, torch.Generator]):
    """The generators of one seed by name, each made when it is first asked for."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def __missing__(self, name: str) -> torch.Generator:
        self[name] = stream(self.seed, name)
        return self[name]

    def state(self) -> dict[str, torch.Tensor]:
        """Where each generator is."""
        return {name: generator.get_state() for name, generator in self.items()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put the generators back to where `state` saw them."""
        for name, tensor in tensors.items():
            self[name].set_state(tensor)


@contextlib.contextmanager
def torch_seeded_by(generator: torch.Generator) -> Iterator[None]:
    """Within the block torch's global generator follows `generator`; outside nothing changes.

    PyTorch's layers initialise themselves from the global generator. This gives them a named one
    for the moment, which keeps the library's own, tested initialisation.
    """
    with _global_generator:
        before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        try:
            yield
        finally:
            torch.default_generator.set_state(before)
