"""README, committed tables, CSV and code tell the same."""

import re

import pytest

from ddlib.profiles import PROFILES
from ddlib.results import read_rows
from ddlib.stats import paired_difference
from ddlib.store import ROOT
from ddlib.tables import caption, table, table4_rows, to_markdown, wide

README = (ROOT / "README.md").read_text()
PROFILE = PROFILES["cifar10-small"]
RESULTS = ROOT / "paper" / "results" / "cifar10-small.csv"


def test_the_readme_shows_the_committed_table_4():
    assert (ROOT / "paper" / "tables" / "cifar10-small-table4.md").read_text() in README


@pytest.mark.parametrize("number", [4, 5])
def test_committed_tables_are_what_the_committed_csv_gives(number):
    rows = read_rows(RESULTS)
    cells = table(rows, number, PROFILE.reported)
    made = caption(cells, rows, PROFILE, number) + "\n\n" + to_markdown(wide(cells))
    assert made == (ROOT / "paper" / "tables" / f"cifar10-small-table{number}.md").read_text()


def test_every_link_and_picture_exists():
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_module_is_explained():
    modules = {p.name for p in (ROOT / "ddlib").glob("*.py")} - {
        "__init__.py",
        "errors.py",
        "rng.py",
        "progress.py",
        "device.py",
    }
    assert [name for name in modules if name not in README] == []


def test_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    commands = set(re.findall(r"make (\w+)", README))
    assert {"reproduce", "test"} <= commands
    assert [c for c in commands if f"\n{c}:" not in makefile] == []


@pytest.mark.parametrize(("method", "nets"), [("model pool", ["MLP", "AlexNet", "LeNet"]), ("KD", ["MLP", "VGG11", "LeNet"])])
def test_differences_in_the_prose_are_those_of_the_csv(method, nets):
    rows = table4_rows(read_rows(RESULTS))
    rows = rows[(rows["protocol"] == "fair") & (rows["iteration"] == PROFILE.iterations)]
    pairs = paired_difference(rows[rows["method"] == method], rows[rows["method"] == "baseline"]).set_index("net")
    for net in nets:
        assert f"{net} {pairs.loc[net, 'mean']:+.1f}" in README
        assert pairs.loc[net, "low"] > 0  # called a difference, so its interval excludes none
