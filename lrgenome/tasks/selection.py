"""Which part of the input a run works on: regions and shards."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lrgenome.errors import BedError, UsageError
from lrgenome.io.bed import read_bed
from lrgenome.io.fasta import parse_region, resolve_contig

_SHARD = re.compile(r"^\s*(\d+)\s*(?:/|-of-)\s*(\d+)\s*$")


def parse_shard(text: str | None) -> tuple[int, int]:
    """Read ``1/4`` or ``1-of-4`` as (1, 4); None is (1, 1)."""
    if text is None:
        return 1, 1
    match = _SHARD.match(text)
    if match:
        part, parts = int(match.group(1)), int(match.group(2))
        if 1 <= part <= parts:
            return part, parts
    raise UsageError(f"--shard: got {text!r}, expected I/N or I-of-N with 1 <= I <= N")


def shard_range(total: int, shard: tuple[int, int], steps: Sequence[int] = ()) -> tuple[int, int]:
    """Return the half-open range of a shard: all shards together cover `total` once, in order.

    An end moves to the nearest of `steps` (rising) that is no further than half a shard away.
    """
    part, parts = shard

    def end(of: int) -> int:
        even = total * of // parts
        if of in (0, parts):
            return even
        at = bisect_right(steps, even)
        nearest = min(steps[max(0, at - 1) : at + 1], key=lambda step: abs(step - even), default=even)
        return nearest if 2 * abs(nearest - even) * parts < total else even

    return end(part - 1), end(part)


class Regions:
    """Intervals of a genome to which a run is confined."""

    def __init__(self, intervals: Iterable[tuple[str, int, int]]) -> None:
        merged: dict[str, list[tuple[int, int]]] = {}
        for contig, start, end in sorted(intervals):
            spans = merged.setdefault(contig, [])
            if spans and start <= spans[-1][1]:
                spans[-1] = (spans[-1][0], max(spans[-1][1], end))
            else:
                spans.append((start, end))
        self.spans = merged
        self._starts = {contig: [s for s, _ in spans] for contig, spans in merged.items()}

    def overlaps(self, contig: str, start: int, end: int) -> bool:
        """Tell whether [start, end) of the contig (0-based; an empty one counts as a base) overlaps any interval."""
        spans = self.spans.get(contig)
        if not spans:
            return False
        last = bisect_right(self._starts[contig], max(end, start + 1) - 1) - 1
        return last >= 0 and spans[last][1] > start


def parse_regions(
    regions: Iterable[str], contigs: Mapping[str, int], alias: Mapping[str, str] | str
) -> list[tuple[str, int, int]]:
    """Read regions such as ``20:1,000-2,000,21`` (1-based) as (contig of the FASTA, start, end), 0-based half-open."""
    return [
        parse_region(_resolved(part, contigs, alias), contigs) for text in regions for part in _split(text, contigs)
    ]


def read_regions(
    regions: list[str] | None, regions_file: Path | None, contigs: Mapping[str, int], alias: Mapping[str, str] | str
) -> Regions | None:
    """Read ``--regions`` and ``--regions-file`` together; None where neither was given."""
    if not regions and regions_file is None:
        return None
    intervals = parse_regions(regions or [], contigs, alias)
    if regions_file is not None:
        for line in read_bed(regions_file):
            contig = resolve_contig(line.chrom, contigs, alias)
            if contig is None:
                raise BedError(f"{regions_file}: contig {line.chrom!r} is not in the FASTA")
            if line.end > contigs[contig]:
                raise BedError(
                    f"{regions_file}: got {line.chrom}:{line.start}-{line.end}, expected an end of at most "
                    f"{contigs[contig]}, the length of {contig}"
                )
            intervals.append((contig, line.start, line.end))
    return Regions(intervals)


def _resolved(text: str, contigs: Mapping[str, int], alias: Mapping[str, str] | str) -> str:
    """Write a region with the FASTA's name of its contig, where that is found."""
    text = text.strip()
    name, colon, bounds = ("", "", "") if text in contigs else text.rpartition(":")
    for whole, rest in ((text, ""), (name, colon + bounds)):
        contig = resolve_contig(whole, contigs, alias)
        if contig is not None:
            return contig + rest
    return text


def _split(text: str, contigs: Mapping[str, int]) -> list[str]:
    """Split at commas that part regions: not at those inside numbers, nor in a contig's name."""
    if text in contigs:
        return [text]
    return [part for part in re.split(r",(?!\d{3}(?:\D|$))", text) if part]
