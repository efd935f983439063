"""Colab badges, once it is known where the checkout is published: `make colab URL=...`."""

import re
import sys
from pathlib import Path

import nbformat

from ..support.errors import DDError
from ..support.store import ROOT, write_atomic

READERS = ("04_tables", "05_audit")  # they read CSV files only, so that a borrowed machine will do
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
ADDRESS = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?")
FETCH = """\
# On Colab: fetch the checkout and show its committed results; elsewhere this does nothing
import os
import subprocess
import sys

if "COLAB_RELEASE_TAG" in os.environ:
    place = os.path.expanduser("~/ddlib-checkout")
    if not os.path.isdir(place):
        subprocess.run(["git", "clone", "-q", "--depth", "1", "{url}", place], check=True)
    sys.path.insert(0, place)
    profile = "paper"
"""


def add_colab(url: str, root: Path = ROOT) -> None:
    """Put a badge above the notebooks that read CSV files only, and behind their parameters a cell
    that fetches these files there.

    `url`: https://github.com/OWNER/NAME, whose branch is main; another one replaces it. Their
    outputs stay as they are. Raises `DDError` for anything else.
    """
    found = ADDRESS.fullmatch(url)
    if not found:
        raise DDError(f"URL is {url!r}; needed: https://github.com/OWNER/NAME")
    place = found[1]
    for name in READERS:
        path = root / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.reads(path.read_text(), 4)
        title, parameters, *rest = notebook.cells
        link = f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{name}.ipynb"
        plain = "\n".join(x for x in title.source.split("\n") if not x.startswith(BADGE[:10]))
        title.source = f"{BADGE}({link})\n{plain}"
        rest = [cell for cell in rest if cell.id != "colab"]
        fetch = FETCH.format(url=f"https://github.com/{place}").rstrip()
        fetching = nbformat.v4.new_code_cell(fetch, id="colab")
        notebook.cells = [title, parameters, fetching, *rest]
        write_atomic(path, nbformat.writes(notebook) + "\n")


if __name__ == "__main__":
    try:
        add_colab(*sys.argv[1:2] or [""])
    except DDError as error:
        sys.exit(f"error: {error}")
