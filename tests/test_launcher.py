"""The command line: mistakes are one line and status 2, a stop is clean, and the notebooks take what they are given."""

import nbformat
import papermill
import pytest

from ddlib.errors import DDError
from ddlib.store import ROOT
from ddlib.study import launcher

NOTEBOOKS = [ROOT / "notebooks" / f"{name}.ipynb" for name in launcher.NOTEBOOKS]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--profile", "quik"], ["'quik'", "did you mean 'quick'", "cifar10-small"]),
        (["--set", "iteratons=3"], ["'iteratons'", "did you mean 'iterations'", "batch_real"]),
        (["--set", "iterations"], ["'iterations'", "name=value"]),
        (["--set", "iterations=many"], ["'many'", "int"]),
        (["--set", "nets=LeNet,Lenet"], ["'Lenet'", "LeNet"]),
        (["--set", "ipcs=0"], ["ipc is 0"]),
        (["--set", "dataset=mnits"], ["'mnits'", "did you mean 'mnist'", "cifar10"]),
        (["--device", "tpu"], ["'tpu'", "cpu", "cuda"]),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(words, named, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launcher, "execute", None)
    assert launcher.main([*words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert [part for part in named if part not in error] == []
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_run_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "runs" / "quick").mkdir(parents=True)
    assert launcher.main(["--out", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err


def test_ctrl_c_is_a_clean_stop_that_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(launcher, "execute", stop)
    assert launcher.main(["--out", str(tmp_path)]) == 130
    assert "--resume" in capsys.readouterr().out


def test_a_parameter_that_a_notebook_lacks_is_an_error():
    with pytest.raises(
        DDError, match=r"01_distill.ipynb has no parameter 'profil'; valid: profile, settings"
    ):
        launcher.check_parameters(NOTEBOOKS[:1], {"profil": "quick"})


def test_a_mistake_inside_a_notebook_is_one_line(tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import ddlib; ddlib.load_data('nothing')")]
    )
    nbformat.write(notebook, tmp_path / "a.ipynb")
    with pytest.raises(DDError, match="unknown data set 'nothing'"):
        launcher.execute(tmp_path / "a.ipynb", tmp_path / "b" / "a.ipynb", {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_fit_to_be_read_and_compared(path):
    """Executed, without errors or widgets, with the launcher's parameters, one commented line each, and checked cells."""
    notebook = nbformat.read(path, 4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    parameters = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert len(parameters) == 1 and all(
        "  # " in line for line in parameters[0].source.splitlines()
    )
    assert list(papermill.inspect_notebook(str(path))) == [
        "profile",
        "settings",
        "out",
        "device",
        "data_root",
    ]
    outputs = [o for c in code for o in c.outputs]
    assert {o.output_type for o in outputs} <= {"stream", "display_data", "execute_result"}
    assert not any("widget" in kind for o in outputs for kind in o.get("data", {}))
    assert all(c.execution_count for c in code)
    checked = [c for c in code if c.outputs and "NBVAL_IGNORE_OUTPUT" not in c.source]
    assert len(checked) >= 3
    for word in ("Question", "Cost", "Needs"):
        assert word in notebook.cells[0].source
