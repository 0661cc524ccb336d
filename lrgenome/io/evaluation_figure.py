"""Figure of a test: ROC and precision-recall curves of binary labels, predictions against numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lrgenome.io.plot import publish_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float32]
_COLOURS = ("#1f5fa8", "#d55e00", "#5c6470")
_MOST = 20_000
"""Points of a scatter."""


def evaluation_figure(
    path: str | os.PathLike[str], kind: str, labels: Floats, predictions: Mapping[str, Floats], title: str
) -> None:
    """Draw the test of some models on the same rows.

    Parameters
    ----------
    kind
        classes, labels or numbers.
    labels, predictions
        (n, m); outputs are flattened, and labels that are NaN left out.

    Raises
    ------
    OutputError
        If the figure cannot be written.
    """
    known = ~np.isnan(labels)
    truth = labels[known]
    flat = {name: values[known] for name, values in predictions.items()}

    def draw(figure: Figure) -> None:
        figure.suptitle(title, fontsize=10)
        if kind == "numbers":
            panels = figure.subplots(1, len(flat), squeeze=False)[0]
            for axes, (name, values), colour in zip(panels, flat.items(), _COLOURS, strict=False):
                _scatter(axes, truth, values, name, colour)
            return
        roc, pr = figure.subplots(1, 2)
        for (name, values), colour in zip(flat.items(), _COLOURS, strict=False):
            _curves(roc, pr, truth, values, name, colour)
        _plain(roc)
        _plain(pr)
        roc.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle=":")
        pr.axhline(float(truth.mean()) if len(truth) else 0.0, color="0.7", linewidth=0.8, linestyle=":")
        roc.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1))
        pr.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        roc.legend(frameon=False, fontsize=8, loc="lower right")

    publish_png(path, draw, size=(7.2, 3.6))


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e6ea", linewidth=0.7)
    axes.set_axisbelow(True)


def _curves(roc: Axes, pr: Axes, truth: Floats, values: Floats, name: str, colour: str) -> None:
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    if len(np.unique(truth)) < 2:
        return
    false, true, _ = roc_curve(truth, values)
    roc.plot(false, true, color=colour, linewidth=1.4, label=f"{name}, {auc(false, true):.3f}")
    precision, recall, _ = precision_recall_curve(truth, values)
    pr.step(recall, precision, color=colour, linewidth=1.2, where="post")


def _scatter(axes: Axes, truth: Floats, values: Floats, name: str, colour: str) -> None:
    _plain(axes)
    every = max(1, -(-len(truth) // _MOST))
    axes.plot(truth[::every], values[::every], ".", markersize=2, alpha=0.4, color=colour, rasterized=True)
    if len(truth):
        ends = float(min(truth.min(), values.min())), float(max(truth.max(), values.max()))
        axes.plot(ends, ends, color="0.7", linewidth=0.8, linestyle=":")
    axes.set(xlabel="label", ylabel="prediction")
    axes.set_title(name, fontsize=9)
