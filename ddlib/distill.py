"""The DC loop with a model pool: config and data in, synthetic set out (arXiv 2402.13007, section 3.2; DC: ICLR 2021)."""

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

from .config import DistillConfig, to_dict
from .data import check_ipc, random_real
from .device import environment, keep_freed_memory
from .errors import DDError
from .graphs import Epoch, Graph
from .matching import (
    batchnorms,
    default_slice,
    draw_batches,
    freeze_batchnorm,
    matching_step,
    mixed_precision,
    set_products,
)
from .pool import ModelPool, label
from .progress import bar
from .rng import stream, streams
from .store import load_tensors, save_tensors, write_atomic
from .synset import SyntheticSet, first_line

STREAMS = ("pool", "weights", "batch", "batchnorm", "train")
CHECKPOINT_SECONDS = 10


def distill(config, data, pool=None, store=None, resume=True, progress=True, stop=None):
    """Distil `data` into a `SyntheticSet` by gradient matching on nets drawn from a pool.

    `pool`: a `ModelPool`; by default the preset that `config.pool` names. `store`: a folder for snapshots
    (`it00100.safetensors`), the log (`log.csv`) and a checkpoint; with `resume`, a run that was interrupted goes on from it,
    bit for bit on a CPU, and a finished one is read back. `stop(iteration)` is asked after every iteration; if it says True,
    the run ends there and can be resumed. The result's `history` holds the sets at `config.snapshots`, its `log` one row per
    iteration: loss (mean per class and outer step), architecture, seconds. Ctrl-C saves a checkpoint of the last whole
    iteration first. Raises `DDError` for settings the data cannot meet.
    """
    keep_freed_memory()
    run = Run(config, data, pool, store, resume, stop)
    outer, inner = config.loops
    with (
        run,
        bar(
            config.iterations, f"distil {run.pool.name} s{config.seed}", run.iteration, progress
        ) as ticks,
    ):
        for k in run.remaining():
            description, net = run.draw_net(k)
            for step in range(outer):
                net.freeze_batchnorm()
                net.match()
                if step < outer - 1:
                    net.train(inner)
            run.finish_iteration(k, description)
            ticks.update()
    return run.result()


class Matched:
    """A net of the pool on the device, and what is done with it: work that is the same every time, recorded on a GPU.

    One per architecture; `load` gives it the fresh weights of another iteration.
    """

    def __init__(self, run, net):
        self.run, self.net = run, net.to(run.images.device, run.images.dtype)
        config, device, classes = run.config, run.images.device, len(run.data.classes)
        self.real, self.real_bn = (
            torch.zeros(classes, n, dtype=torch.int64, device=device)
            for n in (config.batch_real, config.batch_bn)
        )
        self.has_batchnorm = bool(batchnorms(net))
        self._freeze, self._match = (
            Graph(self._freeze_once, device),
            Graph(self._match_once, device),
        )
        self._epoch = inner_epoch(run.images.detach(), run.labels, self.net, config)

    def load(self, fresh):
        """Take the weights and buffers of a freshly initialised net of this architecture."""
        self.net.load_state_dict(fresh.state_dict())

    def freeze_batchnorm(self):
        """Set and freeze the statistics of BatchNorm layers, if there are any, from a real batch of all classes."""
        if self.has_batchnorm:
            batch = draw_batches(self.run.data, self.run.config.batch_bn, self.run.rng["batchnorm"])
            self.real_bn.copy_(batch, non_blocking=True)
            self._freeze()

    def match(self):
        """One matching step on fresh real batches, and one step of the pixels against its gradient."""
        batch = draw_batches(self.run.data, self.run.config.batch_real, self.run.rng["batch"])
        self.real.copy_(batch, non_blocking=True)
        self._match()

    def train(self, epochs):
        """The inner loop on the synthetic set as it is now."""
        run = self.run
        train_on(
            run.images.detach(),
            run.labels,
            self.net,
            epochs,
            run.config,
            run.rng["train"],
            self._epoch,
        )

    def _freeze_once(self):
        freeze_batchnorm(self.net, self.run.data.x_train[self.real_bn.flatten()])

    def _match_once(self):
        run = self.run
        loss = matching_step(
            self.net,
            run.images,
            run.labels,
            run.data,
            self.real,
            run.slice_size,
            run.config.precision,
        )
        run.step_pixels(loss)


def train_on(images, labels, net, epochs, config, generator, epoch=None):
    """The inner loop: `epochs` of plain SGD (no momentum) on the synthetic set, so that matching sees trained weights too.

    `epoch`: an `inner_epoch` of the same tensors, which a GPU may have recorded already.
    """
    net.train()
    epoch = epoch or inner_epoch(images, labels, net, config)
    for _ in range(epochs):
        epoch(generator)


def inner_epoch(images, labels, net, config):
    """One epoch of the inner loop as an `Epoch`: SGD, lr `config.lr_net`, no momentum, batches of `config.batch_train`."""
    parameters = list(net.parameters())

    def step(batch):
        with mixed_precision(config.precision, images.device):
            logits = net(images[batch])
        gradients = torch.autograd.grad(
            F.cross_entropy(logits.to(images.dtype), labels[batch]), parameters
        )
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-config.lr_net)

    return Epoch(step, len(labels), config.batch_train, images.device)


class Run:
    """The state of one distillation: pixels, their optimiser, generators, log; and how it survives being stopped."""

    def __init__(self, config, data, pool=None, store=None, resume=True, stop=None):
        if not isinstance(config, DistillConfig):
            raise DDError(f"config is a {type(config).__name__}; needed: a DistillConfig")
        if pool is not None and config.pool != pool.name:
            config = replace(config, pool=pool.name)  # what every row of results will say
        check_ipc(config.ipc, data)
        for name in ("batch_real", "batch_bn"):
            if getattr(config, name) > min(data.counts()):
                raise DDError(
                    f"{name} is {getattr(config, name)}; allowed: 1 to {min(data.counts())} (the smallest class)"
                )
        self.config, self.store = config, Path(store) if store else None
        self.pool = pool or ModelPool.preset(
            config.pool,
            config.main_prob,
            config.width,
            config.depth,
            config.width_factor,
            config.similar_depth,
            config.warmup,
            data.shape,
        )
        if self.pool.shape != data.shape:
            raise DDError(
                f"the pool builds nets for (channels, side, classes) {self.pool.shape}; the data have {data.shape}"
            )
        set_products(config.precision, data.device)
        dtype = torch.float64 if config.precision == "float64" else torch.float32
        self.data = data.to(dtype=dtype)
        self.slice_size = config.slice_size or default_slice(data.device)
        self.rng = streams(config.seed, STREAMS)
        channels, side, classes = data.shape
        self.labels = torch.arange(classes, device=data.device).repeat_interleave(config.ipc)
        if config.init == "real":
            images = random_real(data, config.ipc, config.seed).images
        else:
            noise = (classes * config.ipc, channels, side, side)
            images = torch.randn(noise, generator=stream(config.seed, "init"))
        self.images = images.to(data.device, dtype).clone().requires_grad_()
        self.momentum = torch.zeros_like(self.images, requires_grad=False)
        self.loss = torch.zeros(
            (), dtype=dtype, device=data.device
        )  # sum over the steps of this iteration
        self.finite = torch.ones(
            (), dtype=torch.bool, device=data.device
        )  # whether all of them were
        self.nets = {}
        self.iteration, self.diverged, self.seconds, self.history, self.rows = 0, 0, 0.0, [], []
        self.stopped, self.stop = False, stop or (lambda iteration: False)
        if self.store and resume and (self.store / "checkpoint.safetensors").is_file():
            self._load_checkpoint()
        elif 0 in config.snapshots:
            self._snapshot()

    def remaining(self):
        """The iterations still to do, numbered from 1."""
        self._started = self._saved = time.perf_counter()
        self._mark()
        while self.iteration < self.config.iterations and not self.stopped:
            yield self.iteration + 1
            if self.stop(self.iteration):
                break

    def draw_net(self, k):
        """Draw the architecture and fresh weights of iteration k: `(description, Matched)`."""
        description, fresh = self.pool.sample(self.rng["pool"], k, self.rng["weights"])
        self.loss.zero_()
        self.finite.fill_(True)
        name = json.dumps(description)
        if name in self.nets:
            self.nets[name].load(fresh)
        else:
            self.nets[name] = Matched(self, fresh)
        return description, self.nets[name]

    @torch.no_grad()
    def step_pixels(self, loss):
        """SGD with momentum on the pixels against `images.grad`.

        Once a loss or gradient of this iteration was not finite, pixels and momentum stay as they are until the next one;
        decided on the device, without waiting for it.
        """
        self.loss += loss
        self.finite &= torch.isfinite(loss) & torch.isfinite(self.images.grad).all()
        momentum = self.momentum * self.config.momentum_images + self.images.grad
        images = torch.add(self.images, momentum, alpha=-self.config.lr_images)
        self.momentum.copy_(torch.where(self.finite, momentum, self.momentum))
        self.images.copy_(torch.where(self.finite, images, self.images))

    def finish_iteration(self, k, description):
        """Log iteration k, take a snapshot if one is due, save a checkpoint now and then."""
        loss, bad = float(self.loss), not bool(self.finite)  # waits for the GPU, once an iteration
        now = time.perf_counter()
        self.rows.append(
            {
                "iteration": k,
                "loss": loss / (self.config.loops[0] * len(self.data.classes)),
                "architecture": label(description),
                "diverged": bad,
                "seconds": round(now - self._started, 4),
            }
        )
        self.seconds += now - self._started
        self.iteration, self._started = k, now
        self.diverged += bad
        self.stopped = bad and self.config.on_divergence == "stop"
        if k in self.config.snapshots or k == self.config.iterations or self.stopped:
            self._snapshot()
        self._mark()
        if now - self._saved > CHECKPOINT_SECONDS:
            self._save_checkpoint()

    def result(self):
        """The set at the last iteration, with `history` and `log`."""
        final = self.history[-1] if self.history else self._as_set()
        final.history, final.log = list(self.history), pd.DataFrame(self.rows)
        return final

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self._save_checkpoint()

    def _as_set(self):
        provenance = environment(self.images.device) | {
            "seconds": round(self.seconds, 3),
            "diverged_iterations": self.diverged,
            "pool": self.pool.to_dict(),
        }
        data = self.data
        return SyntheticSet(
            self.images.detach().float().cpu().clone(),
            self.labels.cpu(),
            data.mean,
            data.std,
            data.classes,
            data.name,
            self.iteration,
            to_dict(self.config),
            provenance,
        )

    def _snapshot(self):
        self.history.append(self._as_set())
        if self.store:
            self.history[-1].save(self.store / snapshot_name(self.iteration))

    def _mark(self):
        """Remember the state at an iteration's end: what a checkpoint written in mid-iteration must hold."""
        tensors = {"images": self.images.detach().clone(), "momentum": self.momentum.clone()}
        tensors |= {f"rng.{name}": g.get_state() for name, g in self.rng.items()}
        info = {
            "settings": self._settings(),
            "iteration": self.iteration,
            "diverged": self.diverged,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "snapshots": [s.iteration for s in self.history],
        }
        self._state = tensors, info

    def _settings(self):
        return {
            "config": to_dict(self.config),
            "pool": self.pool.to_dict(),
            "data": self.data.about(),
        }

    def _save_checkpoint(self):
        if self.store:
            tensors, info = self._state
            write_atomic(
                self.store / "log.csv",
                pd.DataFrame(self.rows[: info["iteration"]]).to_csv(index=False),
            )
            save_tensors(self.store / "checkpoint.safetensors", tensors, info)
            self._saved = time.perf_counter()

    def _load_checkpoint(self):
        path = self.store / "checkpoint.safetensors"
        tensors, info = load_tensors(path)
        try:
            self._check_settings(path, info["settings"])
            self.images.data.copy_(tensors["images"])
            self.momentum.copy_(tensors["momentum"])
            for name, generator in self.rng.items():
                generator.set_state(tensors[f"rng.{name}"])
            self.iteration, self.diverged, self.seconds = (
                info["iteration"],
                info["diverged"],
                info["seconds"],
            )
            self.stopped = info["stopped"]
            self.history = [
                SyntheticSet.load(self.store / snapshot_name(k)) for k in info["snapshots"]
            ]
            self.rows = read_log(self.store / "log.csv")[: self.iteration]
            if len(self.rows) < self.iteration:
                raise DDError(
                    f"{self.store / 'log.csv'} has {len(self.rows)} rows; its checkpoint is at {self.iteration}"
                )
        except (KeyError, RuntimeError, TypeError) as error:
            raise DDError(
                f"{path} is no checkpoint of this version ({error}); delete {self.store} to start anew"
            ) from error

    def _check_settings(self, path, saved):
        mine = json.loads(json.dumps(self._settings()))
        names = [k for k in mine["config"] if mine["config"][k] != saved["config"].get(k)]
        names += [k for k in ("pool", "data") if mine[k] != saved[k]]
        if names:
            raise DDError(
                f"{path} was made with another {', '.join(names)}; use another folder, or resume=False"
            )


def snapshot_name(iteration):
    """File name of the set at an iteration."""
    return f"it{iteration:05d}.safetensors"


def store_name(config, data):
    """A folder name for a distillation: readable, and with a hash of everything that decides its result."""
    settings = json.dumps([to_dict(config), data.about()], sort_keys=True)
    return f"{data.name}-ipc{config.ipc}-{config.pool}-s{config.seed}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def read_log(path):
    """The rows of a `log.csv`; an empty file (no iteration yet) has none."""
    try:
        return pd.read_csv(path).to_dict("records")
    except (OSError, pd.errors.EmptyDataError) as error:
        if path.is_file():
            return []
        raise DDError(f"{path} is missing beside its checkpoint") from error
    except (ValueError, pd.errors.ParserError) as error:
        raise DDError(f"{path} is damaged ({first_line(error)})") from error
