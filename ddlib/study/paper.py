"""The paper-scale study in slices: `python -m ddlib.study.paper run --budget 8m --store DIR`, on one machine after another.

A plan lists every distillation and every evaluation, the most valuable first. A slice works through it until its budget is
spent; every finished piece and a checkpoint of the one in hand stay in `DIR`, which is laid out as the notebooks' `out`.
What a slice added also lies in `DIR/slices/` as zip files of at most 15 MB: copied into the same folder elsewhere, they are
unpacked by the next slice there, which goes on.
"""

import argparse
import contextlib
import functools
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import nn

from ..config import PROTOCOLS, EvalConfig
from ..data import random_real
from ..distill import distill
from ..errors import DDError, check_choice, check_range
from ..evaluate import evaluate, groups, identities, net_width, splits
from ..machine import device_name
from ..methods.gradient import Gradient
from ..nets import build_net
from ..pool import PRESETS
from ..run import snapshot_name, store_name
from ..store import ROOT, write_atomic
from ..synset import SyntheticSet
from .archive import pack, unpack
from .profiles import parse_settings
from .study import Study

LATER_IPCS = (50,)  # after everything else
RELEASED = (("similar_depth", 1), ("warmup", 500))  # what the released code does differently
METHODS = ("main", "main_plus_similar")


@dataclass(frozen=True)
class Distillation:
    """One set on its way to `iteration`; `changes` are settings that differ from the profile's."""

    pool: str
    ipc: int
    seed: int
    iteration: int
    changes: tuple = ()

    def __str__(self):
        changes = "".join(f", {k} {v}" for k, v in self.changes)
        return f"distil {self.pool}, ipc {self.ipc}, seed {self.seed}, to iteration {self.iteration}{changes}"


@dataclass(frozen=True)
class Evaluation:
    """`n` nets of one architecture on one set. `tau` None with protocol kd: the one chosen on validation images."""

    made: Distillation  # pool "random_real": random real images
    net: str
    n: int
    protocol: str = "ce"
    teacher: str | None = None
    tau: float | None = None
    split: str = "test"
    sweep: tuple = field(default=(), compare=False)  # with tau None: the pieces that decide on it

    def __str__(self):
        how = (
            self.protocol
            + (f" tau {self.tau:g}" if self.tau else "")
            + (" with teacher" if self.teacher else "")
        )
        m = self.made
        where = f"{m.pool}, ipc {m.ipc}, seed {m.seed}, iteration {m.iteration}" + "".join(
            f", {k} {v}" for k, v in m.changes
        )
        return f"test {where}: {self.n} {self.net}, {how}"


def plan(profile, n=None):
    """All pieces of the study in order, a list: seed 0 of both methods first, then Table 5's other pools, the released
    code's variant, the other seeds, and ipc 50. `n`: nets per cell (default: the profile's)."""
    n, seeds, pieces = n or profile.n_eval, profile.seeds, []
    others = tuple(pool for pool in profile.pools if pool not in METHODS)
    for ipcs in (profile.ipcs, LATER_IPCS):
        for some in (seeds[:1], seeds[1:]):
            for ipc in ipcs:
                for k in profile.reported:
                    pieces += compared(profile, ipc, k, some, n)
            for pools, changes in ((others, ()), (("main_plus_similar",), RELEASED)):
                for ipc in ipcs:
                    for k in profile.reported:
                        for pool in pools:
                            for seed in some:
                                pieces += plain(
                                    profile, Distillation(pool, ipc, seed, k, changes), n
                                )
    return pieces


def compared(profile, ipc, iteration, seeds, n):
    """The pieces of Table 4 at one ipc and iteration: both methods, the three protocols, random real images, the curve."""
    made = [Distillation(pool, ipc, seed, iteration) for seed in seeds for pool in METHODS]
    real = [Distillation("random_real", ipc, seed, 0) for seed in seeds]
    audited, nets = min(n, profile.n_audit), profile.nets
    pieces = list(made)
    pieces += [Evaluation(m, net, n) for net in nets for m in made]
    pieces += [Evaluation(m, net, audited, "authors-2023") for net in nets for m in made]
    pieces += [Evaluation(m, net, n) for net in nets for m in real]
    for net in nets:
        for m in made:
            first = Distillation(m.pool, ipc, profile.seeds[0], profile.reported[0])
            sweep = tuple(
                Evaluation(first, net, profile.n_sweep, "kd", "ConvNet", tau, "both")
                for tau in profile.taus
            )
            if m == first:
                pieces += sweep
            pieces.append(Evaluation(m, net, n, "kd", "ConvNet", sweep=sweep))
    pieces += [Evaluation(m, net, audited, "authors-2023", "ConvNet") for net in nets for m in made]
    if iteration == profile.reported[0]:  # accuracy against iteration
        before = [k for k in profile.snapshots if k < iteration]
        pieces += [
            Evaluation(Distillation(m.pool, ipc, m.seed, k), "ConvNet", n)
            for m in made
            for k in before
        ]
    return pieces


def plain(profile, made, n):
    """A distillation and its evaluation with plain cross-entropy."""
    return [made, *(Evaluation(made, net, n) for net in profile.nets)]


class Slices:
    """The study's pieces in order, what of them is done, and how to do the next.

    `n`: nets per cell instead of the profile's. `until`: only up to this iteration. `jobs`: so many distillations at the same
    time, for a GPU that one leaves idle. `only`: lists of values of ipc, seed, pool, net or protocol; other pieces are left
    out, with net or protocol all distillations.
    """

    def __init__(
        self,
        store=None,
        settings=None,
        device="auto",
        data_root=None,
        n=None,
        until=None,
        jobs=1,
        **only,
    ):
        self.study = Study("paper", settings, store, device, data_root)
        p = self.study.profile
        pools, ipcs = (*PRESETS, "random_real"), (*p.ipcs, *LATER_IPCS)
        known = {"ipc": ipcs, "seed": p.seeds, "pool": pools, "net": p.nets, "protocol": PROTOCOLS}
        for name, values in only.items():
            for value in values or ():
                check_choice(name, value, known[name])
        self.archives, self.jobs, self.interrupted = (
            self.study.out / "slices",
            check_range("jobs", jobs, 1),
            False,
        )
        unpack(self.study.runs, self.archives)
        self.pieces = [piece for piece in plan(p, n) if wanted(piece, until, **only)]
        self.synset, self.folder = (
            functools.lru_cache(maxsize=8)(self.load),
            functools.cache(self.find_folder),
        )

    def config(self, made):
        """The `DistillConfig` of a distillation."""
        return self.study.profile.distill_config(
            made.pool, made.seed, made.ipc, **dict(made.changes)
        )

    def find_folder(self, made):
        """Where a distillation lies: the notebooks find it there."""
        return self.study.runs / "distill" / store_name(self.config(made), self.study.data)

    def load(self, made):
        """The set of a finished distillation, or random real images."""
        if made.pool == "random_real":
            return random_real(self.study.data, made.ipc, made.seed)
        return SyntheticSet.load(self.folder(made) / snapshot_name(made.iteration))

    def exists(self, made):
        return (
            made.pool == "random_real"
            or (self.folder(made) / snapshot_name(made.iteration)).is_file()
        )

    def left(self, piece):
        """What is left of a piece: iterations, or rows."""
        if isinstance(piece, Distillation):
            return 0 if self.exists(piece) else piece.iteration - self.iterations_done(piece)
        return self.size(piece) - (
            len(self.rows(piece, self.tau(piece))) if self.ready(piece) else 0
        )

    def iterations_done(self, made):
        """How far a distillation had come when it last saved its log."""
        log = self.folder(made) / "log.csv"
        return max(len(log.read_text().splitlines()) - 1, 0) if log.is_file() else 0

    def tau(self, piece):
        """The temperature of a piece; None without one, or while the sweep that decides on it is not finished."""
        if piece.protocol != "kd" or piece.tau is not None:
            return piece.tau
        if any(self.left(one) for one in piece.sweep):
            return None
        found = {
            one.tau: [r["accuracy"] for r in self.rows(one, one.tau) if r["split"] == "val"]
            for one in piece.sweep
        }
        return max(found, key=lambda tau: sum(found[tau]) / len(found[tau]))

    def rows(self, piece, tau):
        """The rows of an evaluation that are there."""
        synset, config = self.synset(piece.made), self.eval_config(tau)
        wanted = [
            row
            for seed in range(piece.n)
            for row in identities(
                synset,
                self.study.data,
                piece.protocol,
                piece.net,
                seed,
                piece.teacher,
                piece.split,
                config,
            )
        ]
        return [found for row in wanted if (found := self.study.results.get(row)) is not None]

    def eval_config(self, tau):
        return self.study.profile.eval_config(**({} if tau is None else {"tau": tau}))

    def evaluate(self, piece, tau, stop):
        """Make the rows of an evaluation that are not there yet, until `stop()`."""
        study = self.study
        evaluate(
            self.synset(piece.made),
            study.data,
            [piece.net],
            piece.protocol,
            piece.n,
            teacher=piece.teacher,
            split=piece.split,
            config=self.eval_config(tau),
            results=study.results,
            progress=False,
            stop=stop,
        )

    def work(self, piece, deadline):
        """Work on a piece until it is done or the deadline (`time.monotonic()`) has come."""
        if isinstance(piece, Distillation):
            distill(
                self.config(piece),
                self.study.data,
                store=self.folder(piece),
                progress=sys.stderr.isatty(),
                stop=lambda k: (
                    k >= piece.iteration or self.interrupted or time.monotonic() > deadline
                ),
            )
        elif self.ready(piece):
            at_once = len(groups(range(piece.n), self.study.device)[0])
            needed = (
                self.flops(piece) / piece.n * at_once / self.rates().get("evaluation", float("inf"))
            )
            self.evaluate(piece, self.tau(piece), stop=lambda: time.monotonic() + needed > deadline)

    def ready(self, piece):
        """Whether a piece has what it needs: a distillation nothing, an evaluation its set and its temperature."""
        if isinstance(piece, Distillation):
            return True
        return self.exists(piece.made) and (piece.protocol != "kd" or self.tau(piece) is not None)

    def together(self, index):
        """The piece at `index`, and up to `jobs` unfinished distillations from there on that can be made at the same time."""
        pieces = [self.pieces[index]]
        for piece in self.pieces[index + 1 :]:
            if (
                not all(isinstance(p, Distillation) for p in (piece, pieces[0]))
                or len(pieces) == self.jobs
            ):
                break
            if self.left(piece) and self.folder(piece) not in map(self.folder, pieces):
                pieces.append(piece)
        return pieces

    def side_by_side(self, pieces, deadline):
        """Work on pieces at the same time: a thread each, on a GPU a stream each."""
        if len(pieces) == 1:
            return self.work(pieces[0], deadline)

        def alone(piece):
            with (
                torch.cuda.stream(torch.cuda.Stream())
                if self.study.device.type == "cuda"
                else contextlib.nullcontext()
            ):
                self.work(piece, deadline)

        with ThreadPoolExecutor(len(pieces)) as threads:
            try:
                list(threads.map(alone, pieces))
            except KeyboardInterrupt:
                self.interrupted = True  # the threads see it after their iteration
                raise

    def run(self, budget, say=print):
        """One slice of `budget` seconds; returns the paths of the archives of what it added."""
        started, begun = time.monotonic(), time.time()
        for number, piece in enumerate(self.pieces, 1):
            if time.monotonic() > started + budget:
                break
            since = time.monotonic()
            if not self.left(piece) or not self.ready(piece):
                continue
            self.side_by_side(self.together(number - 1), started + budget)
            left, seconds = self.left(piece), time.monotonic() - since
            say(
                f"[{number}/{len(self.pieces)}] {piece}: {f'{left} left' if left else 'done'}, {seconds:.0f} s"
            )
        return pack(self.study.runs, self.archives, begun)

    def publish(self, folder):
        """Copy the rows to `folder`/results, and seed 0's latest set of both methods to `folder`/sets; returns the paths."""
        name = f"{self.study.name}.csv"
        written = [
            write_atomic(folder / "results" / name, self.study.results.frame().to_csv(index=False))
        ]
        latest = {
            (m.pool, m.ipc): m
            for m in self.pieces
            if isinstance(m, Distillation) and self.is_shown(m)
        }
        for made in latest.values():
            synset = self.load(made)
            path = (
                folder
                / "sets"
                / f"{self.study.name}-ipc{made.ipc}-{made.pool}-s{made.seed}.safetensors"
            )
            synset.save(path)
            written.append(path)
        return written

    def is_shown(self, made):
        return (
            made.pool in METHODS
            and made.seed == self.study.profile.seeds[0]
            and not made.changes
            and self.exists(made)
        )

    def flops(self, piece):
        """Floating-point operations that a piece takes in all (an evaluation), or for one iteration (a distillation)."""
        p, data = self.study.profile, self.study.data
        classes = len(data.classes)
        if isinstance(piece, Distillation):
            outer, inner = Gradient.loops(piece.ipc)
            images = outer * (p.batch_real + 3 * piece.ipc) + (outer - 1) * inner * piece.ipc
            return (
                GRADIENT
                * classes
                * images
                * forward_flops("ConvNet", p.width, p.width_factor, data.shape)
            )
        tested = sum(len(data.split(name)[1]) for name in splits(piece.split))
        trained = GRADIENT * p.epochs * classes * piece.made.ipc
        return (
            piece.n
            * (trained + tested)
            * forward_flops(piece.net, p.width, p.width_factor, data.shape)
        )

    def rates(self):
        """FLOP/s measured on this hardware, by kind of piece; a kind that was not measured here is missing."""
        here, rates = device_name(self.study.device), {}
        p, data = self.study.profile, self.study.data
        rows = self.study.results.frame()
        rows = rows[
            (rows["device"] == here)
            & (rows["split"] == "test")
            & (rows["teacher"] == "")
            & (rows["ipc"] < 100)
        ]
        if len(rows):
            images = GRADIENT * rows["epochs"] * rows["ipc"] * len(data.classes) + len(data.y_test)
            one = rows["net"].map(
                lambda net: forward_flops(net, p.width, p.width_factor, data.shape)
            )
            rates["evaluation"] = float((images * one).sum() / rows["seconds"].sum())
        made = [m for m in self.pieces if isinstance(m, Distillation) and self.exists(m)]
        made = [m for m in made if self.synset(m).provenance["device"] == here]
        if made:
            seconds = sum(self.synset(m).provenance["seconds"] for m in made)
            rates["distillation"] = sum(self.flops(m) * m.iteration for m in made) / seconds
        return rates

    def size(self, piece):
        """All units of a piece: iterations since the reported one before, or rows."""
        if isinstance(piece, Distillation):
            return piece.iteration - max(
                (k for k in self.study.profile.reported if k < piece.iteration), default=0
            )
        return piece.n * len(splits(piece.split))

    def status(self):
        """What is done and left, by ipc, seed and kind of piece: a `DataFrame`; seconds (NaN: not known) on this hardware."""
        rates, lines = self.rates(), []
        for piece in self.pieces:
            kind = "distillation" if isinstance(piece, Distillation) else "evaluation"
            made = piece if kind == "distillation" else piece.made
            size = self.size(piece)
            left = min(self.left(piece), size)
            work = self.flops(piece) * (left if kind == "distillation" else left / size)
            seconds = work / rates.get(kind, float("nan")) if left else 0.0
            lines.append(
                {
                    "ipc": made.ipc,
                    "seed": made.seed,
                    "kind": kind,
                    "pieces": 1,
                    "done": int(not left),
                    "seconds": seconds,
                }
            )
        return (
            pd.DataFrame(lines)
            .groupby(["ipc", "seed", "kind"], sort=False)
            .agg(lambda v: v.sum(skipna=False))
            .reset_index()
        )


GRADIENT = 3  # a gradient costs about three forward passes


@functools.cache
def forward_flops(net, width, width_factor, shape):
    """Floating-point operations of the products in one image's forward pass."""
    channels, side, classes = shape
    options = net_width(net, EvalConfig(width=width, width_factor=width_factor))
    built, counts = build_net(net, channels=channels, side=side, classes=classes, **options), []
    for layer in built.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(
                lambda layer, _, out: counts.append(2 * layer.weight[0].numel() * out.numel())
            )
    with torch.no_grad():
        built(torch.zeros(1, channels, side, side))
    return sum(counts)


def wanted(piece, until=None, ipc=None, seed=None, pool=None, net=None, protocol=None):
    """Whether the filters of a slice let a piece through."""
    made = piece if isinstance(piece, Distillation) else piece.made
    fits = all(
        not some or value in some
        for value, some in ((made.ipc, ipc), (made.seed, seed), (made.pool, pool))
    )
    fits = fits and (until is None or made.iteration <= until)
    if isinstance(piece, Distillation):
        return fits and not net and not protocol
    return fits and (not net or piece.net in net) and (not protocol or piece.protocol in protocol)


def parse_duration(text):
    """Seconds of "90s", "8m" or "2h"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match:
        raise DDError(f"budget is {text!r}; needed: a number with s, m or h, such as 8m")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def duration(seconds):
    """Seconds for people: "40 s", "12 min", "3.5 h", "unknown"."""
    if seconds != seconds:
        return "unknown"
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def print_status(slices):
    """What is done, what is left, and how long that takes here."""
    lines = slices.status()
    print(f"on {device_name(slices.study.device)}; times from what was measured on it")
    shown = lines.assign(left=lines["seconds"].map(duration)).drop(columns="seconds")
    print(shown.to_string(index=False))
    print(
        f"{lines['done'].sum()} of {lines['pieces'].sum()} pieces done; left: {duration(lines['seconds'].sum(skipna=False))}"
    )
    following = next((p for p in slices.pieces if slices.left(p)), None)
    print(f"next: {following}" if following else "everything is done")


def main(words=None):
    parser = argparse.ArgumentParser(
        prog="python -m ddlib.study.paper", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "command",
        choices=("run", "status", "publish"),
        help="publish: copy rows and sets to paper/",
    )
    parser.add_argument(
        "--store", default=None, help="folder of the study (default: this repository)"
    )
    parser.add_argument("--budget", default="8m", help="of this slice: 90s, 8m, 2h (default: 8m)")
    parser.add_argument(
        "--n", type=int, default=None, help="nets per cell (default: the profile's 10)"
    )
    parser.add_argument("--ipc", type=int, action="append", help="only this ipc")
    parser.add_argument("--pool", action="append", help="only this pool, or random_real")
    parser.add_argument(
        "--protocol",
        action="append",
        help=f"evaluate only under this one of {', '.join(PROTOCOLS)}",
    )
    parser.add_argument("--until", type=int, default=None, help="only up to this iteration")
    parser.add_argument("--seed", type=int, action="append", help="only this distillation seed")
    parser.add_argument("--net", action="append", help="evaluate only this net")
    parser.add_argument(
        "--jobs", type=int, default=1, help="distillations at the same time (default: 1)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override a setting of the profile",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--data-root", default=None, help="where CIFAR-10 lies or is downloaded to (default: data/)"
    )
    a = parser.parse_args(words)
    try:
        budget = parse_duration(a.budget)
        only = {name: getattr(a, name) for name in ("ipc", "seed", "pool", "net", "protocol")}
        slices = Slices(
            a.store, parse_settings(a.set), a.device, a.data_root, a.n, a.until, a.jobs, **only
        )
        if a.command == "status":
            print_status(slices)
            return 0
        if a.command == "publish":
            print(*slices.publish(ROOT / "paper"), sep="\n")
            return 0
        added = slices.run(budget, say=functools.partial(print, flush=True))
        print(f"added: {', '.join(map(str, added)) or 'nothing'}")
    except DDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; nothing is lost, the same command goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
