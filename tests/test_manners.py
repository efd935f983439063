"""What a stranger meets: the installed package, how to cite it, what to run for a claim."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml
from conftest import refused

import ddlib
from ddlib.report.colab import READERS, add_colab
from ddlib.study import PROFILES
from ddlib.support.store import ROOT

CLAIMS = (ROOT / "docs" / "claims.md").read_text()


def done(*words, **how):
    return subprocess.run(words, capture_output=True, text=True, **how)


@pytest.mark.skipif(not importlib.util.find_spec("setuptools"), reason="a wheel needs setuptools")
def test_a_wheel_runs_outside_the_checkout(tmp_path):
    """Of a copy, since a build leaves files where it is done."""
    pip, copy = (sys.executable, "-m", "pip", "-q"), tmp_path / "copy"
    shutil.copytree(ROOT / "ddlib", copy / "ddlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    offline = "--no-deps", "--no-index"
    built = done(*pip, "wheel", *offline, "--no-build-isolation", "-w", tmp_path, copy)
    [wheel] = tmp_path.glob("*.whl")
    assert built.returncode == 0 and wheel.name.startswith(f"ddlib-{ddlib.__version__}-")
    site = tmp_path / "site"
    assert done(*pip, "install", *offline, "--target", site, wheel).returncode == 0
    how = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(site)}}
    code = (
        "import ddlib, ddlib.report.pdf, ddlib.study.launcher as l\n"
        "from ddlib.study import PROFILES\n"
        "print(ddlib.__file__, ddlib.__version__, *PROFILES)\n"
        "print(ddlib.build_net('MobileNetV2', width_factor=0.1).classifier[1].out_features)"
    )
    told = done(sys.executable, "-c", code, **how)
    place, version, *rest = told.stdout.split()
    assert place == str(site / "ddlib" / "__init__.py") and version == ddlib.__version__
    assert rest == [*PROFILES, "10"]
    told = done(sys.executable, "-m", "ddlib", "--profile", "quick", **how)
    assert told.returncode == 2 and "needs a checkout" in told.stderr
    assert told.stderr.count("\n") == 1 and not told.stdout


def test_the_citation_has_the_fields_of_its_schema():
    """Those that version 1.2.0 of the format requires, here and of each reference."""
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert about["cff-version"] == "1.2.0" and about["type"] == "software"
    assert str(about["version"]) == ddlib.__version__ and about["license"] == "MIT"
    for entry in (about, *about["references"]):
        assert isinstance(entry["title"], str) and entry["authors"]
        for author in entry["authors"]:
            assert set(author) in ({"name"}, {"family-names", "given-names"})
    assert {"message", "title", "authors"} <= set(about)
    known = {"cff-version", "message", "title", "type", "authors", "version", "date-released"}
    assert set(about) <= known | {"license", "abstract", "keywords", "references"}
    assert [entry["type"] for entry in about["references"]] == ["article"]


def test_the_last_change_is_of_this_version():
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first[1] == ddlib.__version__


def test_containers_install_by_the_makefile():
    target = "make .venv/bin/.installed"
    about = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert about["postCreateCommand"] == target
    assert target in (ROOT / "Dockerfile").read_text()
    assert "$(BIN)/.installed: pyproject.toml" in (ROOT / "Makefile").read_text()


def test_commands_of_claims_exist():
    makefile, used = (ROOT / "Makefile").read_text(), re.findall(r"`make ([\w ]+)", CLAIMS)
    targets = {word for words in used for word in words.split() if not word.isupper()}
    assert len(targets) >= 6 and [t for t in targets if f"\n{t}:" not in makefile] == []
    files = re.findall(r"tests/\w+\.py", CLAIMS)
    assert files and all((ROOT / file).is_file() for file in files)


# Where it is published ----------------------------------------------------------------------------


@pytest.fixture
def readers(tmp_path):
    """A copy of the notebooks that read CSV files only."""
    (tmp_path / "notebooks").mkdir()
    for name in READERS:
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "notebooks")
    return tmp_path


def cells_of(root, name):
    return nbformat.read(root / "notebooks" / f"{name}.ipynb", 4).cells


@pytest.mark.parametrize("name", READERS)
def test_colab_badges_can_be_put_on_and_replaced(readers, name):
    before = cells_of(readers, name)
    for url in ("https://github.com/someone/else.git/", "https://github.com/us/ddlib/"):
        add_colab(url, readers)
    title, parameters, fetch, *rest = cells_of(readers, name)
    assert title.source.count("![Open in Colab]") == 1
    assert f"/github/us/ddlib/blob/main/notebooks/{name}.ipynb)" in title.source
    assert title.source.endswith(before[0].source) and [parameters, *rest] == before[1:]
    assert "https://github.com/us/ddlib" in fetch.source and "someone" not in fetch.source


@pytest.mark.parametrize("there", [True, False])
def test_on_colab_the_notebook_shows_the_committed_results_of_what_it_fetches(readers, there):
    """Its first cells, with what is committed here in place of the published checkout."""
    add_colab("https://github.com/us/ddlib", readers)
    published, home = readers / "published", readers / "home"
    shutil.copytree(ROOT / "ddlib", published / "ddlib")
    for name in ("results", "tables", "reference"):
        shutil.copytree(ROOT / "paper" / name, published / "paper" / name)
    git = ["git", "-C", published, "-c", "user.name=x", "-c", "user.email=x"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        assert done(*git, *words).returncode == 0
    _, parameters, fetch, first, *_ = cells_of(readers, "04_tables")
    fetching = fetch.source.replace("https://github.com/us/ddlib", f"file://{published}")
    shown = f"{first.source}\nprint(ddlib.__file__, study.name)" if there else "print(profile)"
    env = {k: v for k, v in os.environ.items() if k != "COLAB_RELEASE_TAG"} | {"HOME": str(home)}
    env |= {"COLAB_RELEASE_TAG": "1"} if there else {}
    home.mkdir()
    code = "\n".join([parameters.source, fetching, fetching, shown])
    told = done(sys.executable, "-P", "-c", code, cwd=readers, env=env)
    place = f"{home}/ddlib-checkout/ddlib/__init__.py paper"
    assert told.stdout.splitlines()[-1] == (place if there else "quick"), told.stderr


@pytest.mark.parametrize(
    "url",
    [
        "",
        "github.com/us/ddlib",
        "https://github.com/us",
        "https://github.com//x",
        "https://github.com/a/b/c",
    ],
)
def test_another_address_is_refused(readers, url):
    with refused("needed: https://github.com/OWNER/NAME"):
        add_colab(url, readers)


def test_every_notebook_is_run_and_compared():
    """Those that train two at a time, then those that read."""
    makefile = (ROOT / "Makefile").read_text()
    listed = re.findall(r"^(?:COMPUTING|READING) := .*?%\.ipynb,(.*)\)$", makefile, re.MULTILINE)
    names = [path.stem for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert sorted(" ".join(listed).split()) == sorted(names)
