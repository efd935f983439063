"""Distillation: one loop for every method. Settings and data in, synthetic set out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .config import DistillConfig
from .data import Data, check_ipc
from .methods import Images, Objective, Part, get_method, options_of, part_classes
from .methods.objective import gradient_of
from .nets import net_class
from .pool import PRESETS, ModelPool, pool_of
from .run import Run
from .support.code import code_of
from .support.errors import DDError, check_loss
from .support.fast import keep_freed_memory, products
from .support.progress import bar
from .support.public import public
from .synset import SyntheticSet

# A loss of your own beside the method's: f(net, pixels [N, C, H, W], labels [N]), 0-dim
Extra = Callable[[nn.Module, Tensor, Tensor], Tensor]


@public
def distill(
    config: DistillConfig,
    data: Data,
    pool: ModelPool | None = None,
    *,
    objective: Objective | type[Objective] | None = None,
    images: Images | type[Images] | None = None,
    extras: Sequence[Extra] = (),
    store: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    stop: Callable[[int], Any] | None = None,
    callback: Callable[[int, Run], Any] | None = None,
) -> SyntheticSet:
    """Distil `data` into a `SyntheticSet` by `config.method` on nets drawn from a pool.

    `pool`: by default the preset that `config.pool` names. `objective`, `images`: your own, an
    object or its class, instead of those that the config names. `extras`: more losses to add to the
    method's; what they remember is kept if they are `methods.Part`s. Objects that are such parts
    stay as they are: the run has copies, `run.parts` in a callback. `store`: a folder for the log
    (`log.csv`), snapshots (`it00100.safetensors`) and a checkpoint; with `resume`, a run that was
    interrupted goes on from it, bit for bit on a CPU, a finished one is read back, or goes on if
    more iterations are asked for (not where parts are your own: these may count on an end). After
    every iteration `callback(iteration, run)` is called (`run.current()` is the set so far), then
    `stop(iteration)`: if it says True, the run ends there and can be resumed. The result's
    `history` holds the sets at `config.snapshots`, its `log` one row per iteration: loss (mean per
    class and outer step), architecture, seconds. Ctrl-C saves a checkpoint of the last whole
    iteration. Raises `DDError` for settings the data cannot meet.
    """
    keep_freed_memory()
    config = settled(config, data, pool, objective, images)
    data = data.in_precision(config.precision)
    pool = pool_of(config, data.shape) if pool is None else pool.check(data.shape)
    outside = from_outside(config, objective, images, extras, pool)
    named = config.parts()
    chosen: Objective = instance(objective or named.pop("objective"))
    learned: Images = instance(images or named["images"])
    every: list[Any] = [*(named[name] for name in config.extras), *map(own_copy, extras)]
    parts: dict[str, Part] = {"images": learned, "objective": chosen}
    parts |= {f"extra{i}": extra for i, extra in enumerate(every) if isinstance(extra, Part)}
    if not (isinstance(chosen, Objective) and isinstance(learned, Images)):
        made = f"objective is a {name_of(chosen)}, images a {name_of(learned)}"
        raise DDError(f"{made}; needed: an Objective and Images")
    run = Run(config, data, pool, parts, outside, store, resume)
    title = f"distil {run.pool.name} s{config.seed}"
    with (
        products(config.precision, data.device),
        run,
        bar(config.iterations, title, run.iteration, progress) as ticks,
    ):
        for k in run.remaining(stop, callback):
            iterate(run, k, chosen, learned, every)
            ticks.update()
    return run.result()


def iterate(
    run: Run, k: int, objective: Objective, images: Images, extras: Sequence[Extra]
) -> None:
    """Iteration k of every method: a net, and the steps that the images take on it."""
    net = objective.start(run.pool, k)
    for step in range(objective.outer):
        pixels = images.decode()
        loss = objective(net, pixels)
        for extra in extras:
            more = check_loss(f"extra {name_of(extra)!r}", extra(net, pixels, run.labels))
            loss = loss + add_gradient(more, pixels)
        assert pixels.grad is not None
        finite = run.guard(loss, pixels.grad)
        images.step(pixels.grad, finite)
        objective.learn(finite)
        if step < objective.outer - 1:
            objective.train(net, images.decode().detach(), run.labels)
    run.finish(k, objective.description)


def add_gradient(loss: Tensor, pixels: Tensor) -> Tensor:
    """Add a loss's gradient to `pixels.grad`; returns the loss without its graph."""
    assert pixels.grad is not None
    pixels.grad += gradient_of(loss, pixels)
    return loss.detach()


def settled(
    config: DistillConfig,
    data: Data,
    pool: ModelPool | None,
    objective: Any = None,
    images: Any = None,
) -> DistillConfig:
    """The config with nothing left open, named after what is used: rows of results will say so."""
    if not isinstance(config, DistillConfig):
        raise DDError(f"config is a {type(config).__name__}; needed: a DistillConfig")
    parts = part_classes(config.method, config.images, config.extras)
    given = {"objective": objective, "images": images}
    kept = options_of(*(cls for role, cls in parts.items() if given.get(role) is None))
    if lost := [name for name in config.options if name not in kept]:
        role = next(role for role in given if lost[0] in options_of(parts[role]))
        named = f"method {config.method!r}" if role == "objective" else f"images {config.images!r}"
        what = f"option {lost[0]!r} belongs to {named}, which {role}= replaces"
        raise DDError(f"{what}; set it where that is made")
    check_ipc(config.ipc, data)
    config = config.resolved()
    held = min(data.counts())
    for name in ("batch_real", "batch_bn"):
        if not 1 <= (wanted := getattr(config, name)) <= held:
            per = "training images of the smallest class, without those held out for validation"
            raise DDError(f"{name} is {wanted}; allowed: 1 to {held} ({per})")
    if config.pool == "custom" and pool is None:
        raise DDError("pool is 'custom', so distill needs the pool itself: pool=ModelPool(...)")
    if objective is not None and not config.method.startswith("custom"):
        options = {name: config.options[name] for name in kept}
        config = replace(config, method=f"custom-{name_of(objective)}", options=options)
    if pool is None:
        return config
    config = replace(config, pool=pool.name, warmup=pool.warmup)
    if pool.name in PRESETS and pool.to_dict() != pool_of(config, data.shape).to_dict():
        made = f"pool= is a {pool.name!r} of other settings than the config's"
        raise DDError(f"{made}; give the config these settings, or the pool a name of its own")
    return config


def from_outside(
    config: DistillConfig, objective: Any, images: Any, extras: Sequence[Any], pool: ModelPool
) -> dict[str, str]:
    """The names of parts that the config does not name, and the code of all that is not ddlib's."""
    method = get_method(config.method).objective if objective is None else objective
    nets = [net_class(member.net) for member in pool.members]
    written = [code for part in (method, images, *extras, *nets) if (code := code_of(part))]
    names = {"images": name_of(images) if images else "", "extras": ", ".join(map(name_of, extras))}
    names["code"] = "-".join(written)
    return {kind: name for kind, name in names.items() if name}


def instance(part: Any) -> Any:
    """A part, given as an object or as its class."""
    return part() if isinstance(part, type) else own_copy(part)


def own_copy(part: Any) -> Any:
    """A copy of a part, which a run fills with data and with what it learns; others as they are."""
    return copy.copy(part) if isinstance(part, Part) else part


def name_of(part: Any) -> str:
    """The name of a function or class, or of an object's class."""
    return getattr(part, "__name__", type(part).__name__)
