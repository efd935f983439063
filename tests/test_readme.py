"""README, committed tables, CSV and code tell the same."""

import re

import pandas as pd
import pytest
from ddlib.report.claims import claims

from ddlib.report.audit import audit, scope
from ddlib.report.tables import caption, table, table4_rows, to_markdown, wide
from ddlib.results import read_rows
from ddlib.stats import paired_difference
from ddlib.store import ROOT
from ddlib.study.profiles import PROFILES

README = (ROOT / "README.md").read_text()
PROFILE = PROFILES["cifar10-small"]
RESULTS, TABLES = ROOT / "paper" / "results", ROOT / "paper" / "tables"


def test_the_readme_shows_the_committed_table_4_and_claims():
    assert (TABLES / "paper-table4.md").read_text() in README
    assert (
        to_markdown(pd.read_csv(TABLES / "paper-claims.csv")[["claim", "verdict", "evidence"]])
        in README
    )


@pytest.mark.parametrize("number", [4, 5])
@pytest.mark.parametrize("name", ["cifar10-small", "paper"])
def test_committed_tables_are_what_the_committed_csv_gives(name, number):
    rows, profile = read_rows(RESULTS / f"{name}.csv"), PROFILES[name]
    cells = table(rows, number, profile.reported)
    made = caption(cells, rows, profile, number) + "\n\n" + to_markdown(wide(cells))
    assert made == (TABLES / f"{name}-table{number}.md").read_text()


@pytest.mark.parametrize("name", ["cifar10-small", "paper"])
def test_committed_audit_and_claims_are_what_the_committed_csv_gives(name):
    rows, expected = read_rows(RESULTS / f"{name}.csv"), scope(PROFILES[name])
    for kind, frame in (("audit", audit(rows, **expected)), ("claims", claims(rows, **expected))):
        assert (
            frame.to_csv(index=False, float_format="%.4f")
            == (TABLES / f"{name}-{kind}.csv").read_text()
        )


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
        "machine.py",
    }
    assert [name for name in modules if name not in README] == []


def test_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    commands = set(re.findall(r"make (\w+)", README))
    assert {"reproduce", "test"} <= commands
    assert [c for c in commands if f"\n{c}:" not in makefile] == []


@pytest.mark.parametrize(
    ("method", "nets"),
    [("model pool", ["MLP", "AlexNet", "LeNet"]), ("KD", ["MLP", "VGG11", "LeNet"])],
)
def test_differences_in_the_prose_are_those_of_the_csv(method, nets):
    rows = table4_rows(read_rows(RESULTS / "cifar10-small.csv"))
    rows = rows[(rows["protocol"] == "fair") & (rows["iteration"] == PROFILE.iterations)]
    pairs = paired_difference(
        rows[rows["method"] == method], rows[rows["method"] == "baseline"]
    ).set_index("net")
    for net in nets:
        assert f"{net} {pairs.loc[net, 'mean']:+.1f}" in README
        assert pairs.loc[net, "low"] > 0  # called a difference, so its interval excludes none


def test_resnet18_in_the_prose_is_that_of_the_csv():
    rows = table4_rows(read_rows(ROOT / "paper" / "results" / "paper.csv"))
    rows = rows[
        (rows["net"] == "ResNet18")
        & (rows["ipc"] == 1)
        & (rows["iteration"] == 1000)
        & (rows["split"] == "test")
    ]
    means = rows.groupby(["protocol", "method"])["accuracy"].mean()
    half, whole = (
        [f"{means[protocol, method]:.1f}" for method in ("baseline", "model pool")]
        for protocol in ("authors-2023", "fair")
    )
    prose = " ".join(README.split())
    assert (
        f"reach {half[0]} (baseline) and {half[1]} (model pool) with half a cross-entropy" in prose
    )
    assert f"no teacher they reach {whole[0]} and {whole[1]}" in prose
