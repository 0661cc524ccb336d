"""Labelled rows placed on a genome: the window of each, and which rows have none.

A window of L bp is centred as the benchmark's loader centres it: base L // 2 is the variant or the transcription start,
and an interval has (L - its length) // 2 bases on its left. Rows whose window leaves the contig, or ends on its last
base, are dropped (the loader's own rule), which is why there are fewer rows at greater lengths.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lrgenome.dna import IdArray, N, encode, reverse_complement
from lrgenome.errors import AssemblyMismatchError, InputError
from lrgenome.io.alleles import Allele, scored_spans, trim
from lrgenome.io.examples import Examples
from lrgenome.io.fasta import Fasta, resolve_contig

log = logging.getLogger(__name__)

MISMATCHES = 0.05
"""Share of REF alleles that may differ from the FASTA; more is another assembly."""


class Kept(NamedTuple):
    """Rows that have a window."""

    rows: npt.NDArray[np.int64]
    """Their numbers."""
    dropped: dict[str, int]
    """How many rows have none, by reason."""


class LabelledWindows:
    """The windows of labelled rows.

    Parameters
    ----------
    examples
        The rows.
    fasta
        The genome.
    context
        Window length L, bp.
    alias
        How contig names are matched; see `io.fasta.resolve_contig`.
    """

    def __init__(
        self, examples: Examples, fasta: Fasta, context: int, alias: Mapping[str, str] | str = "auto"
    ) -> None:
        self.examples, self.fasta, self.context = examples, fasta, context
        names = {str(name): resolve_contig(str(name), fasta.contigs, alias) for name in np.unique(examples.contig)}
        self.contigs = [names[str(name)] for name in examples.contig]
        """Names in the FASTA; None where it has none."""
        for name in sorted(name for name, found in names.items() if found is None):
            log.warning("contig %s is not in %s", name, fasta.path.name)
        if examples.contig.size and not any(names.values()):
            raise InputError(f"{fasta.path}: has none of the contigs {', '.join(sorted(names)[:5])}")

    def span(self, row: int, context: int | None = None) -> tuple[int, int]:
        """Return the window of a row, 0-based half-open; it may leave the contig."""
        length = context or self.context
        start, end = int(self.examples.start[row]), int(self.examples.end[row])
        low = start - length // 2 if self.examples.summit else start - (length - (end - start)) // 2
        return low, low + length

    def in_genome_order(self, rows: Iterable[int]) -> list[int]:
        """Sort rows by where their windows are, so that blocks of the genome are read once."""
        return sorted(map(int, rows), key=lambda row: (str(self.contigs[row]), *self.span(row), row))

    def _needed(self, row: int, context: int) -> tuple[int, int]:
        """Return what is read of the contig: more where ALT is shorter than REF."""
        low, high = self.span(row, context)
        if self.examples.alt is None:
            return low, high
        shorter = int(self.examples.end[row] - self.examples.start[row]) - len(self.examples.alt[row])
        return low, high + max(0, shorter)

    def keep(self, *, common: int | None = None, max_n: float = 1.0) -> Kept:
        """Find the rows that have a window, of length `common` too if that is given, REF as the FASTA has it.

        Parameters
        ----------
        max_n
            Largest share of N in a window.

        Raises
        ------
        AssemblyMismatchError
            If so many REF alleles differ that table and FASTA do not belong together.
        """
        longest = max(self.context, common or 0)
        reasons: Counter[str] = Counter()
        kept, checked, wrong = [], 0, []
        for row in self.in_genome_order(range(len(self.contigs))):
            contig = self.contigs[row]
            if contig is None:
                reasons["contig not in the FASTA"] += 1
                continue
            size = self.fasta.contigs[contig]
            spans = [self._needed(row, length) for length in {self.context, longest}]
            if any(low < 0 or high >= size for low, high in spans):
                reasons["window leaves the contig"] += 1
                continue
            if self.examples.ref is not None:
                checked += 1
                start = int(self.examples.start[row])
                ref = encode(str(self.examples.ref[row]))
                if not np.array_equal(self.fasta.fetch(contig, start, start + len(ref)), ref):
                    wrong.append(row)
                    reasons["REF differs from the FASTA"] += 1
                    continue
            if max_n < 1.0:
                low, high = self.span(row)
                if np.count_nonzero(self.fasta.fetch(contig, low, high) == N) > max_n * (high - low):
                    reasons["too many N"] += 1
                    continue
            kept.append(row)
        if wrong and len(wrong) > MISMATCHES * checked:
            raise AssemblyMismatchError(
                f"{self.fasta.path}: REF of {len(wrong)} of {checked} variants differs, first at "
                f"{self.examples.name_of(min(wrong))}; is it the table's assembly?"
            )
        return Kept(np.array(sorted(kept), dtype=np.int64), dict(reasons))

    def windows(self, row: int) -> npt.NDArray[np.uint8]:
        """Return (2, L) ids of ALT and REF, or (1, L) of an interval, on the row's strand."""
        contig = self.contigs[row]
        assert contig is not None
        low, high = self.span(row)
        bases = self.fasta.fetch(contig, low, self._needed(row, self.context)[1])
        found = [bases[: high - low]]
        if self.examples.alt is not None:
            at = int(self.examples.start[row]) - low
            after = at + int(self.examples.end[row] - self.examples.start[row])
            alt = encode(str(self.examples.alt[row]))
            found.insert(0, np.concatenate([bases[:at], alt, bases[after:]])[: high - low])
        if self.examples.reverse is not None and self.examples.reverse[row]:
            found = [reverse_complement(ids) for ids in found]
        return np.stack(found)

    def spans(self, row: int) -> list[tuple[tuple[int, int], ...]]:
        """Return what `score-vcf` pools of the windows of ALT and REF: the allele and its flanks, 0-based there.

        Raises
        ------
        ValueError
            If the row is no variant.
        """
        e = self.examples
        if e.alt is None:
            raise ValueError(f"row {row} is no variant")
        start = int(e.start[row])
        allele = Allele(start, "N", "N") if e.ref is None else trim(start, str(e.ref[row]), str(e.alt[row]))
        at = allele.start - self.span(row)[0]
        return [scored_spans(at, len(bases), self.context) for bases in (allele.alt, allele.ref)]

    def identity(self, row: int) -> tuple[object, ...]:
        """Return what tells the windows of a row from those of others."""
        e = self.examples
        change = None if e.alt is None else (int(e.start[row]), int(e.end[row]), str(e.alt[row]))
        reverse = bool(e.reverse[row]) if e.reverse is not None else False
        return self.contigs[row], *self.span(row), change, reverse

    def fingerprint(self, rows: npt.NDArray[np.int64]) -> str:
        """Digest the windows of some rows, in order."""
        digest = hashlib.sha256(self.fasta.fingerprint().encode())
        for row in rows:
            digest.update(repr(self.identity(int(row))).encode())
        return digest.hexdigest()


def gc_and_cpg(ids: IdArray) -> tuple[float, float]:
    """Return the share of G and C, and CpG over what it would be by chance."""
    known = np.count_nonzero((ids >= 7) & (ids <= 10)) or 1
    c, g = int(np.count_nonzero(ids == 8)), int(np.count_nonzero(ids == 9))
    cpg = int(np.count_nonzero((ids[:-1] == 8) & (ids[1:] == 9)))
    return (c + g) / known, cpg * known / (c * g) if c and g else 0.0
