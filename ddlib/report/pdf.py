"""The report: `python -m ddlib.report` makes paper/report.pdf from the committed rows, in seconds, with no GPU and no data.

All numbers go through a JSON file and figures in a build folder; paper/report.typ holds the words. Needs `typst`.
"""

import argparse
import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from ..errors import DDError, check_choice
from ..protocols import TAU_DECAY
from ..results import read_rows
from ..stats import UNIT
from ..store import ROOT, dumps, write_atomic
from ..study.profiles import PROFILES
from ..synset import load_synset
from . import audit_figures, figures, tables
from .audit import (
    ALONE,
    MISSING,
    QUESTIONS,
    audit,
    differences,
    diverged_counts,
    nearest,
    scope,
    sentence,
    signed,
)
from .claims import CLAIMS, claims
from .selection import at_chosen_tau, at_default_tau, comparable, printed_pool

PAPER = ROOT / "paper"
SMALL = "cifar10-small"  # the study with several distillations, which stands beside any other
INSTALL = "the report needs typst, which is not installed; run: pip install typst"
PROTOCOLS = {
    "fair": ["random real images", "baseline", "model pool", "KD", "model pool + KD"],
    "authors-2023": ["baseline", "model pool", "KD", "model pool + KD"],
}


def main(words=None):
    parser = argparse.ArgumentParser(
        prog="python -m ddlib.report", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--profile", default="paper", help=f"the main study: {', '.join(PROFILES)} (default: paper)"
    )
    parser.add_argument(
        "--out", default=PAPER / "report.pdf", help="the PDF to write (default: paper/report.pdf)"
    )
    arguments = parser.parse_args(words)
    try:
        print(build(arguments.profile, arguments.out))
    except DDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build(
    profile="paper", out=PAPER / "report.pdf", results=PAPER / "results", folder=PAPER / "build"
):
    """Make the PDF `out` from `results`/*.csv by way of the build folder; returns its path.

    The main study is `profile`, if it has rows; the study `SMALL` stands beside it. Raises `DDError` for an unknown profile,
    without rows of either, and without typst.
    """
    check_choice("profile", profile, PROFILES)
    folder, out = Path(folder), Path(out)
    studies = [
        name
        for name in dict.fromkeys([profile, SMALL])
        if (Path(results) / f"{name}.csv").is_file()
    ]
    if not studies:
        raise DDError(
            f"no rows for the report; needed: {Path(results) / profile}.csv or {SMALL}.csv beside it"
        )
    typst = import_typst()
    folder.mkdir(parents=True, exist_ok=True)
    rows = {name: read_rows(Path(results) / f"{name}.csv") for name in studies}
    write_atomic(folder / "report.json", dumps(content(profile, rows, folder)))
    shutil.copy(PAPER / "report.typ", folder / "report.typ")
    write_atomic(out, compile_typst(typst, folder))
    return out


def import_typst():
    """The module `typst`, or a `DDError` that says how to get it."""
    try:
        import typst
    except ImportError as error:
        raise DDError(INSTALL) from error
    return typst


def compile_typst(typst, folder, **options):
    """The compiled report of a build folder as bytes; the same input gives the same bytes."""
    try:
        return typst.compile(
            folder / "report.typ", root=folder, ignore_system_fonts=True, **options
        )
    except typst.TypstError as error:
        raise DDError(f"typst: {str(error).splitlines()[0]}") from error


def content(profile, rows, folder):
    """Everything the report shows, JSON-able. `rows`: dict study -> rows; the first is the main one. Draws figures."""
    return {
        "profile": profile,
        "measured": profile in rows,
        "studies": [study_content(name, frame, folder) for name, frame in rows.items()],
        "settings": settings_table(rows),
        "images": images_figure(folder),
        "claims": list(CLAIMS.values()),
        "limits": limits(profile, rows),
        "protocol": {
            "decay": TAU_DECAY,
            "prob": PROFILES["paper"].main_prob,
            "alpha": PROFILES["paper"].alpha,
        },
    }


def study_content(name, rows, folder):
    """One study: its tables, its audit, its claims and its figures."""
    profile = PROFILES[name]
    expected = scope(profile)
    lines = audit(rows, **expected)
    return {
        "name": name,
        "note": profile.note,
        "tables": [table_content(rows, profile, number) for number in (4, 5)],
        "points": [point_content(lines, point) for point in QUESTIONS],
        "audit": audit_table(lines, profile.nets),
        "nearest": nearest_table(nearest(rows, **expected), profile.nets),
        "claims": claims(rows, **expected).to_dict("records"),
        "nets": list(profile.nets),
        "figures": study_figures(name, rows, lines, folder),
        "diverged": diverged_text(rows),
    }


# Tables.


def table_rows(rows):
    """Rows as the tables take them: one tau, one set per distillation, the printed pools."""
    return printed_pool(at_default_tau(comparable(at_chosen_tau(rows))))


def table_content(rows, profile, number):
    """Table 4 or 5 as the report shows it: per ipc one block at its best-covered iteration, an empty cell where none is."""
    rows = table_rows(rows)
    cells = tables.table(rows, number, profile.reported)
    blocks = [
        table_block(cells[cells["ipc"] == ipc], ipc, number, profile.nets) for ipc in profile.ipcs
    ]
    caption = tables.caption(cells, rows, profile, number).partition("** ")[2]
    caption = caption if number == 4 else caption.partition(". ")[0] + ", as above."
    for mark in ("`", "\\"):
        caption = caption.replace(mark, "")
    return {"number": number, "caption": caption, "blocks": blocks}


def table_block(cells, ipc, number, nets):
    """One ipc of a table: lines of cells {text, published}; no lines if nothing is measured."""
    cells = cells[cells["method"] != "full data"]
    if cells.empty:
        return {"ipc": ipc, "lines": []}
    covered = cells.groupby("iteration").size()
    iteration = int(covered[covered == covered.max()].index.max())
    cells = cells[cells["iteration"] == iteration]
    methods = PROTOCOLS if number == 4 else {"ce": tables.method_order(5)}
    lines = [
        table_line(cells[(cells["protocol"] == p) & (cells["method"] == m)], p, m, nets)
        for p, ms in methods.items()
        for m in ms
    ]
    published = cells["published_iteration"].dropna()
    return {
        "ipc": ipc,
        "iteration": iteration,
        "published": int(published.max()) if len(published) else None,
        "lines": lines,
    }


def table_line(cells, protocol, method, nets):
    """One method of a table, by net."""
    by_net, n = cells.set_index("net"), tables.most_common(cells["n"]) if len(cells) else ""
    shown = [
        {"text": tables.cell_text(by_net, net, n), "published": published_text(by_net, net)}
        for net in nets
    ]
    return {"protocol": protocol, "method": method, "n": n, "cells": shown}


def published_text(by_net, net):
    value = by_net["published"].get(net)
    return "" if value is None or value != value else f"{value:.1f}"


def audit_table(lines, nets):
    """The audit by net: a line per comparison with cells {effect, bounds, published, verdict}; and what is wholly missing."""
    lines = lines[lines["net"] != "all"]
    shown, missing = [], {}
    for (point, comparison, ipc, iteration), group in lines.groupby(
        ["point", "comparison", "ipc", "iteration"], sort=False
    ):
        start = {"point": point, "comparison": comparison, "ipc": ipc, "iteration": iteration}
        if (group["verdict"] == MISSING).all():
            missing.setdefault(comparison, []).append(ipc)
            continue
        by_net = group.set_index("net").to_dict("index")
        n = tables.most_common(group.loc[group["verdict"] != MISSING, "n"])
        shown.append(
            start
            | {
                "n": n,
                "alone": ALONE in comparison,
                "cells": [audit_cell(by_net.get(net)) for net in nets],
            }
        )
    return {
        "lines": shown,
        "missing": [
            f"{name} (ipc {listed(dict.fromkeys(ipcs))})" for name, ipcs in missing.items()
        ],
    }


def audit_cell(found):
    """One cell of the audit's table as text."""
    if found is None or found["verdict"] == MISSING:
        return {"verdict": MISSING}
    printed = "" if found["published"] != found["published"] else signed(found["published"])
    bounds = f"[{signed(found['low'])}, {signed(found['high'])}]"
    return {
        "effect": signed(found["effect"]),
        "bounds": bounds,
        "published": printed,
        "verdict": found["verdict"],
    }


def nearest_table(found, nets):
    """The protocol nearest to each published accuracy: lines ipc, iteration, printed, cells by net; empty cells: unknown."""
    lines = []
    for (ipc, iteration, printed), group in found.groupby(
        ["ipc", "iteration", "printed"], sort=False
    ):
        names = group.set_index("net")["nearest"]
        lines.append(
            {
                "ipc": ipc,
                "iteration": iteration,
                "printed": printed,
                "cells": [names.get(net, "") for net in nets],
            }
        )
    return [entry for entry in lines if any(entry["cells"])]


def settings_table(rows):
    """Settings down, the paper and the studies across; what the rows say comes from the rows."""
    printed = PROFILES["paper"]
    columns = [profile_settings(printed) | {"evaluation nets per set": printed.n_eval}]
    columns += [
        profile_settings(PROFILES[name]) | measured_settings(frame) for name, frame in rows.items()
    ]
    names = list(dict.fromkeys(key for column in columns for key in column))
    body = [[key, *(str(column.get(key, "")) for column in columns)] for key in names]
    return {"header": ["", "the paper's settings", *rows], "body": body}


def profile_settings(profile):
    """The settings of a profile that no row holds, by name."""
    return {
        "images per class": listed(profile.ipcs),
        "iterations": listed(profile.reported),
        "real images per class and step": profile.batch_real,
        "width of ConvNet": profile.width,
        "width of AlexNet, VGG11, ResNet18": f"× {profile.width_factor:g}",
        "epochs of evaluation": profile.epochs,
        "probability of the main model": f"{profile.main_prob:g}",
        "held-out share of the training images": f"{profile.val_fraction:g}",
    }


def measured_settings(rows):
    """What the rows themselves say of how they were made, by name."""
    distilled = rows[
        rows["pool"].isin(["main", "main_plus_similar"])
        & (rows["split"] == "test")
        & (rows["iteration"] > 0)
    ]
    nets = distilled.groupby(
        ["set_id", "pool", "protocol", "teacher", "tau", "net"], dropna=False
    ).size()
    found = {
        "images per class": listed(sorted(distilled["ipc"].unique())),
        "iterations": listed(sorted(distilled["iteration"].unique())),
        "distillations per method": listed(sorted(set(distilled.groupby("pool")[UNIT].nunique()))),
        "evaluation nets per set": " to ".join(dict.fromkeys([str(nets.min()), str(nets.max())]))
        if len(nets)
        else "",
        "candidates for τ": listed(
            sorted(rows.loc[(rows["protocol"] == "kd") & (rows["split"] == "val"), "tau"].unique())
        ),
        "precision of evaluation": listed(dict.fromkeys(rows["precision"])),
        "machine": listed(dict.fromkeys(rows["device"])),
        "trained nets": len(rows),
        "hours of evaluation": f"{rows['seconds'].sum() / 3600:.1f}",
    }
    if "distill_precision" in rows:
        found["precision of distillation"] = listed(
            dict.fromkeys(p for p in distilled["distill_precision"].astype(str) if p)
        )
    return {key: value for key, value in found.items() if value != ""}


def listed(values):
    """Values as text: "1, 10"."""
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


# Words.


def point_content(lines, point):
    """A point of the audit in words: what our rows say, and what the published figures say by themselves."""
    own = lines[lines["point"] == point]
    alone = own["comparison"].str.contains(ALONE, regex=False)
    own = own.assign(comparison=own["comparison"].str.replace(f" ({ALONE})", ""))
    words = {
        "point": point,
        "question": QUESTIONS[point],
        "own": sentence(own[~alone]) if (~alone).any() else "",
    }
    return words | {"alone": sentence(own[alone]) if alone.any() else ""}


def diverged_text(rows):
    """How many nets diverged, by protocol: one sentence."""
    counts = [c for c in diverged_counts(rows).itertuples() if c.nets]
    if not any(c.diverged for c in counts):
        return f"None of {sum(c.nets for c in counts)} nets diverged."
    parts = [f"{c.protocol} {c.teacher} a teacher {c.diverged} of {c.nets}" for c in counts]
    return "Diverged nets on test images: " + ", ".join(parts) + "."


def limits(profile, rows):
    """What the numbers cannot show, one sentence each, from the rows."""
    found = (
        []
        if profile in rows
        else [limit("No rows yet; its tables are missing from this report.", profile)]
    )
    for name, frame in rows.items():
        found += study_limits(PROFILES[name], frame)
    shares = {PROFILES[name].val_fraction for name in rows}
    held = f"A share of {listed(sorted(shares))} of the training images of each class is held out to choose τ, so that we "
    found.append(limit(held + "distil from fewer real images than the paper."))
    teachers = sorted({t for frame in rows.values() for t in frame["teacher"].unique() if t})
    alphas = sorted({a for frame in rows.values() for a in frame["alpha"].dropna().unique()})
    found.append(
        limit(
            f"Teacher architectures tried: {listed(teachers)}. Weights α tried: {listed(alphas)}."
        )
    )
    noise = "The paper prints no standard deviations; the noise of its figures is taken from the spreads stored with its "
    return [
        *found,
        limit(noise + "released sets, and covers neither other sets nor the choice of τ."),
    ]


def limit(text, study=""):
    return {"study": study, "text": text}


def study_limits(profile, rows):
    """Limits of one study: distillations, missing cells, scale."""
    distilled = rows[rows["pool"].isin(["main", "main_plus_similar"])]
    seeds = distilled[UNIT].nunique()
    nets_only = (
        " The intervals therefore cover the spread of nets only, not that of distillations."
        if seeds == 1
        else ""
    )
    found = [f"At most {seeds} distillation{'s' * (seeds != 1)} per method and setting.{nets_only}"]
    printed = PROFILES["paper"]
    if (profile.width, profile.batch_real) != (printed.width, printed.batch_real):
        found.append(
            f"ConvNet has width {profile.width} instead of {printed.width}, a step sees {profile.batch_real} "
            f"real images a class instead of {printed.batch_real}, a net trains for {profile.epochs} epochs instead of "
            f"{printed.epochs}. Levels are lower; only directions compare."
        )
    missing = missing_cells(rows, profile)
    if missing:
        found.append(f"Not yet measured: {missing}.")
    return [limit(text, profile.name) for text in found]


def missing_cells(rows, profile):
    """What a profile expects and the rows lack, as text: whole ipcs and iterations, then cells of Table 4."""
    block = {b["ipc"]: b for b in table_content(rows, profile, 4)["blocks"]}
    parts = [f"ipc {ipc}" for ipc, b in block.items() if not b["lines"]]
    for ipc, b in block.items():
        there = set(
            rows.loc[
                (rows["ipc"] == ipc) & rows["pool"].isin(["main", "main_plus_similar"]), "iteration"
            ]
        )
        gone = [k for k in profile.reported if k not in there]
        if b["lines"] and gone:
            parts.append(f"ipc {ipc} at iteration {listed(gone)}")
        empty = sum(cell["text"] == "" for line in b["lines"] for cell in line["cells"])
        if empty:
            parts.append(
                f"{empty} of {sum(len(line['cells']) for line in b['lines'])} cells of Table 4 at ipc {ipc}"
            )
    return ", ".join(parts)


# Figures.


def study_figures(name, rows, lines, folder):
    """Draw a study's figures into the build folder; dict figure -> file name, None where nothing can be drawn yet."""
    expected = scope(PROFILES[name])
    test = tables.table4_rows(table_rows(rows))
    test = test[(test["protocol"] == "fair") & test["method"].isin(["baseline", "model pool"])]
    first = test["ipc"].min()
    half = lines[(lines["point"] == "half-ce") & lines["ipc"].isin(test["ipc"])]
    made = {
        "curves": audit_figures.curves(
            test[test["ipc"] == first], f"Plain CE, {name}, ipc {first}"
        ),
        "differences": audit_figures.effects(
            differences(rows, **expected), f"Differences to plain DC, {name}"
        ),
        "half-ce": audit_figures.effects(half, f"CE against ½ CE, {name}"),
    }
    return {
        kind: save_figure(figure, folder, f"{name}-{kind}.svg") for kind, figure in made.items()
    }


def save_figure(figure, folder, name):
    """Save a figure as SVG without a date; returns the file name, or None for no figure."""
    if figure is None:
        return None
    with plt.rc_context({"svg.hashsalt": "ddlib"}):
        figure.savefig(
            Path(folder) / name, bbox_inches="tight", metadata={"Date": None, "Creator": None}
        )
    return name


def images_figure(folder, sets=PAPER / "sets", fallback=ROOT / "figures" / SMALL / "images.png"):
    """Synthetic images, baseline beside model pool, from committed sets; else the committed figure of the small study.

    Returns {file, width (% of the page's), text}, or None if there is neither.
    """
    pair = matching_sets(sets)
    if pair:
        shown = {"baseline": pair[0], "model pool": pair[1]}
        save_figure(figures.image_rows(shown), folder, "images.svg")
        return {
            "file": "images.svg",
            "width": 92,
            "text": f"ipc {pair[0].ipc}, iteration {pair[0].iteration}",
        }
    if fallback.is_file():
        shutil.copy(fallback, Path(folder) / "images.png")
        return {
            "file": "images.png",
            "width": 58,
            "text": f"profile {SMALL}, while they are distilled",
        }
    return None


def matching_sets(folder):
    """Of the committed sets, a baseline and a model pool alike in ipc, iteration and seed; None if there is no such pair.

    The smallest ipc (whose images can be seen whole), its latest iteration, its first seed.
    """
    groups = {}
    for path in sorted(Path(folder).glob("**/*.safetensors")):
        synset = load_synset(path)
        if synset.config.get("pool") in ("main", "main_plus_similar") and not synset.config.get(
            "warmup"
        ):
            key = (synset.ipc, -synset.iteration, synset.config.get("seed", 0))
            groups.setdefault(key, {})[synset.config["pool"]] = synset
    whole = sorted(key for key, group in groups.items() if len(group) == 2)
    return (groups[whole[0]]["main"], groups[whole[0]]["main_plus_similar"]) if whole else None


if __name__ == "__main__":
    sys.exit(main())
