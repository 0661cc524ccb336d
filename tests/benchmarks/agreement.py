"""How well two score tables of the same variants agree, say of ``--llr masked`` and ``--llr wildtype``.

``python tests/benchmarks/agreement.py one.tsv.gz other.tsv.gz`` compares every score column where both tables have a
score: Spearman's and Pearson's correlation, how often signs agree, the largest absolute difference. A table, then one
line of JSON.
"""

import argparse
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import common
import numpy as np
from scipy.stats import pearsonr, spearmanr

from lrgenome.errors import InputError
from lrgenome.io.score_table import KEY_COLUMNS, SCORE_COLUMNS, read_scores


def compare(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Compare two columns of numbers."""
    return {
        "alleles": len(one),
        "spearman": float(spearmanr(one, other).statistic),
        "pearson": float(pearsonr(one, other).statistic),
        "same_sign": float((np.sign(one) == np.sign(other)).mean()),
        "max_difference": float(np.abs(one - other).max()),
        "standard_deviation": float(one.std()),
    }


def columns_of(one: Iterable[dict[str, Any]], other: Iterable[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return, by column, the (n, 2) scores of the alleles that have one in both tables."""
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in SCORE_COLUMNS if name != "ERR_EST"}
    for number, (a, b) in enumerate(zip_longest(one, other), 1):
        if a is None or b is None or any(a[key] != b[key] for key in KEY_COLUMNS):
            raise InputError(f"row {number}: got {a} and {b}, expected the same alleles in the same order")
        for name, found in pairs.items():
            if a[name] is not None and b[name] is not None:
                found.append((a[name], b[name]))
    return {name: np.array(found) for name, found in pairs.items() if len(found) > 1}


def measure(options: Any) -> dict[str, Any]:
    """Measure; `options` is what `parse` returns."""
    columns = columns_of(read_scores(options.one), read_scores(options.other))
    result: dict[str, Any] = common.rounded({name: compare(*both.T) for name, both in columns.items()})
    return result


def report(result: dict[str, Any]) -> str:
    """Write a result as a table."""
    text = [
        [name, f"{v['alleles']:,}", f"{v['spearman']:.5f}", f"{v['pearson']:.5f}", f"{v['same_sign']:.3f}",
         f"{v['max_difference']:.3g}", f"{v['standard_deviation']:.3g}"]
        for name, v in result.items()
    ]  # fmt: skip
    head = ("", "alleles", "Spearman", "Pearson", "same sign", "largest difference", "standard deviation")
    return common.table(head, text)


def parse(arguments: Sequence[str] | None = None) -> Any:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Agreement of two score tables of the same variants.")
    parser.add_argument("one")
    parser.add_argument("other")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    common.run(measure, report, parse(arguments))


if __name__ == "__main__":
    main()
