"""Figures of the audit: lines of `audit.audit` or rows in, a matplotlib figure out."""

import numpy as np

from ..stats import summarise
from .audit import ALONE, MISSING
from .figures import COLOURS, new_figure
from .tables import NETS

OURS, PUBLISHED = "#0072b2", "#d55e00"
PANELS = 4  # in a row


def effects(lines, title):
    """Lines of one point, or of `audit.differences`, with 95% intervals: a row of panels per ipc, one panel per comparison.

    Each comparison is shown at its best-covered iteration (the latest of equals), at most `PANELS` in a row. Diamonds are the
    published differences; filled dots have an interval that excludes 0. None if nothing is measured.
    """
    measured = lines[(lines["verdict"] != MISSING) & (lines["net"] != "all")]
    if measured.empty:
        return None
    rows = [panels(group)[:PANELS] for _, group in measured.groupby("ipc")]
    nets, columns = [net for net in NETS if net in set(measured["net"])], max(map(len, rows))
    size = (2.5 * columns + 0.9, (0.3 * len(nets) + 1.0) * len(rows) + 0.4)
    figure, axes = new_figure(
        *size, nrows=len(rows), ncols=columns, sharey=True, sharex=True, squeeze=False
    )
    for line, groups in zip(axes, rows, strict=True):
        for axis, group in zip(line, groups, strict=False):
            draw_effects(axis, group.set_index("net").reindex(nets))
            axis.set_title(panel_title(group), fontsize=9)
        for axis in line[len(groups) :]:
            axis.set_visible(False)
    axes[0][0].set_yticks(range(len(nets)), nets)
    axes[0][0].set_ylim(len(nets) - 0.4, -0.6)
    figure.supxlabel("difference in test accuracy (points)", fontsize=9)
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8
    )
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def panels(lines):
    """The lines of each comparison at its best-covered iteration, the latest of equals, in the order of first appearance."""
    best = []
    for _, group in lines.groupby("comparison", sort=False):
        covered = group.groupby("iteration").size()
        best.append(group[group["iteration"] == covered[covered == covered.max()].index.max()])
    return best


def panel_title(group):
    """Comparison, ipc, iteration and n of a panel, on short lines."""
    found, n = group.iloc[0], " or ".join(dict.fromkeys(group["n"]))
    name = (
        found["comparison"]
        .replace(f" ({ALONE})", "")
        .replace(" − Table", "\n− Table")
        .replace(", ", "\n")
    )
    return f"{name}\nipc {found['ipc']}, iteration {found['iteration']}, n = {n}"


def draw_effects(axis, cells):
    """One panel of `effects`: `cells` has a line per net, NaN where nothing is measured."""
    y = np.arange(len(cells))
    errors = np.abs(np.stack([cells["effect"] - cells["low"], cells["high"] - cells["effect"]]))
    clear = (cells["low"] > 0) | (cells["high"] < 0)
    axis.axvline(0, color="#444444", lw=1)
    axis.errorbar(cells["effect"], y, xerr=errors, fmt="none", ecolor=OURS, elinewidth=1.5)
    axis.scatter(
        cells["effect"],
        y,
        s=34,
        zorder=3,
        edgecolors=OURS,
        c=np.where(clear, OURS, "white"),
        label="measured",
    )
    axis.scatter(
        cells["published"],
        y,
        s=30,
        zorder=4,
        marker="D",
        facecolors="none",
        edgecolors=PUBLISHED,
        label="published difference",
    )


def curves(rows, title):
    """Test accuracy (%) against iteration, one panel per net that has two or more; a band is the 95% interval.

    `rows` have a column `method`. None if no net has two iterations.
    """
    spans = rows.groupby("net")["iteration"].nunique()
    nets = [net for net in NETS if spans.get(net, 0) > 1]
    if not nets:
        return None
    columns = min(len(nets), 3)
    lines = -(-len(nets) // columns)
    size = (5.2, 2.7) if len(nets) == 1 else (2.6 * columns, 1.9 * lines + 0.5)
    figure, axes = new_figure(*size, nrows=lines, ncols=columns, squeeze=False, sharex=True)
    for axis, net in zip(axes.flat, nets, strict=False):
        cells = summarise(rows[rows["net"] == net], ["method", "iteration"])
        for method, group in cells.groupby("method", sort=False):
            group = group.sort_values("iteration")
            n = " or ".join(dict.fromkeys(group["n"]))
            label = f"{method} (n = {n})"
            axis.plot(
                group["iteration"],
                group["mean"],
                "o-",
                ms=3,
                color=COLOURS.get(method),
                label=label,
            )
            axis.fill_between(
                group["iteration"],
                group["low"],
                group["high"],
                alpha=0.15,
                lw=0,
                color=COLOURS.get(method),
            )
        axis.set_title(net, fontsize=10)
        axis.legend(fontsize=7)
    for axis in axes.flat[len(nets) :]:
        axis.set_visible(False)
    figure.supxlabel("iteration", fontsize=9)
    figure.supylabel("test accuracy (%)", fontsize=9)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure
