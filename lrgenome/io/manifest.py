"""The training manifest: which genomes to train on, how often, and which regions never to.

A tab-separated file with a header line and at least the columns ``path weight name holdout validation``:

* ``path``: FASTA, absolute or relative to the manifest's folder;
* ``weight``: positive number, how often windows are drawn from this genome relative to the others;
* ``name``: unique label of the genome;
* ``holdout``, ``validation``: regions separated by ``;``, each ``contig:start-end`` (1-based inclusive) or a
  whole ``contig``; empty or ``.`` for none.

Further columns are ignored, and so are blank lines and lines that begin with ``#``.
"""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lrgenome.errors import ManifestError, UsageError
from lrgenome.io.fasta import format_region, parse_region

COLUMNS = ("path", "weight", "name", "holdout", "validation")

Interval = tuple[str, int, int]
"""Contig, start, end; 0-based half-open, in bp."""


@dataclass(frozen=True)
class ManifestEntry:
    """One genome of a training manifest."""

    path: Path
    """FASTA, joined to the manifest's folder if it was relative."""

    weight: float
    """Sampling weight, positive and finite; weights need not sum to 1."""

    name: str
    """Label, unique in the manifest."""

    holdout: tuple[str, ...] = ()
    """Test regions as written, 1-based inclusive."""

    validation: tuple[str, ...] = ()
    """Validation regions as written, 1-based inclusive."""


class Splits(NamedTuple):
    """Disjoint parts of a genome that together cover it, each in contig and then position order.

    Attributes
    ----------
    train, validation, holdout : list of (contig, start, end)
        0-based half-open, in bp.
    """

    train: list[Interval]
    validation: list[Interval]
    holdout: list[Interval]


def read_manifest(path: str | os.PathLike[str], check_files: bool = True) -> list[ManifestEntry]:
    """Read a training manifest.

    Parameters
    ----------
    path
        The TSV file.
    check_files
        Whether every FASTA must be there.

    Returns
    -------
    list of ManifestEntry
        In file order, never empty.

    Raises
    ------
    ManifestError
        If the file cannot be read, a column is missing, a line is malformed, a name or path occurs twice, or
        a FASTA is not there; with the 1-based line number.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path}: got bytes that are not text ({error.reason}), expected a TSV file"
        ) from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror or error}") from error
    header: list[str] | None = None
    entries: list[ManifestEntry] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("\t")]
        try:
            if header is None:
                header = _check_header(fields)
                continue
            if len(fields) != len(header):
                raise ManifestError(
                    f"got {len(fields)} tab-separated columns, expected {len(header)} as in the header"
                )
            entry = _parse_entry(dict(zip(header, fields, strict=True)), path.parent)
            _check_unique(entry, entries)
            if check_files and not entry.path.is_file():
                raise ManifestError(f"there is no FASTA file {entry.path}")
        except ManifestError as error:
            raise ManifestError(f"{path}, line {number}: {error}") from None
        entries.append(entry)
    if not entries:
        raise ManifestError(
            f"{path}: got no genome, expected a header line ({' '.join(COLUMNS)}) and one line a FASTA"
        )
    return entries


def split_intervals(entry: ManifestEntry, contigs: Mapping[str, int]) -> Splits:
    """Divide a genome into what is trained on, validated on and held out.

    Regions of one kind may overlap or touch and are merged. Everything in neither kind is for training.

    Parameters
    ----------
    entry
        A genome of the manifest.
    contigs
        Contig name to length in bp, in file order.

    Returns
    -------
    Splits
        0-based half-open intervals.

    Raises
    ------
    ManifestError
        If a region is malformed, names an unknown contig, reaches beyond its contig, or if a validation
        region overlaps a held-out one.
    """
    parsed: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for kind, regions in (("holdout", entry.holdout), ("validation", entry.validation)):
        by_contig: dict[str, list[tuple[int, int]]] = {}
        for region in regions:
            try:
                contig, start, end = parse_region(region, contigs)
            except UsageError as error:
                raise ManifestError(f"genome {entry.name!r}, column {kind}: {error}") from None
            by_contig.setdefault(contig, []).append((start, end))
        parsed[kind] = {contig: _merge(spans) for contig, spans in by_contig.items()}
    splits = Splits([], [], [])
    for contig, length in contigs.items():
        holdout = parsed["holdout"].get(contig, [])
        validation = parsed["validation"].get(contig, [])
        for start, end in validation:
            for held_start, held_end in holdout:
                if start < held_end and held_start < end:
                    raise ManifestError(
                        f"genome {entry.name!r}: validation and holdout overlap at "
                        f"{format_region(contig, max(start, held_start), min(end, held_end))}"
                    )
        splits.holdout.extend((contig, start, end) for start, end in holdout)
        splits.validation.extend((contig, start, end) for start, end in validation)
        splits.train.extend(
            (contig, start, end) for start, end in _gaps(_merge(holdout + validation), length)
        )
    return splits


def _check_header(fields: list[str]) -> list[str]:
    missing = [column for column in COLUMNS if column not in fields]
    if missing:
        raise ManifestError(
            f"got the header {fields}, expected it to have {', '.join(missing)} (tab-separated)"
        )
    repeated = sorted({field for field in fields if field in COLUMNS and fields.count(field) > 1})
    if repeated:
        raise ManifestError(f"the header has {', '.join(repeated)} more than once")
    return fields


def _parse_entry(row: dict[str, str], folder: Path) -> ManifestEntry:
    for column in ("path", "name"):
        if row[column] in ("", "."):
            raise ManifestError(f"got an empty {column}")
    try:
        weight = float(row["weight"])
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise ManifestError(f"got weight {row['weight']!r}, expected a positive number")
    return ManifestEntry(
        folder / row["path"],
        weight,
        row["name"],
        _split_regions(row["holdout"]),
        _split_regions(row["validation"]),
    )


def _split_regions(text: str) -> tuple[str, ...]:
    regions = (region.strip() for region in text.split(";"))
    return tuple(region for region in regions if region not in ("", "."))


def _check_unique(entry: ManifestEntry, earlier: Iterable[ManifestEntry]) -> None:
    for other in earlier:
        if other.name == entry.name:
            raise ManifestError(f"the name {entry.name!r} occurs twice")
        # Two lines with different holdouts would train on what the other one holds out.
        if os.path.realpath(other.path) == os.path.realpath(entry.path):
            raise ManifestError(
                f"{entry.path} is in the manifest twice, as {other.name!r} and {entry.name!r}"
            )


def _merge(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _gaps(spans: Iterable[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    gaps = []
    position = 0
    for start, end in spans:
        if start > position:
            gaps.append((position, start))
        position = end
    if position < length:
        gaps.append((position, length))
    return gaps
