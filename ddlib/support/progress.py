"""Progress with a time left: a bar in a notebook or terminal, or in the launcher's file."""

import os
from typing import Any

from tqdm import tqdm  # text in notebooks too: a saved widget is an error when it is reopened

VARIABLE = "DDLIB_PROGRESS"  # set by the launcher: a file that it copies to the terminal


def bar(
    total: int, description: str, initial: int = 0, show: bool = True, form: str | None = None
) -> Any:
    """A tqdm bar of `total` steps. `TQDM_DISABLE=1` hides all bars. `form`: tqdm's `bar_format`."""
    options: dict[str, Any] = {"total": total, "desc": description, "initial": initial}
    options["bar_format"] = form
    options["leave"] = False
    if not show or os.environ.get("TQDM_DISABLE") == "1":
        return tqdm(**options, disable=True)
    if path := os.environ.get(VARIABLE):
        return tqdm(**options, file=open(path, "a"), mininterval=0.5, ncols=100)
    return tqdm(**options)
