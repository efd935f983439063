"""Which rows a comparison may use, and what readers call them.

A row belongs to one kind of images (`IMAGES`: what the net was trained on) and to an arm (`ARMS`:
how it was trained). Tables, claims and figures all speak of images and arms.
"""

import pandas as pd

from ..choose import CELL, TRIAL, choices
from ..config import DistillConfig, EvalConfig
from ..losses import PROTOCOLS

# (method, pool) -> what readers see. Of the pools only those as the paper prints them; see
# `images_of`.
IMAGES = {
    ("random_real", ""): "random real images",
    ("class-means", ""): "class means",
    ("class-means-contrast", ""): "class means, contrast 1",
    ("dc", "main"): "baseline",
    ("dc", "main_plus_similar"): "model pool",
    ("dc", "total_random"): "total random",
    ("dc", "main_plus_others"): "main model + others",
    ("full_data", ""): "full data",
    ("dc-released", "main"): "released baseline",
    ("dc-released", "main_plus_similar"): "released model pool",
}
# Of other methods: what readers call them, and their pools beside the main model alone
METHODS = {"herding": "herding", "k-center": "k-centre", "easiest": "easiest images"}
METHODS |= {"dc": "DC", "dsa": "DSA", "dm": "DM", "metadd": "MetaDD", "mtt": "MTT"}
WITH_POOL = ", model pool"
POOLS = {"": "", "main": "", "main_plus_similar": WITH_POOL}
RELEASED_POOL = "model pool as released"
ARMS = ("CE", "CE, lr chosen", "KD", "KD, lr chosen", "½ CE", "released KD", "CE, augmented")
NAN = float("nan")
SETTING = ["epochs", "batch", "momentum", "weight_decay", "norm", "precision"]


def arms(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows on test images with the columns `images` and `arm`; the same net stands in two arms if
    it belongs to both.

    `CE`: plain cross-entropy at the default learning rate; `CE, augmented`: on images augmented as
    by DSA. `CE, lr chosen` and `KD`: learning rate and temperature at which the validation images
    do best (`choices`), without the nets that chose, which the choice favours; `KD, lr chosen`: at
    the learning rate that was chosen for cross-entropy and the temperature that is best there. `½
    CE`, `released KD`: the released code's losses without and with a teacher. Of rows that another
    version of the evaluator gave, or other settings, only the newest version and the most frequent
    settings of each net are kept, so that what is compared agrees in them.
    """
    rows = comparable(rows)
    rows = rows.assign(images=images_of(rows))
    tested = rows[(rows["split"] == "test") & (rows["images"] != "")]
    protocol, default = tested["protocol"], EvalConfig()
    with_teacher, released = tested["teacher"] != "", protocol == "authors-2023"
    plain, swept = tested["augment"] == "", rows[rows["augment"] == ""]
    usual_lr = tested["lr"] == default.lr
    at_default, at_chosen = plain & usual_lr, plain & at_chosen_lr(tested, swept)
    usual, tuned = at_usual_lr(swept), swept[at_chosen_lr(swept, swept)]
    parts = {
        "CE": (protocol == "ce") & at_default,
        "CE, lr chosen": at_chosen & did_not_choose(tested, swept, "ce", "lr"),
        "KD": at_default & at_chosen_tau(tested, usual, default.tau),
        "KD, lr chosen": at_chosen & at_chosen_tau(tested, tuned),
        "½ CE": released & ~with_teacher & at_default & (tested["alpha"] == default.alpha),
        "released KD": released & with_teacher & at_default,
        "CE, augmented": (protocol == "ce") & (tested["augment"] == "dsa") & usual_lr,
    }
    own = protocol[~protocol.isin(list(PROTOCOLS))].unique()  # a user's are arms of their own
    parts |= {name: protocol == name for name in own}
    return pd.concat([tested[kept].assign(arm=arm) for arm, kept in parts.items()])


def images_of(rows: pd.DataFrame) -> pd.Series:
    """What readers call the images of each row; empty for pools that the paper's tables do not have
    (other probabilities).
    """
    mixed = rows["pool"].isin(["main_plus_others", "main_plus_similar"])
    usual = ~mixed | (rows["main_prob"] == DistillConfig().main_prob)
    depth = rows["similar_depth"].astype(float)
    plain = (rows["warmup"].astype(float) == 0) & depth.isna()
    released = (rows["pool"] == "main_plus_similar") & (rows["warmup"] > 0) & (depth == 1)
    keys = zip(rows["method"], rows["base"], rows["pool"], strict=True)
    names = pd.Series([images_name(*key) for key in keys], index=rows.index, dtype=str)
    return names.where(usual & plain, "").mask(usual & released, RELEASED_POOL)


def one_set_of_means(tested: pd.DataFrame) -> pd.DataFrame:
    """Rows of `arms` with class means of ipc 1, the same images at every seed, as one set's."""
    same = tested["method"].isin(["class-means", "class-means-contrast"]) & (tested["ipc"] == 1)
    sets = tested["set"].mask(same, tested["images"])
    return tested.assign(seed=tested["seed"].mask(same, 0), set=sets)


def images_name(method: str, base: str, pool: str) -> str:
    """What readers call the images of a method, on a base, with a pool."""
    if (method, pool) in IMAGES and not base:
        return IMAGES[method, pool]
    name = METHODS.get(method, method) + (f" on {METHODS.get(base, base)}" if base else "")
    return name + POOLS.get(pool, f" {pool}")


def at_usual_lr(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows at the default learning rate."""
    return rows[rows["lr"] == EvalConfig().lr]


def at_chosen_lr(rows: pd.DataFrame, swept: pd.DataFrame) -> pd.Series:
    """Whether each row is at the learning rate that was chosen for plain cross-entropy."""
    return at_chosen_value(rows, choices(swept, "ce", "lr"), "lr")


def at_chosen_tau(rows: pd.DataFrame, swept: pd.DataFrame, otherwise: float = NAN) -> pd.Series:
    """Whether each row is of KD at the temperature that was chosen, `otherwise` where none was, and
    of a net that did not choose it.
    """
    at = at_chosen_value(rows, choices(swept, "kd", "tau"), "tau", otherwise)
    return at & did_not_choose(rows, swept, "kd", "tau")


def at_chosen_value(
    rows: pd.DataFrame, chosen: pd.DataFrame, setting: str, otherwise: float = NAN
) -> pd.Series:
    """Whether each row has the value of a setting that was `chosen` (`choices`) for its cell."""
    values = chosen.set_index(CELL)["chosen"].to_dict()
    cells = rows[CELL].itertuples(index=False, name=None)
    needed = [values.get(cell, otherwise) for cell in cells]
    return rows[setting].astype(float) == pd.Series(needed, index=rows.index, dtype=float)


def did_not_choose(
    rows: pd.DataFrame, swept: pd.DataFrame, protocol: str, setting: str
) -> pd.Series:
    """Whether each row is of a protocol, and of a net that tried no other value of its setting on
    validation images.
    """
    nets = [*TRIAL, "net"]
    trials = swept[(swept["protocol"] == protocol) & (swept["split"] == "val")]
    tried = trials.groupby(nets)[setting].nunique()
    chose = pd.MultiIndex.from_frame(rows[nets]).isin(tried[tried > 1].index)
    return (rows["protocol"] == protocol) & ~chose


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the newest evaluation version; of each net the most frequent settings, by themselves
    where images are augmented (it is trained longer then); of each distillation one set; under KD
    those with a teacher that learned at the default rate.

    A distillation may have been run on two machines, or evaluated at two precisions; what is
    compared must agree in them.
    """
    if rows.empty:
        return rows
    rows = rows[rows["evaluation"] == rows["evaluation"].max()]
    teachers = rows["teacher_lr"].astype(float).fillna(rows["lr"])
    rows = rows[(rows["protocol"] != "kd") | (teachers == EvalConfig().lr)]
    full = rows.assign(full=rows["method"] == "full_data")
    rows = keep_most_frequent(full, ["dataset", "net", "augment", "full"], SETTING)
    rows, names = rows.drop(columns="full"), ["main_prob", "warmup", "similar_depth"]
    distillation = ["dataset", "method", "base", "pool", "ipc", "iteration", "seed", *names]
    return keep_most_frequent(rows, distillation, ["set"])


def keep_most_frequent(rows: pd.DataFrame, by: list[str], choice: list[str]) -> pd.DataFrame:
    """Of each group of `by`, the rows of that `choice` which has most of them; ties go to the one
    seen first.
    """
    rows = rows.reset_index(drop=True)
    size = rows.groupby([*by, *choice], dropna=False, sort=False)["accuracy"].transform("size")
    kind = rows.groupby(choice, dropna=False, sort=False).ngroup()
    group = rows.groupby(by, dropna=False, sort=False).ngroup()
    largest = group.map(size.groupby(group).idxmax())
    return rows[kind.to_numpy() == kind[largest].to_numpy()]


def choice_table(rows: pd.DataFrame) -> pd.DataFrame:
    """What was chosen on validation images, from which candidates, and whether at their edge."""
    known = comparable(rows)
    parts = [choices(at_usual_lr(known), "kd", "tau"), choices(known, "ce", "lr")]
    after = choices(known[at_chosen_lr(known, known)], "kd", "tau")
    parts.append(after.assign(setting="tau at the chosen lr"))
    parts = [part for part in parts if len(part)] or parts[:1]
    found = pd.concat(parts, ignore_index=True)
    keys = zip(found["method"], found["pool"], strict=True)
    found["images"] = [images_name(method, "", pool) for method, pool in keys]
    return found.assign(chosen=found["chosen"].map("{:g}".format))
