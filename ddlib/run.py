"""A run: the state of one distillation, and how it survives being stopped. Knows no method."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from .config import DistillConfig, to_dict
from .data import Data
from .methods import Part
from .pool import ModelPool, label
from .support.errors import DDError, first_line
from .support.machine import environment
from .support.rng import Streams
from .support.store import clear_temporaries, digest, load_tensors, save_tensors, write_atomic
from .synset import LARGEST, SyntheticSet

CHECKPOINT_SECONDS = 10
COUNTERS = ("iteration", "diverged", "seconds", "stopped")
LENGTH = ("iterations", "snapshots")  # settings that no iteration of ddlib's own parts depends on


class Run:
    """Iterations, log, generators, snapshots and checkpoint of a distillation.

    `parts` by name, "images" among them, are prepared and their states kept (`methods.Part`).
    `outside`: names of what came from outside, by part: a checkpoint of other parts is refused.
    Within the block a CPU works with as many threads as when the run began: sums, and so the last
    bits of pixels, depend on them.
    Raises `DDError` for a checkpoint of other settings or a damaged one.
    """

    def __init__(
        self,
        config: DistillConfig,
        data: Data,
        pool: ModelPool,
        parts: Mapping[str, Part],
        outside: Mapping[str, str],
        store: str | Path | None = None,
        resume: bool = True,
    ) -> None:
        self.config, self.data, self.pool, self.parts = config, data, pool, parts
        self.images: Any = parts["images"]
        self.outside = dict(outside)
        self.store, self.rng = Path(store) if store else None, Streams(config.seed)
        self.labels = torch.arange(len(data.classes), device=data.device)
        self.labels = self.labels.repeat_interleave(config.ipc)
        self.iteration, self.diverged, self.seconds, self.stopped = 0, 0, 0.0, False
        self.history: list[SyntheticSet] = []
        self.rows: list[dict[str, Any]] = []
        self.threads = torch.get_num_threads()
        self._kept: int | None = None  # the iteration that the checkpoint on disk is at
        for part in parts.values():
            part.prepare(config, data, self.rng)
        if self.store:
            clear_temporaries(self.store)
        if self.store and not resume:
            for old in self.store.glob("it[0-9]*"):  # else sets of two runs would lie side by side
                old.unlink()
        if self.store and resume and (self.store / "checkpoint.safetensors").is_file():
            self._load(self.store / "checkpoint.safetensors")
        elif 0 in config.snapshots:
            self._snapshot()

    def remaining(
        self,
        stop: Callable[[int], Any] | None = None,
        callback: Callable[[int, Run], Any] | None = None,
    ) -> Iterator[int]:
        """The iterations still to do, numbered from 1; after each `callback`, then `stop`."""
        self._started = self._saved = time.perf_counter()
        self._mark()
        if self.iteration < self.config.iterations:
            self._save()  # a folder that cannot be written to is found out now
        while self.iteration < self.config.iterations and not self.stopped:
            self.steps, self.loss = 0, torch.zeros((), device=self.data.device)
            self.finite = torch.ones((), dtype=torch.bool, device=self.data.device)
            yield self.iteration + 1
            if callback:
                callback(self.iteration, self)
            if stop and stop(self.iteration):
                break

    def guard(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Whether every loss and gradient of this iteration was finite so far, a 0-dim bool.

        Decided on the device, without waiting for it. Adds the loss to what `finish` logs.
        """
        self.steps, self.loss = self.steps + 1, self.loss + loss
        self.finite = self.finite & torch.isfinite(loss) & torch.isfinite(gradient).all()
        return self.finite

    def finish(self, k: int, description: dict[str, Any]) -> None:
        """Log iteration k, take a snapshot if one is due, save a checkpoint now and then."""
        loss, bad = float(self.loss), not bool(self.finite)  # waits for the GPU
        now = time.perf_counter()
        row = {
            "iteration": k,
            "loss": loss / (self.steps * len(self.data.classes)),
            "architecture": label(description),
            "diverged": bad,
            "seconds": round(now - self._started, 4),
            **self.measures(),
        }
        self.rows.append(row)
        self.seconds += now - self._started
        self.iteration, self._started, self.diverged = k, now, self.diverged + bad
        self.stopped = bad and self.config.on_divergence == "stop"
        if k in self.config.snapshots or k == self.config.iterations or self.stopped:
            self._snapshot()
        self._mark()
        if now - self._saved > CHECKPOINT_SECONDS:
            self._save()

    def measures(self) -> dict[str, float]:
        """What the parts have to say about the last iteration."""
        return {k: v for part in self.parts.values() for k, v in part.measures().items()}

    def current(self) -> SyntheticSet:
        """The set as it is now."""
        data, images = self.data, self.images.decode().detach().float().cpu().clone()
        measures = self.measures()
        provenance = environment(data.device) | {
            "seconds": round(self.seconds, 3),
            "diverged_iterations": self.diverged,
            "pool": self.pool.to_dict(),
            "data": data.about(),
            **self.outside,
            **measures,
        }
        about = data.mean, data.std, data.classes, data.name, self.iteration
        made = to_dict(self.config), provenance
        lr = measures.get("lr")
        return SyntheticSet(images, self.labels.cpu(), *about, *made, space=data.space, lr=lr)

    def result(self) -> SyntheticSet:
        """The set at the last iteration, with `history` and `log`."""
        asked = (*self.config.snapshots, self.iteration)
        known = {one.iteration: one for one in self.history if one.iteration in asked}
        final = known.get(self.iteration) or self.current()
        largest, wrong = float(final.images.abs().max()), ""
        if 0 < self.iteration == self.diverged:
            wrong = f"all {self.iteration} iterations diverged, so the images are as at first"
        elif not largest <= LARGEST:  # some members of a pool pull harder the further they are
            wrong = f"the images ran away: pixels reach {largest:.3g} in normalised pixel space"
        if wrong:
            warnings.warn(f"{wrong}; lower lr_images or lr_net", RuntimeWarning, stacklevel=3)
        made = {"config": to_dict(self.config), "log": pd.DataFrame(self.rows)}
        return replace(final, history=list(known.values()), **made)

    def __enter__(self) -> Run:
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(min(self.threads, os.cpu_count() or 1))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        torch.set_num_threads(self._threads_before)
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        if kind is None or stopped:
            self._save()
        for part in self.parts.values():
            part.close()
        if stopped:
            place = f"saved in {self.store}; call again to go on" if self.store else "nothing saved"
            raise KeyboardInterrupt(f"stopped at iteration {self.iteration}: {place}") from None

    def _snapshot(self) -> None:
        self.history.append(self.current())
        if self.store:
            self.history[-1].save(self.store / snapshot_name(self.iteration))

    def _settings(self) -> dict[str, Any]:
        about = {"pool": self.pool.to_dict(), "data": self.data.about(), **self.outside}
        return json.loads(json.dumps(self.config.identity() | about))

    def _mark(self) -> None:
        """Remember the state at an iteration's end: what a checkpoint in mid-iteration holds."""
        if self.store:
            tensors = {f"rng.{name}": state for name, state in self.rng.state().items()}
            for name, part in self.parts.items():
                for key, tensor in part.state().items():
                    tensors[f"{name}.{key}"] = tensor.detach().clone()
            info: dict[str, Any] = {name: getattr(self, name) for name in COUNTERS}
            info["threads"] = self.threads
            info["snapshots"] = [synset.iteration for synset in self.history]
            self._marked = tensors, info | {"tensors": sorted(tensors)}

    def _save(self) -> None:
        """Log and checkpoint, unless the disk has them; and snapshots that have vanished."""
        if self.store and (self._kept != self._marked[1]["iteration"] or not self.store.is_dir()):
            tensors, info = self._marked
            rows = self.rows[: info["iteration"]]
            write_atomic(self.store / "log.csv", pd.DataFrame(rows).to_csv(index=False))
            info |= {"settings": self._settings(), "log": rows}
            save_tensors(self.store / "checkpoint.safetensors", tensors, info)
            for synset in self.history:
                if not (path := self.store / snapshot_name(synset.iteration)).is_file():
                    synset.save(path)
            self._kept, self._saved = info["iteration"], time.perf_counter()

    def _load(self, path: Path) -> None:
        tensors, info = load_tensors(path)
        try:
            if lost := sorted(set(info["tensors"]) - set(tensors)):
                raise KeyError(*lost)
            may_differ = () if self.outside else LENGTH
            check_same(path, self._settings(), info["settings"], may_differ)
            check_within(path, self.config, info["iteration"], info["snapshots"])
            kept: dict[str, Part | Streams] = {"rng": self.rng, **self.parts}
            for name, part in kept.items():
                start = f"{name}."
                part.load({k[len(start) :]: t for k, t in tensors.items() if k.startswith(start)})
            for name in COUNTERS:
                setattr(self, name, info[name])
            self.threads = info.get("threads", self.threads)  # older checkpoints do not say
            log = path.with_name("log.csv")  # a copy for people; all there is of older checkpoints
            self.rows = info["log"] if "log" in info else read_log(log, self.iteration)
            self._kept = self.iteration
        except (KeyError, RuntimeError, TypeError) as error:
            raise DDError(
                f"{path} is no checkpoint of this version ({first_line(error)}); "
                f"delete {path.parent} to start anew"
            ) from error
        snapshots = [path.with_name(snapshot_name(k)) for k in info["snapshots"]]
        self.history = [SyntheticSet.load(snapshot) for snapshot in snapshots]


def check_same(
    path: Path, settings: Mapping[str, Any], saved: Mapping[str, Any], may_differ: Collection[str]
) -> None:
    """Raise `DDError` if a checkpoint was made with other settings, and name them."""
    names = [k for k in {**settings, **saved} if k not in may_differ]
    if names := [name for name in names if settings.get(name) != saved.get(name)]:
        raise DDError(
            f"{path} was made with another {', '.join(names)}; use another folder, or resume=False"
        )


def check_within(path: Path, config: DistillConfig, done: int, kept: Collection[int]) -> None:
    """Raise `DDError` if a checkpoint is beyond the iterations, or a snapshot, that are asked for
    now.
    """
    if done > config.iterations:
        raise DDError(
            f"{path} is at iteration {done}; asked for: {config.iterations}; needed: no fewer, "
            "another folder, or resume=False"
        )
    past = [k for k in config.snapshots if k <= done and k not in kept]
    if past:
        raise DDError(
            f"{path} is at iteration {done} and has kept the sets at {sorted(kept) or 'none'}; "
            f"asked for: {past}; use another folder, or resume=False"
        )


def snapshot_name(iteration: int) -> str:
    """File name of the set at an iteration."""
    return f"it{iteration:05d}.safetensors"


def store_name(config: DistillConfig, data: Data) -> str:
    """A folder name for a distillation: readable, with a hash of what decides its result."""
    settings = json.dumps([config.identity(), data.about()], sort_keys=True)
    about = f"{data.name}-{config.method}-ipc{config.ipc}-{config.pool}-s{config.seed}"
    return f"{about}-{digest(settings)[:8]}"


def read_log(path: Path, rows: int) -> list[dict[str, Any]]:
    """The first rows of a `log.csv`; `DDError` if it is missing, damaged or holds fewer."""
    try:
        found = pd.read_csv(path).to_dict("records") if path.stat().st_size > 1 else []
    except OSError as error:
        raise DDError(f"{path} is missing beside its checkpoint") from error
    except ValueError as error:  # a ParserError is one
        raise DDError(f"{path} is damaged ({first_line(error)})") from error
    if len(found) < rows:
        raise DDError(f"{path} has {len(found)} rows; its checkpoint is at {rows}")
    return found[:rows]
