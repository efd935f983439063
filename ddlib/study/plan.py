"""The plan: everything that a study does, one list of tasks, the most valuable first.

A task is a value: what is to be done, not how (`tasks.run_together`); `str(task)` is its key.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from ..evaluate import TEACHER
from ..support.errors import check_choice, check_range
from ..support.public import RANGES
from .given import FREE, GIVEN
from .profiles import Profile
from .released import ITERATIONS as RELEASED_AT
from .released import METHOD as RELEASED_SETS

POOLS = ("main", "main_plus_similar")  # pools of Table 4: the baseline and the model pool
RELEASED = (("similar_depth", 1), ("warmup", 500))  # what the released code does differently
Pairs = tuple[tuple[str, object], ...]  # settings that differ from the profile's
Kind = tuple[str, str | None, str]  # of a choice: protocol, teacher, setting
TAU: Kind = ("kd", TEACHER, "tau")
LR: Kind = ("ce", None, "lr")


@dataclass(frozen=True)
class ImageSet:
    """The task to distil a set up to an iteration; images that `are_given` are just there."""

    method: str
    pool: str = ""
    ipc: int = 0
    seed: int = 0
    iteration: int = 0
    changes: Pairs = ()

    @property
    def images(self) -> "ImageSet":
        """Itself: every task has images."""
        return self

    @property
    def are_given(self) -> bool:
        """Whether there is nothing to distil."""
        return self.method in GIVEN

    def __str__(self) -> str:
        text = f"{self.method} {self.pool}".strip() + f", ipc {self.ipc}, seed {self.seed}"
        text += f", iteration {self.iteration}" * bool(self.iteration)
        return text + "".join(f", {name} {value}" for name, value in self.changes)


@dataclass(frozen=True)
class Sweep:
    """The task to choose a setting for one net among `values`, by `n` nets on validation images.

    They are tested on test images too, which the choice does not see; the audit asks what choosing
    there would have added. All candidates have what the sweep `after` which this one comes chooses.
    """

    images: ImageSet
    net: str
    n: int
    protocol: str
    teacher: str | None
    setting: str
    values: tuple[float, ...]
    after: "Sweep | None" = None

    @property
    def settings_chosen(self) -> str:
        """The names of what is chosen, in order."""
        return f"{self.after.settings_chosen}, {self.setting}" if self.after else self.setting

    def candidate(self, value: float) -> "Train":
        """The training that tries a value."""
        settings = ((self.setting, value),)
        common = self.images, self.net, self.n, self.protocol, self.teacher
        return Train(*common, settings, "both", self.after)

    def __str__(self) -> str:
        what = f"{self.setting} of {self.protocol}"
        what += f", {self.after.settings_chosen} chosen" if self.after else ""
        return f"choose {what}: {self.n} {self.net} on {self.images}"


@dataclass(frozen=True)
class Train:
    """The task to train `n` nets on images under a protocol and to test them on `split`.

    `settings` differ from the profile's; `chosen` is the sweep that decides on more of them.
    """

    images: ImageSet
    net: str
    n: int
    protocol: str = "ce"
    teacher: str | None = None
    settings: Pairs = ()
    split: str = "test"
    chosen: Sweep | None = None

    def __str__(self) -> str:
        parts = [self.protocol, *(f"{name} {value}" for name, value in self.settings)]
        parts += [f"teacher {self.teacher}"] if self.teacher else []
        parts += [f"{self.chosen.settings_chosen} chosen"] if self.chosen else []
        parts += [f"split {self.split}"] if self.split != "test" else []
        return f"train {self.n} {self.net} on {self.images}: {', '.join(parts)}"


Task = ImageSet | Sweep | Train


def needs(task: Task, profile: Profile) -> list[Task]:
    """The tasks that come before this one, as far as they are in the plan."""
    images, reported = task.images, profile.reported_of(task.images.method)
    if isinstance(task, ImageSet):
        before = [k for k in reported if k < images.iteration][-1:]
    else:
        before = [k for k in reported if k >= images.iteration][:1]
    sets = [replace(images, iteration=k) for k in before if not images.are_given]
    return sets + sweeps_before(task)


def sweeps_before(task: Task) -> list[Task]:
    """The choices that this task waits for, the first one first."""
    sweep = getattr(task, "chosen", None) or getattr(task, "after", None)
    return [*sweeps_before(sweep), sweep] if sweep else []


@dataclass(frozen=True)
class Step:
    """One ipc and iteration of a study, with some of its seeds: what a part of the plan covers."""

    profile: Profile
    ipc: int
    iteration: int
    seeds: tuple[int, ...]

    def sets(self, pools: Iterable[str], changes: Pairs = ()) -> list[ImageSet]:
        """Distilled sets of some pools."""
        common = [(pool, self.ipc, seed) for seed in self.seeds for pool in pools]
        return [ImageSet("dc", *place, self.iteration, changes) for place in common]

    def free(self, ipc: int | None = None) -> list[ImageSet]:
        """Random real images and class means."""
        return [ImageSet(name, "", ipc or self.ipc, seed) for seed in self.seeds for name in FREE]

    def swept(self, images: ImageSet) -> ImageSet:
        """The set on which settings are chosen for such images: the first seed's, early on."""
        first = self.profile.seeds[0]
        if images.are_given:
            return replace(images, seed=first)
        return replace(images, seed=first, iteration=self.profile.reported[0], changes=())

    def plain(self, sets: Sequence[ImageSet], nets: Sequence[str] = ()) -> list[Task]:
        """Plain cross-entropy; the sweep of its learning rate finds its default already tried."""
        swept = [images for images in sets if images.pool in POOLS and not images.are_given]
        split = {images: "both" for images in swept if images == self.swept(images)}
        return [
            Train(images, net, self.nets_on(images in split), split=split.get(images, "test"))
            for net in nets or self.profile.nets
            for images in sets
        ]

    def nets_on(self, chooses: bool) -> int:
        """Nets on a set; where some of them choose a setting, as many more, for those are not
        counted among the nets that have the chosen one (`selection.arms`).
        """
        return self.profile.n_eval + self.profile.n_sweep * chooses

    def sweep(self, images: ImageSet, net: str, kind: Kind, after: Kind | None = None) -> Sweep:
        """The choice of a setting for one net and such images, `after` another."""
        values = getattr(self.profile, f"{kind[2]}s")
        first = self.sweep(images, net, after) if after else None
        return Sweep(self.swept(images), net, self.profile.n_sweep, *kind, values, first)

    def tuned(self, sets: Sequence[ImageSet], kind: Kind, after: Kind | None = None) -> list[Task]:
        """A protocol with a setting that is chosen for each net and kind of images."""
        tasks: list[Task] = []
        for net in self.profile.nets:
            how = kind[:2]
            sweeps = [self.sweep(one, net, kind, after) for one in sets]
            pairs = zip(sets, sweeps, strict=True)
            trains = [Train(a, net, self.nets_on(a == b.images), *how, chosen=b) for a, b in pairs]
            tasks += [*sweeps, *trains]
        return tasks

    def audited(self, sets: Sequence[ImageSet], teacher: str | None = None) -> list[Task]:
        """The released code's losses."""
        n, nets = self.profile.n_audit, self.profile.nets
        return [Train(one, net, n, "authors-2023", teacher) for net in nets for one in sets]


def table4(step: Step) -> list[Task]:
    """Both methods under every protocol, and the free baselines."""
    sets, free = step.sets(POOLS), step.free()
    fair = [*sets, *step.plain(sets), *step.audited(sets), *step.plain(free)]
    fair += step.tuned(sets, TAU) + step.tuned(sets, LR) + step.tuned(sets, TAU, after=LR)
    fair += step.tuned(free, TAU) if step.profile.free_kd else []
    return fair + step.audited(sets, TEACHER)


def curve(step: Step) -> list[Task]:
    """ConvNets while a set is distilled, beside the free baselines."""
    sets, is_first = step.sets(POOLS), step.iteration == step.profile.reported[0]
    before = [k for k in step.profile.snapshots if k < step.iteration and is_first]
    early = [replace(images, iteration=k) for k in before for images in sets]
    return [*sets, *step.plain([*sets, *early, *step.free()], ["ConvNet"])]


def table5(step: Step) -> list[Task]:
    """Every pool, plain cross-entropy."""
    sets = step.sets(dict.fromkeys(("main", *step.profile.pools)))
    return [*sets, *step.plain(sets)]


def released(step: Step) -> list[Task]:
    """The model pool as the released code has it, where its warm-up ends before the study does."""
    ends = dict(RELEASED)["warmup"] < step.profile.iterations
    sets = step.sets(POOLS[1:], RELEASED) if ends else []
    return [*sets, *step.plain(sets)]


def released_sets(step: Step) -> list[Task]:
    """The authors' own sets under every protocol; the files must be there (`released`)."""
    if step.iteration not in RELEASED_AT or step.ipc not in (1, 10) or 0 not in step.seeds:
        return []
    sets = [ImageSet(RELEASED_SETS, pool, step.ipc, 0, step.iteration) for pool in POOLS]
    tasks = [*step.plain(sets), *step.audited(sets)]
    return tasks + step.tuned(sets, TAU) + step.audited(sets, TEACHER)


def probability(step: Step) -> list[Task]:
    """Other probabilities of the main model, at the last iteration."""
    values = step.profile.main_probs if step.iteration == step.profile.iterations else ()
    sets = [one for p in values for one in step.sets(POOLS[1:], (("main_prob", p),))]
    nets = step.profile.nets
    return [*sets, *(Train(one, net, step.profile.n_audit) for net in nets for one in sets)]


def full_data(step: Step) -> list[Task]:
    """Nets trained on all training images, once."""
    epochs = (("epochs", step.profile.full_epochs),)
    return [Train(ImageSet("full_data"), net, 1, settings=epochs) for net in step.profile.full_nets]


def methods(step: Step) -> list[Task]:
    """Every method with every pool beside free baselines and coresets, with and without
    augmentation, and KD.
    """
    profile, n = step.profile, step.profile.n_eval
    if not profile.methods or step.iteration != profile.iterations:
        return []
    sets = method_sets(step)
    ipcs = dict.fromkeys(images.ipc for images in sets)
    given = [one for ipc in ipcs for one in step.free(ipc)]
    chosen = product(profile.coresets, [""], [step.ipc], step.seeds)
    given += [ImageSet(*place) for place in chosen]
    nets = profile.method_nets or profile.nets
    tasks: list[Task] = [*sets]
    for net, augment, one in product(nets, profile.augments, [*sets, *given]):
        tasks.append(Train(one, net, n, settings=augmented(profile, augment)))
    if "kd" in profile.method_protocols:
        tasks += [Train(one, net, n, "kd", TEACHER) for net in nets for one in sets]
    return tasks


def augmented(profile: Profile, augment: str = "dsa") -> Pairs:
    """The settings of an augmented evaluation, which is longer; none without augmentation."""
    longer = (("epochs", profile.augmented_epochs),) if profile.augmented_epochs else ()
    return (("augment", augment), *longer) if augment else ()


def method_sets(step: Step) -> list[ImageSet]:
    """The sets of DC, at its last iteration, and of the profile's methods at those reported."""
    profile, sets = step.profile, []
    for seed, name, pool in product(
        step.seeds, dict.fromkeys(("dc", *profile.methods)), profile.method_pools
    ):
        if name in profile.main_only and pool != POOLS[0]:
            continue
        ipc = profile.distill_config(pool, seed, step.ipc, name).ipc
        at = profile.reported_of(name) if name in profile.methods else (step.iteration,)
        sets += [ImageSet(name, pool, ipc, seed, k) for k in at]
    return sets


def elf(step: Step) -> list[Task]:
    """ELF beside KD from the same net and plain cross-entropy, all augmented, and its controls."""
    profile = step.profile
    if not profile.elf_nets or step.iteration != profile.iterations:
        return []
    which = profile.elf_method, POOLS[0], profile.reported_of(profile.elf_method)[-1]
    sets = [s for s in method_sets(step) if (s.method, s.pool, s.iteration) == which]
    trained: Pairs = (("feature_epochs", profile.feature_epochs),)
    trained += (("feature_images", profile.feature_images),)
    arms: list[tuple[str, str | None, Pairs]] = [("ce", None, ()), ("kd-real", TEACHER, trained)]
    arms += [("elf", None, trained), ("elf", None, (*trained, ("lambda_feature", 0.0)))]
    arms += [("elf", None, (("feature_epochs", 0),))]
    return [
        Train(one, net, profile.n_eval, protocol, teacher, (*augmented(profile), *settings))
        for net, (protocol, teacher, settings), one in product(profile.elf_nets, arms, sets)
    ]


BY_IPC = {"table4": table4, "curve": curve, "table5": table5, "released": released}
BY_IPC |= {"methods": methods, "elf": elf, "released-sets": released_sets}
PARTS = BY_IPC | {"probability": probability, "full_data": full_data}


def plan(profile: Profile, part: str | None = None, n: int | None = None) -> list[Task]:
    """All tasks of a study in order, or those of one of `PARTS`, also of one that the profile does
    not have; `n`: nets per cell.

    Seed 0 of both methods comes first, then Table 5's other pools, the released code's variant,
    the other seeds, the main model's probability and the full data, and last the later ipcs.
    """
    if n is not None:
        check_range("n", n, 1, RANGES["n_eval"][1])
        profile = replace(profile, n_eval=n, n_audit=min(n, profile.n_audit))
    parts = (part,) if part else profile.parts
    for name in parts:
        check_choice("part", name, PARTS)
    first, rest, late = profile.seeds[:1], profile.seeds[1:], profile.later_ipcs
    by_ipc = [name for name in parts if name in BY_IPC]
    once = [name for name in parts if name not in BY_IPC]
    order = [(by_ipc, profile.ipcs, first), (by_ipc, profile.ipcs, rest)]
    order += [(once, profile.ipcs[:1], profile.seeds)]
    order += [(by_ipc, late, first), (by_ipc, late, rest)]
    tasks = [
        task
        for names, ipcs, seeds in order
        for name in names
        if seeds
        for ipc in ipcs
        for iteration in profile.reported
        for task in PARTS[name](Step(profile, ipc, iteration, seeds))
    ]
    return list(dict.fromkeys(tasks))


def select(tasks: Iterable[Task], until: int | None = None, **only: Collection) -> list[Task]:
    """The tasks up to an iteration whose ipc, seed, pool, net or protocol is among those named.

    Real images count by their method as a pool; with net or protocol, no set is distilled. With KD
    comes the choice of cross-entropy's learning rate. Raises `DDError` for a value that no task
    has.
    """
    tasks = list(tasks)
    if until is not None:
        check_range("until", until, 0)
    chosen = [task for task in tasks if until is None or task.images.iteration <= until]
    for name, values in only.items():
        known = {value_of(task, name) for task in tasks} - {None}
        for value in values:
            check_choice(name, value, sorted(known))
        kept = {task for task in chosen if not values or value_of(task, name) in values}
        if name == "protocol":
            kept |= {sweep for task in kept for sweep in sweeps_before(task)}
        chosen = [task for task in chosen if task in kept]
    return chosen


def value_of(task: Task, name: str) -> object:
    """What `select` compares."""
    if name == "pool":
        return task.images.pool or task.images.method
    return getattr(task.images if name in ("ipc", "seed") else task, name, None)
