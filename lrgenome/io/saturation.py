"""Saturation mutagenesis: every SNV of some regions as VCF records, made from the FASTA as they are asked for."""

import itertools
import os
from collections.abc import Iterable, Iterator

from lrgenome.dna import BASES, N, decode
from lrgenome.io.fasta import Fasta
from lrgenome.io.vcf import COLUMNS, VcfRecord

_BLOCK = 1 << 16


class SaturationSource:
    """Biallelic records of all SNVs, and if wanted all deletions of one base, of some regions.

    Records are sorted by contig (in the order of the FASTA), position and ALT; a deletion comes after the SNVs of
    its POS. A base that is not A, C, G or T in the FASTA has no records, and neither has a deletion whose anchor is
    such a base. What is deleted in a run of equal bases is one sequence, but each base of the run has its record.

    Parameters
    ----------
    fasta
        The reference, open as long as records are read.
    regions
        Contig, start and end, 0-based half-open, inside the FASTA, in any order; those that overlap or touch are
        joined.
    deletions
        Add the deletion of each base, anchored on the base before; of a contig's first base, on the base after.

    Attributes
    ----------
    name
        What messages call the input.
    meta, columns
        Header lines that start with ``##``; the ``#CHROM`` line.
    reference
        Path of the FASTA.
    regions : list of (str, int, int)
        The joined regions in order.
    bases, ambiguous : int
        Bases in them, in bp; how many of those are not A, C, G or T.
    """

    def __init__(self, fasta: Fasta, regions: Iterable[tuple[str, int, int]], deletions: bool = False) -> None:
        self.name = "--saturate"
        self._fasta, self._deletions = fasta, deletions
        self.reference = os.path.abspath(fasta.path)
        self.meta = ["##fileformat=VCFv4.2", f"##reference=file://{self.reference}"]
        self.meta += [f"##contig=<ID={name},length={length}>" for name, length in fasta.contigs.items()]
        self.columns = COLUMNS
        self.regions = _joined(regions, list(fasta.contigs))
        self.bases = sum(end - start for _, start, end in self.regions)
        self.ambiguous = sum(int((fasta.fetch(*block) == N).sum()) for block in self._blocks())

    def __enter__(self) -> "SaturationSource":
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: the FASTA is the caller's."""

    def records(self, skip: int = 0) -> Iterator[VcfRecord]:
        """Yield the records in order, from the first one anew at each call.

        Parameters
        ----------
        skip
            Number of records to leave out at the start; the others keep their numbers.
        """
        first_line = len(self.meta) + 2
        for number, (contig, pos, ref, alt) in enumerate(itertools.islice(self._alleles(), skip, None), skip):
            line = f"{contig}\t{pos + 1}\t.\t{ref}\t{alt}\t.\t.\t."
            yield VcfRecord(contig, pos, ".", ref, (alt,), line, number, first_line + number)

    def _blocks(self) -> Iterator[tuple[str, int, int]]:
        for contig, start, end in self.regions:
            for low in range(start, end, _BLOCK):
                yield contig, low, min(low + _BLOCK, end)

    def _alleles(self) -> Iterator[tuple[str, int, str, str]]:
        for contig, low, high in self._blocks():
            first = max(low - 1, 0)
            letters = decode(self._fasta.fetch(contig, first, min(high + 1, self._fasta.contigs[contig])))
            for offset in range(low - first, high - first):
                base, pos = letters[offset], first + offset
                if base == "N":
                    continue
                # The anchor's position is one less, so the deletion comes before the SNVs of the base.
                if self._deletions and pos and (anchor := letters[offset - 1]) != "N":
                    yield contig, pos - 1, anchor + base, anchor
                for alt in BASES:
                    if alt != base:
                        yield contig, pos, base, alt
                if self._deletions and not pos and (anchor := letters[1:2]) not in ("", "N"):
                    yield contig, pos, base + anchor, anchor


def changed_bases(pos: int, ref: str, alt: str) -> tuple[int, ...]:
    """Say which bases of the contig a record of `SaturationSource` changes.

    Parameters
    ----------
    pos
        0-based position of the record, in bp.
    ref, alt
        Its alleles.

    Returns
    -------
    tuple of int
        0-based positions. Only the deletion of one of the first two bases of a contig, where those are equal, has
        both: it is the same record.
    """
    if len(ref) == 1:
        return (pos,)
    return tuple(pos + i for i in (0, 1) if alt == ref[1 - i] and (i or not pos))


def _joined(regions: Iterable[tuple[str, int, int]], contigs: list[str]) -> list[tuple[str, int, int]]:
    order = {name: i for i, name in enumerate(contigs)}
    joined: list[tuple[str, int, int]] = []
    for contig, start, end in sorted(regions, key=lambda region: (order[region[0]], region[1], region[2])):
        if joined and joined[-1][0] == contig and start <= joined[-1][2]:
            joined[-1] = (contig, joined[-1][1], max(joined[-1][2], end))
        else:
            joined.append((contig, start, end))
    return joined
