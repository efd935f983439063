"""The report: `python -m ddlib.report` makes paper/report.pdf from the committed rows in seconds.

Every number goes through a CSV file, a figure or facts.json in a build folder; paper/report.typ
holds the words and reads them. Needs `typst`, no GPU and no data.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from ..identity import identity_of
from ..losses import TAU_DECAY
from ..results import read_results
from ..stats import UNIT
from ..study.profiles import PROFILES, Profile
from ..support.errors import DDError, check_choice, first_line
from ..support.store import ROOT, dumps, write_atomic
from ..synset import SyntheticSet, normalise
from . import audit, figures, published, tables
from .publish import RATES, rates_shown, scope_of
from .released import control, released_compatible
from .selection import choice_table
from .sentences import (
    control_sentence,
    large_gains_sentence,
    losses_sentences,
)

PAPER = ROOT / "paper"
BESIDE = ("paper-fast", "cifar10-small")  # the first of these that has rows stands beside any other


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m ddlib.report", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="paper", help=f"main study: {', '.join(PROFILES)}")
    parser.add_argument("--out", default=PAPER / "report.pdf", help="the PDF to write")
    arguments = parser.parse_args(words)
    try:
        print(build(arguments.profile, arguments.out))
    except DDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build(
    profile: str = "paper",
    out: str | Path = PAPER / "report.pdf",
    results: str | Path = PAPER / "results",
    folder: str | Path = PAPER / "build",
) -> Path:
    """Make the PDF `out` from `results`/<study>/*.csv by way of a build folder; returns its path.

    The main study is `profile`, if it has rows; one of `BESIDE` stands beside it. Raises `DDError`
    for an unknown profile, without rows of any, and without typst.
    """
    check_choice("profile", profile, PROFILES)
    results, folder = Path(results), Path(folder)
    names = dict.fromkeys((profile, *BESIDE))
    names = [name for name in names if (results / name / "rows.csv").is_file()][:2]
    if not names:
        raise DDError(f"no rows for the report; needed: {results / profile}/rows.csv, sets.csv")
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"date": commit_date(), "main": profile, "decay": TAU_DECAY, "rule": audit.RULE}
    facts |= {"margin": audit.MARGIN, "questions": audit.QUESTIONS, "images": images(folder)}
    facts["studies"] = [
        study(PROFILES[name], read_results(results / name), folder) for name in names
    ]
    first = read_results(results / names[0]), PROFILES[names[0]]
    facts["authors"] = authors_sets(*first)
    facts["large gains"] = large_gains_sentence(first[0], scope_of(first[1])).strip()
    write_csv(published.stored_against_printed(), folder / "stored.csv")
    write_csv(published.stored_pool_effect(), folder / "pool-effect.csv")
    write_csv(tables.read_published(5), folder / "printed5.csv")
    write_csv(rates_shown() if RATES.is_file() else pd.DataFrame(), folder / "rates.csv")
    write_atomic(folder / "facts.json", dumps(facts))
    shutil.copy(PAPER / "report.typ", folder / "report.typ")
    return write_atomic(Path(out), compile_typst(folder))


def compile_typst(folder: Path) -> bytes:
    """The compiled report of a build folder; the same files give the same bytes."""
    try:
        import typst
    except ImportError as error:
        raise DDError("the report needs typst; run: pip install typst") from error
    try:
        return typst.compile(folder / "report.typ", root=folder, ignore_system_fonts=True)
    except typst.TypstError as error:
        raise DDError(f"typst: {first_line(error)}") from error


def commit_date() -> str:
    """The date of the checkout's commit, "2026-11-21"; empty outside one."""
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%cs"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def authors_sets(rows: pd.DataFrame, profile: Profile) -> str:
    """What the evaluation of the authors' own sets says; "" where they are not measured."""
    scope = scope_of(profile)
    theirs = released_compatible(rows, scope)
    if theirs.empty:
        return ""
    found = [control_sentence(control(rows)), losses_sentences(theirs)]
    return " ".join(text.strip() for text in found)


def study(profile: Profile, rows: pd.DataFrame, folder: Path) -> dict:
    """Write tables and figures of one study into the folder; returns its facts."""
    scope = scope_of(profile)
    of_tables = [line[:2] for lines in tables.LINES.values() for line in lines]
    used, lines = tables.rows_behind(of_tables, rows), audit.audit(rows, scope)
    cells = audit.claim_cells(rows, scope)
    frames = {
        "claims": audit.claims(cells),
        "audit": lines,
        "compatible": audit.compatible(rows, scope),
        "choices": choice_table(rows),
    }
    captions = {}
    for number in (4, 5):
        frames[f"table{number}"], captions[str(number)] = table(rows, profile, number)
    for name, frame in frames.items():
        write_csv(frame, folder / f"{profile.name}-{name}.csv")
    title = f"Differences behind the claims, {profile.name}"
    drawn = {
        "half-ce": figures.half_ce(lines, "our sets"),
        "claims": figures.effects(cells, title),
    }
    return {
        "profile": asdict(profile),
        "full scale": audit.is_full_scale(rows),
        "captions": captions,
        "figures": {name: save(f, folder, f"{profile.name}-{name}") for name, f in drawn.items()},
        "sets": max(used[used["iteration"] > 0].groupby("pool")[UNIT].nunique(), default=0),
        "diverged": int(used.loc[used["split"] == "test", "diverged"].sum()),
        "tested": int((used["split"] == "test").sum()),
    }


def table(rows: pd.DataFrame, profile: Profile, number: int) -> tuple[pd.DataFrame, str]:
    """Table 4 or 5 and its caption, per ipc the iteration with most cells; empty without rows."""
    try:
        cells = tables.table(rows, number, profile.reported)
    except DDError:
        return pd.DataFrame(), ""
    without = cells["images"].isin(tables.WITHOUT_ITERATION)
    covered = cells[~without].groupby(["ipc", "iteration"]).size().reset_index(name="cells")
    best = covered.sort_values(["cells", "iteration"]).groupby("ipc")["iteration"].last()
    cells = cells[without | (cells["iteration"] == cells["ipc"].map(best))]
    caption = tables.caption(cells, rows, profile, number).partition("** ")[2]
    return tables.wide(cells), caption


def images(folder: Path) -> str | None:
    """Draw the committed sets of the smallest ipc: baseline, model pool, and their difference."""
    pairs: dict[tuple, dict[str, SyntheticSet]] = {}
    for path in sorted((PAPER / "sets").glob("*.safetensors")):
        synset = SyntheticSet.load(path)
        if identity_of(synset)["method"] != "dc":
            continue
        key = (synset.ipc, -synset.iteration, synset.config.get("seed", 0))
        pairs.setdefault(key, {})[synset.config.get("pool", "")] = synset
    whole = [key for key in sorted(pairs) if {"main", "main_plus_similar"} <= set(pairs[key])]
    if not whole:
        return None
    a, b = (pairs[whole[0]][pool] for pool in ("main", "main_plus_similar"))
    grey = normalise(torch.full_like(a.images, 0.5), a.mean, a.std)
    difference = replace(a, images=grey + b.images - a.images)
    shown = {"baseline": a, "model pool": b, "model pool\n− baseline": difference}
    title = f"Distilled images, ipc {a.ipc}, iteration {a.iteration} (grey: no difference)"
    return save(figures.image_rows(shown, title), folder, "images")


def save(figure: Figure | None, folder: Path, name: str) -> str | None:
    """Save a figure as SVG without a date; its file name, or None for no figure."""
    if figure is None:
        return None
    about = {"Date": None, "Creator": None}
    with plt.rc_context({"svg.hashsalt": "ddlib"}):
        figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata=about)
    return f"{name}.svg"


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """A table as CSV; an empty file where it has no lines."""
    write_atomic(path, frame.to_csv(index=False) if len(frame) else "")
