"""A study: one profile's data, sets and rows, kept in a folder and never computed twice."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure

from ..config import DistillConfig
from ..data import Data, load_data
from ..distill import distill
from ..methods import get_method
from ..results import TRAINING, Results, read_results
from ..run import snapshot_name, store_name
from ..support.code import code_of
from ..support.errors import DDError
from ..support.machine import device_name, pick_device
from ..support.public import plain
from ..support.store import ROOT, dumps, write_atomic
from ..synset import SyntheticSet
from .given import GIVEN
from .plan import POOLS, ImageSet, Sweep, Task, plan, select
from .profiles import get_profile, study_name
from .tasks import Stop, rows_of, run_plan

if TYPE_CHECKING:
    from distributed import Client

# No date or version within: the same figure is the same file
PNG: dict[str, Any] = {"dpi": 150, "bbox_inches": "tight", "metadata": {"Software": None}}
OUT_VARIABLE = "DDLIB_OUT"  # another place for everything a study writes; the tests use it


class Study:
    """One profile, run with `settings` (by name). What it makes is found again by the next process.

    `out`: where to write `runs/<name>/` (sets and checkpoints in `distill`, rows in `rows`),
    `figures/<name>/` and `paper/` (default: the environment's DDLIB_OUT, else the repository).
    `device`: "auto", "cpu" or "cuda". `data_root`: where CIFAR-10 lies (default: its `data/`).
    `client`: a `distributed.Client` whose workers do the tasks (docs/cluster.md); they must see the
    same folders. Pickled, a study is its settings, and every process that reads it has one.
    """

    def __init__(
        self,
        profile: str = "quick",
        settings: Mapping[str, object] | None = None,
        out: str | Path | None = None,
        device: str = "auto",
        data_root: str | Path | None = None,
        progress: bool = True,
        client: "Client | None" = None,
    ) -> None:
        self.profile, self.device = get_profile(profile, settings), pick_device(device)
        device_name(self.device)  # asked for now: threads that help later have fewer of their own
        self.out = Path(out or os.environ.get(OUT_VARIABLE) or ROOT).resolve()
        self.data_root = Path(data_root or ROOT / "data").resolve()
        self.progress, self.client = progress, client
        self.origin = profile, json.dumps(settings or {}, default=plain), str(self.out), device
        self.name = study_name(self.profile)
        self.runs, self.figures = (self.out / part / self.name for part in ("runs", "figures"))
        self.written: list[Path] = []
        self.chosen: dict[Sweep, float] = {}  # see `tasks.chosen_value`
        self._given, self._read = lru_cache(64)(self._given_set), lru_cache(64)(SyntheticSet.load)
        self._folder = lru_cache(None)(self._folder_of)

    def __reduce__(self) -> tuple:
        return in_this_process, (*self.origin, str(self.data_root))

    @cached_property
    def data(self) -> Data:
        """The data set, loaded at first use."""
        p = self.profile
        return load_data(p.dataset, self.data_root, self.device, p.val_fraction)

    @cached_property
    def results(self) -> Results:
        """The rows of this study, read at first use."""
        return Results(self.runs / "rows")

    def config(self, images: ImageSet) -> DistillConfig:
        """The settings of a distillation."""
        place = images.pool, images.seed, images.ipc, images.method
        return self.profile.distill_config(*place, **dict(images.changes))

    def path(self, images: ImageSet) -> Path:
        """The file of a distilled set; log and checkpoint lie beside it. A method of one's own has
        other files once its code is another.
        """
        method = self.profile.methods.get(images.method, {}).get("method", images.method)
        code = code_of(get_method(method).objective)
        return self._folder(replace(images, iteration=0), code) / snapshot_name(images.iteration)

    def _folder_of(self, images: ImageSet, code: str) -> Path:
        """The folder of a distillation; `_folder` remembers it."""
        name = store_name(self.config(images), self.data)
        return self.runs / "distill" / "-".join(filter(None, (name, code[:8])))

    def has(self, images: ImageSet) -> bool:
        """Whether a set is there; those that are given always are."""
        return images.are_given or self.path(images).is_file()

    def load(self, images: ImageSet) -> SyntheticSet:
        """A set that is there; the last ones are remembered."""
        return self._given(images) if images.are_given else self._read(self.path(images))

    def _given_set(self, images: ImageSet) -> SyntheticSet:
        return GIVEN[images.method](self, images)

    def distill(
        self, images: ImageSet, stop: Stop | None = None, progress: bool = True
    ) -> SyntheticSet:
        """Distil up to the iteration of `images` or `stop()`: the set with its history and log.

        A finished distillation is read back, an interrupted one goes on from its checkpoint.
        """

        def is_over(iteration: int) -> bool:
            return iteration >= images.iteration or bool(stop and stop())

        config, folder = self.config(images), self.path(images).parent
        show = progress and self.progress
        return distill(config, self.data, store=folder, progress=show, stop=is_over)

    def distill_all(self, pool: str, ipc: int | None = None) -> list[SyntheticSet]:
        """The finished distillations of every seed, in the order of `profile.seeds`."""
        p = self.profile
        sets = [ImageSet("dc", pool, ipc or p.ipcs[0], seed, p.iterations) for seed in p.seeds]
        self.do(sets)
        return [self.distill(images, progress=False) for images in sets]

    def run(self, part: str | None = None, **filters: Collection) -> pd.DataFrame:
        """Do the plan or a part of it (`plan.PARTS`), filtered by `select`; returns its rows."""
        tasks = select(plan(self.profile, part), **filters)
        self.do(tasks)
        return self.rows(tasks)

    def begin(self) -> None:
        """Write all settings beside the results. Raises `DDError` where nothing can be written, so
        that it is known before anything is trained.
        """
        path, text = self.runs / "settings.json", dumps(asdict(self.profile))
        if not (path.is_file() and path.read_text() == text):
            write_atomic(path, text)

    def do(self, tasks: Sequence[Task]) -> None:
        """Do tasks, on `client`'s workers if there is one, under a bar.

        If some fail, says so when all others are done.
        """
        if failures := run_plan(self, tasks, say=None):
            task, error = failures[0]
            kind = DDError if isinstance(error, DDError) else RuntimeError
            raise kind(f"{len(failures)} tasks failed; the first: {task}: {error}") from error

    def rows(self, tasks: Sequence[Task]) -> pd.DataFrame:
        """The finished rows of tasks, as `results.flat` gives them."""
        rows, frame = [row for task in tasks for row in rows_of(task, self)], self.results.frame()
        keys = {"|".join(str(row[name]) for name in TRAINING) for row in rows}
        return frame[frame["training"].isin(keys)].reset_index(drop=True)

    def published_rows(self) -> pd.DataFrame:
        """The rows to make tables of: this study's own, else the committed ones."""
        rows = self.results.frame()
        return rows if len(rows) else read_results(ROOT / "paper" / "results" / self.name)

    def publish(self, folder: Path | None = None) -> None:
        """Write the study's own sets.csv and rows.csv to `folder` (default: paper/) in results/."""
        target = (folder or self.out / "paper") / "results" / self.name
        if len(self.results.rows()):
            self.results.write(target)
            self.written += [target / "sets.csv", target / "rows.csv"]

    def publish_sets(self, folder: Path) -> None:
        """Save the latest set of each method, ipc and seed, of the main model alone and of the
        model pool, to `folder`/sets.
        """
        p, latest = self.profile, {}
        sets = [task for task in plan(p) if isinstance(task, ImageSet) and not task.changes]
        for one in sorted(sets, key=lambda one: one.iteration):
            if one.pool in POOLS and self.has(one):
                method = "" if one.method == "dc" else f"-{one.method}"
                latest[f"{self.name}{method}-ipc{one.ipc}-{one.pool}-s{one.seed}"] = one
        for name, one in latest.items():
            path = folder / "sets" / f"{name}.safetensors"
            self.written.append(self.load(one).save(path))

    def published_sets(self) -> dict[str, SyntheticSet]:
        """The committed sets of this study at its smallest ipc and first seed, if there are any, by
        label.
        """
        titles = dict(zip(POOLS, ("baseline", "model pool"), strict=True))
        paths = sorted(
            (ROOT / "paper" / "sets").glob(f"{self.name}-ipc*-s{self.profile.seeds[0]}.safetensors")
        )
        sets = [SyntheticSet.load(path) for path in paths]
        shown = [one for one in sets if one.ipc == min(each.ipc for each in sets)]
        return {f"{titles[s.config['pool']]}\niteration {s.iteration}": s for s in shown}

    def save_figure(self, figure: Figure | None, name: str) -> Figure | str:
        """Save a figure as figures/<profile>/<name>.png and return it; without one, say so."""
        if figure is None:
            return "nothing to draw yet"
        self.figures.mkdir(parents=True, exist_ok=True)
        self.written.append(self.figures / f"{name}.png")
        figure.savefig(self.written[-1], **PNG)
        return figure

    def write(self, name: str, content: str) -> None:
        """Write text to `out`/`name` atomically."""
        self.written.append(write_atomic(self.out / name, content))

    def paths(self) -> str:
        """The paths written so far, relative to `out`, one per line."""
        paths = dict.fromkeys(self.written)
        return "\n".join(path.relative_to(self.out).as_posix() for path in paths)

    def __repr__(self) -> str:
        p, d = self.profile, self.data
        channels, side, classes = d.shape
        counts = [len(labels) for labels in (d.y_train, d.y_val, d.y_test)]
        ipcs, seeds = (", ".join(map(str, values)) for values in (p.ipcs, p.seeds))
        lines = [
            f"{p.name}: {p.note}",
            f"data: {d.name}, {classes} classes, {side}x{side}x{channels}; "
            "{} training, {} validation, {} test images".format(*counts),
            f"distillation: ipc {ipcs}; {p.iterations} iterations; {p.batch_real} real images a "
            f"class; ConvNet width {p.width}; seeds {seeds}",
            f"evaluation: nets per set and architecture: {p.n_eval}; {p.epochs} epochs; AlexNet, "
            f"VGG11, ResNet18 at {p.width_factor:g} of their width",
        ]
        return "\n".join(lines)


@lru_cache(2)
def in_this_process(profile: str, settings: str, out: str, device: str, data_root: str) -> Study:
    """A study that came from another process: its data set is loaded once, not once per task."""
    return Study(profile, json.loads(settings), out, device, data_root, progress=False)
