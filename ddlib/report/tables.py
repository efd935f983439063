"""The paper's Tables 4 and 5 from rows of results, beside the published figures: as data, Markdown and LaTeX."""

import pandas as pd

from ..errors import DDError
from ..stats import summarise
from ..store import ROOT, write_atomic
from .selection import at_chosen_tau, comparable

REFERENCE = ROOT / "paper" / "reference"
NETS = ("ConvNet", "MLP", "LeNet", "AlexNet", "VGG11", "ResNet18")  # the paper's order
CELL = ["ipc", "iteration", "protocol", "method", "net"]
POOL_NAMES = {
    "total_random": "total random",
    "main_plus_others": "main model",
    "main_plus_similar": "main model + similar models",
}
BASELINES = {"random_real": "random real images", "full_data": "full data"}


def table4_rows(rows):
    """The test rows of Table 4 with a column `method`: baseline, model pool, KD, model pool + KD; and the two baselines.

    Random real images have no iteration; they stand beside the last one of their ipc. Protocol `fair` is `ce` without and
    `kd` with KD; `authors-2023` is the released code's losses for both.
    """
    rows = at_profile_pool(comparable(at_chosen_tau(rows)))
    rows = rows[rows["pool"].isin(["main", "main_plus_similar", *BASELINES])].copy()
    pooled, with_kd = rows["pool"] == "main_plus_similar", rows["teacher"] != ""
    rows["method"] = "baseline"
    rows.loc[pooled, "method"] = "model pool"
    rows.loc[with_kd, "method"] = "KD"
    rows.loc[pooled & with_kd, "method"] = "model pool + KD"
    for pool, name in BASELINES.items():
        rows.loc[rows["pool"] == pool, "method"] = name
    last = rows[rows["pool"].isin(["main", "main_plus_similar"])].groupby("ipc")["iteration"].max()
    real = rows["pool"] == "random_real"
    rows.loc[real, "iteration"] = rows.loc[real, "ipc"].map(last).fillna(0).astype(int)
    rows["protocol"] = rows["protocol"].replace({"ce": "fair", "kd": "fair"})
    return rows


def table5_rows(rows):
    """The rows of Table 5 with a column `method`: the three pools (and the main model alone), protocol `ce`."""
    rows = at_profile_pool(comparable(rows[(rows["split"] == "test") & (rows["protocol"] == "ce")]))
    names = {"main": "main model only", **POOL_NAMES}
    rows = rows[rows["pool"].isin(names)].copy()
    rows["method"] = rows["pool"].map(names)
    return rows


def at_profile_pool(rows, main_prob=0.9):
    """Rows whose pool is the paper's: its probability of the main model, and no warm-up or other depth beside rows without.

    The curve over other probabilities has a figure; the released code's variant, a line of the audit.
    """
    mixed = rows["pool"].isin(["main_plus_others", "main_plus_similar"])
    released = mixed & ((rows["warmup"] > 0) | rows["similar_depth"].notna())
    if (mixed & ~released).any():
        rows, mixed = rows[~released], mixed[~released]
    return rows[~mixed | (rows["main_prob"] == main_prob)]


def table(rows, number, iterations=None):
    """Table 4 or 5 as a long `DataFrame`: one line per cell with mean, interval, n, diverged, and the published figure.

    `iterations`: those to show (default: all that have rows). Published figures stand beside CIFAR-10 only, at the same
    ipc and the paper's nearest iteration.
    """
    rows = {4: table4_rows, 5: table5_rows}[number](rows)
    if iterations is not None:
        rows = rows[rows["iteration"].isin(iterations) | (rows["pool"] == "full_data")]
    if rows.empty:
        raise DDError(f"no rows for Table {number}; run notebooks 01 to 03 first")
    cells = summarise(rows, CELL)
    published = read_published(number) if set(rows["dataset"]) == {"cifar10"} else None
    cells["published"], cells["published_iteration"] = float("nan"), float("nan")
    if published is not None:
        for i, cell in cells.iterrows():
            match = published[
                (published["ipc"] == cell["ipc"]) & (published["method"] == cell["method"])
            ]
            if len(match) and pd.notna(cell["net"]):
                nearest = match.iloc[(match["iteration"] - cell["iteration"]).abs().argmin()]
                cells.loc[i, "published"] = (
                    nearest[cell["net"]] if cell["net"] in nearest else float("nan")
                )
                cells.loc[i, "published_iteration"] = nearest["iteration"]
    cells["difference"] = cells["mean"] - cells["published"]
    order = {m: i for i, m in enumerate(method_order(number))}
    protocols = {"fair": 0, "ce": 0, "authors-2023": 1}
    key = pd.DataFrame(
        {
            "full": cells["method"] == "full data",
            "ipc": cells["ipc"],
            "iteration": cells["iteration"],
            "protocol": cells["protocol"].map(protocols),
            "method": cells["method"].map(order),
            "net": cells["net"].map({n: i for i, n in enumerate(NETS)}),
        }
    )
    return cells.loc[key.sort_values(list(key)).index].reset_index(drop=True)


def method_order(number):
    """Methods in the paper's order, our baselines around them."""
    if number == 4:
        return [
            "random real images",
            "baseline",
            "model pool",
            "KD",
            "model pool + KD",
            "full data",
        ]
    return ["main model only", *POOL_NAMES.values()]


def read_published(number):
    """A published table (facts, copied into paper/reference) with the columns ipc, iteration, method and the nets."""
    return pd.read_csv(REFERENCE / f"table{number}.csv").rename(columns={"pool": "method"})


def wide(cells, final_only=False):
    """The paper's layout: one line per ipc, iteration, protocol and method, one column per net, cells "27.9 ± 0.8".

    A cell with another n than most of its line says so. ± is half the 95% interval's width; * marks cells with diverged runs.
    A line "published" follows where there is one.
    """
    if final_only:
        cells = cells[cells["iteration"] == cells.groupby("ipc")["iteration"].transform("max")]
    nets = [n for n in NETS if n in set(cells["net"])]
    lines = []
    for (ipc, iteration, protocol, method), group in cells.groupby(CELL[:4], sort=False):
        by_net = group.set_index("net")
        n = most_common(group["n"])
        line = {"ipc": ipc, "iteration": iteration, "protocol": protocol, "method": method, "n": n}
        if method == BASELINES["full_data"]:
            line |= {"ipc": "all", "iteration": ""}
        lines.append(line | {net: cell_text(by_net, net, n) for net in nets})
        if group["published"].notna().any():
            at = int(group["published_iteration"].max())
            shown = {n: published_text(by_net, n) for n in nets}
            lines.append(
                dict.fromkeys(line, "")
                | {"iteration": at, "method": "— published (difference)"}
                | shown
            )
    return pd.DataFrame(lines)


def cell_text(by_net, net, usual_n=None):
    """Mean, half of the interval, and n where it is not the line's `usual_n`."""
    if net not in by_net.index:
        return ""
    cell = by_net.loc[net]
    spread = "" if cell["n"] == "1×1" else f" ± {(cell['high'] - cell['low']) / 2:.1f}"
    other = f" ({cell['n']})" if usual_n and cell["n"] != usual_n else ""
    return f"{cell['mean']:.1f}{spread}" + "*" * bool(cell["diverged"]) + other


def published_text(by_net, net):
    if net not in by_net.index or pd.isna(by_net.loc[net, "published"]):
        return ""
    return f"{by_net.loc[net, 'published']:.1f} ({by_net.loc[net, 'difference']:+.1f})"


def most_common(values):
    return values.mode().iloc[0]


def to_markdown(frame):
    """A Markdown table."""
    header = [list(map(str, frame.columns)), ["---"] * len(frame.columns)]
    body = [[str(v) for v in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in header + body) + "\n"


def to_latex(frame, caption):
    """A LaTeX tabular in a table with a caption; needs booktabs."""
    swaps = {"±": r"$\pm$", "×": r"$\times$", "%": r"\%", "_": r"\_", "—": "---", "*": "$^*$"}

    def clean(value):
        text = str(value)
        for old, new in swaps.items():
            text = text.replace(old, new)
        return text

    columns = "".join("l" if c in ("protocol", "method") else "r" for c in frame.columns)
    lines = [
        " & ".join(map(clean, row)) + r" \\"
        for row in [list(frame.columns), *frame.itertuples(index=False)]
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{clean(caption)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def caption(cells, rows, profile, number):
    """What a reader must know beside a table: data, scale, n, interval, hardware, time."""
    what = {4: "with and without model pool and KD", 5: "by model pool, plain cross-entropy"}[
        number
    ]
    part = "full width" if profile.width_factor == 1 else f"{profile.width_factor:g} of their width"
    sizes = f"ConvNet width {profile.width}; AlexNet, VGG11, ResNet18 at {part}"
    distilled = f"{profile.batch_real} real images a class and step"
    machines = rows[["device", "torch"]].drop_duplicates()
    hardware = ", ".join(
        f"{device} (torch {torch})" for device, torch in machines.itertuples(index=False)
    )
    text = (
        f"**Table {number}.** Test accuracy (%) {what}; {rows['dataset'].iloc[0]}, profile `{profile.name}`. Mean ± half "
        f"of the 95% bootstrap interval; n = distillations × nets. {sizes}; {distilled}; {profile.epochs} epochs. "
        f"Trained on {hardware}; {rows['seconds'].sum() / 60:.0f} minutes of evaluation in all."
    )
    if cells["published"].notna().any():
        beside = cells[cells["published"].notna()]
        if (beside["published_iteration"] == beside["iteration"]).all() and profile.name == "paper":
            text += " Published figures are of one set and 10 nets each, without interval."
        else:
            text += (
                " Published figures are for the paper's full scale: compare directions, not levels."
            )
    if cells["diverged"].any():
        text += " \\* marks cells with diverged nets, which stay in the mean."
    return text


def update_readme(profile):
    """Put a profile's claims and Table 4 into README.md between their markers, so that the two cannot differ."""
    readme, tables = ROOT / "README.md", ROOT / "paper" / "tables"
    claims = pd.read_csv(tables / f"{profile}-claims.csv")[["claim", "verdict", "evidence"]]
    parts = {
        "claims": to_markdown(claims),
        "table 4": (tables / f"{profile}-table4.md").read_text(),
    }
    text = readme.read_text()
    for name, content in parts.items():
        head, _, rest = text.partition(f"<!-- {name} -->\n")
        text = (
            f"{head}<!-- {name} -->\n{content}<!-- end {name} -->"
            + rest.partition(f"<!-- end {name} -->")[2]
        )
    write_atomic(readme, text)
