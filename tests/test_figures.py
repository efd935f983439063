"""Figures show the numbers they are given, say n, and name their axes."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from conftest import make_data

from ddlib.data import random_real
from ddlib.report import figures
from ddlib.stats import paired_difference

mpl.use("Agg")


def rows_of(method, accuracy, nets=("ConvNet", "VGG11"), diverged=False):
    return pd.DataFrame(
        [
            {
                "method": method,
                "protocol": "fair",
                "net": net,
                "distill_seed": d,
                "eval_seed": e,
                "accuracy": accuracy + d,
                "diverged": diverged,
                "seconds": 1.0,
                "iteration": 10 * d,
                "split": "test",
                "dataset": "digits",
            }
            for net in nets
            for d in range(2)
            for e in range(2)
        ]
    )


def test_images_stand_under_their_class_names():
    data = make_data(classes=4)
    figure = figures.image_rows(
        {"a": random_real(data, 2, 0), "b": random_real(data, 1, 1)}, "title"
    )
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["a", "b", "c", "d"] + [""] * 4
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()] == ["a", "b"]
    shown = np.asarray(figure.axes[1].images[0].get_array())
    assert np.allclose(
        shown, random_real(data, 2, 0).images01()[2, 0].numpy()
    )  # class b's first image


def test_bars_are_means_and_diverged_runs_are_counted():
    rows = pd.concat([rows_of("baseline", 20.0), rows_of("model pool", 30.0, diverged=True)])
    axis = figures.bars(rows, "title", ["baseline", "model pool"]).axes[0]
    assert [bar.get_height() for bar in axis.patches] == [20.5, 20.5, 30.5, 30.5]
    assert [text.get_text() for text in axis.texts] == ["✕4", "✕4"]
    assert axis.get_ylabel() == "test accuracy (%)"


def test_curves_go_through_the_means_and_say_n():
    axis = figures.accuracy_curves(
        rows_of("baseline", 20.0, nets=("ConvNet",)), "iteration", "iteration", "title"
    ).axes[0]
    assert axis.lines[0].get_xydata().tolist() == [[0.0, 20.0], [10.0, 21.0]]
    assert axis.get_legend().get_texts()[0].get_text() == "baseline (n = 1×2)"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("iteration", "test accuracy (%)")


def test_differences_are_drawn_at_their_means():
    pairs = {"pool": paired_difference(rows_of("model pool", 22.0), rows_of("baseline", 20.0))}
    axis = figures.difference_plot(pairs, "title").axes[0]
    assert axis.collections[-1].get_offsets()[:, 0].tolist() == [2.0, 2.0]
    assert "n = 2×2" in axis.get_title(loc="left")
