"""Means with intervals that respect how the numbers came about: distillations first, the nets trained on them within.

Ten nets trained on one synthetic set say how well that set does; only several distillations say how well the method does.
"""

import numpy as np
import pandas as pd

from .errors import DDError
from .rng import stream

UNIT, WITHIN = "distill_seed", "eval_seed"
RESAMPLES = 2000


def interval(rows, value="accuracy", level=0.95, resamples=RESAMPLES):
    """Mean of the distillations' means, with a two-stage percentile bootstrap interval (stratified, as in rliable).

    Each resample draws distillations with replacement and, within each, its nets with replacement. Returns a dict: mean,
    low, high (percent points), n (text, distillations x nets, "3×10"), diverged (runs, which stay in the mean), seconds
    (median per net). With a single distillation the interval covers the nets' spread only; the n says so. Raises
    `DDError` for no rows.
    """
    if not len(rows):
        raise DDError("no rows to summarise; needed: at least one")
    groups = [group.to_numpy(float) for _, group in rows.groupby(UNIT)[value]]
    means = bootstrap_means(groups, resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    sizes = sorted({len(g) for g in groups})
    return {
        "mean": float(np.mean([g.mean() for g in groups])),
        "low": float(low),
        "high": float(high),
        "n": f"{len(groups)}×{'-'.join(map(str, sizes))}",
        "diverged": int(rows["diverged"].sum()) if "diverged" in rows else 0,
        "seconds": float(rows["seconds"].median()) if "seconds" in rows else float("nan"),
    }


def bootstrap_means(groups, resamples=RESAMPLES):
    """`resamples` two-stage bootstrap means of a list of arrays; always the same for the same input."""
    generator = np.random.default_rng(int(stream(0, "bootstrap").initial_seed()))
    sizes = np.array([len(g) for g in groups])
    padded = np.zeros((len(groups), sizes.max()))
    for row, group in zip(padded, groups, strict=True):
        row[: len(group)] = group
    unit = generator.integers(len(groups), size=(resamples, len(groups)))
    drawn = (
        generator.random((resamples, len(groups), sizes.max())) * sizes[unit][..., None]
    ).astype(int)
    values = padded[unit[..., None], drawn]
    inside = np.arange(sizes.max()) < sizes[unit][..., None]
    return ((values * inside).sum(2) / sizes[unit]).mean(1)


def summarise(rows, by):
    """`interval` of every group of `by` columns, as a `DataFrame` in the order of first appearance."""
    by = list(by)
    parts = rows.groupby(by, sort=False, dropna=False)
    return pd.DataFrame([dict(zip(by, key, strict=True)) | interval(group) for key, group in parts])


def paired_difference(a, b, on=("net",)):
    """Interval of the differences a - b of rows that share net, distillation seed and eval seed.

    Pairing removes what both methods share (the same fresh weights, the same random real batches). One row per value of
    `on`; rows without a partner are left out, and n counts what is left. Raises `DDError` if nothing pairs.
    """
    keys = list(dict.fromkeys([*on, "net", UNIT, WITHIN]))
    for name, rows in (("first", a), ("second", b)):
        if rows.duplicated(keys).any():
            raise DDError(
                f"the {name} method has several rows for one of {', '.join(keys)}; narrow the selection"
            )
    both = a.merge(b, on=keys, suffixes=("_a", "_b"))
    if both.empty:
        raise DDError(f"no pairs: the two methods share no {', '.join(keys)}")
    both["accuracy"] = both["accuracy_a"] - both["accuracy_b"]
    both["diverged"] = both["diverged_a"] | both["diverged_b"]
    return summarise(both, on).drop(columns="seconds")


def mean_over_nets(rows, name):
    """One row per set and eval seed with the mean accuracy over its nets, `net` renamed to `name`.

    The mean over a fixed list of architectures is one figure per seed; its interval must not count the differences between
    architectures as noise.
    """
    keys = [
        c
        for c in ("dataset", "ipc", "pool", "iteration", "protocol", "main_prob", "split", "method")
        if c in rows
    ]
    by = [*keys, UNIT, WITHIN]
    merged = rows.groupby(by, dropna=False, sort=False, as_index=False).agg(
        accuracy=("accuracy", "mean"), diverged=("diverged", "any"), seconds=("seconds", "sum")
    )
    return merged.assign(net=name)


def interval_text(rows):
    """Mean and interval of rows as text: "87.0 [85.1, 88.2], n 2×3"."""
    s = interval(rows)
    return f"{s['mean']:.1f} [{s['low']:.1f}, {s['high']:.1f}], n {s['n']}"
