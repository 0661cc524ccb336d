"""What is known of a row without a model of sequence: the baseline that a fine-tuned model has to beat."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lrgenome.dna import FIRST_BASE, encode
from lrgenome.training.labelled import LabelledWindows, gc_and_cpg

Rows = npt.NDArray[np.int64]
NAME = "composition"


def composition(windows: LabelledWindows, rows: Rows) -> npt.NDArray[np.float32]:
    """Return (n, f) values of rows.

    Of variants: which base becomes which, insertion or deletion and the logarithm of its length, whether a CpG is lost
    or made, the bases before and after. Of intervals: the logarithm of the length, share of G and C, its square, and
    CpG over what it would be by chance, of the interval itself and of 1 kbp around it.
    """
    describe = _variant if windows.examples.variants else _interval
    found = {row: describe(windows, row) for row in windows.in_genome_order(rows)}
    return np.array([found[int(row)] for row in rows], dtype=np.float32).reshape(len(rows), -1)


def _variant(windows: LabelledWindows, row: int) -> npt.NDArray[np.float32]:
    examples, contig = windows.examples, windows.contigs[row]
    assert contig is not None and examples.alt is not None
    start, end = int(examples.start[row]), int(examples.end[row])
    around = windows.fasta.fetch(contig, max(0, start - 1), min(windows.fasta.contigs[contig], end + 1))
    before, after = (around[0] if start else 0), around[-1]
    ref = around[1 if start else 0 : -1]
    alt = encode(str(examples.alt[row]))
    substitution, sides = np.zeros(16), np.zeros((2, 4))
    if len(ref) == len(alt) == 1 and _base(ref[0]) and _base(alt[0]):
        substitution[4 * (ref[0] - FIRST_BASE) + alt[0] - FIRST_BASE] = 1.0
    for side, base in enumerate((before, after)):
        if _base(base):
            sides[side, base - FIRST_BASE] = 1.0
    changed = [_cpgs(before, allele, after) for allele in (ref, alt)]
    # What stands on either side matters together with what changes.
    context = np.outer(substitution, np.outer(sides[0], sides[1]).ravel()).ravel()
    longer = len(alt) - len(ref)
    numbers = [
        float(longer > 0), float(longer < 0), np.log1p(abs(longer)), float(longer % 3 != 0),
        float(changed[0] > changed[1]), float(changed[1] > changed[0]),
    ]  # fmt: skip
    return np.concatenate([substitution, sides.ravel(), context, numbers]).astype(np.float32)


def _base(value: int) -> bool:
    return bool(FIRST_BASE <= value < FIRST_BASE + 4)


def _cpgs(before: int, allele: npt.NDArray[np.uint8], after: int) -> int:
    ids = np.r_[before, allele, after]
    return int(np.count_nonzero((ids[:-1] == FIRST_BASE + 1) & (ids[1:] == FIRST_BASE + 2)))


def _interval(windows: LabelledWindows, row: int) -> npt.NDArray[np.float32]:
    examples, contig = windows.examples, windows.contigs[row]
    assert contig is not None
    start, end = int(examples.start[row]), int(examples.end[row])
    middle, size = (start + end) // 2, windows.fasta.contigs[contig]
    found = [float(np.log(end - start))]
    for low, high in ((start, end), (max(0, middle - 500), min(size, middle + 500))):
        gc, cpg = gc_and_cpg(windows.fasta.fetch(contig, low, high))
        found += [gc, gc * gc, min(cpg, 4.0)]
    return np.array(found, dtype=np.float32)
