"""A study: one profile's data, distillations and evaluations, kept in a folder and never computed twice.

The notebooks are written against this class. `out` holds everything that a study makes:
`runs/<name>/` (synthetic sets, checkpoints, rows.csv), `figures/<name>/`, `paper/results/` and `paper/tables/`.
"""

import hashlib
import os
import threading
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from .. import data as data_module
from ..data import load_data
from ..distill import distill
from ..evaluate import evaluate
from ..fast import side_by_side
from ..machine import pick_device
from ..results import Results, read_rows
from ..run import store_name
from ..store import ROOT, write_atomic
from ..synset import load_synset
from .profiles import PROFILES, get_profile

OUT_VARIABLE = "DDLIB_OUT"  # another place for everything a study writes; the tests use it


class Study:
    """One profile, run with `settings` (overrides by name). Everything it makes is found again by the next process.

    `out`: where to write (default: the environment's DDLIB_OUT, else the repository's root). `device`: "auto", "cpu" or
    "cuda". `data_root`: where CIFAR-10 lies (default: `data/` in the repository).
    """

    def __init__(
        self, profile="quick", settings=None, out=None, device="auto", data_root=None, progress=True
    ):
        self.profile = get_profile(profile, settings)
        self.out = Path(out or os.environ.get(OUT_VARIABLE) or ROOT).resolve()
        self.device, self.data_root, self.progress = (
            pick_device(device),
            data_root or ROOT / "data",
            progress,
        )
        self.name = study_name(self.profile)
        self.runs = self.out / "runs" / self.name
        self.figures = self.out / "figures" / self.name
        self.written = []
        self._data, self._results = None, None

    @property
    def data(self):
        """The data set, loaded at first use."""
        if self._data is None:
            p = self.profile
            self._data = load_data(p.dataset, self.data_root, self.device, p.val_fraction)
        return self._data

    @property
    def results(self):
        """The rows of this study (runs/<profile>/rows.csv)."""
        if self._results is None:
            self._results = Results(self.runs / "rows.csv")
        return self._results

    def distill(self, pool, seed, ipc=None, **changes):
        """One distillation, from its folder if it is finished, from its checkpoint if it was interrupted."""
        return self._distill(
            self.profile.distill_config(pool, seed, ipc, **changes), progress=self.progress
        )

    def distill_all(self, pool, ipc=None, **changes):
        """The distillations of every seed, a list in the order of `profile.seeds`; on a CPU as many at once as it has threads.

        Of several at once the bar shows the first. After Ctrl-C all of them go on from where they were.
        """
        configs = [
            self.profile.distill_config(pool, seed, ipc, **changes) for seed in self.profile.seeds
        ]
        size, interrupted, made = (
            1 if self.device.type == "cuda" else torch.get_num_threads(),
            threading.Event(),
            [],
        )
        for i in range(0, len(configs), size):
            group = configs[i : i + size]
            works = [
                lambda c=c, show=(c is group[0] and self.progress): self._distill(
                    c, show, lambda k: interrupted.is_set()
                )
                for c in group
            ]
            try:
                made += side_by_side(works, self.data.device)
            except BaseException:
                interrupted.set()  # the others stop after their iteration
                raise
        return made

    def _distill(self, config, progress, stop=None):
        store = self.runs / "distill" / store_name(config, self.data)
        return distill(config, self.data, store=store, progress=progress, stop=stop)

    def reported(self, synsets):
        """Of distilled sets with their history: those at the iterations that the tables show."""
        return [
            s for final in synsets for s in final.history if s.iteration in self.profile.reported
        ]

    def random_real(self, ipc=None):
        """The baseline: random real images, one set per distillation seed."""
        return [
            data_module.random_real(self.data, ipc or self.profile.ipcs[0], seed)
            for seed in self.profile.seeds
        ]

    def evaluate(
        self,
        synsets,
        nets=None,
        protocol="ce",
        n_eval=None,
        teacher="ConvNet",
        split="test",
        **settings,
    ):
        """Evaluate sets at the profile's settings, `settings` overriding single ones; returns their rows."""
        p = self.profile
        config = replace(p.eval_config(), **settings)
        return evaluate(
            synsets,
            self.data,
            nets or p.nets,
            protocol,
            n_eval or p.n_eval,
            teacher=teacher,
            split=split,
            config=config,
            results=self.results,
            progress=self.progress,
        )

    def full_data(self):
        """Rows of nets trained on all training images, for the nets and epochs that the profile affords."""
        p = self.profile
        if not p.full_nets:
            return self.results.frame().iloc[:0]
        return self.evaluate(
            [data_module.full_real(self.data)], p.full_nets, n_eval=1, epochs=p.full_epochs
        )

    def choose_tau(self, synsets):
        """Per net the temperature with the best mean accuracy on the validation images.

        Returns `(taus, rows)`: a dict net -> tau, and the sweep's rows. The same nets are tested on the test images too, which
        the choice does not see: the audit asks what choosing there would have added.
        """
        p = self.profile
        sweep = [
            self.evaluate(synsets, protocol="kd", n_eval=p.n_sweep, split="both", tau=tau)
            for tau in p.taus
        ]
        rows = pd.concat(sweep, ignore_index=True)
        seen = rows[rows["split"] == "val"]
        means = seen.groupby(["net", "tau"], sort=False)["accuracy"].mean().unstack()
        return means.idxmax(axis=1).to_dict(), rows

    def evaluate_kd(self, synsets, taus):
        """Rows of protocol `kd` with a temperature per net."""
        frames = [self.evaluate(synsets, [net], "kd", tau=taus[net]) for net in self.profile.nets]
        return pd.concat(frames, ignore_index=True)

    def save_figure(self, figure, name):
        """Save a figure as figures/<profile>/<name>.png and return it."""
        self.figures.mkdir(parents=True, exist_ok=True)
        path = self.figures / f"{name}.png"
        figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None})
        self._wrote(path)
        return figure

    def published_rows(self):
        """The rows to make tables of: this study's own, else the ones committed in paper/results/<profile>.csv."""
        own, committed = self.runs / "rows.csv", ROOT / "paper" / "results" / f"{self.name}.csv"
        return read_rows(own if own.is_file() else committed)

    def published_sets(self):
        """The committed sets of this study at its smallest ipc, dict label -> `SyntheticSet`; empty if there are none."""
        titles = {"main": "baseline", "main_plus_similar": "model pool"}
        sets = [
            load_synset(p)
            for p in sorted((ROOT / "paper" / "sets").glob(f"{self.name}-ipc*.safetensors"))
        ]
        shown = [s for s in sets if s.ipc == min(s.ipc for s in sets)]
        return {
            f"{titles[s.config['pool']]}\niteration {s.iteration}": s
            for s in shown
            if s.config["pool"] in titles
        }

    def write(self, name, content):
        """Write text to `out`/`name` atomically and remember the path."""
        self._wrote(write_atomic(self.out / name, content))

    def _wrote(self, path):
        if path not in self.written:
            self.written.append(path)

    def paths(self):
        """The paths written so far, relative to `out`, one per line."""
        return "\n".join(path.relative_to(self.out).as_posix() for path in self.written)

    def __repr__(self):
        p, config = self.profile, self.profile.eval_config()
        channels, side, classes = self.data.shape
        return (
            f"{p.name}: {p.note}\n"
            f"data: {self.data.name}, {classes} classes, {side}x{side}x{channels}; "
            f"{len(self.data.y_train)} training, {len(self.data.y_val)} validation, {len(self.data.y_test)} test images\n"
            f"distillation: ipc {', '.join(map(str, p.ipcs))}; {p.iterations} iterations; {p.batch_real} real images a class; "
            f"ConvNet width {p.width}; seeds {', '.join(map(str, p.seeds))}\n"
            f"evaluation: {p.n_eval} nets per set and architecture; {config.epochs} epochs; "
            f"AlexNet, VGG11, ResNet18 at {p.width_factor:g} of their width"
        )


def study_name(profile):
    """The profile's name; with settings overridden, a hash of them behind it: results of different settings never mix."""
    if profile == PROFILES[profile.name]:
        return profile.name
    return f"{profile.name}-{hashlib.sha256(repr(profile).encode()).hexdigest()[:6]}"
