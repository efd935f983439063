"""README, docs, committed tables, CSV files and code tell the same."""

import re

import pandas as pd
import pytest

from ddlib.datasets import DATASETS
from ddlib.identity import set_key
from ddlib.methods import METHODS
from ddlib.nets import NETS
from ddlib.report.audit import VERDICTS, simulate_verdicts, spreads_of_nets
from ddlib.report.publish import (
    METHODS as SMALL,
)
from ddlib.report.publish import (
    RATES,
    committed_rows,
    docs_parts,
    methods_parts,
    methods_tables,
    rows_text,
    scope_of,
    study_files,
    to_csv,
)
from ddlib.results import read_results
from ddlib.study import PROFILES
from ddlib.support.store import ROOT
from ddlib.synset import SyntheticSet

README = (ROOT / "README.md").read_text()
STUDIES = ("cifar10-small", "paper-fast", "paper")


def test_the_docs_hold_what_the_committed_files_give():
    pages = [README, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))]
    for name, content in (docs_parts("paper") | methods_parts()).items():
        marked = f"<!-- {name} -->\n{content}<!-- end {name} -->"
        having = [page for page in pages if f"<!-- {name} -->" in page]
        assert having and all(marked in page for page in having), name


def test_the_committed_error_rates_are_those_of_the_rule():
    """One line of them: each has a generator of its own."""
    truth = {"1 points each": [1.0] * 5}
    lines = simulate_verdicts(truth, [(3, 1)], [0.5], 1.2).set_index("rule")
    rates = pd.read_csv(RATES).set_index(["rule", "truth", "n", "sd of sets", "sd of nets"])
    for rule, line in lines.iterrows():
        found = rates.loc[(rule, "1 points each", "3×1", 0.5, "1.2")]
        assert found.to_dict() == line[list(VERDICTS)].to_dict()
    measured = spreads_of_nets(committed_rows("paper"), scope_of(PROFILES["paper"]))
    lines = simulate_verdicts(truth, [(5, 1)], [0.0], measured).set_index("rule")
    for rule, line in lines.iterrows():
        found = rates.loc[(rule, "1 points each", "5×1", 0.0, "measured")]
        assert found.to_dict() == line[list(VERDICTS)].to_dict()


def test_committed_tables_of_methods_are_what_the_committed_rows_give():
    for name, frame in methods_tables().items():
        assert to_csv(frame) == (ROOT / "paper" / "tables" / f"{SMALL}-{name}.csv").read_text()


@pytest.mark.parametrize("name", STUDIES)
def test_committed_tables_are_what_the_committed_rows_give(name):
    rows = read_results(ROOT / "paper" / "results" / name)
    for file, content in study_files(rows, PROFILES[name]).items():
        assert content == (ROOT / "paper" / "tables" / f"{name}-{file}").read_text(), file


def test_the_hours_of_a_distillation_count_once_however_many_iterations_are_kept():
    sets = pd.read_csv(ROOT / "paper" / "results" / "cifar10-small" / "sets.csv")
    sets = sets[sets["seconds"] > 0]
    hours = sets.groupby(["method", "pool", "ipc", "seed"])["seconds"].max().sum() / 3600
    assert sets["seconds"].sum() / 3600 > hours + 0.06
    assert f"planned sets ({hours:.1f} hours)" in rows_text("cifar10-small")


@pytest.mark.parametrize("path", sorted((ROOT / "paper" / "sets").glob("*.safetensors")))
def test_committed_sets_are_those_that_were_evaluated(path):
    study = re.match(r"(.*?)(-dm)?-ipc", path.stem).group(1)
    sets = pd.read_csv(ROOT / "paper" / "results" / study / "sets.csv")
    assert set_key(SyntheticSet.load(path)) in set(sets["set"])


def test_no_committed_row_is_of_the_faulty_path():
    """Revisions in which LeNet and AlexNet were trained with gradients in the wrong order."""
    faulty = (
        "2db045f",
        "18e5dc9",
        "d64f483",
        "9d32fe3",
        "712fc74",
        "cbf2e89",
        "a8fe971",
        "90e45db",
    )
    for name in STUDIES:
        rows = read_results(ROOT / "paper" / "results" / name)
        rows = rows[rows["net"].isin(["LeNet", "AlexNet"])]
        assert len(rows) and not rows["revision"].str.startswith(faulty).any()


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    ],
)
def test_every_link_and_picture_exists(path):
    links = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", (ROOT / path).read_text())
    assert [link for link in links if not ((ROOT / path).parent / link).exists()] == []


def test_the_readme_is_short_and_its_commands_are_targets_of_the_makefile():
    assert len(README.splitlines()) < 150
    commands = set(re.findall(r"make (\w+)", README))
    makefile = (ROOT / "Makefile").read_text()
    assert {"reproduce", "test"} <= commands
    assert [c for c in commands if f"\n{c}:" not in makefile] == []


def test_the_page_on_extending_runs(capsys, monkeypatch):
    for known, name in ((METHODS, "mean-pixels"), (NETS, "TwoLayers"), (DATASETS, "mine")):
        monkeypatch.setitem(known, name, None)  # to be forgotten after the test
    text = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec("\n".join(blocks), {"__name__": "page"})
    printed = capsys.readouterr().out
    assert "squared" in printed and "cat" in printed
    assert len(re.findall(r"mean-pixels +main\S* +TwoLayers", printed)) == 2
