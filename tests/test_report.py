"""The report: built from rows, the same bytes every time, and words for what is not there."""

import builtins
import json
import re

import pandas as pd
import pytest
import torch
from conftest import make_data, refused, study_rows

from ddlib.data import random_real
from ddlib.report import pdf
from ddlib.report.tables import NETS
from ddlib.support.store import ROOT

SOURCE = (ROOT / "paper" / "report.typ").read_text()
POOLS = {"main": 20.0, "main_plus_similar": 23.0, "random_real": 15.0}
ARMS = {("main", "½ CE"): 19.0, ("main", "KD"): 22.0, ("main", "tuned"): 21.0}


def table(folder, name):
    path = folder / "build" / f"{name}.csv"
    return pd.read_csv(path, keep_default_na=False) if path.stat().st_size else None


def studies(folder, monkeypatch, **rows):
    """Let `build` find these studies in the folder."""
    for name in rows:
        (folder / name).mkdir()
        (folder / name / "rows.csv").touch()
    monkeypatch.setattr(pdf, "read_results", lambda path: rows[path.name])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A report of a paper study without other pools, beside a small one with plain CE only."""
    pytest.importorskip("typst")
    folder = tmp_path_factory.mktemp("report")
    plain = {(pool, "CE"): accuracy for pool, accuracy in POOLS.items()}
    sweep = {("main", "CE"): 20.0, ("main", "tuned"): 21.0}
    parts = [study_rows(plain | ARMS, NETS, seeds=3), study_rows(sweep, NETS, split="val")]
    parts += [study_rows({("main", "CE"): 40.0}, NETS, seeds=5, method="dm", diverged=True)]
    small = study_rows(plain, NETS, iteration=300, settings={"width": 32})
    with pytest.MonkeyPatch.context() as patch:
        studies(folder, patch, **{"paper": pd.concat(parts), "cifar10-small": small})
        pdf.build("paper", folder / "report.pdf", folder, folder / "build")
    return folder


def test_the_pdf_is_there_and_the_same_again(built):
    content = (built / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF") and b"CreationDate" not in content
    assert pdf.compile_typst(built / "build") == content


def test_what_it_shows_is_what_the_rows_say(built):
    facts = json.loads((built / "build" / "facts.json").read_text())
    assert [study["profile"]["name"] for study in facts["studies"]] == ["paper", "cifar10-small"]
    assert [study["sets"] for study in facts["studies"]] == [3, 2]  # DM has five, which diverged
    assert [study["diverged"] for study in facts["studies"]] == [0, 0]
    assert [study["full scale"] for study in facts["studies"]] == [True, False]
    claims = table(built, "paper-claims").set_index(["number", "ipc"])["verdict"]
    assert claims[1, 1] == claims[2, 1] == "supported" and claims[4, 1] == "not measured"
    line = table(built, "paper-table4").set_index(["images", "trained with"]).loc["baseline", "CE"]
    assert line["VGG11"] == "21.1 ± 2.5" and line["n"] == "3×2"
    assert set(table(built, "paper-choices")["images"]) == {"baseline"}
    assert table(built, "cifar10-small-compatible") is None
    drawn = {name: study["figures"] for name, study in zip("ab", facts["studies"], strict=True)}
    assert drawn["a"]["half-ce"] == "paper-half-ce.svg" and drawn["b"]["half-ce"] is None
    assert "dc:date" not in (built / "build" / "paper-half-ce.svg").read_text()


@pytest.mark.parametrize("kept", [("random_real",), ("main",)])
def test_any_part_of_the_rows_is_enough(tmp_path, monkeypatch, kept):
    pytest.importorskip("typst")
    rows = study_rows({(pool, "CE"): 20.0 for pool in kept}, ("MLP", "MyNet"), iteration=300)
    studies(tmp_path, monkeypatch, **{"cifar10-small": rows})
    out = pdf.build("paper", tmp_path / "report.pdf", tmp_path, tmp_path / "build")
    assert out.read_bytes().startswith(b"%PDF")
    assert set(table(tmp_path, "cifar10-small-claims")["verdict"]) == {"not measured"}
    assert (table(tmp_path, "cifar10-small-table5") is None) == (kept == ("random_real",))


def test_the_committed_rows_make_a_table_at_the_iteration_with_most_cells():
    rows = pd.concat(
        [
            study_rows({("main", "CE"): 20.0}, NETS, iteration=1000, diverged=True),
            study_rows({("main", "CE"): 25.0}, ("MLP",), iteration=3000),
        ]
    )
    wide, caption = pdf.table(rows, pdf.PROFILES["paper"], 4)
    assert list(wide["iteration"][wide["images"] == "baseline"]) == [1000]
    assert caption.startswith("Test accuracy") and "A star marks" in caption
    assert wide["MLP"].iloc[0].endswith("*") and "\\" not in wide["MLP"].iloc[0]


def test_images_are_of_two_sets_that_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "PAPER", tmp_path)
    assert pdf.images(tmp_path) is None
    shown = []
    monkeypatch.setattr(pdf.figures, "image_rows", lambda rows, title: shown.append((rows, title)))
    monkeypatch.setattr(pdf, "save", lambda figure, folder, name: name)
    for seed, (pool, k) in enumerate([("main", 100), ("main", 200), ("main_plus_similar", 100)]):
        synset = random_real(make_data(), 1, seed)
        synset.config, synset.iteration = {"pool": pool, "seed": 0}, k
        synset.save(tmp_path / "sets" / f"{pool}-{k}")
        synset.config |= {"method": "dm"}  # no pictures of the paper's two kinds of images
        synset.iteration = 300
        synset.save(tmp_path / "sets" / f"dm-{pool}")
    assert pdf.images(tmp_path) == "images"
    ((rows, title),) = shown
    a, b, difference = rows.values()
    assert "iteration 100" in title
    expected = (0.5 + 0.25 * (b.images - a.images)).clamp(0, 1)  # 0.25: the data's std
    assert torch.allclose(difference.images01(), expected, atol=1e-6)


def test_without_typst_one_line_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    plain = builtins.__import__

    def lacking(name, *rest, **more):
        if name == "typst":
            raise ImportError(name)
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", lacking)
    monkeypatch.setattr(pdf, "build", lambda profile, out: pdf.compile_typst(tmp_path))
    assert pdf.main(["--out", str(tmp_path / "report.pdf")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install" in error and not list(tmp_path.iterdir())


def test_mistakes_are_one_line(tmp_path):
    with refused("'papr'", "did you mean 'paper'"):
        pdf.build("papr")
    with refused("no rows for the report", "paper/rows.csv"):
        pdf.build(results=tmp_path)


def test_no_date_outside_a_checkout(tmp_path, monkeypatch):
    assert re.fullmatch(r"(\d{4}-\d\d-\d\d)?", pdf.commit_date())
    monkeypatch.setattr(pdf, "ROOT", tmp_path)
    assert pdf.commit_date() == ""


def test_no_measured_number_is_written_by_hand():
    words = SOURCE.partition("#align(center)")[2].partition("#bibliography")[0]
    words = re.sub(r"\d+(\.\d+)?(pt|cm|em|fr|%)", "", words)
    words = re.sub(r"(size|width): .*|measure\(.*|< 0.005", "", words)
    assert re.findall(r"(?<![\w#.])\d+\.\d+", words) == []
