"""The manifest of data: which files there are and where they come from, and which genomes to train on.

A tab-separated file with a header line, one line a data set. Blank lines and lines that begin with ``#`` are ignored,
and so are columns that are not known. A cell that is empty or ``.`` says nothing.

To train, it needs the columns ``path weight name holdout validation``:

* ``path``: file, absolute or relative to the manifest's folder;
* ``weight``: positive number, how often windows are drawn from this genome relative to the others; ``.``: never;
* ``name``: unique label;
* ``holdout``, ``validation``: regions separated by ``;``, each ``contig:start-end`` (1-based inclusive) or a
  whole ``contig``.

To list, fetch and verify files it needs ``path name kind`` and may have ``url`` (http, https or ftp), ``sha256`` and
``bytes`` (of the file that the address gives), ``species``, ``assembly``, ``licence`` and ``source``. ``kind`` is
``genome`` or any other word; only genomes are trained on.
"""

import contextlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lrgenome.errors import ManifestError, UsageError
from lrgenome.io.fasta import format_region, parse_region

COLUMNS = ("path", "weight", "name", "holdout", "validation")
DATA_COLUMNS = ("path", "name", "kind")

_SCHEMES = ("https://", "http://", "ftp://")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")

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

    place: str = field(default="", compare=False)
    """Manifest and line, for messages."""


@dataclass(frozen=True)
class DataSet:
    """One file of a manifest, and where it comes from."""

    name: str
    """Label, unique in the manifest."""
    kind: str
    """``genome`` or another word."""
    path: Path
    """Where it is kept, joined to the manifest's folder if it was relative."""
    url: str | None = None
    """Where it can be had."""
    sha256: str | None = None
    """Of the file that the address gives, hex."""
    bytes: int | None = None
    """Size of the file that the address gives."""
    species: str = ""
    assembly: str = ""
    licence: str = ""
    source: str = ""
    """Who it is from, in words."""


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
    entries: list[ManifestEntry] = []
    names: set[str] = set()
    paths: dict[str, str] = {}
    for place, row in _rows(Path(path), COLUMNS):
        with _errors_at(place):
            if row["weight"] == "." or row.get("kind", "genome") not in ("genome", "", "."):
                continue
            entry = _parse_entry(row, Path(path).parent, place)
            _check_unique(entry, names, paths)
            if check_files and not entry.path.is_file():
                raise ManifestError(f"there is no FASTA file {entry.path}")
        entries.append(entry)
    if not entries:
        raise ManifestError(
            f"{path}: got no genome, expected a header line ({' '.join(COLUMNS)}) and one line a FASTA"
        )
    return entries


def read_data_sets(path: str | os.PathLike[str]) -> list[DataSet]:
    """Read the files of a manifest, trained on or not, there or not.

    Raises
    ------
    ManifestError
        If the manifest cannot be read, a column is missing, a line is malformed, or a name or path occurs twice; with
        the 1-based line number.
    """
    found: list[DataSet] = []
    names: dict[str, str] = {}
    paths: dict[str, str] = {}
    for place, row in _rows(Path(path), DATA_COLUMNS):
        with _errors_at(place):
            one = _parse_data_set(row, Path(path).parent)
            real = os.path.realpath(one.path)
            other = names.get(one.name) or paths.get(real)
            if other is not None:
                raise ManifestError(f"{one.name!r} has the name or path of {other!r}")
            names[one.name] = paths[real] = one.name
        found.append(one)
    if not found:
        raise ManifestError(f"{path}: got no data set, expected a header line and one line a file")
    return found


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (place, cells by column) of the lines below the header."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path}: got bytes that are not text ({error.reason}), expected a TSV file"
        ) from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror or error}") from error
    header: list[str] | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields, place = [field.strip() for field in line.split("\t")], f"{path}, line {number}"
        with _errors_at(place):
            if "\0" in line:
                raise ManifestError("got a NUL byte, expected text")
            if header is None:
                header = _check_header(fields, columns)
                continue
            if len(fields) != len(header):
                raise ManifestError(
                    f"got {len(fields)} tab-separated columns, expected {len(header)} as in the header"
                )
        yield place, dict(zip(header, fields, strict=True))


@contextlib.contextmanager
def _errors_at(place: str) -> Iterator[None]:
    try:
        yield
    except ManifestError as error:
        raise ManifestError(f"{place}: {error}") from None


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
    who = f"{entry.place}: genome {entry.name!r}" if entry.place else f"genome {entry.name!r}"
    parsed: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for kind, regions in (("holdout", entry.holdout), ("validation", entry.validation)):
        by_contig: dict[str, list[tuple[int, int]]] = {}
        for region in regions:
            try:
                contig, start, end = parse_region(region, contigs)
            except UsageError as error:
                raise ManifestError(f"{who}, column {kind}: {error}") from None
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
                        f"{who}: validation and holdout overlap at "
                        f"{format_region(contig, max(start, held_start), min(end, held_end))}"
                    )
        splits.holdout.extend((contig, start, end) for start, end in holdout)
        splits.validation.extend((contig, start, end) for start, end in validation)
        splits.train.extend(
            (contig, start, end) for start, end in _gaps(_merge(holdout + validation), length)
        )
    return splits


def _check_header(fields: list[str], columns: tuple[str, ...]) -> list[str]:
    missing = [column for column in columns if column not in fields]
    if missing:
        raise ManifestError(
            f"got the header {fields}, expected it to have {', '.join(missing)} (tab-separated)"
        )
    repeated = sorted(name for name, count in Counter(fields).items() if count > 1)
    if repeated:
        raise ManifestError(f"the header has {', '.join(repeated)} more than once")
    return fields


def _parse_data_set(row: dict[str, str], folder: Path) -> DataSet:
    said = {column: "" if cell == "." else cell for column, cell in row.items()}
    for column in DATA_COLUMNS:
        if not said[column]:
            raise ManifestError(f"got an empty {column}")
    url, digest, size = (said.get(column, "") for column in ("url", "sha256", "bytes"))
    if url and not url.startswith(_SCHEMES):
        raise ManifestError(f"got the url {url!r}, expected one of {', '.join(_SCHEMES)}")
    if digest and not _SHA256.fullmatch(digest):
        raise ManifestError(f"got the sha256 {digest!r}, expected 64 hexadecimal digits")
    if size and not (size.isascii() and size.isdigit()):
        raise ManifestError(f"got {size!r} bytes, expected a whole number")
    words = {column: said.get(column, "") for column in ("species", "assembly", "licence", "source")}
    return DataSet(
        said["name"], said["kind"], folder / said["path"], url or None, digest.lower() or None,
        int(size) if size else None, **words,
    )  # fmt: skip


def _parse_entry(row: dict[str, str], folder: Path, place: str) -> ManifestEntry:
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
        place,
    )


def _split_regions(text: str) -> tuple[str, ...]:
    regions = (region.strip() for region in text.split(";"))
    return tuple(region for region in regions if region not in ("", "."))


def _check_unique(entry: ManifestEntry, names: set[str], paths: dict[str, str]) -> None:
    """See that neither name nor file of an entry is among those before it, to which they are added."""
    if entry.name in names:
        raise ManifestError(f"the name {entry.name!r} occurs twice")
    names.add(entry.name)
    # Two lines with different holdouts would train on what the other one holds out.
    other = paths.setdefault(os.path.realpath(entry.path), entry.name)
    if other != entry.name:
        raise ManifestError(f"{entry.path} is in the manifest twice, as {other!r} and {entry.name!r}")


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
