"""Rows of results: one schema for every CSV, one row per trained net, finished rows never computed again."""

import math
from pathlib import Path

import pandas as pd

from .errors import DDError
from .store import write_atomic

# Everything that says which experiment a row is. Two rows that agree in these are the same experiment.
KEYS = (
    "dataset",
    "ipc",
    "pool",
    "iteration",
    "distill_seed",
    "protocol",
    "net",
    "eval_seed",
    "teacher",
    "teacher_seed",
    "alpha",
    "tau",
    "split",
    "epochs",
    "lr",
    "batch",
    "width",
    "width_factor",
    "main_prob",
    "warmup",
    "similar_depth",
    "set_id",
    "precision",
    "depth",
    "momentum",
    "weight_decay",
    "distill_precision",
)
COLUMNS = (
    *KEYS[:8],
    "accuracy",
    "diverged",
    "seconds",
    *KEYS[8:],
    "device",
    "python",
    "torch",
    "ddlib",
    "revision",
)
TEXT = (
    "dataset",
    "pool",
    "protocol",
    "net",
    "teacher",
    "split",
    "set_id",
    "precision",
    "distill_precision",
    "device",
    "python",
    "torch",
    "ddlib",
    "revision",
)


def read_rows(path):
    """A CSV of results as a `DataFrame` with `COLUMNS`. Raises `DDError` for a missing or damaged file or another schema."""
    path = Path(path)
    if not path.is_file():
        raise DDError(f"no file {path}")
    try:
        rows = pd.read_csv(
            path,
            dtype=dict.fromkeys(TEXT, str),
            keep_default_na=False,
            na_values={c: [""] for c in COLUMNS if c not in TEXT},
        )
    except (
        ValueError,
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        UnicodeDecodeError,
    ) as error:
        raise DDError(f"{path} is damaged or no CSV ({str(error).splitlines()[0]})") from error
    lacking, foreign = [c for c in COLUMNS if c not in rows], [c for c in rows if c not in COLUMNS]
    if lacking or foreign:
        raise DDError(
            f"{path} has another schema: lacks {lacking or 'nothing'}, has unknown {foreign or 'nothing'}"
        )
    try:
        frame = as_frame(rows)
    except (ValueError, TypeError) as error:
        raise DDError(f"{path} is damaged ({error})") from error
    whole = (
        rows[list(TEXT)].notna().all(axis=1)
        & frame["accuracy"].between(0, 100)
        & rows["diverged"].isin([True, False])
    )
    if not whole.all():
        raise DDError(
            f"{path} is damaged: line {int((~whole).argmax()) + 2} is cut short or holds no accuracy from 0 to 100"
        )
    return frame


def as_frame(rows):
    """Rows (dicts or a `DataFrame`) as a `DataFrame` with `COLUMNS` and the same types wherever they come from."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = [c for c in COLUMNS if c not in (*TEXT, "diverged")]
    frame[numbers] = frame[numbers].apply(pd.to_numeric)
    return frame.astype(dict.fromkeys(TEXT, str) | {"diverged": bool})


def row_key(row):
    """The identity of a row: its `KEYS` as text, the same whether it comes from memory or from a CSV."""
    return tuple(as_text(row[k]) for k in KEYS)


def as_text(value):
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value if isinstance(value, str) else f"{float(value):.10g}"


class Results:
    """The rows of one CSV file, or of memory only if `path` is None. Every added row is on disk before `add` returns."""

    def __init__(self, path=None):
        self.path = Path(path) if path else None
        frame = read_rows(self.path) if self.path and self.path.is_file() else as_frame([])
        self._rows = {row_key(row): row for row in frame.to_dict("records")}

    def get(self, row):
        """The finished row of the same experiment, or None."""
        return self._rows.get(row_key(row))

    def add(self, row):
        """Add a finished row; its columns must be `COLUMNS`."""
        self.add_all([row])

    def add_all(self, rows):
        """Add several finished rows and save once."""
        self._rows |= {row_key(row): {c: row[c] for c in COLUMNS} for row in rows}
        if self.path:
            write_atomic(self.path, self.frame().to_csv(index=False))

    def frame(self):
        """All rows as a `DataFrame`, in the order they were added."""
        return as_frame(list(self._rows.values()))
