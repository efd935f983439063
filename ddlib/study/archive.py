"""Carrying a study from one machine to another: what a slice of work added, as zip files small enough to send."""

import time
import zipfile
from pathlib import Path

from ..errors import DDError
from ..results import Results, read_rows
from ..store import write_atomic

BYTES = 15_000_000  # of one archive
KNOWN = ".archives"  # names of the archives whose content is here
ROWS = "rows.csv"


def pack(folder, archives, since):
    """Zip the files of `folder` that changed after `since` (seconds since 1970) into `archives`; returns the paths."""
    changed = [
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name[0] != "." and p.stat().st_mtime >= since
    ]
    if not changed:
        return []
    archives.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(p.stem.split("-")[1]) for p in archives.glob("slice-*.zip")), default=0)
    made = []
    for part, group in enumerate(in_groups(changed), 1):
        path = archives / f"slice-{number:04}-{part}.zip"
        temporary = path.with_name("." + path.name)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
            for p in group:
                file.write(p, p.relative_to(folder))
        made.append(temporary.replace(path))
    remember(folder, {*known(folder), *(p.name for p in made)})
    return made


def in_groups(paths):
    """Paths in groups whose sizes sum to at most `BYTES`."""
    groups, size = [[]], 0
    for path in paths:
        if groups[-1] and size + path.stat().st_size > BYTES:
            groups.append([])
            size = 0
        groups[-1].append(path)
        size += path.stat().st_size
    return groups


def unpack(folder, archives):
    """Unpack the archives that `folder` does not know yet, in their order. Rows are added to those here, files replaced."""
    for path in sorted(archives.glob("slice-*.zip")):
        if path.name in known(folder):
            continue
        try:
            with zipfile.ZipFile(path) as file:
                for name in file.namelist():
                    target = folder / name
                    if folder.resolve() not in target.resolve().parents:
                        raise DDError(f"{path} holds {name!r}, which would lie outside {folder}")
                    content = file.read(name)
                    if Path(name).name == ROWS and target.is_file():
                        merge_rows(target, content)
                    else:
                        write_atomic(target, content)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise DDError(f"{path} is damaged ({error}); copy it again") from error
        remember(folder, {*known(folder), path.name})


def merge_rows(path, content):
    """Add the rows of another CSV to those at `path`."""
    other = path.with_name(f".{path.name}.{time.time_ns()}")
    try:
        write_atomic(other, content)
        mine = Results(path)
        mine.add_all(read_rows(other).to_dict("records"))
    finally:
        other.unlink(missing_ok=True)


def known(folder):
    path = folder / KNOWN
    return set(path.read_text().split()) if path.is_file() else set()


def remember(folder, names):
    write_atomic(folder / KNOWN, "\n".join(sorted(names)) + "\n")
