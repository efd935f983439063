"""The report: built from the committed rows, the same bytes every time, and words for what is not there."""

import builtins
import json
import re
import shutil

import pytest
from conftest import make_data, refused
from test_audit import make_rows

from ddlib.data import random_real
from ddlib.report import pdf as report
from ddlib.results import read_rows
from ddlib.store import ROOT

SMALL = ROOT / "paper" / "results" / "cifar10-small.csv"
SOURCE = (ROOT / "paper" / "report.typ").read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A report from the committed small study and a hand-built paper study without ResNet18's KD, ipc 10 and two pools."""
    pytest.importorskip("typst")
    folder = tmp_path_factory.mktemp("report")
    rows = make_rows(seeds=1)
    gone = (rows["net"].eq("ResNet18") & rows["protocol"].eq("kd")) | rows["pool"].isin(
        ["total_random", "main_plus_others"]
    )
    rows[~gone].to_csv(folder / "paper.csv", index=False)
    shutil.copy(SMALL, folder / "cifar10-small.csv")
    report.build("paper", folder / "report.pdf", folder, folder / "build")
    return folder


@pytest.fixture(scope="module")
def content(built):
    return json.loads((built / "build" / "report.json").read_text())


def test_the_pdf_is_there_and_the_same_again(built):
    import typst

    made = (built / "report.pdf").read_bytes()
    assert made.startswith(b"%PDF") and b"CreationDate" not in made
    assert report.compile_typst(typst, built / "build") == made


def test_both_studies_are_shown_the_main_one_first(content):
    assert [study["name"] for study in content["studies"]] == [
        "paper",
        "cifar10-small",
    ] and content["measured"]
    assert all(study["figures"]["half-ce"] for study in content["studies"])


def test_tables_show_what_is_measured_and_leave_the_rest_empty(content):
    block, empty = content["studies"][0]["tables"][0]["blocks"]
    kd = [line for line in block["lines"] if (line["protocol"], line["method"]) == ("fair", "KD")]
    assert [cell["text"][:3] for cell in kd[0]["cells"]] == ["22."] * 5 + [""]
    assert kd[0]["cells"][4]["published"] == "25.2" and kd[0]["n"] == "1×4"
    assert empty == {"ipc": 10, "lines": []}
    assert [line["n"] for line in content["studies"][0]["tables"][1]["blocks"][0]["lines"]] == [
        "1×4",
        "",
        "",
        "1×4",
    ]


def test_limits_come_from_the_rows(content):
    text = " ".join(f"{entry['study']}: {entry['text']}" for entry in content["limits"])
    assert (
        "paper: At most 1 distillation per method and setting. The intervals therefore cover the spread of nets only"
        in text
    )
    assert "ipc 10, ipc 1 at iteration 2000, 3000, 2 of 54 cells of Table 4 at ipc 1" in text
    assert "cifar10-small: ConvNet has width 32 instead of 128" in text


def test_settings_stand_beside_the_paper_s(content):
    body = {line[0]: line[1:] for line in content["settings"]["body"]}
    assert body["distillations per method"] == ["", "1", "2"]
    assert body["width of ConvNet"] == ["128", "128", "32"]


def test_without_the_main_study_the_small_one_is_shown_and_it_is_said(tmp_path, built):
    made = report.content("paper", {"cifar10-small": read_rows(SMALL)}, tmp_path)
    assert not made["measured"] and [study["name"] for study in made["studies"]] == [
        "cifar10-small"
    ]
    assert made["limits"][0] == {
        "study": "paper",
        "text": "No rows yet; its tables are missing from this report.",
    }


def test_committed_sets_are_preferred_for_the_images(tmp_path):
    data = make_data()
    for pool, k in [("main", 100), ("main", 200), ("main_plus_similar", 100)]:
        synset = random_real(data, 1, 0)
        synset.config, synset.iteration = {"pool": pool, "seed": 0}, k
        synset.save(tmp_path / "sets" / f"{pool}-{k}")
    found = report.images_figure(tmp_path, tmp_path / "sets")
    assert (found["file"], found["text"]) == (
        "images.svg",
        "ipc 1, iteration 100",
    )  # the latest that both have
    assert report.images_figure(tmp_path, tmp_path / "none", tmp_path / "none.png") is None


def test_without_typst_one_line_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    plain = builtins.__import__

    def lacking(name, *rest, **more):
        if name == "typst":
            raise ImportError(name)
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", lacking)
    assert report.main(["--out", str(tmp_path / "report.pdf")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install" in error and not list(tmp_path.iterdir())


def test_mistakes_are_one_line(tmp_path):
    with refused("'papr'", "did you mean 'paper'"):
        report.build("papr")
    with refused("no rows for the report", "paper.csv"):
        report.build(results=tmp_path)


def test_no_measured_number_is_written_by_hand():
    words = SOURCE.partition("#align(center)")[2].partition("#bibliography")[0]
    words = re.sub(r"arXiv \d+\.\d+|\d+(\.\d+)?(pt|cm|em|fr|%)", "", words)
    assert re.findall(r"(?<![\w#.])\d+\.\d+", words) == []
