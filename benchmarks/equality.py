"""Do the fast paths change the result? The quick study distilled plainly and fast, with several seeds.

    python benchmarks/equality.py    # about 7 minutes on 2 CPU cores

Plain: float32, the whole real batch in one backward pass, PyTorch's own average pooling. Fast: slices and pooling as a matrix
product, in float32 and with bfloat16 where nothing is differentiated twice. At ipc 1, and at ipc 5 with an inner loop, which
ipc 1 has none of. Accuracies of fresh ConvNets, paired by seed, go to benchmarks/results/equality.csv, from which RESULTS.md
is rendered.
"""

import argparse
import itertools

import pandas as pd
from torch import nn

import ddlib
from ddlib.nets import POOLINGS
from ddlib.store import ROOT, write_atomic

PATHS = {
    "plain": {"slice_size": 32, "precision": "float32"},
    "fast, float32": {"slice_size": 16, "precision": "float32"},
    "fast, bfloat16": {"slice_size": 16, "precision": "bfloat16"},
}
LOOPS = {
    1: {},
    5: {"outer": 3, "inner": 10, "iterations": 30, "snapshots": (30,)},
}  # ipc -> settings of its loops
RESULTS = ROOT / "benchmarks" / "results" / "equality.csv"


def measure(seeds, nets):
    """Rows of ConvNets trained on every set: `ddlib.results.COLUMNS` and `path`."""
    study, frames, own = ddlib.Study("quick", progress=False), [], POOLINGS["average"]
    evaluation = study.profile.eval_config()
    for (ipc, loops), (path, settings), seed in itertools.product(
        LOOPS.items(), PATHS.items(), seeds
    ):
        config = study.profile.distill_config("main_plus_similar", seed, ipc, **loops, **settings)
        POOLINGS["average"] = (lambda: nn.AvgPool2d(2)) if path == "plain" else own
        synset = ddlib.distill(config, study.data)
        POOLINGS["average"] = own  # all are evaluated alike
        rows = ddlib.evaluate(synset, study.data, ["ConvNet"], n_eval=nets, config=evaluation)
        frames.append(rows.assign(path=path))
    return pd.concat(frames, ignore_index=True)


def summary(rows):
    """Per ipc and path the mean accuracy, and its paired difference to the plain one, with intervals."""
    lines = []
    for (ipc, path), group in rows.groupby(["ipc", "path"], sort=False):
        own, against = ddlib.interval(group), rows[(rows["path"] == "plain") & (rows["ipc"] == ipc)]
        line = {
            "ipc": ipc,
            "path": path,
            "accuracy": own["mean"],
            "low": own["low"],
            "high": own["high"],
            "n": own["n"],
        }
        if path != "plain":
            pair = ddlib.paired_difference(group, against).iloc[0]
            line |= {
                "difference": pair["mean"],
                "difference low": pair["low"],
                "difference high": pair["high"],
            }
        lines.append(line)
    return pd.DataFrame(lines)


def main(words=None):
    parser = argparse.ArgumentParser(
        prog="python benchmarks/equality.py", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seeds", type=int, default=4, help="distillations per path (default: 4)")
    parser.add_argument("--nets", type=int, default=3, help="ConvNets per set (default: 3)")
    arguments = parser.parse_args(words)
    rows = measure(range(arguments.seeds), arguments.nets)
    write_atomic(RESULTS, rows.to_csv(index=False))
    print(summary(rows).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
