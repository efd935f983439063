"""Doing tasks: each once, from its results if they are there, and a plan of them.

What a task makes lies in files of its own: a set at an iteration, rows. So a task that was stopped
goes on, several processes may work in one folder, and two copies of a study are merged by copying.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch

from ..choose import choices
from ..config import EvalConfig
from ..data import check_ipc
from ..distill import settled
from ..evaluate import check_nets, configured, evaluate, groups
from ..identity import describe_row, eval_seeds, machine_text, splits
from ..losses import find_protocol
from ..pool import pool_of
from ..support.errors import DDError
from ..support.fast import side_by_side
from ..support.machine import environment, kind
from ..support.progress import bar
from ..support.store import locked
from .plan import ImageSet, Sweep, Task, Train, needs

if TYPE_CHECKING:
    from .study import Study

BAR = "{desc}: {percentage:.0f}%|{bar}| {elapsed}<{remaining}"
EXTENSIONS = 2  # times that a choice at the edge of its grid adds a candidate beyond it
Stop = Callable[[], bool]
Failures = list[tuple[Task, Exception]]


def check_plan(tasks: Iterable[Task], study: "Study") -> None:
    """Raise `DDError` for what would be refused only when its turn comes, perhaps in hours."""
    data, checked = study.data, set()
    for task in tasks:
        images, held_out = task.images, isinstance(task, Sweep)
        if (alike := replace(images, seed=0, iteration=0)) not in checked:
            checked.add(alike)
            check_ipc(images.ipc or 1, data)
            if not images.are_given:
                pool_of(settled(study.config(images), data, None), data.shape)
        if isinstance(task, Train) and not task.chosen:
            held_out = "val" in splits(task.split)
            if (key := (task.net, task.protocol, task.teacher, task.settings)) not in checked:
                checked.add(key)
                protocol, teacher = find_protocol(task.protocol, task.teacher)
                config = configured(study.profile.eval_config(), dict(task.settings), protocol)
                check_nets([task.net], teacher, protocol, data, config)
        if held_out and not len(data.y_val):
            given = f"val_fraction is {study.profile.val_fraction}"
            raise DDError(f"{given}; needed: more, since the plan has: {task}")


def run_together(tasks: Sequence[Task], study: "Study", stop: Stop | None = None) -> None:
    """Do tasks of the same `signature`, all at the same time, unless their results are there.

    `stop` is asked after every iteration of a distillation and before every group of nets; what is
    there by then is kept. Raises `DDError` if something is missing that a task needs.
    """
    study.results.refresh()
    left = [task for task in tasks if not is_done(task, study)]
    for task in left:
        if not is_ready(task, study):
            first = ", ".join(map(str, needs(task, study.profile)))
            raise DDError(f"{task} cannot be done yet; do first: {first}")
    if left:
        {ImageSet: distil, Sweep: sweep, Train: train}[type(left[0])](left, study, stop)


def is_done(task: Task, study: "Study") -> bool:
    """Whether all results of a task are there."""
    if isinstance(task, ImageSet):
        return study.has(task)
    if isinstance(task, Sweep):
        return chosen_value(task, study) is not None
    return len(rows_of(task, study)) == task.n * len(splits(task.split))


def is_ready(task: Task, study: "Study") -> bool:
    """Whether a task has what it needs: its images, and the value that a sweep chooses for it."""
    if isinstance(task, ImageSet):
        return True
    if isinstance(task, Sweep):
        return study.has(task.images) and None not in chosen_settings(task.after, study).values()
    return study.has(task.images) and config_of(task, study) is not None


def rows_of(task: Task, study: "Study") -> list[dict]:
    """The finished rows of a task (`results.ROWS`)."""
    if isinstance(task, Sweep):
        trials = [task.candidate(value) for value in tried(task, study)[0]]
        return [row for trial in trials for row in rows_of(trial, study)]
    if isinstance(task, ImageSet) or not is_ready(task, study):
        return []
    protocol, teacher = find_protocol(task.protocol, task.teacher)
    synset, config = study.load(task.images), config_of(task, study)
    content = study.data.content
    row = describe_row(synset, protocol, task.net, 0, teacher, "test", config, content)
    seeds = eval_seeds(synset, task.n)
    pairs = ((seed, split) for seed in seeds for split in splits(task.split))
    rows = (study.results.get(row | {"eval_seed": s, "split": split}) for s, split in pairs)
    return [row for row in rows if row is not None]


def config_of(task: Train, study: "Study") -> EvalConfig | None:
    """How the nets of a task are trained; None until what a sweep chooses for it is known."""
    settings = dict(task.settings) | chosen_settings(task.chosen, study)
    if None in settings.values():
        return None
    protocol, _ = find_protocol(task.protocol, task.teacher)
    return configured(study.profile.eval_config(), settings, protocol)


def chosen_settings(task: Sweep | None, study: "Study") -> dict[str, float | None]:
    """What a sweep and those before it choose, None for what is not known yet."""
    if task is None:
        return {}
    before = chosen_settings(task.after, study)
    value = None if None in before.values() else chosen_value(task, study)
    return before | {task.setting: value}


def chosen_value(task: Sweep, study: "Study") -> float | None:
    """What a sweep chooses, None until that is known; the one place where this is decided."""
    if task not in study.chosen and (value := tried(task, study)[1]) is not None:
        study.chosen[task] = value
    return study.chosen.get(task)


def tried(task: Sweep, study: "Study") -> tuple[list[float], float | None]:
    """The candidates of a sweep so far, and the chosen one; None while there is more to try.

    A choice at the edge of the grid adds the next candidate beyond, half or twice as large.
    """
    values, images = list(task.values), task.images
    cell = {"ipc": images.ipc, "method": images.method, "pool": images.pool}
    while len(values) > 1:
        trials = [(value, rows_of(task.candidate(value), study)) for value in values]
        if any(len(rows) < 2 * task.n for _, rows in trials):
            return values, None
        frame = [row | cell | {task.setting: value} for value, rows in trials for row in rows]
        choice = choices(pd.DataFrame(frame), task.protocol, task.setting).iloc[0]
        if not choice["at_edge"] or len(values) == len(task.values) + EXTENSIONS:
            return values, choice["chosen"]
        values.append(choice["chosen"] * (0.5 if choice["chosen"] == min(values) else 2))
    return values, values[0]


def distil(tasks: Sequence[ImageSet], study: "Study", stop: Stop | None) -> None:
    """Distil sets side by side; what stops one stops the others after their iteration."""
    interrupted = threading.Event()

    def halt() -> bool:
        return interrupted.is_set() or bool(stop and stop())

    def distil_one(task: ImageSet, progress: bool) -> None:
        # Another driver's process may be at it: then its result is this one's
        with locked(study.path(task).parent / ".lock", halt) as mine:
            if mine and not study.has(task):
                study.distill(task, halt, progress)

    works = [partial(distil_one, task, i == 0) for i, task in enumerate(tasks)]
    try:
        side_by_side(works, study.data.device)
    finally:
        interrupted.set()


def train(tasks: Sequence[Train], study: "Study", stop: Stop | None) -> None:
    """Train nets of one architecture on several sets, those of the same settings at once."""
    by_config: dict[EvalConfig | None, list[ImageSet]] = {}
    for task in tasks:
        by_config.setdefault(config_of(task, study), []).append(task.images)
    one = tasks[0]
    how = {"teacher": one.teacher, "split": one.split, "results": study.results, "stop": stop}
    for config, images in by_config.items():
        sets, how["config"] = [study.load(each) for each in images], config
        evaluate(sets, study.data, [one.net], one.protocol, one.n, progress=False, **how)


def sweep(tasks: Sequence[Sweep], study: "Study", stop: Stop | None) -> None:
    """Try the candidates, and those that a choice at the edge of the grid adds."""
    for _ in range(EXTENSIONS + 1):
        train([one.candidate(v) for one in tasks for v in tried(one, study)[0]], study, stop)


class Outcome(NamedTuple):
    """What became of a task that was begun: the seconds it took, with those done beside it."""

    task: Task
    seconds: float
    done: bool
    error: Exception | None = None


def run_plan(
    study: "Study",
    tasks: Sequence[Task],
    budget: float | None = None,
    say: Callable[[str], object] | None = print,
    stop: Stop | None = None,
) -> Failures:
    """Do tasks for up to `budget` seconds: in order, or on `study.client`'s workers.

    Returns those that failed, with their errors; the others go on. At the end of the budget a
    distillation is stopped, to go on in the next call; nets are not started if such nets took
    longer on this machine than is left. `say` gets a summary and, unless a bar shows them, a line
    for each task; None: a bar. Raises `DDError` if the cluster is lost.
    """
    study.begin()
    engine = in_series
    if study.client is not None:
        from .cluster import on_cluster as engine  # the only place that needs Dask
    left = [task for task in tasks if not is_done(task, study)]
    show = study.progress and (say is None or study.client is not None)
    outcomes: list[Outcome] = []
    with bar(len(left), "tasks", show=show, form=BAR) as ticks:
        for outcome in engine(left, study, budget, stop):
            outcomes.append(outcome)
            if show:
                advance(ticks, outcomes, left)
            elif say:
                how = "done" if outcome.done else "not finished"
                say(f"{outcome.task}: {how}, {outcome.seconds:.0f} s")
    failures = [(outcome.task, outcome.error) for outcome in outcomes if outcome.error]
    if say:
        if budget is None and not (failures or (stop and stop())):
            for task in [task for task in left if not is_ready(task, study)][:1]:
                first = ", ".join(map(str, needs(task, study.profile)))
                say(f"some tasks wait for others: {task} needs {first}")
        say(f"{sum(outcome.done for outcome in outcomes)} of {len(left)} tasks done")
        for task, error in failures:
            say(f"failed: {task}: {error}")
    return failures


def in_series(
    tasks: Sequence[Task], study: "Study", budget: float | None, stop: Stop | None
) -> Iterator[Outcome]:
    """Do tasks in order, in this process; see `run_plan`."""
    deadline = time.monotonic() + (float("inf") if budget is None else budget)
    usual = {} if budget is None else seconds_per_net(study)
    for group in in_groups(tasks, study):
        if is_over(deadline, stop):
            break
        started = time.monotonic()
        over = partial(is_over, deadline - needed_seconds(group, study, usual), stop)
        ready = [task for task in group if is_ready(task, study)]
        if ready and not over():
            errors = dict(attempt(ready, study, over))
            seconds = time.monotonic() - started
            for task in ready:
                yield Outcome(task, seconds, is_done(task, study), errors.get(task))


def advance(ticks: Any, outcomes: Sequence[Outcome], tasks: Sequence[Task]) -> None:
    """Show on a bar what share of the seconds is over that all tasks will have taken.

    A task that is left counts as the mean of its kind; of a kind not yet seen, as that of all.
    """
    spent, kinds = defaultdict(list), Counter(map(kind_of, tasks))
    for outcome in outcomes:
        spent[kind_of(outcome.task)].append(outcome.seconds)
    over = sum(map(sum, spent.values()))
    left = sum(
        (count - len(spent[kind])) * mean(spent[kind] or [over / len(outcomes)])
        for kind, count in kinds.items()
    )
    ticks.total, ticks.n = max(over + left, 1e-9), over
    ticks.set_description(f"{len(outcomes)} of {len(tasks)} tasks")


def kind_of(task: Task) -> tuple:
    """What tasks that take about as long have in common."""
    images = task.images
    if isinstance(task, ImageSet):
        return ImageSet, images.method, images.pool, images.ipc
    return type(task), images.ipc, task.net, task.n, task.protocol


def is_over(end: float, stop: Stop | None) -> bool:
    """Whether it is time to stop; `end` in seconds of `time.monotonic()`."""
    return time.monotonic() > end or bool(stop and stop())


def attempt(tasks: Sequence[Task], study: "Study", stop: Stop) -> Failures:
    """`run_together`; after an error each task by itself, so that it is known which one failed."""
    try:
        run_together(tasks, study, stop)
    except Exception as error:
        if len(tasks) == 1:
            return [(tasks[0], error)]
        return [failure for task in tasks for failure in attempt([task], study, stop)]
    return []


def in_groups(tasks: Iterable[Task], study: "Study") -> Iterator[list[Task]]:
    """Neighbours to be done at the same time: one set per thread, or all that train alike."""
    sets = 1 if kind(study.device) == "cuda" else torch.get_num_threads()
    for _, neighbours in groupby(tasks, signature):
        group = list(neighbours)
        size = sets if isinstance(group[0], ImageSet) else len(group)
        yield from (group[i : i + size] for i in range(0, len(group), size))


def signature(task: Task) -> tuple:
    """What tasks that are done at the same time have in common."""
    if isinstance(task, ImageSet):
        return ImageSet, task.iteration
    names = ("net", "n", "protocol", "teacher", "settings", "split", "setting", "values")
    return type(task), *(getattr(task, name, None) for name in names)


def seconds_per_net(study: "Study") -> dict[tuple[str, int], float]:
    """(net, ipc) -> the median seconds that training and testing one took on this machine."""
    rows = study.results.frame()
    rows = rows[rows["machine"] == machine_text(environment(study.device))["machine"]]
    spent = rows.groupby(["net", "ipc", "training"])["seconds"].sum()
    return spent.groupby(["net", "ipc"]).median().to_dict()


def needed_seconds(tasks: Sequence[Task], study: "Study", usual: dict) -> float:
    """What the nets that train at once take, the smallest piece; 0 for what was not measured."""
    if isinstance(tasks[0], ImageSet):
        return 0.0
    nets = [(k, task.net, seed) for k, task in enumerate(tasks) for seed in range(task.n)]
    slowest = max(usual.get((task.net, task.images.ipc), 0.0) for task in tasks)
    return slowest * len(groups(nets, study.device)[0])
