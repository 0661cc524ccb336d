"""`lrgenome embed`: mean hidden states of bins or intervals of a genome.

A genome is cut into absolute cores of about ``context`` bp, a multiple of the bin size so that no bin straddles
two. Each core is run with a quarter of it as halo on both sides; each base takes its hidden state from its own
core. So a row depends on the genome and the settings only, never on the other rows.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lrgenome.config.head import HeadConfig
from lrgenome.dna import IdArray, N
from lrgenome.engine.runners import AnyRunner
from lrgenome.engine.windows import WindowRunner
from lrgenome.errors import BedError, NumericalError, UsageError
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.io.atomic import check_writable, partial_path
from lrgenome.io.bed import read_bed
from lrgenome.io.fasta import Fasta, format_region, read_alias_table, resolve_contig
from lrgenome.io.hdf5 import EmbeddingWriter, RowRange, expected_bytes
from lrgenome.models.checkpoint import LoadedModel
from lrgenome.tasks.progress import Progress
from lrgenome.tasks.readout import IntervalReadout
from lrgenome.tasks.score_vcf import measure_rate
from lrgenome.tasks.selection import Regions, parse_shard, read_regions, shard_range
from lrgenome.version import __version__

log = logging.getLogger(__name__)

STRANDS = {"forward": (FORWARD,), "reverse": (REVERSE,), "both": (FORWARD, REVERSE)}
_STRAND_MARK = {"forward": "+", "reverse": "-", "both": "."}
_GROUP_ROWS = 4_096
_GROUP_BYTES = 1 << 28


def core_length(given: int | None, head: HeadConfig | None) -> int:
    """Return the length of a core, bp: as given, else that of the windows of a head that is asked, else 100 kbp."""
    if given is not None:
        return given
    return EmbedSettings.context if head is None else head.context


@dataclass(frozen=True)
class EmbedSettings:
    """What decides the embedding of a row, and which rows there are."""

    context: int = 100_000
    """Length of a core, bp; rounded to a multiple of the bin size."""
    bin_size: int = 1_024
    """Length of a bin, bp."""
    layer: int | None = None
    """Block whose output is taken, 1-based; None is the last, after the final norm."""
    head: bool = False
    """Predictions of the model's fine-tuned head in place of hidden states."""
    pool: str = "mean"
    """mean over each row's bases, or none (intervals of one length)."""
    strand: str = "forward"
    """forward, reverse (of the reverse complement) or both (their mean)."""
    bed: Path | None = None
    """Intervals instead of bins."""
    given: bool = False
    """Rows are given as intervals, by a BED file or otherwise."""
    chrom_alias: str = "auto"
    regions: tuple[str, ...] = ()
    regions_file: Path | None = None
    shard: str | None = None

    def __post_init__(self) -> None:
        if self.strand not in STRANDS:
            raise UsageError(f"--strand: got {self.strand!r}, expected one of {', '.join(STRANDS)}")
        if self.pool not in ("mean", "none"):
            raise UsageError(f"--pool: got {self.pool!r}, expected mean or none")
        if self.bed is not None:
            object.__setattr__(self, "given", True)
        if self.head and self.pool != "mean":
            raise UsageError(f"--layer head: got --pool {self.pool}, expected mean")

    @property
    def core(self) -> int:
        """Length of a core, bp."""
        if self.given:
            return self.context
        return max(1, round(self.context / self.bin_size)) * self.bin_size

    @property
    def halo(self) -> int:
        """Bases run on each side of a core."""
        return self.context // 4


class Row(NamedTuple):
    """One row of the output."""

    contig: str
    start: int
    """0-based, bp."""
    end: int
    name: str


class RowSource(NamedTuple):
    """All rows, re-iterable, and what has to be known of them beforehand."""

    intervals: list[tuple[str, int, int]] | None
    """Spans of bins, each (contig, start, end) on the bin grid; None for a BED file."""
    bed: list[Row] | None
    total: int

    def fingerprint(self, low: int, high: int) -> str:
        """Tell the rows low .. high from others, so that only they continue a partial output, or join other shards."""
        digest = hashlib.sha256(repr(self.intervals if self.bed is None else self.bed).encode())
        return str(RowRange(low, high, self.total, digest.hexdigest()[:16]))

    def rows(self, bin_size: int, low: int, high: int) -> Iterator[Row]:
        """Yield rows low .. high."""
        if self.bed is not None:
            yield from self.bed[low:high]
            return
        assert self.intervals is not None
        number = 0
        for contig, start, end in self.intervals:
            count = -(-(end - start) // bin_size)
            first, last = max(0, low - number), min(count, high - number)
            for k in range(first, last):
                lo = start + k * bin_size
                yield Row(contig, lo, min(end, lo + bin_size), "")
            number += count


def find_rows(fasta: Fasta, settings: EmbedSettings, alias: dict[str, str] | str) -> RowSource:
    """Lay out the rows: bins of the whole input or of regions, or the intervals of a BED file."""
    regions = read_regions(list(settings.regions), settings.regions_file, fasta.contigs, alias)
    if settings.bed is not None:
        rows = [row for row in _bed_rows(fasta, settings, alias)
                if regions is None or regions.overlaps(row.contig, row.start, row.end)]  # fmt: skip
        if not rows:
            raise BedError(f"{settings.bed}: no interval to embed")
        return RowSource(None, rows, len(rows))
    if settings.pool == "none":
        raise UsageError("--pool none needs --bed with intervals of one length")
    size = settings.bin_size
    spans: list[tuple[str, int, int]] = []
    for contig, length in fasta.contigs.items():
        for start, end in _spans(contig, length, regions):
            # Whole bins of the absolute grid, however the region was cut.
            lo, hi = start // size * size, min(length, -(-end // size) * size)
            if spans and spans[-1][0] == contig and spans[-1][2] >= lo:
                spans[-1] = (contig, spans[-1][1], max(hi, spans[-1][2]))
            else:
                spans.append((contig, lo, hi))
    return RowSource(spans, None, sum(-(-(end - start) // size) for _, start, end in spans))


def _spans(contig: str, length: int, regions: Regions | None) -> list[tuple[int, int]]:
    return [(0, length)] if regions is None else regions.spans.get(contig, [])


def _bed_rows(fasta: Fasta, settings: EmbedSettings, alias: dict[str, str] | str) -> Iterator[Row]:
    assert settings.bed is not None
    length: int | None = None
    stranded = False
    for number, line in enumerate(read_bed(settings.bed), 1):
        if line.strand == "-" and settings.strand == "forward" and not stranded:
            stranded = True
            log.warning("%s, interval %d: column 6 says -, but rows are on the strand of --strand, which is forward",
                        settings.bed, number)  # fmt: skip
        contig = resolve_contig(line.chrom, fasta.contigs, alias)
        if contig is None:
            raise BedError(f"{settings.bed}, interval {number}: contig {line.chrom!r} is not in {fasta.path.name}")
        if line.end > fasta.contigs[contig]:
            raise BedError(
                f"{settings.bed}, interval {number}: got end {line.end}, expected at most {fasta.contigs[contig]}, "
                f"the length of {contig}"
            )
        if settings.pool == "none":
            length = length or line.end - line.start
            if line.end - line.start != length:
                raise BedError(
                    f"{settings.bed}, interval {number}: got {line.end - line.start} bp, expected {length} as before: "
                    "--pool none needs intervals of one length"
                )
        yield Row(contig, line.start, line.end, "" if line.name == "." else line.name)


class Embedder:
    """Computes rows core by core."""

    def __init__(
        self, fasta: Fasta, runner: AnyRunner, settings: EmbedSettings, readout: IntervalReadout | None = None
    ) -> None:
        self.fasta, self.runner, self.settings, self.readout = fasta, runner, settings, readout
        self.width = runner.model.hidden_width()

    def embed(self, rows: list[Row], progress: Progress | None = None) -> npt.NDArray[np.float64]:
        """Return (n, d) means of rows anywhere, or (n, L, d) states for ``pool none``, or predictions (n, m)."""
        if self.readout is not None:
            for row in rows:
                self.readout.check(row.end - row.start)
        flat = self.settings.pool == "none"
        length = rows[0].end - rows[0].start if rows else 0
        out = np.zeros((len(rows), length, self.width) if flat else (len(rows), self.width))
        core = self.settings.core
        by_core: dict[tuple[str, int], list[int]] = {}
        for i, row in enumerate(rows):
            for number in range(row.start // core, (row.end - 1) // core + 1):
                by_core.setdefault((row.contig, number), []).append(i)
        strands = STRANDS[self.settings.strand]
        for (contig, number), members in by_core.items():
            for strand in strands:
                self._run_core(contig, number, strand, rows, members, out, flat)
            if progress is not None:
                progress.update(min(core, self.fasta.contigs[contig] - number * core))
        out /= len(strands)
        if not flat:
            out /= np.array([row.end - row.start for row in rows], dtype=np.float64)[:, None]
        bad = ~np.isfinite(out.reshape(len(rows), -1)).all(axis=1)
        if bad.any():
            row = rows[int(np.flatnonzero(bad)[0])]
            raise NumericalError(
                f"the model gave hidden states that are not finite numbers at {format_region(*row[:3])}"
            )
        return out if self.readout is None else self.readout.read(out)

    def _run_core(
        self, contig: str, number: int, strand: int, rows: list[Row], members: list[int],
        out: npt.NDArray[np.float64], flat: bool,
    ) -> None:  # fmt: skip
        core, size = self.settings.core, self.fasta.contigs[contig]
        core_start, core_end = number * core, min(size, (number + 1) * core)
        start, end = max(0, core_start - self.settings.halo), min(size, core_end + self.settings.halo)
        ids = torch.from_numpy(self.fasta.fetch(contig, start, end))[None]
        waiting = sorted(members, key=lambda i: rows[i].start)
        for part in self.runner.stream(ids, strand=strand, layers=self.settings.layer):
            lo, hi = max(core_start, start + part.start), min(core_end, start + part.end)
            if lo >= hi:
                continue
            hidden = part.hidden[0]
            waiting = [i for i in waiting if rows[i].end > lo]
            for i in waiting:
                row = rows[i]
                a, b = max(lo, row.start), min(hi, row.end)
                if row.start >= hi:
                    break
                if a >= b:
                    continue
                states = hidden[a - start - part.start : b - start - part.start]
                if flat:
                    out[i, a - row.start : b - row.start] += states.double().cpu().numpy()
                else:
                    out[i] += states.double().sum(0).cpu().numpy()


def groups(rows: Iterator[Row], settings: EmbedSettings, width: int) -> Iterator[list[Row]]:
    """Group consecutive rows that are computed together: bins by core, intervals by number and bytes."""
    group: list[Row] = []
    for row in rows:
        per_row = width * 8 * (row.end - row.start if settings.pool == "none" else 1)
        full = len(group) >= max(1, min(_GROUP_ROWS, _GROUP_BYTES // per_row))
        new_core = not settings.given and group and (
            group[-1].contig != row.contig or group[-1].start // settings.core != row.start // settings.core
        )
        if full or new_core:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def run(
    fasta_path: Path,
    output: Path,
    loaded: LoadedModel,
    runner: AnyRunner,
    settings: EmbedSettings,
    *,
    dtype: str,
    compression: str,
    resume: bool,
    no_clobber: bool,
    no_version: bool,
    dry_run: bool,
) -> int:
    """Embed a genome into an HDF5 (or ``.h5ad``) file; returns the number of rows.

    Raises
    ------
    LrgenomeError
        As the readers, the model and the writer raise it.
    """
    if str(output) == "-":
        raise UsageError("-o: got -, expected a file: HDF5 cannot be written to standard output")
    if not dry_run:
        check_writable(output, no_clobber)
    depth = runner.model.config.layers
    if settings.layer is not None and not 1 <= settings.layer <= depth:
        raise UsageError(f"--layer: got {settings.layer}, expected 1 to {depth}")
    with ExitStack() as stack:
        fasta = stack.enter_context(Fasta(fasta_path))
        alias = settings.chrom_alias
        table = alias if alias in ("auto", "none") else read_alias_table(alias)
        source = find_rows(fasta, settings, table)
        low, high = shard_range(source.total, parse_shard(settings.shard))
        readout = IntervalReadout(loaded.head, settings.strand, loaded.model.strands) if settings.head else None
        total, width = high - low, runner.model.hidden_width() if readout is None else len(readout.columns)
        if total == 0:
            raise UsageError(f"--shard: got {settings.shard}, but there are only {source.total} rows")
        first = next(source.rows(settings.bin_size, low, high))
        length = first.end - first.start if settings.pool == "none" else None
        expected = expected_bytes(total, width, length, dtype)
        log.info("%d rows of %d values: about %.1f MB before compression", total, width, expected / 1e6)
        window = min(settings.core + 2 * settings.halo, max(fasta.contigs.values()))
        how = runner.plan(1, window)
        log.info("windows of %d bp: %.2f GB of memory, %.2f GB on disk", window, how.ram / 1e9, how.disk / 1e9)
        if dry_run:
            bases = _bases_to_run(fasta, source, settings, low, high, width)
            rate = measure_rate(runner, 1, window)
            print(f"rows\t{total}\nbytes\t{expected}\nbases_to_run\t{bases}\nexpected_seconds\t{bases / rate:.0f}")
            return total
        earlier = resume and partial_path(output).exists()
        names = max((len(r.name.encode()) for r in source.bed or ()), default=1) or 1
        writer = EmbeddingWriter(
            output, width=width, rows=total, length=length, dtype=dtype, compression=compression,
            attrs={
                **_attributes(loaded, runner, settings, fasta, no_version), "rows": source.fingerprint(low, high),
                **({} if readout is None else {"layer": "head", "outputs": "\t".join(readout.columns)}),
            },
            contigs=fasta.contigs, resume=resume,
            name_width=names,
        )  # fmt: skip
        if earlier and not writer.rows_done:
            log.info("nothing to resume: of the partial file no block of %d rows was whole", writer.block_rows)
        with writer:
            _write(writer, source, fasta, runner, settings, low, high, readout)
    return total


def _write(
    writer: EmbeddingWriter, source: RowSource, fasta: Fasta, runner: AnyRunner, settings: EmbedSettings,
    low: int, high: int, readout: IntervalReadout | None,
) -> None:  # fmt: skip
    done = writer.rows_done
    if done:
        log.info("resumed after %d of %d rows", done, high - low)
    embedder = Embedder(fasta, runner, settings, readout)
    bases = sum(row.end - row.start for row in source.rows(settings.bin_size, low + done, high))
    mark = _STRAND_MARK[settings.strand]
    with Progress("embed", bases, "bp", scale=True) as progress:
        rows = source.rows(settings.bin_size, low + done, high)
        for group in groups(rows, settings, embedder.width):
            values = embedder.embed(group)
            writer.append(
                values.astype(np.float32), [r.contig for r in group], [r.start for r in group],
                [r.end for r in group], [mark] * len(group), [r.name for r in group],
                [n_fraction(fasta.fetch(*r[:3])) for r in group],
            )  # fmt: skip
            progress.update(sum(r.end - r.start for r in group))


def n_fraction(ids: IdArray) -> float:
    """Return the share of N in a sequence."""
    return float(np.count_nonzero(ids == N)) / max(1, len(ids))


def _bases_to_run(
    fasta: Fasta, source: RowSource, settings: EmbedSettings, low: int, high: int, width: int
) -> int:
    total = 0
    for group in groups(source.rows(settings.bin_size, low, high), settings, width):
        cores = {(r.contig, k) for r in group
                 for k in range(r.start // settings.core, (r.end - 1) // settings.core + 1)}  # fmt: skip
        for contig, k in cores:
            size = fasta.contigs[contig]
            total += min(size, (k + 1) * settings.core + settings.halo) - max(0, k * settings.core - settings.halo)
    return total * len(STRANDS[settings.strand])


def _attributes(
    loaded: LoadedModel, runner: AnyRunner, settings: EmbedSettings, fasta: Fasta, no_version: bool
) -> dict[str, object]:
    attributes: dict[str, object] = {
        "model": loaded.name, "sha256": loaded.sha256, "layer": settings.layer or runner.model.config.layers,
        "final_norm": settings.layer is None or settings.layer == runner.model.config.layers,
        "pool": settings.pool, "bin_size": 0 if settings.given else settings.bin_size,
        "context": settings.context, "core": settings.core, "halo": settings.halo,
        "stride": 0 if settings.given else settings.bin_size, "strand": settings.strand,
        "reference": fasta.fingerprint(), "precision": str(runner.model.compute_dtype).removeprefix("torch."),
        "chunk": runner.chunk, "transfer": runner.transfer,
        **({"length_extension": runner.extension} if isinstance(runner, WindowRunner) else {}),
    }  # fmt: skip
    if not no_version:
        attributes["tool"] = f"lrgenome {__version__}"
    return attributes


__all__ = ["EmbedSettings", "Embedder", "Row", "find_rows", "groups", "run"]
