"""Metrics of rows: which of them count, in what subsets, and beside what."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lrgenome.io.examples import Examples
from lrgenome.tasks.evaluation import evaluate


def rows(n: int = 120, **more) -> Examples:
    rng = np.random.default_rng(0)
    return Examples(
        kind="classes", outputs=("y",), contig=np.array(["1"] * n), start=np.arange(n), end=np.arange(n) + 1,
        labels=rng.integers(0, 2, (n, 1)).astype(np.float32), split=np.array(["test"] * n), line=np.arange(n), **more,
    )  # fmt: skip


def one(found, subset: str, metric: str = "AUROC", model: str = "m"):
    (row,) = [r for r in found if (r.model, r.subset, r.metric) == (model, subset, metric)]
    return row


def test_rows_without_a_label_do_not_count():
    examples = rows()
    examples.labels[:7] = np.nan
    said = np.random.default_rng(1).random((120, 1)).astype(np.float32)
    row = one(evaluate(examples, {"m": said}, baseline=None, seed=0), "all")
    assert row.n == 113 and row.positives == int(np.nansum(examples.labels))
    assert row.value == pytest.approx(roc_auc_score(examples.labels[7:, 0], said[7:, 0]))
    assert row.low < row.value < row.high and row.over_baseline is None


def test_subsets_are_tissues_distances_and_groups():
    distance = np.where(np.arange(120) < 60, 1_000.0, 50_000.0)
    distance[0] = np.nan
    group = np.array([f"g{i % 3}" if i % 10 else "." for i in range(120)])
    examples = rows(tissue=np.arange(120) % 2, tissues=("a", "b"), distance=distance, group=group)
    truth = examples.labels[:, 0]
    said = {"m": examples.labels + 0.0, "base": 1 - examples.labels}
    found = evaluate(examples, said, baseline="base", seed=0)
    assert one(found, "tissue=a").n == 60 and one(found, "distance=0-30kbp").n == 59
    assert not [row for row in found if row.subset == "distance=100kbp+"]
    within = one(found, "within groups")
    # Rows of no group are of none, not of one.
    assert within.n == 108 and within.positives == int(truth[group != "."].sum()) and within.value == 1.0
    assert within.over_baseline.value == 1.0 and one(found, "all").over_baseline.value == 1.0
    assert one(found, "all", "AUROC_HARD", "base").value == 0.0
