"""Reads a user's own table of labelled variants or intervals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lrgenome.config.head import KINDS
from lrgenome.errors import InputError, UsageError
from lrgenome.io.examples import Columns, Examples, need_columns, number_of, read_rows, whole_of

_ALIASES = {
    "chrom": ("CHROM", "chrom", "chromosome", "contig", "chr", "seqnames"),
    "pos": ("POS", "pos", "position"),
    "start": ("START", "start", "chromStart"),
    "end": ("END", "end", "STOP", "stop", "chromEnd"),
    "ref": ("REF", "ref"),
    "alt": ("ALT", "alt"),
    "strand": ("STRAND", "strand"),
    "split": ("split", "SPLIT"),
}
_STRANDS = {"+": False, "1": False, "+1": False, ".": False, "": False, "-": True, "-1": True}
_SEQUENCE = re.compile(r"[ACGTN]+", re.IGNORECASE)
_SPLITS = {"": "", ".": "", "train": "train", "validation": "validation", "valid": "validation", "val": "validation",
           "dev": "validation", "test": "test"}  # fmt: skip


def read_table(
    path: Path,
    labels: Sequence[str],
    *,
    tissue: str | None = None,
    distance: str | None = None,
    group: str | None = None,
    kind: str | None = None,
) -> Examples:
    """Read labelled variants (``CHROM POS REF ALT``, 1-based) or intervals (``CHROM START END``, 0-based half-open).

    Other spellings of these names are known; ``STRAND`` and ``split`` (train, validation, test) are used where they
    are there. Variants of a VCF make such a table with ``bcftools query -H``.

    Parameters
    ----------
    labels
        Columns of labels: numbers; an empty cell, ``.`` and ``NA`` are missing.
    tissue, distance, group
        Columns of tissues (words), of distances to the nearest transcription start (bp), and of what metrics are also
        taken within.
    kind
        One of `config.head.KINDS`; default by the labels: all 0 or 1, and how many there are.

    Raises
    ------
    InputError
        If the table cannot be read; it names the line and what was expected.
    """
    if not labels:
        raise UsageError("--label: got none, expected the names of columns of labels")
    if kind is not None and kind not in KINDS:
        raise UsageError(f"--kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    columns = Columns(path)
    names: dict[str, str] = {}
    variants = False
    for line, row in read_rows(path):
        if not names:
            names = {what: next((n for n in known if n in row), "") for what, known in _ALIASES.items()}
            variants = bool(names["pos"] and names["alt"])
            if not names["chrom"] or not (variants or (names["start"] and names["end"])):
                raise InputError(
                    f"{path}: expected columns CHROM POS REF ALT, or CHROM START END; it has {', '.join(row)}"
                )
            need_columns(path, row, [*labels, *(name for name in (tissue, distance, group) if name)])
        start, end, ref, alt = _place(path, line, row, names, variants)
        word = row[names["split"]].strip().lower() if names["split"] else ""
        if word not in _SPLITS:
            raise InputError(f"{path} line {line}: got split {word!r}, expected train, validation or test")
        # A variant is written on the forward strand, whatever gene it is in.
        strand = row[names["strand"]].strip() if names["strand"] and not variants else "+"
        if strand not in _STRANDS:
            raise InputError(f"{path} line {line}: got strand {strand!r}, expected one of {' '.join(_STRANDS)}")
        columns.add(
            contig=row[names["chrom"]], start=start, end=end, ref=ref, alt=alt, split=_SPLITS[word], line=line,
            reverse=_STRANDS[strand], labels=[number_of(path, line, row, name) for name in labels],
            tissue=row[tissue] if tissue else "", group=row[group] if group else "",
            distance=abs(number_of(path, line, row, distance)) if distance else float("nan"),
        )  # fmt: skip
    if not columns.values:
        raise InputError(f"{path}: got no rows")
    values = columns.array("labels", np.float32)
    if np.isinf(values).any():
        line = columns.values["line"][int(np.argwhere(np.isinf(values))[0, 0])]
        raise InputError(f"{path} line {line}: got an infinite label, expected a finite number")
    known = values[~np.isnan(values)]
    binary = bool(len(known)) and bool(np.isin(known, (0.0, 1.0)).all())
    chosen = kind or ("numbers" if not binary else "classes" if len(labels) == 1 else "labels")
    if chosen != "numbers" and not binary:
        raise InputError(f"{path}: got labels other than 0 and 1, expected none for --kind {chosen}")
    if chosen == "classes" and len(labels) > 1:
        raise UsageError(f"--kind classes: got {len(labels)} labels, expected one (several are --kind labels)")
    numbered, tissues = columns.numbered("tissue") if tissue else (None, ())
    refs = columns.array("ref", np.str_) if variants and names["ref"] else None
    reverse = columns.array("reverse", np.bool_)
    return Examples(
        kind=chosen, outputs=tuple(labels), contig=columns.array("contig", np.str_),
        start=columns.array("start", np.int64), end=columns.array("end", np.int64), labels=values,
        split=columns.array("split", np.str_), line=columns.array("line", np.int64), ref=refs,
        alt=columns.array("alt", np.str_) if variants else None, reverse=reverse if reverse.any() else None,
        tissue=numbered, tissues=tissues, summit=variants,
        distance=columns.array("distance", np.float64) if distance else None,
        group=columns.array("group", np.str_) if group else None,
    )  # fmt: skip


def _place(
    path: Path, line: int, row: dict[str, str], names: dict[str, str], variants: bool
) -> tuple[int, int, str, str]:
    """Return start, end (0-based half-open), REF and ALT of a row."""
    if not variants:
        start = whole_of(path, line, row, names["start"], 0)
        end = whole_of(path, line, row, names["end"], 0)
        if end <= start:
            raise InputError(f"{path} line {line}: got {start}-{end}, expected a start below the end")
        return start, end, "", ""
    start = whole_of(path, line, row, names["pos"], 1) - 1
    ref = row[names["ref"]].strip().upper() if names["ref"] else "N"
    alt = row[names["alt"]].strip().upper()
    for name, allele in ((names["ref"], ref), (names["alt"], alt)):
        if not _SEQUENCE.fullmatch(allele):
            raise InputError(f"{path} line {line}, column {name}: got {allele[:40]!r}, expected bases")
    return start, start + len(ref), ref, alt
