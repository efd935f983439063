"""The audit: comparisons as data, a paired difference for each, and one rule that turns those of a
claim into a verdict.

Every effect is a difference in test accuracy (percent points) with its 95% interval, paired by set
and eval seed (`stats.paired_difference`). Claims are judged per ipc, so that a verdict never speaks
for what was not measured.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from ..choose import CELL, choices
from ..stats import LEVEL, UNIT, WITHIN, given, holm, interval, p_above, p_below, pair
from ..support.rng import stream
from .published import NETS_PUBLISHED, printed_accuracy, printed_noise, read_published
from .selection import arms, at_usual_lr, comparable, images_of
from .tables import FREE, NETS, WITHOUT_ITERATION

MARGIN = (
    1.0  # points: the smallest effect that matters; seeds of one method differ by about as much
)
SIDE = (1 - LEVEL) / 2  # error rate of one side of an interval
SUPPORTED, CONTRADICTED, MIXED = "supported", "contradicted", "mixed"
UNDECIDED, INCOMPLETE, MISSING = "undecided", "incomplete", "not measured"
VERDICTS = (SUPPORTED, CONTRADICTED, MIXED, UNDECIDED)  # of which all cells are measured
GAIN, LOSS, SMALL = "gain", "loss", "below 1 point"
NO_CELL = {name: float("nan") for name in ("mean", "low", "high", "se")}
NO_CELL |= {"df": 0, "sets": 0, "n": "", "diverged": 0}
RULE = """\
A verdict is for one ipc. Effects are paired differences in points of test accuracy; one that
matters is at least 1 point. A cell *gains* if it is above 0 (one-sided 2.5%, Holm over the measured
cells) and estimated at 1 point or more, and *loses* if it is below 0 (Holm). *Every*: supported if
each cell's interval lies above 0; else contradicted if in some cell a gain of 1 point is ruled out
(Holm); else undecided. *Mean* over the cells, each counting alike, set by set or, on one set, by
the eval seeds that all cells have: supported if its interval lies above 0, it is estimated at 1
point or more, and no cell loses; contradicted if a mean of 1 point is ruled out and no cell gains;
mixed if a cell gains and another loses, or a cell gains although a mean of 1 point is ruled out, or
the mean would be supported but a cell loses; else undecided. *Incomplete*: undecided, and cells are
missing, without which no claim is supported and no mean judged. *Given one set*: the intervals
cover fresh nets on these very images, and the verdict is about them, not about the method."""


@dataclass(frozen=True)
class Comparison:
    """Accuracy of nets on images `a[0]` trained as `a[1]`, minus that of `b`; see `selection.arms`.

    `printed`: the two methods of Table 4 whose difference stands beside it. `best`: not the gains
    themselves, but the gain on that net minus the gain on each other.
    """

    name: str
    a: tuple[str, str]
    b: tuple[str, str]
    printed: tuple[str, str] | None = None
    best: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim with its comparisons; `rule` "every" or "mean" (`RULE`); `with_convnet`: whether the
    main model counts.
    """

    text: str
    rule: str
    comparisons: tuple[Comparison, ...]
    with_convnet: bool = False


CLASS_MEANS = 6  # the number of that claim
BASELINE, POOL, REAL = ("baseline", "CE"), ("model pool", "CE"), ("random real images", "CE")
SETS = {"baseline": ("KD", "baseline"), "model pool": ("model pool + KD", "model pool")}


def on_both(name: str, a: str, b: str) -> tuple[Comparison, ...]:
    """Arm `a` minus arm `b` on the baseline's and on the pool's sets, beside what the paper prints
    as the gain of KD.
    """
    return tuple(
        Comparison(f"{name}, {images} sets", (images, a), (images, b), printed)
        for images, printed in SETS.items()
    )


CLAIMS = {
    1: Claim(
        "Distilled images beat random real ones on every net",
        "every",
        (Comparison("baseline − random real images", BASELINE, REAL),),
        with_convnet=True,
    ),
    2: Claim(
        "The model pool improves cross-architecture accuracy",
        "mean",
        (Comparison("model pool − baseline", POOL, BASELINE, ("model pool", "baseline")),),
    ),
    3: Claim(
        "KD improves it further (both at the learning rate best for cross-entropy, τ chosen)",
        "mean",
        on_both("KD − CE at the learning rate chosen for CE", "KD, lr chosen", "CE, lr chosen"),
    ),
    4: Claim(
        "Main model + similar models beats Table 5's two other pools",
        "every",
        tuple(
            Comparison(f"model pool − {other}", POOL, (other, "CE"))
            for other in ("total random", "main model + others")
        ),
    ),
    5: Claim(
        "The gain of pool and KD together is largest on ResNet18",
        "every",
        (
            Comparison(
                "gain on ResNet18 − gain on the other net",
                *(("model pool", "KD"), BASELINE, None, "ResNet18"),
            ),
        ),
    ),
    CLASS_MEANS: Claim(  # ours
        "Distilled images beat class means on every net",
        "every",
        tuple(
            Comparison(f"{images} − {free}", (images, "CE"), (free, "CE"))
            for images in ("baseline", "model pool")
            for free in FREE[1:]
        ),
        with_convnet=True,
    ),
}
QUESTIONS = {
    "half-ce": "Does half a cross-entropy explain what Table 4 prints without KD?",
    "kd": "Is KD a gain over plain cross-entropy?",
    "lr": "What does plain cross-entropy gain if its learning rate is chosen as τ is?",
    "released-kd": "What does the released KD term add to half a cross-entropy?",
    "warm-up": "Does the released pool (warm-up, depth 1) do better than the printed one?",
    "tau": "What does choosing τ on test images add?",
}
POINTS = {
    "half-ce": on_both("CE − ½ CE", "CE", "½ CE"),
    "kd": on_both("KD − CE", "KD", "CE"),
    "lr": tuple(
        Comparison(c.name, c.a, c.b)
        for c in on_both("CE with its learning rate chosen − CE", "CE, lr chosen", "CE")
    ),
    "released-kd": on_both("released KD − ½ CE", "released KD", "½ CE"),
    "warm-up": (
        Comparison("pool as released − pool as printed", ("model pool as released", "CE"), POOL),
    ),
}


@dataclass(frozen=True)
class Scope:
    """What a study is to measure: what is missing of it is said."""

    ipcs: tuple[int, ...]
    iterations: tuple[int, ...]
    nets: tuple[str, ...] = NETS


# Cells.


def pick(tested: pd.DataFrame, images: str, arm: str, ipc: int, iteration: int) -> pd.DataFrame:
    """Rows of images trained in an arm at one ipc and iteration; random real images have no
    iteration.
    """
    at = tested["iteration"] == (0 if images in WITHOUT_ITERATION else iteration)
    return tested[
        (tested["images"] == images) & (tested["arm"] == arm) & (tested["ipc"] == ipc) & at
    ]


def differences(
    tested: pd.DataFrame, comparison: Comparison, ipc: int, iteration: int
) -> pd.DataFrame:
    """The paired differences of a comparison, a row per net, set seed and eval seed."""
    a, b = (pick(tested, *side, ipc, iteration) for side in (comparison.a, comparison.b))
    rows = pair(a, b)
    if not comparison.best:
        return rows
    best = rows[rows["net"] == comparison.best].drop(columns="net")
    others = rows[rows["net"] != comparison.best]
    best = best.merge(others[["net", UNIT, WITHIN]], on=[UNIT, WITHIN])
    return pair(best, others)


def cells_of(rows: pd.DataFrame, nets: Iterable[str]) -> dict[str, dict]:
    """Net -> `stats.interval` of its differences; `NO_CELL` where there are none."""
    by_net = dict(list(rows.groupby("net")))
    return {net: interval(by_net[net]) if net in by_net else NO_CELL for net in nets}


def best_iteration(tested: pd.DataFrame, comparison: Comparison, ipc: int, scope: Scope) -> int:
    """The iteration of the scope with most nets measured, the latest of equals."""

    def measured(iteration: int) -> tuple[int, int]:
        return differences(tested, comparison, ipc, iteration)["net"].nunique(), iteration

    return max(scope.iterations, key=measured)


def outcome(cell: dict) -> str:
    """What one interval says: a gain, a loss, a gain of `MARGIN` ruled out, or undecided; `MISSING`
    without rows.
    """
    if not cell["n"]:
        return MISSING
    if cell["df"] and cell["low"] > 0:
        return GAIN
    if cell["df"] and cell["high"] < 0:
        return LOSS
    return SMALL if cell["df"] and cell["high"] < MARGIN else UNDECIDED


# Claims.


def verdict(cells: Sequence[dict], mean: dict, rule: str) -> str:
    """The verdict of `RULE` on the cells of a claim and the interval of their mean."""
    measured = [cell for cell in cells if cell["df"]]
    if not measured:
        return MISSING
    complete = len(measured) == len(cells)
    unknown = UNDECIDED if complete else INCOMPLETE
    losses = any(holm([p_below(cell) for cell in measured], SIDE))
    if rule == "every":
        if complete and all(p_above(cell) <= SIDE for cell in measured):
            return SUPPORTED
        too_small = any(holm([p_below(cell, MARGIN) for cell in measured], SIDE))
        return CONTRADICTED if too_small else unknown
    rejected = holm([p_above(cell) for cell in measured], SIDE)
    gains = any(r and c["mean"] >= MARGIN for r, c in zip(rejected, measured, strict=True))
    improved = complete and p_above(mean) <= SIDE and mean["mean"] >= MARGIN
    not_improved = complete and p_below(mean, MARGIN) <= SIDE
    if (gains and (losses or not_improved)) or (improved and losses):
        return MIXED
    return SUPPORTED if improved else CONTRADICTED if not_improved else unknown


def mean_of(rows: Sequence[pd.DataFrame], nets: Iterable[str]) -> dict:
    """`stats.interval` of the mean over cells, each counting alike: over the sets that all of them
    have, with each net's own mean on a set; on one set, over the eval seeds that all of them have.
    `NO_CELL` if none.
    """
    joined = pd.concat([r.assign(cell=i) for i, r in enumerate(rows)])
    joined = joined[joined["net"].isin(list(nets))]
    cells = len(rows) * len(list(nets))
    on_sets = averages(joined, [UNIT, "cell", "net"])
    by_set = averages(on_sets, [UNIT])
    by_set = by_set[by_set["size"] == cells]
    if len(by_set) > 1:
        sizes = on_sets.loc[on_sets[UNIT].isin(by_set[UNIT]), "size"]
        nets_on_each = dict.fromkeys((sizes.min(), sizes.max()))
        return interval(by_set) | {"n": f"{len(by_set)}×{'-'.join(map(str, nets_on_each))}"}
    by_seed = averages(joined, [UNIT, WITHIN])
    by_seed = by_seed[by_seed["size"] == cells]
    return interval(by_seed) if len(by_seed) else NO_CELL


def averages(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The mean accuracy of each group, how many rows it has, and whether any diverged."""
    return rows.groupby(by, as_index=False).agg(
        accuracy=("accuracy", "mean"), size=("accuracy", "size"), diverged=("diverged", "any")
    )


def claim_cells(rows: pd.DataFrame, scope: Scope) -> pd.DataFrame:
    """The comparisons behind the claims: claim, ipc, comparison, net ("mean" last), iteration, the
    interval, outcome.
    """
    tested, lines = arms(rows), []
    for ipc in scope.ipcs:
        for number, claim in CLAIMS.items():
            excluded = {comparison.best for comparison in claim.comparisons}
            excluded |= set() if claim.with_convnet else {"ConvNet"}
            nets = [net for net in scope.nets if net not in excluded]
            parts = []
            for comparison in claim.comparisons:
                at = best_iteration(tested, comparison, ipc, scope)
                parts.append(differences(tested, comparison, ipc, at))
                start = {
                    "claim": number,
                    "ipc": ipc,
                    "comparison": comparison.name,
                    "iteration": at,
                }
                for net, cell in cells_of(parts[-1], nets).items():
                    lines.append(start | {"net": net} | cell | {"outcome": outcome(cell)})
            mean = mean_of(parts, nets)
            ends = {line["iteration"] for line in lines[-len(parts) * len(nets) :]}
            start = {"claim": number, "ipc": ipc, "comparison": "mean over nets"}
            start["iteration"] = at if len(ends) == 1 else ""
            lines.append(start | {"net": "mean"} | mean | {"outcome": outcome(mean)})
    return pd.DataFrame(lines).drop(columns="seconds", errors="ignore")


def claims(cells: pd.DataFrame) -> pd.DataFrame:
    """A line per claim and ipc of `claim_cells`: number, claim, ipc, verdict, measured, what
    decides, evidence, n.
    """
    lines = []
    for (number, ipc), group in cells.groupby(["claim", "ipc"], sort=False):
        claim = CLAIMS[number]
        own = group[group["net"] != "mean"].to_dict("records")
        mean = group[group["net"] == "mean"].to_dict("records")[0]
        measured = [cell for cell in own if cell["df"]]  # a cell without interval says nothing
        found = verdict(own, mean, claim.rule) + given(measured)
        lines.append(
            {
                "number": number,
                "claim": claim.text,
                "ipc": ipc,
                "verdict": found,
                "measured": f"{len(measured)} of {len(own)}",
                "decides": decisive(own, mean, claim.rule, found),
                "evidence": evidence(measured, mean if claim.rule == "mean" else NO_CELL),
                "n": " or ".join(dict.fromkeys(cell["n"] for cell in measured)),
            }
        )
    return pd.DataFrame(lines).sort_values(["number", "ipc"], ignore_index=True)


def decisive(cells: Sequence[dict], mean: dict, rule: str, found: str) -> str:
    """What a verdict hangs on, in words: the nets that are missing; by the rule "mean" the mean; by
    "every" the cell that speaks least for the claim, or most clearly against it. "" without rows.
    """
    missing = dict.fromkeys(cell["net"] for cell in cells if not cell["df"])
    if all(not cell["df"] for cell in cells):
        return ""
    contradicted = found.startswith(CONTRADICTED)
    if missing and not contradicted:
        return f"{', '.join(missing)} missing"
    if rule == "mean":
        return f"mean {effect_text(mean)}, n {mean['n']}"
    least = min(cells, key=lambda c: p_below(c, MARGIN) if contradicted else -p_above(c))
    several = len({cell["comparison"] for cell in cells}) > 1
    return f"{least['net']} {effect_text(least)}" + f" ({least['comparison']})" * several


def evidence(measured: Sequence[dict], mean: dict) -> str:
    """The effects in words, by comparison, with the mean over nets and n."""
    if not measured:
        return "No rows yet."
    texts = []
    for name in dict.fromkeys(cell["comparison"] for cell in measured):
        shown = [f"{c['net']} {effect_text(c)}" for c in measured if c["comparison"] == name]
        texts.append(f"{name}: {', '.join(shown)}")
    n = " or ".join(dict.fromkeys(cell["n"] for cell in measured))
    average = f"; mean {effect_text(mean)}" if mean["n"] else ""
    average += f" (n {mean['n']})" * (mean["n"] not in ("", n))
    return f"{'; '.join(texts)}{average}; n {n}."


def effect_text(cell: dict) -> str:
    """An effect with its interval, and a star where nets diverged, which stay in the mean: "+1.4
    [+0.9, +1.9]*".
    """
    bounds = f" [{signed(cell['low'])}, {signed(cell['high'])}]" if cell["df"] else " (no interval)"
    return signed(cell["mean"]) + bounds + "*" * bool(cell.get("diverged"))


def escaped(text: str) -> str:
    """Text whose stars Markdown leaves alone."""
    return text.replace("*", "\\*")


def signed(value: float) -> str:
    """A difference with its sign and one decimal: "+1.4", "−0.6", "0.0"."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


# The points of the audit.


def audit(rows: pd.DataFrame, scope: Scope) -> pd.DataFrame:
    """A line per point (`QUESTIONS`), comparison, net and ipc: the interval, outcome, the printed
    difference and whether it agrees ("yes", "no"; at the paper's scale only), n and diverged
    nets.
    """
    tested, lines = arms(rows), []
    table4 = read_published(4) if set(rows["dataset"]) == {"cifar10"} else None
    for ipc in scope.ipcs:
        for point, comparisons in POINTS.items():
            for comparison in comparisons:
                at = best_iteration(tested, comparison, ipc, scope)
                parts = differences(tested, comparison, ipc, at)
                lines += point_lines(
                    point, comparison, ipc, at, cells_of(parts, scope.nets), table4
                )
        for images in SETS:
            comparison = Comparison(
                f"τ best on test − τ chosen on validation, {images} sets", BASELINE, BASELINE
            )
            at = scope.iterations[0]
            parts = tau_on_test(rows, images, ipc, at)
            lines += point_lines("tau", comparison, ipc, at, cells_of(parts, scope.nets), None)
    frame = pd.DataFrame(lines).drop(columns="seconds", errors="ignore")
    return frame if is_full_scale(rows) else frame.assign(agrees="")


def point_lines(
    point: str,
    comparison: Comparison,
    ipc: int,
    iteration: int,
    cells: dict[str, dict],
    table4: pd.DataFrame | None,
) -> list[dict]:
    """The lines of one comparison."""
    lines = []
    for net, cell in cells.items():
        printed = float("nan")
        if comparison.printed and table4 is not None:
            accuracies = [
                printed_accuracy(table4, ipc, iteration, m, net) for m in comparison.printed
            ]
            printed = accuracies[0] - accuracies[1]
        start = {
            "point": point,
            "comparison": comparison.name,
            "net": net,
            "ipc": ipc,
            "iteration": iteration,
        }
        more = {"outcome": outcome(cell), "published": printed}
        lines.append(
            start | cell | more | {"agrees": agrees(cell, printed, printed_noise(net, ipc))}
        )
    return lines


def agrees(cell: dict, printed: float, noise: float) -> str:
    """Whether an interval, widened by the noise of the printed figure, holds it: "yes", "no", or ""
    where either is missing.
    """
    if np.isnan(printed) or not cell["df"]:
        return ""
    half = np.hypot(cell["high"] - cell["mean"], noise)
    return "yes" if abs(cell["mean"] - printed) <= half else "no"


def noise_of_mean(cell: dict) -> float:
    """Half of the 95% interval of a published mean (of `NETS_PUBLISHED` nets on one set) whose nets
    and sets scatter as those of a cell.
    """
    units = cell["df"] + 1  # sets; of one set, its nets
    half = cell["high"] - cell["mean"]
    return float(half * np.sqrt(units if cell["sets"] > 1 else units / NETS_PUBLISHED))


def is_full_scale(rows: pd.DataFrame) -> bool:
    """Whether sizes compare with the paper's: its widths of nets and sets."""
    return bool((rows["width"] >= 128).all() and (rows["width_factor"] >= 1).all())


COMPATIBLE = (
    *("ipc", "iteration", "printed", "net", "published", "arm", "mean", "low", "high", "n"),
    "agrees",
)


def compatible(rows: pd.DataFrame, scope: Scope) -> pd.DataFrame:
    """Which ways of training agree with each figure of Table 4: a line per printed method, net and
    arm, at the paper's scale.

    Columns: ipc, iteration, printed (method), net, published, arm, mean, low, high (our interval
    widened by the noise that a printed mean has if its nets scatter as this arm's), n, agrees. Our
    images are not the authors': sets of one method differ, which no interval of one set covers. At
    the scope's first iteration.
    """
    if not is_full_scale(rows) or set(rows["dataset"]) != {"cifar10"}:
        return pd.DataFrame(columns=list(COMPATIBLE))
    tested, table4, lines = arms(rows), read_published(4), []
    for ipc, (images, methods), arm in product(
        scope.ipcs, SETS.items(), ("CE", "½ CE", "KD", "released KD")
    ):
        at = scope.iterations[0]
        cells = cells_of(pick(tested, images, arm, ipc, at), scope.nets)
        for method, (net, cell) in product(methods, cells.items()):
            printed = printed_accuracy(table4, ipc, at, method, net)
            if cell["df"] and not np.isnan(printed):
                noise = noise_of_mean(cell)
                half = float(np.hypot(cell["high"] - cell["mean"], noise))
                start = {"ipc": ipc, "iteration": at, "printed": method, "net": net}
                bounds = {"low": cell["mean"] - half, "high": cell["mean"] + half, "n": cell["n"]}
                start |= {"published": printed, "arm": arm, "mean": cell["mean"]} | bounds
                lines.append(start | {"agrees": agrees(cell, printed, noise)})
    return pd.DataFrame(lines, columns=list(COMPATIBLE))


def tau_on_test(rows: pd.DataFrame, images: str, ipc: int, iteration: int) -> pd.DataFrame:
    """KD at the temperature best on test images − at the one chosen on validation images, both on
    test images.

    Only nets with a sweep on both splits, and only seeds that have every candidate.
    """
    rows = at_usual_lr(comparable(rows))
    rows = rows[
        (images_of(rows) == images)
        & (rows["ipc"] == ipc)
        & (rows["protocol"] == "kd")
        & (rows["iteration"] == iteration)
    ]
    values = {
        split: choices(rows, "kd", "tau", split).set_index(CELL)["chosen"].to_dict()
        for split in ("val", "test")
    }
    test, parts = rows[rows["split"] == "test"], []
    for cell, group in test.groupby(CELL):
        if cell in values["val"] and cell in values["test"]:
            swept = (
                group.groupby([UNIT, WITHIN])["tau"].transform("nunique") == group["tau"].nunique()
            )
            best, chosen = (
                group[swept & (group["tau"] == values[split][cell])] for split in ("test", "val")
            )
            parts.append(pair(best, chosen))
    return pd.concat(parts) if parts else pair(test.iloc[:0], test.iloc[:0])


def sentence(lines: pd.DataFrame) -> str:
    """What the lines of one point say together, in words, as Markdown."""
    measured = lines[lines["outcome"] != MISSING]
    if measured.empty:
        return "Not measured yet."
    texts = []
    for (name, ipc), group in measured.groupby(["comparison", "ipc"], sort=False):
        shown = [f"{cell['net']} {effect_text(cell)}" for cell in group.to_dict("records")]
        one = given(group.to_dict("records"))
        texts.append(f"{name} (ipc {ipc}{one}): {escaped(', '.join(shown))}.")
    missing = len(lines) - len(measured)
    return " ".join(texts) + (
        f" {missing} of {len(lines)} cells are not measured." if missing else ""
    )


def outcome_counts(lines: pd.DataFrame) -> pd.DataFrame:
    """How many lines of each point have which outcome: points down, outcomes across."""
    counts = lines.groupby(["point", "outcome"], sort=False).size().unstack(fill_value=0)
    return counts.reindex(
        index=list(QUESTIONS), columns=[GAIN, LOSS, SMALL, UNDECIDED, MISSING], fill_value=0
    )


# Error rates of the verdicts.


def simulate_verdicts(
    truths: dict[str, Sequence[float]],
    shapes: Sequence[tuple[int, int]],
    spreads: Sequence[float],
    sd_nets: float | Sequence[float],
    runs: int = 1000,
) -> pd.DataFrame:
    """How often each verdict comes out: a line per rule, truth (name -> true effect per net), shape
    and spread of the sets.

    `shapes`: (sets, nets on each). `sd_nets`, `spreads`: standard deviations (points) of the paired
    difference between nets of one set (or one for each architecture) and between sets, all
    architectures alike: a good set is good for many. A spread of 0 is what "given one set" asks.
    """
    lines = []
    for (truth, effects), (sets, nets), spread in product(truths.items(), shapes, spreads):
        generator = np.random.default_rng(stream(0, truth, sets, nets, spread).initial_seed())
        shape = (runs, len(effects), sets, nets)
        scatter = np.broadcast_to(sd_nets, len(effects))[:, None, None]
        values = np.array(effects)[:, None, None] + scatter * generator.standard_normal(shape)
        values += spread * generator.standard_normal((runs, 1, sets, 1))
        start = {"truth": truth, "n": f"{sets}×{nets}", "sd of sets": spread}
        for rule in ("every", "mean"):
            found = [
                verdict([simulated_cell(cell) for cell in run], simulated_cell(run.mean(0)), rule)
                for run in values
            ]
            rates = {name: found.count(name) / runs for name in VERDICTS}
            lines.append({"rule": rule} | start | rates)
    return pd.DataFrame(lines)


def simulated_cell(values: np.ndarray) -> dict:
    """The cell of `stats.interval` for differences [sets, nets]: what `verdict` reads of it."""
    units = values.mean(1) if len(values) > 1 else values[0]
    se = float(units.std(ddof=1) / np.sqrt(len(units)))
    return {"mean": float(values.mean()), "se": se, "df": len(units) - 1, "n": "simulated"}


def spreads_of_nets(rows: pd.DataFrame, scope: Scope) -> list[float]:
    """Standard deviation between nets on one set of claim 2's differences, for each net."""
    ipc, at = scope.ipcs[0], scope.iterations[0]
    paired = differences(arms(rows), CLAIMS[2].comparisons[0], ipc, at)
    by_net = paired.groupby(["net", UNIT])["accuracy"].std().groupby("net").mean()
    return [float(by_net[net]) for net in NETS if net != "ConvNet"]


def error_rates(measured: Sequence[float], runs: int = 1000) -> pd.DataFrame:
    """`simulate_verdicts` under no effect, equal ones, and what Table 4 prints for the pool.

    Column "sd of nets": "1.2", about the mean of the spreads stored with the released sets, as if
    all architectures scattered alike; or "measured", one for each (`spreads_of_nets`).
    """
    table, others = read_published(4), [net for net in NETS if net != "ConvNet"]
    truths = {f"{effect:g} points each": [effect] * len(others) for effect in (0.0, 1.0, 2.0)}
    for ipc in (1, 10):
        accuracies = {
            method: [printed_accuracy(table, ipc, 3000, method, net) for net in others]
            for method in ("model pool", "baseline")
        }
        effects = np.subtract(accuracies["model pool"], accuracies["baseline"])
        truths[f"as printed, ipc {ipc}"] = effects.round(2).tolist()
    shapes = (1, 5), (1, 20), (3, 1), (5, 1), (3, 5), (5, 5)
    alike = simulate_verdicts(truths, shapes, (0.0, 0.5), 1.2, runs)
    unlike = simulate_verdicts(truths, ((1, 5), (5, 1)), (0.0,), measured, runs)
    parts = {"1.2": alike, "measured": unlike}
    return pd.concat(part.assign(**{"sd of nets": name}) for name, part in parts.items())[
        [*alike.columns[:3], "sd of nets", *alike.columns[3:]]
    ]
