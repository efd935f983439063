"""The paper's Tables 4 and 5 from rows of results, beside the published figures: as data, Markdown
and LaTeX.
"""

from collections.abc import Iterable

import pandas as pd

from ..results import trained_nets
from ..stats import given_one_set, summarise
from ..study.profiles import Profile
from ..support.errors import DDError
from ..support.store import ROOT
from .selection import METHODS, arms, one_set_of_means

REFERENCE = ROOT / "paper" / "reference"
NETS = ("ConvNet", "MLP", "LeNet", "AlexNet", "VGG11", "ResNet18")  # the paper's order
CELL = ["ipc", "iteration", "images", "arm", "net"]
# Lines of our tables: images, arm, and the line of the paper's table that it stands beside.
LINES = {
    4: (
        ("random real images", "CE", None),
        ("class means", "CE", None),
        ("class means, contrast 1", "CE", None),
        ("baseline", "CE", "baseline"),
        ("model pool", "CE", "model pool"),
        ("baseline", "CE, lr chosen", None),
        ("model pool", "CE, lr chosen", None),
        ("baseline", "KD", "KD"),
        ("model pool", "KD", "model pool + KD"),
        ("baseline", "KD, lr chosen", None),
        ("model pool", "KD, lr chosen", None),
        ("baseline", "½ CE", "baseline"),
        ("model pool", "½ CE", "model pool"),
        ("baseline", "released KD", "KD"),
        ("model pool", "released KD", "model pool + KD"),
        ("full data", "CE", None),
    ),
    5: (
        ("baseline", "CE", None),
        ("total random", "CE", "total random"),
        ("main model + others", "CE", "main model"),
        ("model pool", "CE", "main model + similar models"),
    ),
}
FREE = ("random real images", "class means", "class means, contrast 1")
WITHOUT_ITERATION = (*FREE, "full data")


def table(rows: pd.DataFrame, number: int, iterations: Iterable[int] | None = None) -> pd.DataFrame:
    """Table 4 or 5 as a long `DataFrame`: a line per cell with its interval (`stats.interval`) and
    the published figure.

    `iterations`: those to show (default: all that have rows). Published figures stand beside
    CIFAR-10 only, at the same ipc and the paper's nearest iteration. Images and arms that the paper
    does not have (a user's methods) follow in Table 4.
    """
    tested = arms(rows)
    without = tested["images"].isin(WITHOUT_ITERATION)
    if iterations is not None:
        tested = tested[without | tested["iteration"].isin(iterations)]
    lines = table_lines(tested, number)
    order = {line[:2]: place for place, line in enumerate(lines)}
    keys = pd.Series(zip(tested["images"], tested["arm"], strict=True), index=tested.index)
    tested = tested[keys.isin(order)]
    if tested.empty:
        raise DDError(f"no rows for Table {number}; run notebooks 01 to 03 first")
    cells = summarise(one_set_of_means(tested), CELL)
    printed = {line[:2]: line[2] for line in lines}
    published = read_published(number) if set(rows["dataset"]) == {"cifar10"} else None
    beside = [
        nearest_published(published, cell, printed[cell.images, cell.arm])
        for cell in cells.itertuples()
    ]
    cells[["published", "published_iteration"]] = beside
    cells["difference"] = cells["mean"] - cells["published"]
    nets = {net: place for place, net in enumerate(in_order(cells["net"]))}
    places = pd.DataFrame(
        {
            "full": cells["images"] == "full data",
            "ipc": cells["ipc"],
            "iteration": cells["iteration"],
            "line": [order[key] for key in zip(cells["images"], cells["arm"], strict=True)],
            "net": cells["net"].map(nets),
        }
    )
    return cells.loc[places.sort_values(list(places)).index].reset_index(drop=True)


def table_lines(tested: pd.DataFrame, number: int) -> list[tuple[str, str, str | None]]:
    """The lines of a table: the paper's, and in Table 4 those of images and arms that are in
    neither of its tables. The authors' sets have one of their own (`released.released_table`), and
    so have ddlib's other methods and augmented images (`methods.methods_table`).
    """
    tested = tested[~tested["images"].str.startswith("released ")]
    tested = tested[~tested["method"].isin({*METHODS} - {"dc"})]
    tested = tested[tested["arm"] != "CE, augmented"]
    known = {line[:2] for lines in LINES.values() for line in lines}
    pairs = dict.fromkeys(zip(tested["images"], tested["arm"], strict=True)) if number == 4 else {}
    return [*LINES[number], *((*pair, None) for pair in pairs if pair not in known)]


def nearest_published(
    published: pd.DataFrame | None, cell: tuple, method: str | None
) -> tuple[float, float]:
    """The published figure beside a cell and its iteration, the paper's nearest; NaN where it
    prints none.
    """
    if published is None or method is None or cell.net not in published:
        return float("nan"), float("nan")
    line = printed_line(published, cell.ipc, cell.iteration, method)
    return (float("nan"),) * 2 if line is None else (float(line[cell.net]), float(line.iteration))


def printed_line(table: pd.DataFrame, ipc: int, iteration: int, method: str) -> pd.Series | None:
    """A method's line of a published table at the nearest iteration of that ipc, if it has one."""
    match = table[(table["ipc"] == ipc) & (table["method"] == method)]
    return None if match.empty else match.iloc[(match["iteration"] - iteration).abs().argmin()]


def read_published(number: int) -> pd.DataFrame:
    """A published table (facts, copied into paper/reference): ipc, iteration, method and a column
    per net, in percent. Raises `DDError` outside a checkout, which has them.
    """
    if not REFERENCE.is_dir():
        raise DDError(f"no folder {REFERENCE}; the published tables need a checkout of ddlib")
    return pd.read_csv(REFERENCE / f"table{number}.csv").rename(columns={"pool": "method"})


def in_order(nets: Iterable[str]) -> list[str]:
    """Nets without doubles: those of the paper in its order, then others as they come."""
    present = dict.fromkeys(nets)
    return [net for net in NETS if net in present] + [net for net in present if net not in NETS]


def wide(cells: pd.DataFrame) -> pd.DataFrame:
    """The paper's layout: a line per ipc, iteration, images and arm, a column per net, cells "27.9
    ± 0.8".

    ± is half of the 95% interval; † marks an interval that is given one set, * a cell with diverged
    nets. A cell with another n than most of its line says so. A line "published" follows where
    there is one.
    """
    nets, lines = in_order(cells["net"]), []
    for (ipc, iteration, images, arm), group in cells.groupby(CELL[:4], sort=False):
        shown = "" if images in WITHOUT_ITERATION else iteration
        start = {"ipc": "all" if images == "full data" else ipc, "iteration": shown}
        start |= {"images": images, "trained with": arm}
        lines.append(start | line_of(group, nets))
        if group["published"].notna().any():
            at = int(group["published_iteration"].max())
            by_net = {cell["net"]: cell for cell in group.to_dict("records")}
            blank = dict.fromkeys([*start, "n"], "") | {
                "iteration": at,
                "images": "— published (difference)",
            }
            lines.append(blank | {net: published_text(by_net.get(net)) for net in nets})
    return pd.DataFrame(lines)


def line_of(cells: pd.DataFrame, nets: Iterable[str]) -> dict[str, str]:
    """A line of a table: the n of most cells, and by net its text ("" without a cell)."""
    by_net = {cell["net"]: cell for cell in cells.to_dict("records")}
    usual = cells["n"].mode().iloc[0]
    return {"n": usual} | {net: cell_text(by_net.get(net), usual) for net in nets}


def cell_text(cell: dict | None, usual_n: str = "") -> str:
    """Mean, half of the interval, its mark, and n where it is not the line's."""
    if cell is None:
        return ""
    spread = f" ± {(cell['high'] - cell['low']) / 2:.1f}" if cell["df"] else ""
    marks = "†" * given_one_set(cell) + "*" * bool(cell["diverged"])
    other = f" ({cell['n']})" if usual_n and cell["n"] != usual_n else ""
    return f"{cell['mean']:.1f}{spread}{marks}{other}"


def published_text(cell: dict | None) -> str:
    if cell is None or pd.isna(cell["published"]):
        return ""
    return f"{cell['published']:.1f} ({cell['difference']:+.1f})"


def to_markdown(frame: pd.DataFrame) -> str:
    """A Markdown table."""
    header = [list(map(str, frame.columns)), ["---"] * len(frame.columns)]
    body = [
        [str(value).replace("*", "\\*").replace("|", "\\|") for value in row]
        for row in frame.itertuples(index=False)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in header + body) + "\n"


def to_latex(frame: pd.DataFrame, caption: str) -> str:
    """A LaTeX tabular in a table with a caption; needs booktabs."""
    body = "\n".join(
        " & ".join(latex_text(str(value)) for value in row) + r" \\"
        for row in frame.itertuples(index=False)
    )
    header = " & ".join(latex_text(str(name)) for name in frame.columns) + r" \\"
    columns = "".join("l" if name in ("images", "trained with") else "r" for name in frame.columns)
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{latex_text(caption)}}}\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{header}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )


def latex_text(text: str) -> str:
    """Text with what LaTeX takes for commands replaced."""
    swaps = {"±": r"$\pm$", "×": r"$\times$", "%": r"\%", "_": r"\_", "—": "---"}
    swaps |= {"*": "$^*$", "†": r"$^\dagger$", "½": r"$\frac12$"}
    for old, new in swaps.items():
        text = text.replace(old, new)
    return text


def caption(cells: pd.DataFrame, rows: pd.DataFrame, profile: Profile, number: int) -> str:
    """What a reader must know beside a table: data, scale, n, what the intervals cover, versions,
    hardware, time.
    """
    what = {4: "with and without model pool and KD", 5: "by model pool, plain cross-entropy"}
    part = "full width" if profile.width_factor == 1 else f"{profile.width_factor:g} of their width"
    rows = rows_behind(zip(cells["images"], cells["arm"], strict=True), rows)
    versions = ", ".join(str(version) for version in sorted(rows["evaluation"].unique()))
    machines = "; ".join(sorted(rows["machine"].str.replace("; ", ", ").unique()))
    parts = [
        f"**Table {number}.** Test accuracy (%) {what[number]}; {rows['dataset'].iloc[0]},",
        f"profile `{profile.name}`.",
        "Mean ± half of the 95% interval (Student's t); n = sets × nets on each.",
        "† given one set: the interval covers fresh nets on that very set, not the method."
        * bool((cells["sets"] == 1).any()),
        "No interval: fewer than 5 nets on one set." * bool((cells["df"] == 0).any()),
        "A star marks cells with diverged nets, which stay in the mean."
        * bool(cells["diverged"].any()),
        f"ConvNet width {profile.width}; AlexNet, VGG11, ResNet18 at {part};",
        f"{profile.batch_real} real images a class and step; {profile.epochs} epochs.",
        published_note(cells, profile),
        f"Evaluation version {versions}; {trained_nets(rows)} nets trained at these settings,",
        f"{rows['seconds'].sum() / 60:.0f} minutes,",
        f"on {machines}.",
    ]
    return " ".join(part for part in parts if part)


def rows_behind(lines: Iterable[tuple[str, str]], rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, on any split, of nets that are in such lines (images, arm) of a table."""
    tested, wanted = arms(rows), {*lines}
    keys = pd.Series(zip(tested["images"], tested["arm"], strict=True), index=tested.index)
    return rows[rows["training"].isin(tested.loc[keys.isin(wanted), "training"])]


def published_note(cells: pd.DataFrame, profile: Profile) -> str:
    """How the published figures compare with ours, if there are any."""
    beside = cells[cells["published"].notna()]
    if beside.empty:
        return ""
    if profile.name == "paper" and (beside["published_iteration"] == beside["iteration"]).all():
        return "Published figures are of one set and 10 nets each, without interval."
    return "Published figures are for the paper's full scale: compare directions, not levels."
