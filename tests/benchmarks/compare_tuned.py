"""What two fine-tunings on the same table differ by, on the same test rows.

AUROC and AUPRC of each run's mean of folds, and their differences with a 95 % bootstrap over blocks of the contigs, so
that rows which lie near each other are drawn together.

    python tests/benchmarks/compare_tuned.py RUN RUN... [--block 1Mbp]      (folders of `lrgenome finetune`)
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from lrgenome.glossary import parse_length
from lrgenome.metrics import Ranked, percentile_interval, resampled

Key = tuple[str, ...]


def predictions(run: Path) -> dict[Key, tuple[float, float]]:
    """Return (label, mean of folds) of each test row that has a label."""
    with open(run / "predictions.tsv", newline="") as handle:
        rows = [row for row in csv.DictReader(handle, delimiter="\t") if row["label"] != "."]
    keys = ("contig", "start", "end", "ref", "alt", "tissue", "bin", "output")
    return {tuple(r[k] for k in keys): (float(r["label"]), float(r["mean_of_folds"])) for r in rows}


def difference(ranked: Sequence[Ranked], metric: str, weights: np.ndarray | None) -> float:
    """Return a metric of the first ranking, less that of the second if there is one."""
    one, *other = (float(getattr(ranking, metric)(weights)) for ranking in ranked)
    return one - sum(other)


def compare(runs: Sequence[Path], block: int) -> list[tuple[str, str, float, float, float]]:
    """Return (run, metric, value or difference from the first run, low, high)."""
    first, *others = ({run: predictions(run) for run in runs}).items()
    keys, found = list(first[1]), []
    groups = np.unique([f"{key[0]}:{int(key[1]) // block}" for key in keys], return_inverse=True)[1]
    truth = np.array([first[1][key][0] for key in keys])
    for run, values in (first, *others):
        if set(values) != set(keys):
            raise SystemExit(f"{run}: got other test rows than {first[0]} has")
        both = (values,) if run == first[0] else (values, first[1])
        ranked = [Ranked(truth, np.array([one[key][1] for key in keys])) for one in both]
        for metric in ("auroc", "auprc"):
            measure = partial(difference, ranked, metric)
            samples = resampled(measure, groups, resamples=1000, seed=0)
            found.append((run.name, metric.upper(), *percentile_interval(measure(None), samples)))
    return found


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--block", type=parse_length, default=1_000_000)
    options = parser.parse_args()
    print("run\tmetric\tvalue\tlow\thigh")
    for index, (name, metric, value, low, high) in enumerate(compare(options.runs, options.block)):
        sign = "+" if index > 1 else ""
        print(f"{name}\t{metric}\t{value:{sign}.4f}\t{low:{sign}.4f}\t{high:{sign}.4f}")


if __name__ == "__main__":
    main()
