"""Score output that survives interruption: rows -> `ScoreJournal` (``NAME.partial``) -> `publish_scores`.

Whatever the final format, work in progress is one plain score table, so that a run can be resumed from any
point at which it was killed, and the output depends on the table's rows and on the input alone.
"""

import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pysam
import pysam.bcftools

from lrgenome.errors import OutputError, UsageError
from lrgenome.io.alleles import STATUSES
from lrgenome.io.atomic import os_error_as_output_error, partial_path, publish
from lrgenome.io.score_journal import ScoreJournal
from lrgenome.io.score_table import (
    KEY_COLUMNS,
    SCORE_COLUMNS,
    SCORES_VERSION,
    TOOL_PREFIX,
    VERSION_LINE,
    ScoreRow,
    format_rows,
    header_text,
    pair_rows,
    read_scores,
    row_keys,
)
from lrgenome.io.vcf import RecordSource, VcfRecord, missing_declarations, to_bytes, with_info

__all__ = [
    "KEY_COLUMNS",
    "SCORES_VERSION",
    "SCORE_COLUMNS",
    "SUFFIXES",
    "ScoreJournal",
    "ScoreRow",
    "check_score_suffix",
    "format_rows",
    "header_text",
    "publish_scores",
    "read_scores",
]

SUFFIXES = (".tsv", ".tsv.gz", ".vcf", ".vcf.gz", ".bcf")
"""The formats that scores are published in."""

_TOOL = TOOL_PREFIX.encode()
_LLR_FIELD = len(KEY_COLUMNS)
_TBI_LIMIT = 1 << 29
_INFO_LINES = (
    '##INFO=<ID=LRG_LLR,Number=A,Type=Float,Description="Log-likelihood ratio log p(ALT) - log p(REF), '
    'natural logarithm; negative: ALT is less likely">',
    '##INFO=<ID=LRG_STATUS,Number=A,Type=String,Description="Whether and how the allele was scored; values '
    f'joined by &, of {" ".join(STATUSES)}">',
)
_OURS = re.compile(r"##INFO=<ID=LRG_\w+[,>]|##lrgenome=")
_EXTRA_FIELD = len(KEY_COLUMNS) + len(SCORE_COLUMNS)
"""First of the columns of a fine-tuned head; STATUS is behind them."""


def check_score_suffix(path: str | Path, write_index: bool = False) -> str:
    """Give the format of an output, one of `SUFFIXES`; ``-`` (standard output) is ``.tsv``.

    Raises
    ------
    UsageError
        If the suffix is none of them, or if an index is wanted for a format that cannot have one.
    """
    name = os.fspath(path).lower()
    suffix = next((s for s in SUFFIXES if name.endswith(s)), ".tsv" if name == "-" else None)
    if suffix is None:
        raise UsageError(f"got output {os.fspath(path)!r}, expected a name ending in {', '.join(SUFFIXES)}")
    if write_index and suffix in (".tsv", ".vcf"):
        raise UsageError(f"got output {os.fspath(path)!r} to index, expected .tsv.gz, .vcf.gz or .bcf")
    return suffix


def publish_scores(
    journal_path: str | Path,
    output: str | Path,
    source: RecordSource,
    *,
    header: bool = True,
    no_version: bool = False,
    write_index: bool = False,
    records: Callable[[], Iterable[VcfRecord]] | None = None,
) -> None:
    """Turn a complete journal into the output, and remove it when that is whole.

    Parameters
    ----------
    journal_path
        A closed journal.
    output
        Final name, whose suffix gives the format; ``-`` is standard output (TSV).
    source
        The input that was scored.
    header
        Write a header; shards after the first go without. BCF always has one.
    no_version
        Name neither the tool's version nor the settings in the output of VCF, nor the version in TSV.
    write_index
        Write a tabix index (CSI for BCF and beyond 512 Mbp) beside the output.
    records
        Gives the records that were scored, where they are not all of `source`; may be called twice.

    Raises
    ------
    UsageError
        If the suffix is unknown.
    OutputError
        If the output cannot be written or indexed, or the journal is not that of the records.
    """
    journal = Path(journal_path)
    suffix = check_score_suffix(output, write_index)
    scored = records or source.records
    drop_tool = no_version and any(line.startswith(_TOOL) for line in _header(journal))
    if suffix.startswith(".tsv"):
        lines = _tsv_lines(journal, header, drop_tool)
    else:
        meta = _complete(source, scored()) if suffix == ".bcf" else source.meta
        head = _vcf_header(meta, source.columns, journal, no_version) if header or suffix == ".bcf" else []
        lines = itertools.chain(head, _vcf_lines(journal, iter(scored())))
    if os.fspath(output) == "-":
        with os_error_as_output_error("standard output"):
            sys.stdout.buffer.writelines(lines)
            sys.stdout.buffer.flush()
        journal.unlink()
        return
    output = Path(os.path.realpath(output))
    if suffix == ".tsv" and header and not drop_tool and journal.resolve().parent == output.parent:
        publish(journal, output)
        return
    order = _Order()
    staged = partial_path(output.with_name(output.name + ".publish"))
    try:
        with os_error_as_output_error(output):
            _WRITERS[suffix](order.watch(lines), staged)
        publish(staged, output)
    finally:
        staged.unlink(missing_ok=True)
    # An index of the file that was replaced would give wrong rows.
    with os_error_as_output_error(output):
        for kind in (".tbi", ".csi"):
            Path(f"{output}{kind}").unlink(missing_ok=True)
    try:
        if write_index:
            _index(output, suffix, order)
    finally:
        journal.unlink()


class _Order:
    """Notes, while lines pass, whether they can be indexed: each contig once, positions ascending."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self.largest = 0

    def watch(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        seen: set[bytes] = set()
        contig, last = b"", 0
        for line in lines:
            if not line.startswith(b"#"):
                name, text, _ = line.split(b"\t", 2)
                position, shown = int(text), name.decode("utf-8", "replace")
                if name == contig and position < last:
                    self.problem = self.problem or f"{shown}:{position} comes after {shown}:{last}"
                elif name != contig and name in seen:
                    self.problem = self.problem or f"{shown}:{position} comes after another contig"
                seen.add(name)
                contig, last = name, position
                self.largest = max(self.largest, position)
            yield line


def _header(journal: Path) -> Iterator[bytes]:
    with os_error_as_output_error(journal), open(journal, "rb") as lines:
        for line in lines:
            yield line
            if not line.startswith(b"##"):
                return


def _rows(journal: Path) -> Iterator[bytes]:
    with os_error_as_output_error(journal), open(journal, "rb") as lines:
        yield from (line for line in lines if not line.startswith(b"#"))


def _tsv_lines(journal: Path, header: bool, drop_tool: bool) -> Iterator[bytes]:
    if header:
        yield from (line for line in _header(journal) if not (drop_tool and line.startswith(_TOOL)))
    yield from _rows(journal)


def _vcf_header(meta: Iterable[str], columns: str, journal: Path, no_version: bool) -> Iterator[bytes]:
    lines = [line for line in meta if not _OURS.match(line)]
    lines += _INFO_LINES
    lines += [
        f'##INFO=<ID=LRG_{name},Number=A,Type=Float,Description="What the fine-tuned head predicts of the allele">'
        for name in _extra_columns(journal)
    ]
    if not no_version:
        settings = [line.decode("utf-8", "surrogateescape").rstrip("\n") for line in _header(journal)][:-1]
        settings.remove(VERSION_LINE)
        lines.append(
            "##lrgenome=" + ";".join(s.removeprefix(TOOL_PREFIX).removeprefix("##") for s in settings)
        )
    for line in (*lines, columns):
        yield to_bytes(line + "\n")


def _extra_columns(journal: Path) -> list[str]:
    """Return the names of the columns of a fine-tuned head."""
    return list(_header(journal))[-1].decode().rstrip("\n").split("\t")[_EXTRA_FIELD:-1]


def _vcf_lines(journal: Path, records: Iterator[VcfRecord]) -> Iterator[bytes]:
    width, extra = list(_header(journal))[-1].count(b"\t") + 1, _extra_columns(journal)
    for record, rows in pair_rows(_rows(journal), records, width, journal):
        cells = [row.decode("utf-8", "surrogateescape").rstrip("\n").split("\t") for row in rows]
        if len(cells) < len(row_keys(record)):
            raise OutputError(f"{journal}: got not all rows for line {record.line_number} of the input")
        entries = {
            "LRG_LLR": ",".join(row[_LLR_FIELD] for row in cells),
            **{f"LRG_{name}": ",".join(row[_EXTRA_FIELD + i] for row in cells) for i, name in enumerate(extra)},
            "LRG_STATUS": ",".join(row[-1] for row in cells),
        }
        yield to_bytes(with_info(record.line, entries) + "\n")
    if (left := next(records, None)) is not None:
        raise OutputError(f"{journal}: got no rows for line {left.line_number} of the input")


def _complete(source: RecordSource, records: Iterable[VcfRecord]) -> list[str]:
    """Give the header lines that BCF needs for these records."""

    def checked() -> Iterator[VcfRecord]:
        expected = source.columns.count("\t") + 1
        for record in records:
            # htslib would drop columns that the header does not name.
            if (columns := record.line.count("\t") + 1) != expected:
                raise OutputError(
                    f"line {record.line_number} of the input has {columns} columns, its header {expected}; "
                    "BCF cannot hold that, .vcf.gz can"
                )
            yield record

    version = (
        [] if any(line.startswith("##fileformat=") for line in source.meta) else ["##fileformat=VCFv4.2"]
    )
    return [*version, *source.meta, *missing_declarations(source.meta, checked())]


def _write_plain(lines: Iterable[bytes], path: Path) -> None:
    with open(path, "wb") as handle:
        handle.writelines(lines)


def _write_bgzf(lines: Iterable[bytes], path: Path) -> None:
    with pysam.BGZFile(str(path), "wb", None) as handle:
        for line in lines:
            handle.write(line)


def _write_bcf(lines: Iterable[bytes], path: Path) -> None:
    text = path.with_name(path.name + ".vcf")
    try:
        _write_plain(lines, text)
        # pysam's own writer would add an END to records with symbolic alleles.
        arguments = ("--no-version", "-Ob", "-o", os.path.abspath(path), os.path.abspath(text))
        pysam.bcftools.view(*arguments, catch_stdout=False)
    except pysam.SamtoolsError as error:
        raise OutputError(
            f"the scores cannot be written as BCF: {error}; .vcf.gz keeps the text of the input as it is"
        ) from error
    finally:
        text.unlink(missing_ok=True)


_WRITERS: dict[str, Callable[[Iterable[bytes], Path], None]] = {
    ".tsv": _write_plain,
    ".tsv.gz": _write_bgzf,
    ".vcf": _write_plain,
    ".vcf.gz": _write_bgzf,
    ".bcf": _write_bcf,
}

_PRESETS: dict[str, dict[str, Any]] = {
    ".tsv.gz": {"seq_col": 0, "start_col": 1, "end_col": 1, "meta_char": "#", "zerobased": False},
    ".vcf.gz": {"preset": "vcf"},
    ".bcf": {"preset": "bcf"},
}


def _index(output: Path, suffix: str, order: _Order) -> None:
    if order.problem:
        raise OutputError(
            f"{output} is whole, but cannot be indexed, as it is not sorted: {order.problem}; "
            "sort the input (bcftools sort) before scoring it"
        )
    csi = suffix == ".bcf" or order.largest > _TBI_LIMIT
    index = Path(f"{output}{'.csi' if csi else '.tbi'}")
    staged = partial_path(index)
    try:
        with os_error_as_output_error(index):
            pysam.tabix_index(str(output), force=True, index=str(staged), csi=csi, **_PRESETS[suffix])
        publish(staged, index)
    finally:
        staged.unlink(missing_ok=True)
