"""`lrgenome concat`: join files of embeddings that were made in parts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrgenome.errors import InputError, UsageError
from lrgenome.io.atomic import check_writable, same_file
from lrgenome.io.hdf5 import EmbeddingFile, EmbeddingWriter, RowRange, read_embeddings
from lrgenome.tasks.progress import Progress

log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 26
_OWN = ("format", "format_version", "coordinate_system", "complete", "rows")


@dataclass(frozen=True)
class _Part:
    """One of the files."""

    file: EmbeddingFile
    path: Path
    rows: RowRange

    @property
    def count(self) -> int:
        """Number of its rows."""
        return int(self.file.embeddings.shape[0])


def run(parts: Sequence[Path], output: Path, *, compression: str = "gzip", no_clobber: bool = False) -> int:
    """Join files of embeddings into one; returns the number of rows.

    Parameters
    ----------
    parts
        All shards of one run, in any order: the output is then that of the run without shards. Or runs on other
        regions each: bins come in the genome's order, intervals in the order of the files.
    output
        ``.h5``, or ``.h5ad`` by its suffix.
    compression
        As `io.hdf5.EmbeddingWriter` takes it.
    no_clobber
        Refuse to replace a file that is there.

    Raises
    ------
    InputError
        If a part cannot be read, is of other settings than the first, is missing, or has rows that another one has.
    UsageError
        If a part is given twice, or is the output.
    OutputError
        If the output cannot be written.
    """
    check_writable(output, no_clobber)
    for i, path in enumerate(parts):
        if any(same_file(path, other) for other in parts[:i]):
            raise UsageError(f"{path} is given twice")
        if same_file(path, output):
            raise UsageError(f"{output} is one of the parts, and would be replaced")
    with ExitStack() as stack:
        opened = [_open(path, stack) for path in parts]
        for part in opened[1:]:
            _compare(opened[0], part)
        ordered, rows = _order(opened)
        first = ordered[0].file
        shape = first.embeddings.shape
        attributes = {name: value for name, value in first.attrs.items() if name not in _OWN}
        writer = EmbeddingWriter(
            output, width=shape[-1], rows=rows.total, length=shape[1] if len(shape) == 3 else None,
            dtype=str(first.embeddings.dtype), compression=compression, attrs={**attributes, "rows": str(rows)},
            contigs=first.contigs, name_width=max(part.file.name_width for part in ordered),
        )  # fmt: skip
        with writer, Progress("concat", rows.total, "rows") as progress:
            for part in ordered:
                for block in _blocks(part):
                    writer.append(*block)
                    progress.update(len(block[0]))
    log.info("%d rows of %d files", rows.total, len(parts))
    return rows.total


def _open(path: Path, stack: ExitStack) -> _Part:
    if path.suffix == ".h5ad":
        raise InputError(f"{path}: got AnnData, expected .h5 parts; the joined file may be .h5ad")
    file = stack.enter_context(read_embeddings(path))
    try:
        rows = RowRange.parse(str(file.attrs.get("rows", "")))
        if rows.high - rows.low != file.embeddings.shape[0]:
            raise ValueError(f"got {file.embeddings.shape[0]} rows, expected those of {rows}")
    except ValueError as error:
        raise InputError(f"{path}: attribute rows: {error}") from error
    return _Part(file, path, rows)


def _compare(first: _Part, other: _Part) -> None:
    """Refuse a part of other settings than the first one's."""
    ours, theirs = first.file, other.file
    pairs: list[tuple[str, Any, Any]] = [
        (name, ours.attrs.get(name), theirs.attrs.get(name))
        for name in sorted({*ours.attrs, *theirs.attrs} - set(_OWN))
    ]
    pairs.append(("shape of a row", ours.embeddings.shape[1:], theirs.embeddings.shape[1:]))
    pairs.append(("dtype", ours.embeddings.dtype, theirs.embeddings.dtype))
    for what, expected, got in pairs:
        if got != expected:
            raise InputError(f"{other.path}: its {what} is {got!r}, expected {expected!r} as in {first.path}")
    if ours.contigs != theirs.contigs:
        raise InputError(f"{other.path}: its contigs are not those of {first.path}")


def _order(parts: list[_Part]) -> tuple[list[_Part], RowRange]:
    """Return the parts in the order of their rows, and what rows they are together."""
    if len({(part.rows.total, part.rows.digest) for part in parts}) == 1:
        return _order_shards(parts)
    for part in parts:
        if part.rows.high - part.rows.low != part.rows.total:
            raise InputError(
                f"{part.path}: has rows {part.rows.low}-{part.rows.high} of {part.rows.total} of a run that "
                f"{next(other.path for other in parts if other.rows.digest != part.rows.digest)} is not of; expected "
                "the shards of one run, or whole runs on other regions"
            )
    total = sum(part.count for part in parts)
    bins = bool(parts[0].file.attrs["bin_size"])
    if not bins:
        digest = hashlib.sha256(" ".join(part.rows.digest for part in parts).encode())
        return parts, RowRange(0, total, total, digest.hexdigest()[:16])
    place = {contig: number for number, contig in enumerate(parts[0].file.contigs)}
    spans = {part.path: _spans(part) for part in parts}
    ordered = sorted(parts, key=lambda part: (place[spans[part.path][0][0]], spans[part.path][0][1]))
    joined: list[tuple[str, int, int]] = []
    for part in ordered:
        for contig, start, end in spans[part.path]:
            if joined and (place[contig], start) < (place[joined[-1][0]], joined[-1][2]):
                raise InputError(
                    f"{part.path}: {contig}:{start + 1:,}-{end:,} is in another part too, or not in the genome's order"
                )
            joined = _extended(joined, (contig, start, end))
    # As a run on all of it would have it.
    digest = hashlib.sha256(repr(joined).encode())
    return ordered, RowRange(0, total, total, digest.hexdigest()[:16])


def _order_shards(parts: list[_Part]) -> tuple[list[_Part], RowRange]:
    ordered = sorted(parts, key=lambda part: part.rows)
    total, known = ordered[0].rows.total, 0
    for part in [*ordered, None]:
        low = total if part is None else part.rows.low
        if low > known:
            raise InputError(f"rows {known}-{low} of {total} are in none of the parts: a shard is missing")
        if part is not None and low < known:
            raise InputError(f"{part.path}: has rows {low}-{part.rows.high}, which another part has too")
        known = known if part is None else part.rows.high
    return ordered, ordered[0].rows._replace(low=0, high=total)


def _spans(part: _Part) -> list[tuple[str, int, int]]:
    """Return where the bins of a part lie, (contig, start, end) in their order."""
    spans: list[tuple[str, int, int]] = []
    step = 1 << 16
    for low in range(0, part.count, step):
        chrom = part.file.chrom[low : low + step]
        start, end = part.file.start[low : low + step], part.file.end[low : low + step]
        cuts = 1 + np.flatnonzero((chrom[1:] != chrom[:-1]) | (start[1:] != end[:-1]))
        for a, b in zip([0, *cuts], [*cuts, len(chrom)], strict=True):
            spans = _extended(spans, (str(chrom[a]), int(start[a]), int(end[b - 1])))
    return spans


def _extended(spans: list[tuple[str, int, int]], last: tuple[str, int, int]) -> list[tuple[str, int, int]]:
    """Add a span; one that goes on from the last is joined to it."""
    contig, start, end = last
    if spans and spans[-1][0] == contig and spans[-1][2] == start:
        spans[-1] = (contig, spans[-1][1], end)
    else:
        spans.append(last)
    return spans


def _blocks(part: _Part) -> Iterator[tuple[Any, ...]]:
    """Yield what `EmbeddingWriter.append` takes."""
    file = part.file
    row = int(np.prod(file.embeddings.shape[1:])) * file.embeddings.dtype.itemsize
    step = max(1, _BLOCK_BYTES // row)
    for low in range(0, part.count, step):
        rows = slice(low, low + step)
        try:
            block = (
                file.embeddings[rows], list(file.chrom[rows]), file.start[rows], file.end[rows],
                list(file.strand[rows]), list(file.name[rows]), file.n_frac[rows],
            )  # fmt: skip
        except (OSError, RuntimeError) as error:
            raise InputError(f"{part.path}: rows from {low} on cannot be read ({error})") from error
        yield block
