"""Methods side by side: one table under the same protocols, and what the pool and ELF add to each.

Effects are paired differences, verdicts follow the audit's rule (`audit.RULE`) per method: whether
the pool is "easily extensible" (arXiv 2402.13007, section 3.2) is asked of each by itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import pandas as pd
from torch import nn

from ..config import EvalConfig
from ..identity import identity_of
from ..methods.elf import feature_net
from ..stats import given, pair, summarise
from ..study.plan import Train, plan
from ..study.study import Study
from ..study.tasks import config_of
from ..support.rng import Streams
from ..synset import SyntheticSet
from .audit import MISSING, NO_CELL, cells_of, effect_text, mean_of, outcome, verdict
from .selection import IMAGES, METHODS, WITH_POOL, arms, comparable, images_name, images_of
from .tables import FREE, NETS, in_order, line_of

OWN_NAMES = {IMAGES["dc", "main"]: "DC", IMAGES["dc", "main_plus_similar"]: "DC" + WITH_POOL}
CELL = ["ipc", "images", "iteration", "arm", "net"]
EFFECT = ["net", *NO_CELL, "outcome"]
# What ELF is compared with, all augmented alike: arm -> protocol and the options that differ
ELF_ARMS = {
    "CE": ("ce", {}),
    "KD from F": ("kd-real", {}),
    "ELF": ("elf", {}),
    "ELF without its feature term": ("elf", {"lambda_feature": 0.0}),
    "ELF, F untrained": ("elf", {"feature_epochs": 0}),
}
ELF_PAIRS = (("ELF", "CE"), ("KD from F", "CE"), ("ELF", "KD from F"))
ELF_PAIRS += tuple(("ELF", name) for name in ELF_ARMS if name[:3] == "ELF" != name)


def renamed(rows: pd.DataFrame) -> pd.DataFrame:
    """`arms` of rows with DC under its own name: beside other methods it is not the baseline."""
    tested = arms(rows)
    return tested.assign(images=tested["images"].replace(OWN_NAMES))


def sets_of(study: Study) -> dict[str, list[SyntheticSet]]:
    """The finished sets of the plan's part "methods" by name, one per seed, with logs."""
    tasks = [task.images for task in plan(study.profile, "methods") if isinstance(task, Train)]
    found: dict[str, list[SyntheticSet]] = {}
    for images in dict.fromkeys(tasks):
        if images.iteration and images.iteration < study.profile.reported_of(images.method)[-1]:
            continue
        one = study.load(images) if images.are_given else study.distill(images, progress=False)
        about = identity_of(one)
        name = images_name(about["method"], about["base"], about["pool"])
        found.setdefault(OWN_NAMES.get(name, name), []).append(one)
    return found


def cost_table(sets: Mapping[str, Sequence[SyntheticSet]]) -> pd.DataFrame:
    """Iterations and mean seconds of distilled sets, by name."""
    lines = {}
    for name, group in sets.items():
        if group[0].iteration:
            seconds = [one.provenance["seconds"] for one in group]
            lines[name] = {"ipc": group[0].ipc, "iterations": group[0].iteration}
            lines[name] |= {"sets": len(group), "seconds a set": sum(seconds) / len(group)}
    return pd.DataFrame.from_dict(lines, orient="index")


def auxiliary_nets(study: Study) -> dict[str, nn.Module]:
    """The nets, trained on real images, that MetaDD uses in this study, by name."""
    config = study.profile.distill_config("main", study.profile.seeds[0], method="metadd")
    part = config.parts()["metadd"]
    part.prepare(config, study.data, Streams(config.seed))
    return {type(net).__name__: net for net in part.nets}


def elf_config(study: Study) -> EvalConfig:
    """How the study evaluates with ELF."""
    tasks = [t for t in plan(study.profile, "elf") if isinstance(t, Train) and t.protocol == "elf"]
    config = config_of(tasks[0], study)
    assert config is not None
    return config


def feature_nets(study: Study) -> pd.DataFrame:
    """The real images that ELF's F has seen for each net, and how well it does on test images."""
    p, config = study.profile, elf_config(study)
    images = p.feature_images or len(study.data.y_train)
    about = {"epochs of F": p.feature_epochs, "real images of F": images}
    accuracies = [feature_net(study.data, net, config).accuracy for net in p.elf_nets]
    lines = zip(p.elf_nets, accuracies, strict=True)
    return pd.DataFrame([{"net": net, **about, "F alone (%)": value} for net, value in lines])


def methods_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A line per ipc, images, iteration (real images have none) and arm, a column per net: mean ±
    half of the 95% interval.
    """
    tested, lines = renamed(rows), []
    place = tested["images"].map({name: i for i, name in enumerate(ordered(tested["images"]))})
    cells = summarise(tested.loc[place.sort_values(kind="stable").index], CELL)
    nets = in_order(cells["net"])
    for arm in dict.fromkeys(cells["arm"]):
        for (ipc, images, k), group in cells[cells["arm"] == arm].groupby(CELL[:3], sort=False):
            line = {"trained with": arm, "ipc": ipc, "images": images}
            lines.append(line | {"iterations": str(k) if k else ""} | line_of(group, nets))
    return pd.DataFrame(lines).sort_values(["trained with", "ipc"], kind="stable")


def ordered(names: Iterable[str]) -> list[str]:
    """Images as tables list them: real ones, then method by method with its pool."""
    known = [*FREE, *METHODS.values()]

    def place(name: str) -> tuple[int, str]:
        fits = [i for i, start in enumerate(known) if name.startswith(start)]
        return max(fits, default=len(known)), name

    return sorted(dict.fromkeys(names), key=place)


def pool_effects(rows: pd.DataFrame, nets: Sequence[str] = NETS) -> pd.DataFrame:
    """Pool − main per method, ipc, iteration, arm and net ("mean" last: of all but ConvNet)."""
    tested, lines = renamed(rows), []
    pooled = [name for name in ordered(tested["images"]) if name.endswith(WITH_POOL)]
    groups = tested.groupby(["arm", "ipc"], sort=False)
    for ((arm, ipc), same), images in product(groups, pooled):
        name, own = images.removesuffix(WITH_POOL), same[same["images"] == images]
        for k, sets in own.groupby("iteration"):
            main = same[(same["images"] == name) & (same["iteration"] == k)]
            start = {"method": name, "ipc": ipc, "iterations": k, "arm": arm}
            start["comparison"] = f"{name}, {arm}" + at(k, own)
            lines += effect_lines(start, pair(sets, main), nets)
    return pd.DataFrame(
        lines, columns=["method", "ipc", "iterations", "arm", "comparison", *EFFECT]
    )


def gains_by_seed(rows: pd.DataFrame, nets: Sequence[str] = NETS) -> pd.DataFrame:
    """What the pool adds, for the two sets of each seed by themselves: a line per method, ipc,
    iteration, arm and seed, a text per net. Intervals cover fresh nets on these very sets.
    """
    lines = []
    for seed, own in rows.groupby("seed"):
        effects = pool_effects(own, nets).query("net != 'mean' and n != ''")
        for key, cells in effects.groupby(["method", "ipc", "iterations", "arm"], sort=False):
            start = dict(zip(("method", "ipc", "iterations", "trained with"), key, strict=True))
            texts = {cell["net"]: effect_text(cell) for cell in cells.to_dict("records")}
            lines.append(start | {"seed": seed} | {net: texts.get(net, "") for net in nets})
    keys = ["trained with", "method", "ipc", "iterations", "seed"]
    return pd.DataFrame(lines, columns=[*keys, *nets]).sort_values(keys, kind="stable")


def extent_table(sets: Iterable[SyntheticSet]) -> pd.DataFrame:
    """How far pixels are from 0, in normalised pixel space: the median and the largest of a set.

    With DM's option `dm_batchnorm`, where a pool has members with batch norm.
    """
    lines = []
    for one in sets:
        size = one.images.abs()
        about, options = identity_of(one), one.config.get("options", {})
        line = {"images": images_name(about["method"], about["base"], about["pool"])}
        line |= {"batch norm": options.get("dm_batchnorm", "") if about["pool"] != "main" else ""}
        line |= {"seed": about["seed"], "median": f"{float(size.median()):.3g}"}
        lines.append(line | {"largest": f"{float(size.max()):.3g}"})
    keys = ["images", "batch norm", "seed"]
    return pd.DataFrame(lines).sort_values(keys, ignore_index=True)


def at(iteration: int, rows: pd.DataFrame) -> str:
    """Which of several iterations that rows are of; nothing where all are of one."""
    return f", iteration {iteration}" * (rows["iteration"].nunique() > 1)


def elf_effects(rows: pd.DataFrame, nets: Iterable[str]) -> pd.DataFrame:
    """The differences of `ELF_PAIRS` per images, ipc, iteration and net ("mean" last)."""
    tested, lines = elf_arms(rows), []
    for (ipc, images, k), group in tested.groupby(["ipc", "images", "iteration"], sort=False):
        for a, b in ELF_PAIRS:
            sides = (group[group["arm"] == arm] for arm in (a, b))
            start = {"images": images, "ipc": ipc, "comparison": f"{a} − {b}" + at(k, tested)}
            lines += effect_lines(start, pair(*sides), list(nets))
    return pd.DataFrame(lines, columns=["images", "ipc", "comparison", *EFFECT])


def effect_lines(start: dict, differences: pd.DataFrame, nets: Sequence[str]) -> list[dict]:
    """A line per net with the interval of its differences, and one for the mean over the nets."""
    cells = cells_of(differences, nets)
    across = [net for net in nets if net != "ConvNet"]
    cells["mean"] = mean_of([differences], across) if len(differences) else NO_CELL
    return [start | {"net": net} | cell | {"outcome": outcome(cell)} for net, cell in cells.items()]


def elf_arms(rows: pd.DataFrame) -> pd.DataFrame:
    """Augmented rows of images that ELF was tried on, with columns `images`, `arm` (`ELF_ARMS`)."""
    rows = comparable(rows[(rows["augment"] == "dsa") & (rows["split"] == "test")])
    rows = rows.assign(images=images_of(rows).replace(OWN_NAMES))
    rows = rows[rows["images"].isin(rows.loc[rows["protocol"] == "elf", "images"])]
    named = rows.reindex(columns=["lambda_feature", "feature_epochs"]).astype(float)
    parts = []
    for arm, (protocol, options) in ELF_ARMS.items():
        fits = rows["protocol"] == protocol
        if protocol == "elf":  # the default is not named, and F is trained unless it says 0
            fits &= named["lambda_feature"].fillna(1.0) == options.get("lambda_feature", 1.0)
            fits &= (named["feature_epochs"] == 0) == ("feature_epochs" in options)
        parts.append(rows[fits].assign(arm=arm))
    return pd.concat(parts)


def pool_verdicts(effects: pd.DataFrame) -> pd.DataFrame:
    """A line per method, ipc, iteration and arm of `pool_effects`: the verdict on "the pool
    improves cross-architecture accuracy" of that method, the mean gain, and its n; those of the
    nets where there is no mean.
    """
    lines, keys = [], ["method", "ipc", "iterations", "arm"]
    for (method, ipc, k, arm), group in effects.groupby(keys, sort=False):
        cells = group[~group["net"].isin(["mean", "ConvNet"])].to_dict("records")
        mean = group[group["net"] == "mean"].to_dict("records")[0]
        measured = [cell for cell in cells if cell["df"]]
        found = verdict(cells, mean, "mean") + given(measured)
        line = {"method": method, "ipc": ipc, "iterations": k, "trained with": arm}
        line |= {"verdict": found, "measured": f"{len(measured)} of {len(cells)} nets"}
        line["mean gain"] = effect_text(mean) if mean["n"] else ""
        line["n"] = mean["n"] or " or ".join(dict.fromkeys(c["n"] for c in measured)) or MISSING
        lines.append(line)
    return pd.DataFrame(
        lines, columns=[*keys[:3], "trained with", "verdict", "measured", "mean gain", "n"]
    )
