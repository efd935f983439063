"""The figures: rows, logs and sets in, a matplotlib figure out. Nothing is computed here but means and intervals."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from ..stats import interval, summarise
from .tables import NETS

# One colour per method everywhere (Okabe and Ito's palette, safe for colour-blind readers).
COLOURS = {
    "random real images": "#7f7f7f",
    "baseline": "#0072b2",
    "main model only": "#0072b2",
    "model pool": "#d55e00",
    "main model + similar models": "#d55e00",
    "KD": "#56b4e9",
    "model pool + KD": "#e69f00",
    "main model": "#009e73",
    "total random": "#cc79a7",
    "full data": "#000000",
}
MOST_COLUMNS = 12
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
}
plt.rcParams.update(STYLE)


def new_figure(width, height, **grid) -> tuple[Figure, object]:
    """A figure and its axes, taken out of pyplot's list, so that a notebook shows it once: where a cell returns it."""
    figure, axes = plt.subplots(figsize=(width, height), **grid)
    plt.close(figure)
    return figure, axes


def image_rows(rows, title=""):
    """Synthetic sets as rows of images, one column per image. `rows`: dict label -> `SyntheticSet`.

    With more than one image per class, the first of each class is shown; with many classes, the first of those.
    """
    sets = list(rows.values())
    classes = sets[0].classes[:MOST_COLUMNS]
    figure, axes = new_figure(
        0.85 * len(classes) + 1.6,
        0.95 * len(sets) + 0.5,
        nrows=len(sets),
        ncols=len(classes),
        squeeze=False,
    )
    for row, (name, synset) in enumerate(rows.items()):
        images, labels = (
            synset.images01().cpu().numpy().transpose(0, 2, 3, 1),
            synset.labels.cpu().numpy(),
        )
        for c, axis in enumerate(axes[row]):
            axis.imshow(
                images[np.flatnonzero(labels == c)[0]].squeeze(),
                cmap="gray",
                vmin=0,
                vmax=1,
                interpolation="nearest",
            )
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            axis.spines[:].set_visible(False)
            if row == 0:
                axis.set_title(classes[c], fontsize=9, loc="center")
        axes[row][0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def loss_curves(sets, window=10):
    """Matching loss against iteration: one thin line per distillation, one thick running mean per method.

    `sets`: dict method -> list of `SyntheticSet`s with logs.
    """
    figure, axis = new_figure(6.4, 3.6)
    for method, group in sets.items():
        losses = np.array([s.log["loss"].to_numpy() for s in group])
        x = group[0].log["iteration"].to_numpy()
        for line in losses:
            axis.plot(x, line, color=COLOURS[method], alpha=0.25, lw=0.7)
        width = min(window, losses.shape[1])
        smooth = np.convolve(np.nanmean(losses, 0), np.ones(width) / width, "valid")
        axis.plot(
            x[width - 1 :],
            smooth,
            color=COLOURS[method],
            lw=2,
            label=f"{method} (n = {len(group)})",
        )
    axis.set(
        xlabel="iteration",
        ylabel="matching loss per class",
        title=f"Matching loss, running mean over {window} iterations",
    )
    axis.legend()
    return figure


def drawn_architectures(sets):
    """How often each architecture was drawn, all distillations of a pool together. `sets`: a list of `SyntheticSet`s."""
    counts = sum(s.log["architecture"].value_counts() for s in sets[:1])
    for s in sets[1:]:
        counts = counts.add(s.log["architecture"].value_counts(), fill_value=0)
    counts = counts.sort_values()
    figure, axis = new_figure(6.4, 0.24 * len(counts) + 1.1)
    axis.barh(counts.index, counts, color=COLOURS["model pool"])
    axis.set(xscale="symlog" if counts.max() > 20 else "linear", xlabel="iterations drawn")
    axis.set_xlim(right=counts.max() * 1.6)
    axis.bar_label(axis.containers[0], fmt="%d", padding=3, fontsize=8)
    axis.set_title(
        f"Architectures drawn in {int(counts.sum())} iterations ({len(sets)} distillations)"
    )
    axis.tick_params(axis="y", labelsize=8)
    return figure


def accuracy_curves(rows, x, xlabel, title, by="method"):
    """Accuracy against a number (iteration, probability, temperature): one line with its interval per method."""
    figure, axis = new_figure(6.4, 3.6)
    cells = summarise(rows, [by, x])
    for method, group in cells.groupby(by, sort=False):
        group = group.sort_values(x)
        colour = COLOURS.get(method)
        n = " or ".join(dict.fromkeys(group["n"]))
        (line,) = axis.plot(
            group[x], group["mean"], "o-", ms=4, color=colour, label=f"{method} (n = {n})"
        )
        axis.fill_between(
            group[x], group["low"], group["high"], alpha=0.15, color=line.get_color(), lw=0
        )
    split = {"test": "test", "val": "validation"}[rows["split"].iloc[0]]
    axis.set(xlabel=xlabel, ylabel=f"{split} accuracy (%)", title=title)
    crowded = cells[by].nunique() > 3
    axis.legend(**({"bbox_to_anchor": (1.0, 0.5), "loc": "center left"} if crowded else {}))
    return figure


def heat_map(cells, title):
    """Method x net: mean accuracy as colour and number; * marks cells with diverged runs. `cells`: from `tables.table`."""
    cells = cells.assign(
        line=cells["method"]
        + cells["protocol"].map(lambda p: "" if p in ("fair", "ce") else f"\n({p})")
    )
    order = list(dict.fromkeys(cells["line"]))
    nets = [n for n in NETS if n in set(cells["net"])]
    means = cells.pivot_table(index="line", columns="net", values="mean", sort=False).reindex(
        index=order, columns=nets
    )
    marks = cells.pivot_table(index="line", columns="net", values="diverged", sort=False).reindex(
        index=order, columns=nets
    )
    text = means.map(lambda v: "" if np.isnan(v) else f"{v:.1f}") + (marks > 0).replace(
        {True: "*", False: ""}
    )
    figure, axis = new_figure(7.6, 0.46 * len(order) + 1.3)
    sns.heatmap(
        means,
        annot=text,
        fmt="",
        cmap="viridis",
        ax=axis,
        cbar_kws={"label": "test accuracy (%)"},
        linewidths=0.5,
    )
    axis.set(xlabel="", ylabel="", title=title)
    axis.tick_params(axis="y", rotation=0, labelsize=9)
    axis.grid(False)
    return figure


def difference_plot(pairs, title):
    """Paired differences with 95% intervals, one panel per comparison. `pairs`: dict label -> `paired_difference` result."""
    figure, axes = new_figure(
        3.0 * len(pairs) + 1.0, 3.4, ncols=len(pairs), sharey=True, sharex=True, squeeze=False
    )
    nets = [n for n in NETS if any(n in set(cells["net"]) for cells in pairs.values())]
    for axis, (name, cells) in zip(axes[0], pairs.items(), strict=True):
        cells = cells.set_index("net").reindex(n for n in nets if n in set(cells["net"]))
        y = np.array([nets.index(net) for net in cells.index])
        errors = np.abs(np.stack([cells["mean"] - cells["low"], cells["high"] - cells["mean"]]))
        clear = (cells["low"] > 0) | (cells["high"] < 0)
        axis.axvline(0, color="#444444", lw=1)
        axis.errorbar(cells["mean"], y, xerr=errors, fmt="none", ecolor="#0072b2", elinewidth=1.5)
        axis.scatter(
            cells["mean"],
            y,
            s=36,
            zorder=3,
            edgecolors="#0072b2",
            c=np.where(clear, "#0072b2", "white"),
        )
        axis.set_yticks(range(len(nets)), nets)
        axis.set_title(f"{name}\n(n = {' or '.join(dict.fromkeys(cells['n']))})", fontsize=10)
        axis.set_xlabel("difference in accuracy (points)")
    axes[0][0].invert_yaxis()
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def bars(rows, title, order):
    """Accuracy per net, one bar with its interval per method; crosses above bars count diverged runs."""
    nets = [n for n in NETS if n in set(rows["net"])]
    methods = [m for m in order if m in set(rows["method"])]
    figure, axis = new_figure(8.2, 3.8)
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        name = method  # in the legend once
        for x, net in enumerate(nets):
            own = rows[(rows["method"] == method) & (rows["net"] == net)]
            if own.empty:
                continue
            s, at = interval(own), x + (i - (len(methods) - 1) / 2) * width
            errors = np.abs([[s["mean"] - s["low"]], [s["high"] - s["mean"]]])
            axis.bar(at, s["mean"], width * 0.92, color=COLOURS[method], label=name)
            name = None
            axis.errorbar(at, s["mean"], yerr=errors, color="black", lw=1, capsize=2)
            if s["diverged"]:
                axis.annotate(
                    f"✕{s['diverged']}", (at, s["high"]), ha="center", va="bottom", fontsize=8
                )
    chance = 100 / 10 if rows["dataset"].iloc[0] in ("cifar10", "digits") else None
    if chance:
        axis.axhline(chance, color="#444444", lw=0.8, ls=":", label="chance")
    axis.set_xticks(range(len(nets)), nets)
    axis.set(ylabel="test accuracy (%)", title=title)
    axis.legend(ncols=3, loc="upper left", bbox_to_anchor=(0, -0.08))
    return figure
