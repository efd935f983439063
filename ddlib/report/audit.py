"""The audit of the published tables (arXiv 2402.13007): rows of results in, one tidy table out.

Every line is a difference in test accuracy (percent points) with a 95% interval, paired by distillation and evaluation seed
(`stats.paired_difference`), beside the paper's own difference where it prints one. Notebook, report and README draw on these
lines. Nothing is measured here; what has no rows yet says so.
"""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pandas as pd

from ..config import DistillConfig, EvalConfig
from ..rng import stream
from ..stats import UNIT, WITHIN, interval, paired_difference, summarise
from .selection import (
    at_chosen_tau,
    at_default_tau,
    chosen_taus,
    comparable,
    printed_pool,
    released_pool,
)
from .tables import NETS, REFERENCE, read_published

COLUMNS = (
    "point",
    "question",
    "comparison",
    "net",
    "ipc",
    "iteration",
    "effect",
    "low",
    "high",
    "n",
    "published",
    "verdict",
)
SUPPORTED, CONTRADICTED, OPEN, MISSING = "supported", "contradicted", "open", "not yet measured"
QUESTIONS = {
    "half-ce": "Does half a cross-entropy explain what Table 4 prints without KD?",
    "kd": "Is KD a gain over plain cross-entropy?",
    "released-kd": "What does the released KD term add to half a cross-entropy?",
    "tau": "What does choosing τ on test images add?",
    "repeats": "Are the KD rows at later iterations repeats of the first?",
    "spread": "Can one set and ten nets show the printed differences?",
    "warm-up": "Does the released pool (warm-up, depth 1) do better than the printed one?",
}
ALONE = "published figures alone"
SETS = {"main": "baseline sets", "main_plus_similar": "pool sets"}
PRINTED = {
    "main": ("KD", "baseline"),
    "main_plus_similar": ("model pool + KD", "model pool"),
}  # Table 4: with, without KD
Z = 1.96  # half of a 95% interval in standard deviations
NETS_PUBLISHED = 10  # nets behind each published mean
FEWEST = 4  # pairs; an interval of fewer decides nothing
NOT_MEASURED = {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": ""}


@dataclass(frozen=True)
class View:
    """The rows of one study, prepared for comparisons, and what is expected of it."""

    every: pd.DataFrame  # all rows: both splits, all temperatures
    rows: pd.DataFrame  # test rows, the tau chosen on validation images, the printed pools
    variants: pd.DataFrame  # the same for the released code's pools
    published: pd.DataFrame  # Table 4 as printed; empty for other data
    ipcs: tuple
    iterations: tuple
    nets: tuple
    cells: list = field(
        default_factory=list
    )  # (ipc, iteration): measured, or the first that is expected


def scope(profile):
    """What a profile is to measure, as keywords for `audit` and `claims.claims`."""
    return {"ipcs": profile.ipcs, "iterations": profile.reported, "nets": profile.nets}


def audit(rows, published=None, *, ipcs=None, iterations=None, nets=NETS):
    """The seven points of the audit as one `DataFrame` with `COLUMNS` and `diverged`; see the functions below for the rules.

    `published`: Table 4 as printed (default: paper/reference/table4.csv if the rows are of CIFAR-10). `ipcs`, `iterations`,
    `nets`: what is expected (default: what the rows hold, and all six nets); it is listed as "not yet measured" if missing.
    """
    view = make_view(rows, published, ipcs, iterations, nets)
    lines = [
        line
        for point in (half_ce, kd, released_kd, tau_on_test, repeats, spread_lines, warm_up)
        for line in point(view)
    ]
    return pd.DataFrame(lines, columns=[*COLUMNS, "diverged"])


def make_view(rows, published=None, ipcs=None, iterations=None, nets=NETS):
    """Prepare rows for `audit` and `claims.claims`; the arguments are theirs."""
    if published is None:
        table4 = read_published(4)
        published = table4 if set(rows["dataset"]) == {"cifar10"} else table4.iloc[:0]
    test = at_default_tau(comparable(at_main_prob(at_chosen_tau(rows))))
    distilled = test[test["pool"].isin(SETS)]
    ipcs = tuple(ipcs) if ipcs else tuple(sorted(distilled["ipc"].unique())) or (1,)
    if not iterations:
        there = sorted(distilled["iteration"].unique())
        iterations = [k for k in there if k in set(published["iteration"])] or there[-1:] or [0]
    measured = {ipc: set(group["iteration"]) for ipc, group in distilled.groupby("ipc")}
    cells = [
        (ipc, k)
        for ipc in ipcs
        for k in [k for k in iterations if k in measured.get(ipc, ())] or [min(iterations)]
    ]
    everything = comparable(at_main_prob(printed_pool(rows)))
    return View(
        everything,
        printed_pool(test),
        released_pool(test),
        published,
        ipcs,
        tuple(iterations),
        tuple(nets),
        cells,
    )


def at_main_prob(rows):
    """Rows of mixed pools at the paper's probability of the main model, and all rows of other sets."""
    mixed = rows["pool"].isin(["main_plus_others", "main_plus_similar"])
    return rows[~mixed | (rows["main_prob"] == DistillConfig().main_prob)]


def pick(rows, ipc, iteration, pool, protocol, teacher=False):
    """Rows of one method at one ipc and iteration; `protocol` kd has a teacher anyway. Random real images: iteration 0."""
    with_teacher = (rows["teacher"] != "") if protocol != "ce" else False
    own = (
        (rows["ipc"] == ipc)
        & (rows["iteration"] == iteration)
        & (rows["pool"] == pool)
        & (rows["protocol"] == protocol)
    )
    return rows[own & (with_teacher == (teacher or protocol == "kd"))]


def paired(a, b):
    """`paired_difference` as a dict net -> mean, low, high, n, diverged; empty where nothing pairs yet."""
    if a.merge(b, on=["net", UNIT, WITHIN]).empty:
        return {}
    return paired_difference(a, b).set_index("net").to_dict("index")


def line(
    point, comparison, net, ipc, iteration, cell=None, published=float("nan"), verdict=MISSING
):
    """One line of the audit; without a `cell` it is not yet measured."""
    found = cell or NOT_MEASURED
    return {
        "point": point,
        "question": QUESTIONS.get(point, ""),
        "comparison": comparison,
        "net": net,
        "ipc": ipc,
        "iteration": iteration,
        "effect": found["mean"],
        "low": found["low"],
        "high": found["high"],
        "n": found["n"],
        "published": published,
        "verdict": verdict if cell else MISSING,
        "diverged": found.get("diverged", 0),
    }


def lines_of(view, point, comparison, pairs, ipc, iteration, judge, methods=None):
    """One line per net of a paired comparison. `judge(cell, published, net)` gives the verdict, `methods` the printed pair."""
    for net in view.nets:
        printed = (
            printed_difference(view.published, ipc, iteration, *methods, net)
            if methods
            else float("nan")
        )
        cell = pairs.get(net)
        verdict = MISSING if not cell else OPEN if too_few(cell) else judge(cell, printed, net)
        yield line(point, comparison, net, ipc, iteration, cell, printed, verdict)


def too_few(cell):
    """Whether a cell has so few pairs ("2×1") that its interval says little."""
    sets, nets = cell["n"].split(", ")[-1].split("×")
    return int(sets) * int(nets.split("-")[0]) < FEWEST


def printed_difference(published, ipc, iteration, a, b, net):
    """Published accuracy of method a minus b, at the paper's nearest iteration; NaN where it prints none."""
    return printed_accuracy(published, ipc, iteration, a, net) - printed_accuracy(
        published, ipc, iteration, b, net
    )


def printed_accuracy(published, ipc, iteration, method, net):
    """A published accuracy (%) at the nearest iteration of that ipc, NaN where there is none."""
    match = published[(published["ipc"] == ipc) & (published["method"] == method)]
    if match.empty or net not in match:
        return float("nan")
    return float(match.iloc[(match["iteration"] - iteration).abs().argmin()][net])


@cache
def plain_ce():
    """The plain-CE accuracies stored with the released sets (paper/reference/plain_ce.csv): mean, std and n per cell."""
    return pd.read_csv(REFERENCE / "plain_ce.csv")


def printed_noise(net, ipc):
    """Half of the 95% interval of a difference of two published means that share a set, from the stored spread of nets."""
    stored = plain_ce()
    spread = stored[(stored["net"] == net) & (stored["ipc"] == ipc)]["std"]
    return Z * float(spread.mean()) * np.sqrt(2 / NETS_PUBLISHED) if len(spread) else 0.0


def full_scale(view, iteration):
    """Whether sizes can be compared with the paper's, not only signs: its widths, its number of iterations."""
    defaults = EvalConfig()
    narrow = (view.rows["width"] < defaults.width).any() or (
        view.rows["width_factor"] < defaults.width_factor
    ).any()
    return iteration in set(view.published["iteration"]) and not narrow


# The points.


def half_ce(view):
    """CE − ½ CE on the same set, which should equal the published (with KD) − (without) if ½ CE was the baseline.

    At the paper's scale: contradicted if the interval, widened by the noise of the published means, does not hold the
    published difference; supported if it does and excludes 0 on the same side. Else, and at any other scale, open.
    """
    for ipc, iteration in view.cells:
        full = full_scale(view, iteration)
        for pool, sets in SETS.items():
            pairs = paired(
                pick(view.rows, ipc, iteration, pool, "ce"),
                pick(view.rows, ipc, iteration, pool, "authors-2023"),
            )
            yield from lines_of(
                view,
                "half-ce",
                f"CE − ½ CE, {sets}",
                pairs,
                ipc,
                iteration,
                lambda cell, printed, net, full=full, ipc=ipc: agreement(
                    cell, printed, printed_noise(net, ipc), full
                ),
                PRINTED[pool],
            )
    yield from stored_half_ce(view)


def agreement(cell, printed, noise, full):
    """The verdict of `half_ce`: does a measured effect agree with the printed difference?"""
    if np.isnan(printed) or not full:
        return OPEN
    if not cell["low"] - noise <= printed <= cell["high"] + noise:
        return CONTRADICTED
    return (
        SUPPORTED
        if (cell["low"] > 0 and printed > 0) or (cell["high"] < 0 and printed < 0)
        else OPEN
    )


def stored_half_ce(view):
    """The same from published figures alone: plain CE stored with the released sets − Table 4's row without KD.

    The interval is that of two means of ten nets with the stored standard deviation; the printed rows with KD have no other
    noise, so that it is not widened.
    """
    methods = {"baseline": ("KD", "baseline"), "model pool": ("model pool + KD", "model pool")}
    for found in plain_ce().itertuples():
        ipc, k, (with_kd, without) = found.ipc, found.iteration, methods[found.method]
        effect = found.mean - printed_accuracy(view.published, ipc, k, without, found.net)
        if ipc not in view.ipcs or np.isnan(effect):
            continue
        noise = Z * found.std * np.sqrt(2 / found.n)
        cell = {"mean": effect, "low": effect - noise, "high": effect + noise, "n": f"1×{found.n}"}
        printed = printed_difference(view.published, ipc, k, with_kd, without, found.net)
        comparison = f"stored plain CE − Table 4's {without} ({ALONE})"
        yield line(
            "half-ce",
            comparison,
            found.net,
            ipc,
            k,
            cell,
            printed,
            agreement(cell, printed, 0.0, True),
        )


def nearest(rows, published=None, *, ipcs=None, iterations=None, nets=NETS):
    """To which of our protocols is each published accuracy nearest? One line per printed cell, at the paper's scale only.

    Columns: ipc, iteration, printed (the method in Table 4), net, published, ½ CE, CE, released KD (our means, %), nearest.
    """
    view = make_view(rows, published, ipcs, iterations, nets)
    kinds = {
        "½ CE": ("authors-2023", False),
        "CE": ("ce", False),
        "released KD": ("authors-2023", True),
    }
    lines = []
    for ipc, k in [cell for cell in view.cells if full_scale(view, cell[1])]:
        for pool, methods in PRINTED.items():
            ours = {
                kind: net_means(pick(view.rows, ipc, k, pool, *how)) for kind, how in kinds.items()
            }
            for method in reversed(methods):
                for net in view.nets:
                    printed = printed_accuracy(view.published, ipc, k, method, net)
                    means = {kind: found.get(net, float("nan")) for kind, found in ours.items()}
                    start = {
                        "ipc": ipc,
                        "iteration": k,
                        "printed": method,
                        "net": net,
                        "published": printed,
                    }
                    lines.append(start | means | {"nearest": nearest_name(means, printed)})
    return pd.DataFrame(
        lines, columns=["ipc", "iteration", "printed", "net", "published", *kinds, "nearest"]
    )


def nearest_name(means, printed):
    """The name of the mean nearest to a printed figure; empty unless all means and the figure are there."""
    if np.isnan([printed, *means.values()]).any():
        return ""
    return min(means, key=lambda kind: abs(means[kind] - printed))


def net_means(rows):
    """Mean accuracy per net, distillations first, as a dict."""
    return {net: interval(group, resamples=1)["mean"] for net, group in rows.groupby("net")}


def gain(cell, printed, noise, full):
    """Is there a gain? Supported if the interval lies above 0, contradicted if below, or if it reaches 0 and not the printed
    gain although the scale is the paper's. Else open."""
    if cell["low"] > 0:
        return SUPPORTED
    short = full and printed - noise > max(cell["high"], 0)
    return CONTRADICTED if cell["high"] < 0 or short else OPEN


def kd(view):
    """Equation 1's KD (tau chosen on validation images) − plain CE on the same set; verdict: `gain`."""
    yield from gains(view, "kd", "KD − CE", ("kd", True), ("ce", False))


def released_kd(view):
    """The released code's loss with a teacher − without (½ CE) on the same set; verdict: `gain`."""
    yield from gains(
        view, "released-kd", "released KD − ½ CE", ("authors-2023", True), ("authors-2023", False)
    )


def gains(view, point, what, a, b):
    """Lines of protocol a − protocol b on the sets of both pools, beside the published (with KD) − (without)."""
    for ipc, iteration in view.cells:
        full = full_scale(view, iteration)
        for pool, sets in SETS.items():
            pairs = paired(
                pick(view.rows, ipc, iteration, pool, *a), pick(view.rows, ipc, iteration, pool, *b)
            )
            yield from lines_of(
                view,
                point,
                f"{what}, {sets}",
                pairs,
                ipc,
                iteration,
                lambda cell, printed, net, full=full, ipc=ipc: gain(
                    cell, printed, printed_noise(net, ipc), full
                ),
                PRINTED[pool],
            )


def tau_on_test(view):
    """KD at the tau best on test images − at the tau chosen on validation images, both on test images.

    Needs test rows at two temperatures or more; only seeds that have all of them count. Supported if the interval lies above
    0; contradicted if it does not reach above 0 (the same tau was chosen); else open.
    """
    for ipc, iteration in view.cells:
        for pool, sets in SETS.items():
            pairs = tau_choice(view.every, ipc, iteration, pool)
            comparison = f"τ best on test − τ chosen on validation, {sets}"
            yield from lines_of(
                view, "tau", comparison, pairs, ipc, iteration, lambda cell, *_: raised(cell)
            )


def raised(cell):
    """Does an effect lie above 0 (supported), nowhere above it (contradicted), or on both sides (open)?"""
    return SUPPORTED if cell["low"] > 0 else CONTRADICTED if cell["high"] <= 0 else OPEN


def tau_choice(rows, ipc, iteration, pool):
    """The two choices of tau compared, as a dict net -> cell; nets without sweeps on both splits are left out."""
    kd_rows = rows[(rows["protocol"] == "kd") & (rows["ipc"] == ipc) & (rows["pool"] == pool)]
    found = {}
    for net, own in kd_rows.groupby("net"):
        test = whole_sweep(own[(own["split"] == "test") & (own["iteration"] == iteration)])
        val = own[own["split"] == "val"]
        if test["tau"].nunique() < 2 or val["tau"].nunique() < 2:
            continue
        sweep = pd.concat([val, test])
        best, chosen = (chosen_taus(sweep, split)[ipc, pool, net] for split in ("test", "val"))
        found |= paired(test[test["tau"] == best], test[test["tau"] == chosen])
    return found


def whole_sweep(rows):
    """Rows of those seeds that were run at every tau."""
    runs = rows.groupby([UNIT, WITHIN])["tau"].transform("nunique")
    return rows[runs == rows["tau"].nunique()]


def repeats(view):
    """Do the published KD rows change less from iteration to iteration than the others? And do ours change where they do not?

    Published: mean |change| of the KD rows − that of the rows without KD over nets and successive iterations; supported if
    the interval lies below 0, contradicted if above, else open. Ours, KD at a later iteration − at the first: supported if it
    excludes 0 while the printed change is within its noise and outside the interval; contradicted if the printed change is
    beyond its noise; else open.
    """
    comparison = f"mean change of KD rows − of rows without KD ({ALONE})"
    for ipc in view.ipcs:
        cell = printed_changes(view.published, ipc)
        last = int(view.published["iteration"].max()) if cell else max(view.iterations)
        verdict = raised({"low": -cell["high"], "high": -cell["low"]}) if cell else MISSING
        yield line("repeats", comparison, "all", ipc, last, cell, verdict=verdict)
        for later in view.iterations[1:]:
            yield from own_changes(view, ipc, view.iterations[0], later)


def printed_changes(published, ipc):
    """Interval of the mean |change| between successive iterations, KD rows − rows without, resampling nets; None if absent."""
    own = published[published["ipc"] == ipc].sort_values("iteration")
    if own["iteration"].nunique() < 2:
        return None
    nets = [net for net in NETS if net in own]
    changes = (
        own.groupby("method")[nets]
        .diff()
        .abs()
        .assign(kd=own["method"].str.contains("KD"))
        .dropna(how="all", subset=nets)
    )
    difference = changes[changes["kd"]][nets].mean() - changes[~changes["kd"]][nets].mean()
    rows = difference.dropna().rename("accuracy").reset_index().assign(**{UNIT: lambda f: f.index})
    cell = interval(rows)
    return cell | {"n": f"{len(rows)} nets × {own['iteration'].nunique() - 1} changes"}


def own_changes(view, ipc, first, later):
    """Lines of our KD at a later iteration − at the first, beside the printed change."""
    for pool, sets in SETS.items():
        pairs = paired(*(pick(view.rows, ipc, k, pool, "kd") for k in (later, first)))
        for net in view.nets:
            printed = np.diff(
                [
                    printed_accuracy(view.published, ipc, k, PRINTED[pool][0], net)
                    for k in (first, later)
                ]
            )[0]
            cell = pairs.get(net)
            verdict = repeated(cell, float(printed), printed_noise(net, ipc)) if cell else MISSING
            yield line(
                "repeats",
                f"KD, iteration {later} − {first}, {sets}",
                net,
                ipc,
                later,
                cell,
                float(printed),
                verdict,
            )


def repeated(cell, printed, noise):
    """The verdict of our own changes in `repeats`."""
    if abs(printed) > noise:
        return CONTRADICTED
    clear = cell["low"] > 0 or cell["high"] < 0
    outside = not cell["low"] <= printed <= cell["high"]
    return SUPPORTED if clear and outside else OPEN


def spread_lines(view):
    """The smallest difference that one set and ten nets per method can show (two methods, 95%), from `spread_of`.

    Beside it the published model pool − baseline. At the paper's scale: supported if that is larger than the whole interval,
    contradicted if it is smaller than it, else open. At any other scale open.
    """
    for ipc, iteration in view.cells:
        found = spread_of(view.rows, ipc, iteration).set_index("net").to_dict("index")
        full = full_scale(view, iteration)
        yield from lines_of(
            view,
            "spread",
            "smallest difference that can be shown",
            found,
            ipc,
            iteration,
            lambda cell, printed, _, full=full: shown(cell, abs(printed)) if full else OPEN,
            ("model pool", "baseline"),
        )
    yield from stored_spread(view)


def shown(cell, size):
    """The verdict of `spread_lines`."""
    return SUPPORTED if size > cell["high"] else CONTRADICTED if size < cell["low"] else OPEN


def stored_spread(view):
    """A lower bound of the same from published figures alone: the stored spread of nets, and none between sets.

    A printed difference below it is contradicted; one above it stays open, since the sets' spread is not known.
    """
    last = view.published["iteration"].max() if len(view.published) else 0
    for (ipc, net), stored in plain_ce().groupby(["ipc", "net"], sort=False):
        printed = printed_difference(view.published, ipc, last, "model pool", "baseline", net)
        if ipc not in view.ipcs or np.isnan(printed):
            continue
        variance, degrees = float((stored["std"] ** 2).mean()), int((stored["n"] - 1).sum())
        variances = {"mean": variance} | dict(
            zip(("low", "high"), variance_bounds(variance, degrees), strict=True)
        )
        cell = {k: smallest_difference(0.0, v) for k, v in variances.items()} | {
            "n": f"{len(stored)} methods, 1×{NETS_PUBLISHED}"
        }
        verdict = CONTRADICTED if shown(cell, abs(printed)) == CONTRADICTED else OPEN
        yield line(
            "spread",
            f"smallest difference by the nets' spread ({ALONE})",
            net,
            ipc,
            int(last),
            cell,
            printed,
            verdict,
        )


def variance_bounds(variance, degrees, simulated=10000):
    """95% interval of a variance estimated with so many degrees of freedom (chi-square, by simulation)."""
    draws = np.random.default_rng(int(stream(0, "spread").initial_seed())).chisquare(
        degrees, simulated
    )
    return variance * degrees / np.quantile(draws, [0.975, 0.025])


def spread_table(rows, published=None, *, ipcs=None, iterations=None, nets=NETS):
    """Standard deviations (points) between distillations and between nets of one set, and what follows; see `spread_of`."""
    view = make_view(rows, published, ipcs, iterations, nets)
    frames = [spread_of(view.rows, ipc, k).assign(ipc=ipc, iteration=k) for ipc, k in view.cells]
    return pd.concat(frames, ignore_index=True)


def spread_of(rows, ipc, iteration):
    """Per net, protocol ce: sd_sets, sd_nets, and mean, low, high of the smallest difference one set and ten nets can show.

    Variances are pooled over both kinds of sets (one-way analysis of variance: between = sd_sets² + sd_nets² / nets); the
    interval is that of the variance between sets (chi-square). Needs two distillations of two nets.
    """
    columns = ["net", "sd_sets", "sd_nets", "mean", "low", "high", "n"]
    own = rows[
        (rows["ipc"] == ipc)
        & (rows["iteration"] == iteration)
        & (rows["protocol"] == "ce")
        & rows["pool"].isin(SETS)
    ]
    lines = []
    for net, group in own.groupby("net"):
        sets = (
            group.groupby(["pool", UNIT])["accuracy"]
            .agg(["mean", "var", "size"])
            .dropna()
            .reset_index()
        )
        between = sets.groupby("pool")["mean"].agg(["var", "size"]).dropna()
        if between.empty:
            continue
        degrees, nets = int((between["size"] - 1).sum()), sets["size"].mean()
        variance = float((between["var"] * (between["size"] - 1)).sum() / degrees)
        within = float(sets["var"].mean())
        variances = {"mean": variance} | dict(
            zip(("low", "high"), variance_bounds(variance, degrees), strict=True)
        )
        smallest = {k: smallest_difference(v - within / nets, within) for k, v in variances.items()}
        n = f"{len(between)} methods, {int(sets.groupby('pool').size().max())}×{int(nets)}"
        spreads = {"sd_sets": np.sqrt(max(variance - within / nets, 0)), "sd_nets": np.sqrt(within)}
        lines.append({"net": net} | spreads | smallest | {"n": n})
    return pd.DataFrame(lines, columns=columns)


def smallest_difference(variance_sets, variance_nets):
    """What two means must differ by to be told apart at 95%: one set each, `NETS_PUBLISHED` nets on it (points)."""
    return float(Z * np.sqrt(2 * (max(variance_sets, 0) + variance_nets / NETS_PUBLISHED)))


def warm_up(view):
    """Model pool with warm-up and similar ConvNets of depth 1 − with neither, protocol ce. Supported above 0, contradicted
    below, else open."""
    for ipc, iteration in view.cells:
        pairs = paired(
            pick(view.variants, ipc, iteration, "main_plus_similar", "ce"),
            pick(view.rows, ipc, iteration, "main_plus_similar", "ce"),
        )
        comparison = "pool as released − pool as printed"
        yield from lines_of(
            view,
            "warm-up",
            comparison,
            pairs,
            ipc,
            iteration,
            lambda cell, *_: gain(cell, 0.0, 0.0, False),
        )


def differences(rows, published=None, *, ipcs=None, iterations=None, nets=NETS):
    """Each method of Table 4 − the baseline with plain CE, as lines like the audit's (verdict: `gain`); for figures."""
    view = make_view(rows, published, ipcs, iterations, nets)
    methods = {
        "model pool": ("main_plus_similar", "ce"),
        "KD": ("main", "kd"),
        "model pool + KD": ("main_plus_similar", "kd"),
    }
    lines = []
    for ipc, k in view.cells:
        baseline, full = pick(view.rows, ipc, k, "main", "ce"), full_scale(view, k)
        for method, how in methods.items():
            lines += lines_of(
                view,
                "difference",
                f"{method} − baseline",
                paired(pick(view.rows, ipc, k, *how), baseline),
                ipc,
                k,
                lambda cell, printed, net, full=full, ipc=ipc: gain(
                    cell, printed, printed_noise(net, ipc), full
                ),
                (method, "baseline"),
            )
    return pd.DataFrame(lines, columns=[*COLUMNS, "diverged"])


# The audit in words.


def sentence(lines, most=2):
    """What the audit's lines of one point say together, with the clearest effects in full; for report and notebook."""
    measured = lines[lines["verdict"] != MISSING]
    if measured.empty:
        return "Not yet measured."
    counts = [(v, int((measured["verdict"] == v).sum())) for v in (SUPPORTED, CONTRADICTED, OPEN)]
    text = (
        ", ".join(f"{v} in {k}" for v, k in counts if k)
        + f" of {len(measured)} comparison"
        + "s" * (len(measured) > 1)
    )
    missing = len(lines) - len(measured)
    text += f" ({missing} not yet measured). " if missing else ". "
    decided = measured[measured["verdict"] != OPEN]
    clearest = (decided if len(decided) else measured).assign(size=lambda f: f["effect"].abs())
    shown = clearest.sort_values("size", ascending=False, kind="stable").head(most)
    clearest_text = "; ".join(line_text(found) for found in shown.itertuples()) + "."
    text += clearest_text[0].upper() + clearest_text[1:]
    if single(measured["n"]):
        text += " One distillation: the spread of nets only."
    diverged = int(measured["diverged"].sum())
    return (
        text[0].upper()
        + text[1:]
        + (f" {diverged} of the pairs hold a diverged net." if diverged else "")
    )


def line_text(found):
    """One line of the audit in words: net, comparison, effect, interval, n, published, verdict."""
    printed = "" if np.isnan(found.published) else f"; published {signed(found.published)}"
    bounds = f"[{signed(found.low)}, {signed(found.high)}]"
    net = "all nets" if found.net == "all" else found.net
    return f"{net}, {found.comparison}: {signed(found.effect)} {bounds}, n {found.n}{printed}, {found.verdict}"


def signed(value):
    """A difference with its sign and one decimal: "+1.4", "−0.6", "0.0"."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def verdict_counts(lines):
    """How many lines of each point have which verdict: a `DataFrame`, points down, verdicts across."""
    counts = lines.groupby(["point", "verdict"], sort=False).size().unstack(fill_value=0)
    return counts.reindex(
        index=list(QUESTIONS), columns=[SUPPORTED, CONTRADICTED, OPEN, MISSING], fill_value=0
    )


def diverged_counts(rows):
    """Diverged nets on test images by protocol and with or without a teacher: a `DataFrame` with diverged and nets."""
    test = rows[rows["split"] == "test"].assign(
        teacher=lambda f: np.where(f["teacher"] == "", "without", "with")
    )
    cells = summarise(test, ["protocol", "teacher"])
    return cells[["protocol", "teacher", "diverged"]].assign(
        nets=test.groupby(["protocol", "teacher"], sort=False).size().values
    )


def single(counts):
    """Whether every n ("1×5") is of one distillation."""
    return all(str(n).startswith("1×") for n in counts)
