"""The comparison of two fine-tunings."""

import csv

import compare_tuned
import numpy as np
import pytest

COLUMNS = ["contig", "start", "end", "ref", "alt", "tissue", "bin", "output", "label", "mean_of_folds"]


def run(folder, noise, rows=400):
    """Write predictions that are labels and noise, a row each 10 kbp."""
    rng = np.random.default_rng(1)
    labels, chance = rng.integers(0, 2, rows), rng.normal(size=rows)
    folder.mkdir()
    with open(folder / "predictions.tsv", "w", newline="") as handle:
        writer = csv.writer(handle, delimiter="\t")
        writer.writerow(COLUMNS)
        for i in range(rows):
            value = labels[i] + noise * chance[i]
            writer.writerow(["20", i * 10_000, i * 10_000 + 9, ".", ".", ".", ".", "label", labels[i], value])
        writer.writerow(["20", 9_999_999, 10_000_000, ".", ".", ".", ".", "label", ".", 0.5])
    return folder


def test_the_better_run_is_ahead_by_more_than_its_interval(tmp_path):
    good, bad, same = run(tmp_path / "good", 0.5), run(tmp_path / "bad", 3.0), run(tmp_path / "same", 0.5)
    found = {(name, metric): values for name, metric, *values in compare_tuned.compare([good, bad, same], 100_000)}
    value, low, high = found["good", "AUROC"]
    assert low < value < high and value > 0.9
    for metric in ("AUROC", "AUPRC"):
        value, low, high = found["bad", metric]
        assert low < value < high < 0
        assert found["same", metric] == [0.0, 0.0, 0.0]


def test_other_rows_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="got other test rows than"):
        compare_tuned.compare([run(tmp_path / "one", 1.0), run(tmp_path / "two", 1.0, rows=300)], 100_000)
