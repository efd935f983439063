"""Two schedules of one method: does the short one's images do as well as the paper's?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from ..stats import LEVEL, UNIT, interval
from .audit import MARGIN, SETS, pick
from .selection import arms

EQUAL, WORSE, BETTER, OPEN = "equivalent", "worse", "better", "undecided"


def two_sample(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> dict:
    """Mean of a − mean of b with Student's two-sample t interval: means of sets that nothing pairs.

    One variance for both sides, so that one set on one side is enough; its scatter is then taken to
    be the other side's. Returns mean, low, high (NaN with fewer than three sets in all), df.
    """
    sides = [np.asarray(side, float) for side in (a, b)]
    df = sum(map(len, sides)) - 2
    mean = float(sides[0].mean() - sides[1].mean())
    if df < 1:
        return {"mean": mean, "low": np.nan, "high": np.nan, "df": 0}
    squares = sum(((side - side.mean()) ** 2).sum() for side in sides)
    se = np.sqrt(squares / df * sum(1 / len(side) for side in sides))
    half = float(special.stdtrit(df, (1 + level) / 2) * se)
    return {"mean": mean, "low": mean - half, "high": mean + half, "df": df}


def judged(low: float, high: float) -> str:
    """What a 95% interval of short − paper says: "equivalent" within ± `audit.MARGIN`; else "worse"
    or "better" where it leaves 0 out; else "undecided".
    """
    if low >= -MARGIN and high <= MARGIN:
        return EQUAL
    return WORSE if high < 0 else BETTER if low > 0 else OPEN


def compare_schedules(
    short: pd.DataFrame, paper: pd.DataFrame, ipc: int, at: tuple[int, int], nets: Sequence[str]
) -> pd.DataFrame:
    """Plain cross-entropy on the sets of two schedules, rows of `short` minus rows of `paper`, each
    at its iteration `at`: a line per images and net that both have.

    Columns: images, net, short, paper (means, %), n of each (sets × nets, a star for diverged
    nets), mean, low, high (points, `two_sample` over the means of sets), df, judged.
    """
    sides, lines = [arms(rows) for rows in (short, paper)], []
    for images in SETS:
        picked = [pick(side, images, "CE", ipc, k) for side, k in zip(sides, at, strict=True)]
        for net in nets:
            of_net = [rows[rows["net"] == net] for rows in picked]
            if not all(map(len, of_net)):
                continue
            means = [rows.groupby(UNIT)["accuracy"].mean() for rows in of_net]
            own = [interval(rows) for rows in of_net]
            ns = [cell["n"] + "*" * bool(cell["diverged"]) for cell in own]
            cell = two_sample(*means)
            start = {"images": images, "net": net, "short": means[0].mean(), "n short": ns[0]}
            start |= {"paper": means[1].mean(), "n paper": ns[1]}
            lines.append(start | cell | {"judged": judged(cell["low"], cell["high"])})
    return pd.DataFrame(lines)


def distillation_times(benchmark: Mapping[str, Any], schedules: Mapping[str, int]) -> pd.DataFrame:
    """How long one set of ipc 1 takes: a line per code, precision and schedule (name ->
    iterations), from the seconds of a matching step in a result of benchmarks/bench.py.
    """
    steps = {r["side"]: r for r in benchmark["records"] if r["case"] == "step-ipc1"}
    lines = []
    for side in ("reference", "float32", "bfloat16"):
        code = "public DC code, float32" if side == "reference" else f"ddlib, {side}"
        seconds = float(np.median(steps[side]["seconds"])) if side in steps else np.nan
        for name, iterations in schedules.items():
            if side in steps and (side != "reference" or name == "paper"):
                minutes = seconds * iterations / 60
                line = {"code": code, "schedule": name, "iterations": iterations}
                lines.append(line | {"s per iteration": f"{seconds:.1f}", "minutes a set": minutes})
    return pd.DataFrame(lines).round({"minutes a set": 1})
