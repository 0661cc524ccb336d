"""The nine tasks of the Genomics Long-Range Benchmark: what is pooled, and the head of its own fine-tuning code."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lrgenome.io.benchmark import BIN


class BenchmarkTask(NamedTuple):
    """How a task is fine-tuned."""

    assembly: str
    low: int
    """First base that is pooled, from the centre."""
    high: int
    hidden: Callable[[int], tuple[int, ...]]
    """Hidden layers for models of a width."""
    pool: str = "mean"
    bin_size: int = 0
    tissue: str = "none"
    log1p: bool = False
    """Labels are counts, of which log(1 + x) is predicted."""


VARIANT = (-768, 769)
CENTRE = (-100, 101)

TASKS: dict[str, BenchmarkTask] = {
    "vep-eqtl": BenchmarkTask("hg38", *VARIANT, lambda d: (2 * d, 2 * d), tissue="index"),
    "vep-clinvar": BenchmarkTask("hg38", *VARIANT, lambda d: (2 * d,)),
    "omim": BenchmarkTask("hg38", *VARIANT, lambda d: (2 * d, 2 * d)),
    "bulk-rna": BenchmarkTask("hg19", -256, 384, lambda d: (2 * d,)),
    "cage": BenchmarkTask("hg38", 0, 1, lambda d: (2 * d,), pool="bins", bin_size=BIN, log1p=True),
    "histone": BenchmarkTask("hg19", *CENTRE, lambda d: (2 * d,)),
    "dnase": BenchmarkTask("hg19", *CENTRE, lambda d: (2 * d,)),
    "promoter": BenchmarkTask("hg38", *CENTRE, lambda d: (2 * d,)),
    "enhancer": BenchmarkTask("hg38", *CENTRE, lambda d: (2 * d,)),
}
