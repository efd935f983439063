"""What is chosen on validation images: a temperature or learning rate, by net and images."""

import pandas as pd

CELL = ["ipc", "method", "pool", "net"]  # what a temperature or learning rate is chosen for
TRIAL = ["set", "eval_seed"]  # which set and net of a cell tried a candidate


def choices(rows: pd.DataFrame, protocol: str, setting: str, split: str = "val") -> pd.DataFrame:
    """What was chosen on validation images: a line per `CELL` with chosen, candidates, at_edge, n.

    `rows`: of `results.flat`. Chosen is the value with the best mean accuracy on `split` over the n
    nets that every candidate has; ties go to the smallest. Test images are looked at only with
    split "test". A cell with fewer than two candidates, or without a net that all of them have, is
    left out: nothing was chosen there.
    """
    sweep = rows[(rows["protocol"] == protocol) & (rows["split"] == split)]
    lines = []
    for cell, group in sweep.groupby(CELL, sort=False):
        accuracy = group.pivot_table(index=TRIAL, columns=setting, values="accuracy").dropna()
        if accuracy.shape[1] < 2 or accuracy.empty:
            continue
        chosen, values = float(accuracy.mean().idxmax()), sorted(accuracy.columns)
        line = {
            "setting": setting,
            "chosen": chosen,
            "candidates": ", ".join(f"{value:g}" for value in values),
            "at_edge": chosen in (values[0], values[-1]),
            "n": len(accuracy),
        }
        lines.append(dict(zip(CELL, cell, strict=True)) | line)
    return pd.DataFrame(lines, columns=[*CELL, "setting", "chosen", "candidates", "at_edge", "n"])
