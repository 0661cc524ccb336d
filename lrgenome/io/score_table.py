"""The score table, a TSV: its rows, header and reader.

``##`` lines (schema version first), a column line, one row an ALT allele: `KEY_COLUMNS` as in the VCF (POS is
1-based), `SCORE_COLUMNS`, the extra columns of a tuned head, STATUS. A missing value is ``.``.
"""

import gzip
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lrgenome.errors import InputError, OutputError
from lrgenome.io.vcf import VcfRecord, to_bytes
from lrgenome.version import __version__

SCORES_VERSION = 1
"""Version of the TSV schema."""

KEY_COLUMNS = ("CHROM", "POS", "ID", "REF", "ALT")
SCORE_COLUMNS = ("LLR", "DIST_COS", "DIST_L2", "PLL_DIFF", "ERR_EST")

VERSION_LINE = f"##lrgenome-scores-version={SCORES_VERSION}"
TOOL_PREFIX = "##tool="


class ScoreRow(NamedTuple):
    """Scores of one ALT allele.

    Attributes
    ----------
    llr, dist_cos, dist_l2, pll_diff, err_est
        Columns of the same names; None or NaN where there is no score.
    status
        Values of `lrgenome.io.alleles.STATUSES`.
    extra
        Values of the extra columns.
    """

    llr: float | None
    dist_cos: float | None
    dist_l2: float | None
    pll_diff: float | None
    err_est: float | None
    status: tuple[str, ...]
    extra: tuple[float | str | None, ...] = ()


def header_text(
    metadata: Mapping[str, object], extra_columns: Sequence[str] = (), no_version: bool = False
) -> str:
    """Write the ``##`` lines and the column line of a score table.

    Parameters
    ----------
    metadata
        Settings that the scores depend on; a journal is resumed only if they are the same.
    extra_columns
        Names of columns between ERR_EST and STATUS.
    no_version
        Leave out the version of the tool.
    """
    lines = [VERSION_LINE]
    if not no_version:
        lines.append(f"{TOOL_PREFIX}lrgenome {__version__}")
    lines += [f"##{key}={' '.join(str(value).split())}" for key, value in metadata.items()]
    lines.append("#" + "\t".join((*KEY_COLUMNS, *SCORE_COLUMNS, *extra_columns, "STATUS")))
    return "\n".join(lines) + "\n"


def format_rows(record: VcfRecord, rows: Sequence[ScoreRow]) -> str:
    """Write the rows of one record, one an ALT allele; a record whose ALT is ``.`` has one row.

    Raises
    ------
    ValueError
        If there are more or fewer rows than that.
    """
    keys = row_keys(record)
    if len(keys) != len(rows):
        raise ValueError(f"got {len(rows)} rows for record {record.number}, expected {len(keys)}")
    return "".join(
        "\t".join((*key, *map(_cell, row[:5]), *map(_cell, row.extra), "&".join(row.status))) + "\n"
        for key, row in zip(keys, rows, strict=True)
    )


def row_keys(record: VcfRecord) -> list[tuple[str, ...]]:
    """Give the `KEY_COLUMNS` of each row of a record."""
    position = str(record.pos + 1)
    return [(record.chrom, position, record.id, record.ref, alt or ".") for alt in record.alts or "."]


def pair_rows(
    lines: Iterable[bytes], records: Iterator[VcfRecord], width: int, name: str | Path
) -> Iterator[tuple[VcfRecord, list[bytes]]]:
    """Yield each record with its raw rows, until the rows end; the last record may lack some.

    Parameters
    ----------
    lines
        Rows of a table, without its header.
    records
        The records that they must belong to; none is taken beyond the last row's.
    width
        Number of columns.
    name
        What messages call the table.

    Raises
    ------
    OutputError
        At the first row that is not the record's, or when there are more rows than records have.
    """
    rows = iter(lines)
    row = next(rows, None)
    while row is not None:
        record = next(records, None)
        if record is None:
            raise OutputError(f"{name}: got more rows than the input has; was it made from another input?")
        found = []
        for key in row_keys(record):
            if row is None:
                break
            cells = row.rstrip(b"\n").split(b"\t")
            if cells[: len(key)] != [to_bytes(cell) for cell in key] or len(cells) != width:
                got = row[:80].decode("utf-8", "replace").rstrip("\n")
                raise OutputError(
                    f"{name}: got row {got!r}, expected {width} columns that begin with {key} "
                    f"(line {record.line_number} of the input); was it made from another input?"
                )
            found.append(row)
            row = next(rows, None)
        yield record, found


def read_scores(path: str | Path) -> Iterator[dict[str, object]]:
    """Read a score table, plain or gzipped, row by row.

    Yields
    ------
    dict
        By column name: POS a 1-based int, STATUS a tuple of str, CHROM, ID, REF and ALT str; all others float
        (None for ``.``), or str where not a number.

    Raises
    ------
    InputError
        If the file is damaged or is no score table of this version.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
        with (gzip.open if gzipped else open)(path, "rb") as handle:
            columns: list[str] = []
            for number, line in enumerate(handle, 1):
                text = line.decode("utf-8", "surrogateescape").rstrip("\n")
                if number == 1 and text != VERSION_LINE:
                    raise InputError(f"{name}: got {text[:80]!r} as first line, expected {VERSION_LINE!r}")
                if text.startswith("#CHROM"):
                    columns = text[1:].split("\t")
                elif not text.startswith("##"):
                    cells = text.split("\t")
                    if len(cells) != len(columns) or not line.endswith(b"\n"):
                        got = f"{len(cells)} columns" if line.endswith(b"\n") else "no line end"
                        raise InputError(f"{name}, line {number}: got {got}, expected {len(columns)} columns")
                    yield {c: _value(c, cell) for c, cell in zip(columns, cells, strict=True)}
        if not columns:
            raise InputError(f"{name}: got no column line, expected one that starts with #CHROM")
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{name}: cannot be read as a score table: {error}") from error


def _cell(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "."
    # Adding zero turns -0.0 into 0.0.
    return "." if math.isnan(value) else f"{value + 0.0:.6g}"


def _value(column: str, cell: str) -> object:
    if column == "POS":
        return int(cell)
    if column == "STATUS":
        return tuple(cell.split("&"))
    if column in KEY_COLUMNS:
        return cell
    if cell == ".":
        return None
    try:
        return float(cell)
    except ValueError:
        return cell
