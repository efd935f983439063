"""Means with Student's t intervals that respect how the numbers came about: sets first, the nets
trained on them within.

Ten nets trained on one synthetic set say how well that set does; only several sets say how well the
method does. So the unit is the set: with two or more, the interval is that of the set means. With
one, it is that of its nets, and holds given this set.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import special

from .support.errors import DDError, check_choice
from .support.public import public

UNIT, WITHIN = "seed", "eval_seed"
LEVEL = 0.95
SHARED = (  # by the rows that a mean over nets is of
    *("dataset", "ipc", "method", "base", "pool", "iteration", "main_prob"),
    *("protocol", "arm", "split"),
)
FEWEST_NETS = 5  # on one set: an interval of fewer is wider than anything it could show


@public
def interval(rows: pd.DataFrame) -> dict:
    """Mean of the sets' mean accuracies, with a Student's t interval of 95%.

    Two or more sets: over the set means, sets − 1 degrees of freedom. One set: over its nets, nets
    − 1 degrees of freedom, from `FEWEST_NETS` on; it covers fresh nets on this very set, not the
    method. Fewer: no interval (NaN). Returns a dict: mean, low, high, se (standard error; percent
    points), df, sets, n (text, "sets×nets"), diverged (nets, which stay in the mean), seconds
    (median per net). A set is what the column `set` says, where there is one, else `seed`. Raises
    `DDError` for no rows, or for rows of several splits: a net would count once for each.
    """
    if not len(rows):
        raise DDError("no rows to summarise; needed: at least one")
    check_columns(rows, UNIT, "accuracy")
    if "split" in rows and rows["split"].nunique() > 1:
        names = ", ".join(sorted(rows["split"].unique()))
        raise DDError(f"rows are of several splits ({names}); choose one, or group by split")
    unit = "set" if "set" in rows and rows["set"].notna().all() else UNIT
    nets = [group.to_numpy(float) for _, group in rows.groupby(unit, sort=False)["accuracy"]]
    means = np.array([group.mean() for group in nets])
    units = means if len(nets) > 1 else nets[0] if len(nets[0]) >= FEWEST_NETS else np.array([])
    df = max(len(units) - 1, 0)
    se = float(units.std(ddof=1) / np.sqrt(len(units))) if df else float("nan")
    half = float(special.stdtrit(df, (1 + LEVEL) / 2)) * se if df else float("nan")
    sizes = sorted({len(group) for group in nets})
    return {
        "mean": float(means.mean()),
        "low": float(means.mean() - half),
        "high": float(means.mean() + half),
        "se": se,
        "df": df,
        "sets": len(nets),
        "n": f"{len(nets)}×{'-'.join(map(str, sizes))}",
        "diverged": int(rows["diverged"].sum()) if "diverged" in rows else 0,
        "seconds": float(rows["seconds"].median()) if "seconds" in rows else float("nan"),
    }


def check_columns(rows: pd.DataFrame, *names: str) -> None:
    """Raise `DDError` unless rows have these columns."""
    for name in names:
        check_choice("column", name, rows.columns)


@public
def summarise(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`interval` of every group of `by` columns, in the order of first appearance."""
    by = list(by)
    check_columns(rows, *by)
    if not by:
        raise DDError("by is empty; needed: columns to group by")
    parts = rows.groupby(by, sort=False, dropna=False)
    return pd.DataFrame([dict(zip(by, key, strict=True)) | interval(group) for key, group in parts])


def pair(a: pd.DataFrame, b: pd.DataFrame, on: Sequence[str] = ("net",)) -> pd.DataFrame:
    """The differences a − b of rows that share net, set seed and eval seed, a row each; without a
    partner they are left out.

    Pairing removes what both share: the same fresh weights, the same random real batches. Raises
    `DDError` for several rows of one pair.
    """
    keys = list(dict.fromkeys([*on, "net", UNIT, WITHIN]))
    for name, rows in (("first", a), ("second", b)):
        check_columns(rows, *keys, "accuracy", "diverged")
        if rows.duplicated(keys).any():
            raise DDError(
                f"the {name} method has several rows for one of {', '.join(keys)}; narrow it"
            )
    both = a.merge(b, on=keys, suffixes=("_a", "_b"))
    both["accuracy"] = both["accuracy_a"] - both["accuracy_b"]
    both["diverged"] = both["diverged_a"] | both["diverged_b"]
    return both[[*keys, "accuracy", "diverged"]]


@public
def paired_difference(
    a: pd.DataFrame, b: pd.DataFrame, on: Sequence[str] = ("net",)
) -> pd.DataFrame:
    """`interval` of the differences of `pair`, one row per value of `on`. Raises `DDError` if
    nothing pairs.
    """
    both = pair(a, b, on)
    if both.empty:
        raise DDError(f"no pairs: the two methods share no {', '.join([*on, UNIT, WITHIN])}")
    return summarise(both, on).drop(columns="seconds")


def combined(
    cells: Mapping[str, dict], factors: Mapping[str, float], level: float = LEVEL
) -> dict[str, float]:
    """Mean, low and high of a weighted sum of independent means, cells of `interval`, with
    Welch-Satterthwaite's degrees of freedom.
    """
    used = {name: factor for name, factor in factors.items() if factor}
    mean = sum(factor * cells[name]["mean"] for name, factor in used.items())
    parts = {name: (factor * cells[name]["se"]) ** 2 for name, factor in used.items()}
    variance = sum(parts.values())
    half = variance  # NaN without an interval, 0 without spread
    if variance > 0:
        df = variance**2 / sum(part**2 / cells[name]["df"] for name, part in parts.items())
        half = float(special.stdtrit(df, (1 + level) / 2)) * variance**0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def mean_over_nets(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """One row per set, arm and eval seed with the mean accuracy over its nets, as net `name`.

    The mean over a fixed list of architectures is one figure per seed; its interval must not count
    the differences between architectures as noise.
    """
    keys = [column for column in SHARED if column in rows]
    merged = rows.groupby([*keys, UNIT, WITHIN], dropna=False, sort=False, as_index=False).agg(
        accuracy=("accuracy", "mean"), diverged=("diverged", "any"), seconds=("seconds", "sum")
    )
    return merged.assign(net=name)


def holm(p_values: Sequence[float], level: float = 0.025) -> list[bool]:
    """Which hypotheses are rejected, with probability `level` of any false rejection (Holm,
    1979).
    """
    order, rejected = np.argsort(p_values), [False] * len(p_values)
    for rank, index in enumerate(order):
        if not p_values[index] <= level / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def p_above(cell: dict, value: float = 0.0) -> float:
    """One-sided p value of "the mean is at most `value`" for a cell of `interval`; 1 where there is
    no interval.
    """
    return p_below(cell | {"mean": -cell["mean"]}, -value)


def p_below(cell: dict, value: float = 0.0) -> float:
    """One-sided p value of "the mean is at least `value`" for a cell of `interval`; 1 where there
    is no interval, or all differences are 0: both sides failed alike, or are one and the same.
    """
    if not cell["df"] >= 1 or np.isnan(cell["se"]) or cell["mean"] == cell["se"] == 0:
        return 1.0
    distance = cell["mean"] - value
    if cell["se"] == 0:
        return 1.0 if distance >= 0 else 0.0
    return float(special.stdtr(cell["df"], distance / cell["se"]))


@public
def interval_text(rows: pd.DataFrame) -> str:
    """Mean and interval of rows as text: "87.0 [85.1, 88.2], n 3×3"; without an interval the mean
    and n.
    """
    cell = interval(rows)
    bounds = f" [{cell['low']:.1f}, {cell['high']:.1f}]" if cell["df"] else ""
    return f"{cell['mean']:.1f}{bounds}, n {cell['n']}" + ", given one set" * given_one_set(cell)


def given(cells: Sequence[dict]) -> str:
    """What must be said of cells whose intervals cover fresh nets on one set only, "" if none."""
    single = [cell["sets"] == 1 for cell in cells]
    return (", given one set" if all(single) else ", in part given one set") if any(single) else ""


def given_one_set(cell: dict) -> bool:
    """Whether a cell's interval covers fresh nets on one set only."""
    return cell["sets"] == 1 and cell["df"] > 0
