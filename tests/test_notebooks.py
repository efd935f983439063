"""The notebooks on the stand-in for a GPU, cell by cell, at the smallest sizes; as they are, `make
test` runs them by nbval.
"""

import json

import matplotlib as mpl

from ddlib.support.store import ROOT

TINY = {"iterations": 2, "snapshots": [0, 2], "epochs": 4, "full_epochs": 1, "batch_real": 6}
TINY |= {"width": 4, "width_factor": 0.0625, "seeds": [0], "taus": [1.0, 4.0], "lrs": [0.005, 0.01]}
TINY |= {"pools": ["total_random", "main_plus_similar"], "feature_epochs": 1, "feature_images": 20}
TINY |= {"nets": ["ConvNet", "MLP", "LeNet"]}  # test_graphs has the others on the stand-in
AUXILIARIES = {"aux_epochs": 1, "aux_images": 20}
TINY["methods"] = {
    "dm": {"method": "dm", "iterations": 2},
    "metadd": {"method": "dm", "extras": ["metadd"], "iterations": 2, "options": AUXILIARIES},
}


def test_notebooks_run_as_on_a_gpu(gpu, tmp_path):
    mpl.use("Agg")
    paths = sorted((ROOT / "notebooks").glob("0*.ipynb"))
    assert len(paths) == 7
    for path in paths:
        names = {"display": id, "__name__": path.stem}
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"{path.stem}, cell", "exec"), names)
                if "parameters" in cell["metadata"].get("tags", []):
                    names |= {"settings": TINY, "out": str(tmp_path)}
    assert gpu.tapes and (tmp_path / "paper" / "results").is_dir()
