"""The claims of the paper (arXiv 2402.13007) against the rows: a verdict by a stated rule and a sentence of evidence each."""

import pandas as pd

from ..stats import UNIT, WITHIN
from .audit import MISSING, NOT_MEASURED, SETS, make_view, paired, pick, signed, single, too_few
from .tables import NETS

HOLDS, IN_PART, FAILS = "holds", "holds in part", "does not hold"
CLAIMS = {
    1: "Distilled images beat random real ones on every net",
    2: "The model pool improves cross-architecture accuracy",
    3: "KD improves it further, against plain cross-entropy",
    4: "Main model + similar models is the best pool",
    5: "The gains are largest on ResNet18",
}
GAIN, LOSS, UNDECIDED = "clear gain", "clear loss", "undecided"


def claims(rows, published=None, *, ipcs=None, iterations=None, nets=NETS):
    """One line per claim of the paper: number, claim, verdict, evidence (one sentence), n. Arguments as for `audit`.

    A gain counts if its 95% interval lies above 0 and rests on enough pairs (`audit.FEWEST`). "holds": every comparison of
    the claim is a gain, and none is missing; "holds in part": some are; "does not hold": none is; "not yet measured": there
    are no rows. The comparisons are those of `claim_cells`, at the iteration of each ipc that has most of them (the latest
    of equals).
    """
    cells = claim_cells(rows, published, ipcs=ipcs, iterations=iterations, nets=nets)
    lines = []
    for number, text in CLAIMS.items():
        own = cells[cells["claim"] == number]
        measured = own.dropna(subset="effect")
        n = " or ".join(dict.fromkeys(measured["n"]))
        lines.append([number, text, claim_verdict(own), evidence(own), n])
    return pd.DataFrame(lines, columns=["number", "claim", "verdict", "evidence", "n"])


def claim_verdict(cells):
    """The rule of `claims`. An ipc without any rows is left out; a net that is missing at a measured ipc is not."""
    measured = cells.dropna(subset="effect")
    if measured.empty:
        return MISSING
    expected = cells[cells["ipc"].isin(measured["ipc"])]
    gained = (measured["outcome"] == GAIN).sum()
    return HOLDS if gained == len(expected) else IN_PART if gained else FAILS


def claim_cells(rows, published=None, *, ipcs=None, iterations=None, nets=NETS):
    """The comparisons behind `claims`: claim, comparison, net, ipc, iteration, effect, low, high, n, outcome. NaN: missing."""
    view = make_view(rows, published, ipcs, iterations, nets)
    lines = []
    for ipc in view.ipcs:
        for claim, comparisons in claim_comparisons(view, ipc).items():
            for name, (expected, at) in comparisons.items():
                k = max(view.iterations, key=lambda k, at=at: (len(at(k)), k))
                pairs = at(k)
                for net in expected:
                    c = pairs.get(net, NOT_MEASURED)
                    lines.append(
                        [
                            claim,
                            name,
                            net,
                            ipc,
                            k,
                            c["mean"],
                            c["low"],
                            c["high"],
                            c["n"],
                            outcome(c),
                        ]
                    )
    columns = [
        "claim",
        "comparison",
        "net",
        "ipc",
        "iteration",
        "effect",
        "low",
        "high",
        "n",
        "outcome",
    ]
    return pd.DataFrame(lines, columns=columns).sort_values(
        "claim", kind="stable", ignore_index=True
    )


def outcome(cell):
    """What an interval says: a gain, a loss, or neither; empty if there is none."""
    if not cell["n"]:
        return ""
    if too_few(cell):
        return UNDECIDED
    return GAIN if cell["low"] > 0 else LOSS if cell["high"] < 0 else UNDECIDED


def claim_comparisons(view, ipc):
    """Claim -> comparison -> (expected nets, function of the iteration that gives net -> cell)."""
    others = [net for net in view.nets if net != "ConvNet"]
    besides = [net for net in others if net != "ResNet18"] if "ResNet18" in others else []

    def rows_at(k, pool, protocol="ce"):
        return pick(view.rows, ipc, k, pool, protocol)

    def against(pool, a="ce", other="main", b="ce"):
        return lambda k: only(
            paired(rows_at(k, pool, a), rows_at(k if other != "random_real" else 0, other, b)),
            view.nets,
        )

    def without_convnet(compare):
        return lambda k: only(compare(k), others)

    pool = "main_plus_similar"
    return {
        1: {"baseline − random real images": (view.nets, against("main", other="random_real"))},
        2: {"model pool − baseline": (others, without_convnet(against(pool)))},
        3: {
            f"KD − CE, {sets}": (others, without_convnet(against(p, "kd", p)))
            for p, sets in SETS.items()
        },
        4: {
            "against total random": (others, without_convnet(against(pool, other="total_random"))),
            "against main model": (
                others,
                without_convnet(against(pool, other="main_plus_others")),
            ),
        },
        5: {
            "gain on ResNet18 − gain on": (
                besides,
                lambda k: largest_gain(rows_at(k, pool, "kd"), rows_at(k, "main"), besides),
            )
        },
    }


def only(pairs, nets):
    """The cells of `nets`, in that order."""
    return {net: pairs[net] for net in nets if net in pairs}


def largest_gain(improved, baseline, nets, best="ResNet18"):
    """(Model pool + KD − baseline) on `best` − the same on each other net, paired by seeds: a dict net -> cell."""
    both = improved.merge(baseline, on=["net", UNIT, WITHIN], suffixes=("_a", "_b"))
    if best not in set(both["net"]):
        return {}
    both["accuracy"] = both["accuracy_a"] - both["accuracy_b"]
    both["diverged"] = both["diverged_a"] | both["diverged_b"]
    both = both[["net", UNIT, WITHIN, "accuracy", "diverged"]].assign(seconds=0.0)
    own = both[both["net"] == best].drop(columns="net")
    others = both[both["net"].isin(nets)]
    own = own.merge(others[["net", UNIT, WITHIN]], on=[UNIT, WITHIN])
    return only(paired(own, others), nets)


def evidence(cells):
    """One sentence about the comparisons of a claim: how many are gains, which, what is missing, and what n covers."""
    measured = cells.dropna(subset="effect")
    if measured.empty:
        return "No rows yet."
    groups = {title: measured[measured["outcome"] == title] for title in (GAIN, LOSS, UNDECIDED)}
    labels = measured[["ipc", "comparison"]].drop_duplicates()
    keys = ["ipc"] * (labels["ipc"].nunique() > 1) + ["comparison"] * (
        labels["comparison"].nunique() > 1
    )
    named = [
        f"{title} in {len(g)} of {len(measured)} ({effects_text(g, keys)})"
        for title, g in groups.items()
        if len(g)
    ]
    text = "; ".join(named) + f"; n {' or '.join(dict.fromkeys(measured['n']))}"
    if "comparison" not in keys:
        text = f"{labels['comparison'].iloc[0]}: {text}"
    if single(measured["n"]):
        text += ", one distillation, so that the intervals cover the nets' spread only"
    return text[0].upper() + text[1:] + missing_text(cells, measured) + "."


def effects_text(cells, keys):
    """Effects, grouped by the columns `keys`: "KD − CE, pool sets: MLP +1.9, LeNet +0.6"."""
    if not keys:
        return ", ".join(f"{c.net} {signed(c.effect)}" for c in cells.itertuples())
    parts = []
    for key, group in cells.groupby(keys, sort=False):
        start = ", ".join(
            f"ipc {k}" if name == "ipc" else k for name, k in zip(keys, key, strict=True)
        )
        parts.append(f"{start}: {effects_text(group, [])}")
    return "; ".join(parts)


def missing_text(cells, measured):
    """What of a claim's comparisons has no rows, ipcs as a whole first."""
    gone = [f"ipc {ipc}" for ipc in dict.fromkeys(cells["ipc"]) if ipc not in set(measured["ipc"])]
    rest = cells[cells["effect"].isna() & cells["ipc"].isin(measured["ipc"])]
    gone += [
        f"{net} in part" if net in set(measured["net"]) else net
        for net in dict.fromkeys(rest["net"])
    ]
    return f"; not yet measured: {', '.join(gone)}" if gone else ""
