"""Which rows a comparison may use: one temperature per net, one set per distillation, one evaluation setting per set."""

import pandas as pd

from ..config import EvalConfig

CELL = ["ipc", "pool", "net"]
DISTILLATION = [
    "dataset",
    "ipc",
    "pool",
    "iteration",
    "main_prob",
    "warmup",
    "similar_depth",
    "distill_seed",
]
SETTING = ["epochs", "lr", "batch", "momentum", "weight_decay", "precision"]


def at_chosen_tau(rows, split="val"):
    """Test rows: those of `kd` at the tau that does best on `split`, all others as they are.

    Per (ipc, pool, net), tau has the best mean accuracy (%) on `split` among the values that have test rows at all; ties go
    to the smallest. Without a sweep on `split`, nothing was chosen: the default of `EvalConfig` if it is there, else the
    smallest. Test accuracies are looked at only with split "test".
    """
    test = rows[rows["split"] == "test"]
    kd = test["protocol"] == "kd"
    if not kd.any():
        return test
    taus = chosen_taus(rows, split)
    wanted = pd.MultiIndex.from_frame(test[CELL]).map(lambda cell: taus.get(cell, float("nan")))
    return test[~kd | (test["tau"] == pd.Series(wanted, index=test.index, dtype=float))]


def chosen_taus(rows, split="val"):
    """The tau of each (ipc, pool, net) that has test rows of `kd`, as a dict; see `at_chosen_tau`."""
    kd = rows[rows["protocol"] == "kd"]
    sweep = {cell: group for cell, group in kd[kd["split"] == split].groupby(CELL)}
    return {
        cell: best_tau(sweep.get(cell, kd.iloc[:0]), sorted(group["tau"].unique()))
        for cell, group in kd[kd["split"] == "test"].groupby(CELL)
    }


def best_tau(sweep, taus):
    """Of `taus` (sorted), the one with the best mean accuracy in the sweep's rows; see `at_chosen_tau` for the rest."""
    means = sweep.groupby("tau")["accuracy"].mean().reindex(taus).dropna()
    if len(means):
        return float(means.idxmax())
    default = EvalConfig().tau
    return default if default in taus else float(taus[0])


def comparable(rows):
    """Rows without doubles: per distillation the set that has most rows, per set and net the setting that has most.

    A distillation may have been run on two machines, or evaluated at two precisions; what is compared must agree in them.
    """
    rows = keep_largest(rows, DISTILLATION, ["set_id"])
    return keep_largest(rows, [*DISTILLATION, "set_id", "net"], SETTING)


def keep_largest(rows, by, choice):
    """Of each group of `by`, the rows of that `choice` which has most of them; ties go to the one seen first."""
    if rows.empty:
        return rows
    rows = rows.reset_index(drop=True)
    size = rows.groupby([*by, *choice], dropna=False, sort=False)["accuracy"].transform("size")
    kind = rows.groupby(choice, dropna=False, sort=False).ngroup()
    group = rows.groupby(by, dropna=False, sort=False).ngroup()
    largest = group.map(size.groupby(group).idxmax())
    return rows[kind.to_numpy() == kind[largest].to_numpy()]


def printed_pool(rows):
    """Rows of pools as the paper prints them: no warm-up, similar ConvNets as deep as the main one."""
    return rows[~(rows["warmup"] > 0) & ~(rows["similar_depth"] == 1)]


def released_pool(rows):
    """Rows of pools as the released code has them: a warm-up with the main model, similar ConvNets of depth 1."""
    return rows[(rows["warmup"] > 0) & (rows["similar_depth"] == 1)]


def at_default_tau(rows):
    """Rows of the released losses with a teacher at the default tau wherever they were run at several."""
    released = (rows["protocol"] == "authors-2023") & (rows["teacher"] != "")
    several = rows[released].groupby(CELL)["tau"].nunique()
    swept = pd.MultiIndex.from_frame(rows[CELL]).isin(several[several > 1].index)
    return rows[~(released & swept) | (rows["tau"] == EvalConfig().tau)]
