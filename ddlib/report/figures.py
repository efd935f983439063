"""The figures: rows, lines of the audit, or sets in, a matplotlib figure out.

Whiskers and bands are 95% intervals (`stats.interval`); with fewer than 5 nets on one set a point
stands alone. An axis holds all points; an interval far wider than they spread is cut.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..data import Data
from ..stats import given_one_set, summarise
from ..synset import SyntheticSet
from .selection import ARMS
from .tables import FREE, WITHOUT_ITERATION, in_order

# Okabe and Ito's colours, safe for colour-blind readers; the paper's images always have the same.
BLUE, ORANGE, GREEN, GREY, PALE = "#0072b2", "#d55e00", "#009e73", "#7f7f7f", "#f3c9a5"
CYCLE = ("#cc79a7", "#56b4e9", "#e69f00", GREEN, BLUE, ORANGE, GREY, "#000000")
COLOURS = {"random real images": GREY, "class means": GREEN, "class means, contrast 1": "#7fd1bb"}
COLOURS |= {"baseline": BLUE, "model pool": ORANGE}
HATCHES = ("", "////", "....", "xxxx", "----")  # of arms
MOST_CLASSES, PANELS = 12, 4  # images in a row; panels in a row
CONTRAST = 5  # points of accuracy that a heat map's colours span at least
GEOMETRIC = ("tau", "lr")  # candidates that grow by factors: a logarithmic axis
plt.rc("axes", axisbelow=True, grid=True, titlesize=9, labelsize=9, titlelocation="left")
plt.rc("axes.spines", top=False, right=False)
plt.rc("grid", color="#e6e6e6")
plt.rc("legend", frameon=False, fontsize=8)
plt.rc("figure.constrained_layout", use=True)


def panels(count: int, width: float, height: float, **shared: bool) -> tuple[Figure, list[Axes]]:
    """A figure of `count` axes of a size (inches); closed, so that notebooks show it once."""
    rows = -(-count // PANELS)
    columns = -(-count // rows)
    size = (width * columns + 1, height * rows + 0.7)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **shared)
    plt.close(figure)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def finish(figure: Figure, title: str, note: str = "") -> Figure:
    """The title, below it what points and bars are, and one legend under the axes, over nothing."""
    figure.suptitle(f"{title}\n{note}".strip(), fontsize=10, x=0.01, ha="left")
    handles = {}
    for axis in figure.axes:
        shown, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, shown, strict=True))
    if handles:
        columns = min(len(handles), int(figure.get_figwidth() // 2))
        figure.legend(handles.values(), handles, loc="outside lower left", ncols=columns)
    return figure


def palette(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: its own in `COLOURS`, whose names come first, else one that no other
    name here has.
    """
    given = dict.fromkeys(names)
    names = list(dict.fromkeys([*(name for name in COLOURS if name in given), *given]))
    known = {COLOURS.get(name) for name in names}
    free = cycle([colour for colour in CYCLE if colour not in known])
    return {name: COLOURS.get(name) or next(free) for name in names}


def n_text(cells: pd.DataFrame) -> str:
    """The n of some cells: "n = 1×5 or 1×20", of more than two "n = 1×3 to 1×20"."""
    ns = sorted(set(cells["n"]), key=lambda n: (len(n), n))
    return "n = " + (" or ".join(ns) if len(ns) < 3 else f"{ns[0]} to {ns[-1]}")


def note(cells: pd.DataFrame) -> str:
    """n, what the intervals cover, and whether nets diverged."""
    drawn = [cell for cell in cells.to_dict("records") if cell["df"]]
    given = [cell for cell in drawn if given_one_set(cell)]
    text = "; whiskers: 95% interval" if drawn else "; too few for an interval"
    if given:
        text += ", given one set" if len(given) == len(drawn) else " (n = 1×…: given one set)"
    return f"{n_text(cells)} (sets × nets){text}" + "; ✕ diverged" * bool(cells["diverged"].any())


def limits(cells: pd.DataFrame, points: Iterable[float] = ()) -> tuple[float, float]:
    """Ends of an axis: all means and `points`; intervals reach no further than their span."""
    values = np.array([*cells["mean"], *points], float)
    low, high = np.nanmin(values), np.nanmax(values)
    room = max(high - low, 2)
    low = max(np.nanmin([low, *cells["low"]]), low - room)
    high = min(np.nanmax([high, *cells["high"]]), high + room)
    margin = 0.05 * (high - low) or 1.0  # of an axis where all is the same
    return low - margin, high + margin


def errors(cells: pd.DataFrame) -> np.ndarray:
    """The distances of both bounds from the mean, for `errorbar` [2, n]; NaN without any."""
    return np.abs(np.stack([cells["mean"] - cells["low"], cells["high"] - cells["mean"]]))


def line_names(rows: pd.DataFrame) -> pd.Series:
    """Images and arm of each row as one name, without what all rows share."""
    parts = [rows[name] for name in ("images", "arm") if rows[name].nunique() > 1]
    return parts[0].str.cat(parts[1:], sep=", ") if parts else rows["images"]


def image_rows(rows: Mapping[str, SyntheticSet], title: str = "") -> Figure:
    """Synthetic sets as rows of images, the first of each class. `rows`: label -> set."""
    classes = next(iter(rows.values())).classes[:MOST_CLASSES]
    size = (0.85 * len(classes) + 1.6, 0.95 * len(rows) + 0.5)
    figure, axes = plt.subplots(len(rows), len(classes), figsize=size, squeeze=False)
    plt.close(figure)
    for line, (name, synset) in zip(axes, rows.items(), strict=True):
        images, labels = synset.images01().cpu().numpy(), synset.labels.cpu().numpy()
        for c, axis in enumerate(line):
            image = images[np.flatnonzero(labels == c)[0]].transpose(1, 2, 0).squeeze()
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axis, name in zip(axes[0], classes, strict=True):
        axis.set_title(name, loc="center")
    return finish(figure, title)


def neighbours(synset: SyntheticSet, data: Data, rows: Tensor, title: str = "") -> Figure:
    """The first synthetic image of each class above its nearest real ones (`look.nearest`)."""
    real = {
        f"real, {k}": replace(synset, images=data.x_train[rows[:, k - 1]])
        for k in range(1, rows.shape[1] + 1)
    }
    return image_rows({"synthetic": synset} | real, title)


def map_rows(synset: SyntheticSet, maps: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """Activation maps in 0..1 over the first image of each class, a row per net.

    `maps`: net -> [N, H, W], of the images of the set; a map of zeros is marked "dead".
    """
    figure = image_rows({name: synset for name in maps}, title)
    labels, classes = synset.labels.cpu().numpy(), synset.classes[:MOST_CLASSES]
    side = synset.images.shape[-1]
    for line, values in zip(np.reshape(figure.axes, (len(maps), -1)), maps.values(), strict=True):
        for c, axis in enumerate(line[: len(classes)]):
            shown = values[np.flatnonzero(labels == c)[0]]
            extent = (-0.5, side - 0.5, side - 0.5, -0.5)
            heat = {"cmap": "inferno", "alpha": 0.55, "vmin": 0, "vmax": 1}
            axis.imshow(shown, extent=extent, interpolation="bilinear", **heat)
            if not shown.max() > 0:
                axis.set_xlabel("dead", fontsize=7, labelpad=1)
    return figure


def loss_curves(sets: Mapping[str, Sequence[SyntheticSet]], window: int = 10) -> Figure:
    """Matching loss against iteration, with its running mean. `sets`: label -> sets with logs."""
    figure, (axis,) = panels(1, 5.4, 3.0)
    colours = palette(sets)
    for name, group in sets.items():
        losses = np.array([s.log["loss"].to_numpy() for s in group])
        x = group[0].log["iteration"].to_numpy()
        axis.plot(x, losses.T, color=colours[name], alpha=0.25, lw=0.7)
        width = min(window, losses.shape[1])
        smooth = np.convolve(np.nanmean(losses, 0), np.ones(width) / width, "valid")
        label = f"{name}, n = {len(group)}"
        middle = x[(width - 1) // 2 :][: len(smooth)]  # of each window
        axis.plot(middle, smooth, color=colours[name], lw=2, label=label)
    axis.set(xlabel="iteration", ylabel="matching loss per class")
    return finish(figure, "Matching loss", f"thin: each set; thick: mean, {window} iterations")


def member_losses(logs: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """The matching loss of each iteration by the member that was drawn, a panel per log
    (`SyntheticSet.log`): the main model, other members with batch norm, the rest.
    """
    figure, axes = panels(len(logs), 2.6, 2.7, sharey=True)
    kinds = {"main model": GREY, "other members, batch norm": ORANGE, "other members": BLUE}
    for axis, (name, log) in zip(axes, logs.items(), strict=True):
        drawn = log["architecture"]
        other = np.where(drawn.str.contains("-batch"), *list(kinds)[1:])
        kind = pd.Series(np.where(drawn == "ConvNet", "main model", other), log.index)
        for label, colour in kinds.items():
            own = log[kind == label]
            axis.plot(own["iteration"], own["loss"], ".", ms=4, color=colour, label=label)
        axis.set(xlabel="iteration", yscale="log", title=name)
    axes[0].set_ylabel("matching loss per class")
    return finish(figure, title, "a dot per iteration")


def drawn_architectures(sets: Sequence[SyntheticSet]) -> Figure:
    """How often each architecture was drawn, all distillations of a pool together."""
    drawn = pd.concat([s.log["architecture"] for s in sets])
    counts = drawn.value_counts().sort_values()
    figure, (axis,) = panels(1, 5.4, 0.24 * len(counts) + 0.6)
    axis.bar_label(axis.barh(counts.index, counts, color=ORANGE), fmt="%d", padding=3, fontsize=8)
    axis.set(xscale="symlog" if counts.max() > 20 else "linear", xlabel="iterations drawn")
    axis.set_xlim(right=counts.max() * 1.6)
    return finish(figure, "Architectures drawn", f"{len(drawn)} iterations, n = {len(sets)} sets")


def accuracy_curves(
    rows: pd.DataFrame, x: str, xlabel: str, title: str, by: str = "images", panel: str = "split"
) -> Figure:
    """Accuracy against a number (iteration, temperature): a line per `by`, a panel per `panel`."""
    cells = summarise(rows, [panel, by, x]).sort_values(x)
    colours, shown = palette(in_order(rows[by])), in_order(cells[panel])
    figure, axes = panels(len(shown), *((5.4, 3.1) if len(shown) == 1 else (2.7, 2.2)))
    for axis, value in zip(axes, shown, strict=True):
        own = cells[cells[panel] == value]
        names = [name for name in colours if (own[by] == name).any()]
        moving = [name for name in names if x not in GEOMETRIC and not is_level(x, name)]
        for name in names:
            line = own[own[by] == name]
            if name in moving:  # beside each other where they are equal
                place = moving.index(name) - (len(moving) - 1) / 2
                line = line.assign(**{x: line[x] + 0.012 * place * np.ptp(cells[x])})
            draw_curve(axis, line, x, colours[name], name)
        begun = own[(own[x] > 0) | own[by].map(partial(is_level, x)) | (x != "iteration")]
        ends = limits(begun if len(begun) else own)  # images of iteration 0 would set the axis
        axis.set(xlabel=xlabel, ylim=(max(ends[0], 0), ends[1]), title=value * (len(shown) > 1))
        if x in GEOMETRIC:
            axis.set_xscale("log")
            axis.minorticks_off()
        values = sorted(set(own[x] if x in GEOMETRIC else cells[x]))
        if len(values) < 8:
            axis.set_xticks(values, [f"{value:g}" for value in values])
    split = {"test": "test", "val": "validation"}[rows["split"].iloc[0]]
    axes[0].set_ylabel(f"{split} accuracy (%)")
    return finish(figure, title, note(cells).replace("whiskers", "whiskers and bands"))


def is_level(x: str, name: str) -> bool:
    """Whether a line over iterations is of images that have none."""
    return x == "iteration" and name in WITHOUT_ITERATION


def draw_curve(axis: Axes, cells: pd.DataFrame, x: str, colour: str, name: str) -> None:
    """A line in a band; one or two points are no curve; what was not distilled is a level."""
    means, label = cells["mean"], f"{name}, {n_text(cells)}"
    if is_level(x, name):
        axis.axhline(means.iloc[0], color=colour, ls="--", label=label)
    elif len(cells) < 3:
        axis.errorbar(cells[x], means, errors(cells), fmt="o", ms=4, color=colour, label=label)
    else:
        axis.plot(cells[x], means, "o-", ms=4, color=colour, label=label)
        axis.fill_between(cells[x], cells["low"], cells["high"], alpha=0.15, color=colour, lw=0)


def curves(rows: pd.DataFrame, title: str) -> Figure | None:
    """Accuracy against iteration, a panel per net that has two or more; None without any."""
    spans = rows[~rows["images"].isin(WITHOUT_ITERATION)].groupby("net")["iteration"].nunique()
    rows = rows[rows["net"].isin(spans[spans > 1].index)]
    if rows.empty:
        return None
    return accuracy_curves(rows, "iteration", "iteration", title, panel="net")


def bars(rows: pd.DataFrame, title: str, order: Sequence[str] = ()) -> Figure:
    """Accuracy per net, a bar per images (colour) and arm (hatch): those of `order` (`line_names`)
    first, then arm by arm, free images before distilled ones.
    """
    cells = summarise(rows.assign(line=line_names(rows)), ["line", "images", "arm", "net"])
    nets, colours = in_order(cells["net"]), palette(cells["images"])
    arms = sorted(cells["arm"].unique(), key=lambda arm: (arm not in ARMS, [*ARMS, arm].index(arm)))
    hatches, kinds = dict(zip(arms, cycle(HATCHES))), cells.drop_duplicates("line")
    places = zip(kinds["arm"].map(arms.index), kinds["images"].map([*colours].index), strict=True)
    present = [name for _, name in sorted(zip(places, kinds["line"], strict=True))]
    names = list(dict.fromkeys([*(name for name in order if name in present), *present]))
    figure, (axis,) = panels(1, 7.2, 3.3)
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        own = cells[cells["line"] == name]
        at = own["net"].map(nets.index) + (i - (len(names) - 1) / 2) * width
        style = {"color": colours[own["images"].iloc[0]], "hatch": hatches[own["arm"].iloc[0]]}
        drawn = axis.bar(at, own["mean"], width * 0.92, **style, edgecolor="white", label=name)
        axis.errorbar(at, own["mean"], errors(own), fmt="none", ecolor="#333333", lw=0.8)
        crosses = [f"✕{count}" * (count > 0) for count in own["diverged"]]
        axis.bar_label(drawn, crosses, label_type="center", color="white", fontsize=8)
    if rows["dataset"].iloc[0] in ("cifar10", "digits"):
        axis.axhline(10, color="#444444", lw=0.8, ls=":", label="chance")
    axis.set_xticks(range(len(nets)), nets)
    axis.set(ylabel="test accuracy (%)", ylim=(0, top := min(limits(cells, [0])[1], 100)))
    cut = "; cut at the frame" * bool((cells["high"] > top).any())
    return finish(figure, title, note(cells) + cut)


def dots(
    cells: pd.DataFrame, title: str, levels: Mapping[str, float] | None = None, level: str = ""
) -> Figure:
    """Accuracy per net, a dot per images with its interval; `levels`: net -> a line across, called
    `level`.

    `cells`: of `stats.summarise` by images and net.
    """
    nets, names = in_order(cells["net"]), list(dict.fromkeys(cells["images"]))
    levels, colours = {net: y for net, y in (levels or {}).items() if y == y}, palette(names)
    figure, (axis,) = panels(1, 7.2, 3.2)
    for i, name in enumerate(names):
        own = cells[cells["images"] == name]
        at = own["net"].map(nets.index) + (i - (len(names) - 1) / 2) * 0.8 / len(names)
        style = {"color": colours[name], "marker": "s" if name in FREE else "o"}
        axis.errorbar(at, own["mean"], errors(own), fmt="none", ecolor=colours[name], elinewidth=2)
        axis.plot(at, own["mean"], ls="none", ms=7, label=name, **style)
        for x, high in zip(at[own["diverged"] > 0], own["high"][own["diverged"] > 0], strict=True):
            axis.annotate("✕", (x, high), (0, 2), textcoords="offset points", ha="center", size=8)
    for net, y in levels.items():
        if net in nets:
            ends = nets.index(net) - 0.42, nets.index(net) + 0.42
            axis.hlines(y, *ends, color="black", lw=1.2, ls=(0, (4, 2)), label=level)
    for x in range(1, len(nets)):
        axis.axvline(x - 0.5, color="#e6e6e6", lw=0.8)
    axis.grid(axis="x", visible=False)
    axis.set_xticks(range(len(nets)), nets)
    axis.set(ylabel="test accuracy (%)", ylim=limits(cells, levels.values()))
    below = note(cells).replace("✕ diverged", "✕ with diverged nets")
    missing = "; no mark: not measured" * (len(cells) < len(nets) * len(names))
    return finish(figure, title, below + missing)


def heat_map(cells: pd.DataFrame, title: str) -> Figure:
    """Images and arm x net: mean accuracy; the colour is relative to the net's best, by its range
    or `CONTRAST`.

    `cells`: of `tables.table`. Nets that were trained on the full data have no colour.
    """
    lines, nets = list(dict.fromkeys(line_names(cells))), in_order(cells["net"])
    compared = cells["mean"].mask(cells["images"] == "full data")
    low, high = (compared.groupby(cells["net"]).transform(end) for end in ("min", "max"))
    share = 1 - (high - compared) / (high - low).clip(lower=CONTRAST)
    colours = np.full((len(lines), len(nets)), np.nan)
    figure, (axis,) = panels(1, 6.4, 0.36 * len(lines) + 0.6)
    for cell, name, value in zip(cells.to_dict("records"), line_names(cells), share, strict=True):
        y, x = lines.index(name), nets.index(cell["net"])
        colours[y, x] = value
        text = f"{cell['mean']:.1f}" + "†" * given_one_set(cell) + "✕" * bool(cell["diverged"])
        axis.text(x, y, text, ha="center", va="center", fontsize=9)
    known = {(name, cell) for name, cell in zip(line_names(cells), cells["net"], strict=True)}
    missing = [place for place in product(lines, nets) if place not in known]
    for name, net in missing:
        axis.text(nets.index(net), lines.index(name), "–", ha="center", va="center", color=GREY)
    axis.imshow(colours, cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
    axis.set_xticks(range(len(nets)), nets)
    axis.set_yticks(range(len(lines)), lines)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    what = "mean test accuracy (%); darkest: each net's best; † given one set; ✕ with diverged nets"
    below = f"{n_text(cells)} (sets × nets)" + "; –: not measured" * bool(missing)
    return finish(figure, title, f"{what}\n{below}")


def influence_maps(costs: pd.DataFrame, classes: Sequence[str], title: str) -> Figure:
    """What leaving each image out costs (`influence.influence`): a panel per net, a row per class,
    a column per image of it.
    """
    nets, most = in_order(costs["net"]), max(costs["cost"].abs().max(), 1.0)
    labels = sorted(costs["label"].unique())
    columns = costs.groupby(["net", "label"]).size().max()
    figure, axes = panels(len(nets), 0.36 * columns + 1.6, 0.3 * len(labels) + 0.6)
    for axis, net in zip(axes, nets, strict=True):
        own = costs[costs["net"] == net].sort_values("image")
        grid = np.full((len(labels), columns), np.nan)
        for y, label in enumerate(labels):
            values = own.loc[own["label"] == label, "cost"]
            grid[y, : len(values)] = values
        drawn = axis.imshow(grid, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
        axis.set_yticks(range(len(labels)), [classes[label] for label in labels])
        axis.set(xticks=range(columns), xlabel="image of the class", title=net)
        axis.set_xticklabels(range(1, columns + 1))
        axis.grid(False)
    figure.colorbar(drawn, ax=list(axes), label="cost (points)", shrink=0.8)
    n = ", ".join(map(str, sorted(costs["n"].unique())))
    return finish(figure, title, f"blue: nets do worse without it; pairs of nets: n = {n}")


def effects(lines: pd.DataFrame, title: str) -> Figure | None:
    """Differences by net, a panel per comparison and ipc; right of 0 its first part is better.

    `lines`: of `audit.audit` or `audit.claim_cells` (without its means), or cells of `stats` with a
    column `comparison`. A pale bar is the published difference. None if nothing is measured.
    """
    keys = [key for key in ("ipc", "comparison") if key in lines]
    groups = [g for _, g in lines[lines["net"] != "mean"].groupby(keys, sort=False)]
    groups = [group for group in groups if (group["n"] != "").any()]
    if not groups:
        return None
    drawn = pd.concat(groups)
    measured, nets = drawn[drawn["n"] != ""], in_order(drawn["net"])
    size = (3.6 if len(groups) < 3 else 2.5, 0.32 * len(nets) + 1.1)
    figure, axes = panels(len(groups), *size, sharex=True, sharey=True)
    for axis, group in zip(axes, groups, strict=True):
        draw_effects(axis, group, nets, wrap=30 if len(groups) > 2 else 38)
    axes[0].set_yticks(range(len(nets)), nets)
    ends = limits(measured, [-1, 1, *drawn.get("published", [])])
    axes[0].set(ylim=(len(nets) - 0.4, -0.6), xlim=ends)
    cut = measured["low"].min() < ends[0] or measured["high"].max() > ends[1]
    missing = "; no dot: not measured" * (len(measured) < len(drawn))
    return finish(figure, title, note(measured) + ", cut at the frame" * bool(cut) + missing)


def draw_effects(axis: Axes, lines: pd.DataFrame, nets: Sequence[str], wrap: int) -> None:
    """One panel of `effects`, its title in lines of up to `wrap` letters."""
    cells = lines[lines["n"] != ""]
    first, y = cells.iloc[0], cells["net"].map(nets.index)
    clear = (cells["low"] > 0) | (cells["high"] < 0)
    if "published" in lines and lines["published"].notna().any():
        at = lines["net"].map(nets.index)
        axis.barh(at, lines["published"], 0.6, color=PALE, label="published difference")
    axis.axvline(0, color="#444444", lw=1)
    axis.errorbar(cells["mean"], y, xerr=errors(cells), fmt="none", ecolor=BLUE, elinewidth=1.5)
    bare, diverged = cells["low"].isna(), cells["diverged"] > 0
    plain, small = {"s": 34, "edgecolors": BLUE}, {"s": 16, "edgecolors": GREY, "marker": "D"}
    for which, label, style in (
        (clear, "interval excludes 0", plain | {"c": BLUE}),
        (~clear & ~bare, "interval holds 0", plain | {"c": "white"}),
        (bare, "too few for an interval", small | {"c": "white"}),
    ):
        if which.any():
            axis.scatter(cells["mean"][which], y[which], **style, zorder=3, label=label)
    for net in set(nets) - set(lines["net"]):
        where = {"transform": axis.get_yaxis_transform(), "va": "center", "color": GREY, "size": 7}
        axis.text(0.02, nets.index(net), "not asked", **where)
    above = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "size": 7}
    for place in zip(cells["mean"][diverged], y[diverged], strict=True):
        axis.annotate("✕", place, **above)
    if (cells[["mean", "se"]].abs().fillna(0) < 1e-9).all(axis=None):
        axis.text(0.98, 0.04, "no difference", transform=axis.transAxes, ha="right", fontsize=9)
    where = "".join(f"{key} {first[key]}, " for key in ("ipc", "iteration") if key in lines)
    claim = f"Claim {first['claim']}: " if "claim" in lines else ""
    name = textwrap.fill(claim + first["comparison"].replace("\n", " "), wrap)
    below = textwrap.fill(where + n_text(cells).replace(" ", "\xa0"), wrap)  # keeps n in a line
    axis.set(title=f"{name}\n{below}", xlabel="points of test accuracy")
    axis.tick_params(labelbottom=True)


def difference_plot(pairs: Mapping[str, pd.DataFrame], title: str) -> Figure | None:
    """`effects` of several results of `stats.paired_difference`, by label."""
    named = [cells.assign(comparison=name) for name, cells in pairs.items()]
    return effects(pd.concat(named, ignore_index=True), title)


def half_ce(lines: pd.DataFrame, whose: str) -> Figure | None:
    """The printed gain of KD beside that of a whole over half a cross-entropy on the same images,
    which are `whose`.
    """
    title = f"Bars: gain of KD as printed. Dots: a whole minus half a cross-entropy, {whose}"
    return effects(lines[(lines["point"] == "half-ce") & lines["published"].notna()], title)
