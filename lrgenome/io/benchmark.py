"""Reads the nine tasks of a local copy of the Genomics Long-Range Benchmark (Trop et al. 2024).

The files are read as they are published; none of its code is run. Coordinates in them are 1-based.
"""

from __future__ import annotations

import ast
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from lrgenome.errors import InputError
from lrgenome.io.examples import Columns, Examples, need_columns, number_of, read_rows, whole_of

BIN = 128
"""Bases of a bin of CAGE targets."""
_SPLITS = {"train": "train", "training": "train", "valid": "validation", "validation": "validation", "test": "test"}
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_LONGEST_LIST = 1 << 16
_TARGETS = re.compile(r"target(?:s)?-(train|valid|validation|test)-(\d+)-(\d+)$")


def _table(folder: Path, *names: str) -> Path:
    """Find the first of some files, in CSV or Parquet."""
    for name in names:
        for suffix in (".csv", ".csv.gz", ".parquet"):
            path = (folder / name).with_name(Path(name).name + suffix)
            if path.is_file():
                return path
    raise InputError(f"{folder}: no {names[0]}.csv; expected a copy of the Genomics Long-Range Benchmark")


def _split(path: Path, line: int, row: dict[str, str], default: str = "") -> str:
    word = row.get("split", default).strip().lower()
    if word not in _SPLITS:
        raise InputError(f"{path} line {line}: got split {word!r}, expected train, validation or test")
    return _SPLITS[word]


def _label(path: Path, line: int, row: dict[str, str]) -> float:
    name = "INT_LABEL" if "INT_LABEL" in row else "label" if "label" in row else "LABEL"
    need_columns(path, row, [name])
    value = number_of(path, line, row, name)
    if value not in (0.0, 1.0):
        raise InputError(f"{path} line {line}, column {name}: got {row[name]!r}, expected 0 or 1")
    return value


def _variants(path: Path, *, tissues: bool, split: str = "") -> Examples:
    """Read labelled single-base variants; where there is no column of splits, all are of `split`."""
    columns = Columns(path)
    for line, row in read_rows(path):
        need_columns(path, row, ["CHROM", "POS", "ALT", *(["tissue"] if tissues else [])])
        start, ref = whole_of(path, line, row, "POS", 1) - 1, row.get("REF", "").strip().upper()
        columns.add(
            contig=row["CHROM"], start=start, end=start + max(1, len(ref)), ref=ref, alt=row["ALT"].strip().upper(),
            labels=[_label(path, line, row)], split=_split(path, line, row, split), line=line,
        )  # fmt: skip
        if tissues:
            columns.add(tissue=row["tissue"])
        distance = next((name for name in row if name.lower() == "distance_to_nearest_tss"), None)
        if distance:
            columns.add(distance=number_of(path, line, row, distance))
    tissue, names = columns.numbered("tissue") if tissues else (None, ())
    refs = columns.array("ref", np.str_)
    return _made(
        columns, "classes", ("label",), ref=refs if len(refs) and (refs != "").all() else None,
        alt=columns.array("alt", np.str_), tissue=tissue, tissues=names, summit=True,
        distance=columns.array("distance", np.float64) if "distance" in columns.values else None,
    )  # fmt: skip


def _made(columns: Columns, kind: str, outputs: tuple[str, ...], **more: object) -> Examples:
    return Examples(
        kind=kind, outputs=outputs, contig=columns.array("contig", np.str_),
        start=columns.array("start", np.int64), end=columns.array("end", np.int64),
        labels=columns.array("labels", np.float32), split=columns.array("split", np.str_),
        line=columns.array("line", np.int64), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def read_eqtl(folder: Path) -> Examples:
    """Read causal expression QTLs: a row for each variant and tissue."""
    return _variants(_table(folder, "variant_effect_causal_eqtl/All_Tissues"), tissues=True)


def read_clinvar(folder: Path) -> Examples:
    """Read pathogenic (ClinVar) against common variants, coding."""
    return _variants(_table(folder, "variant_effect_pathogenic/vep_pathogenic_coding"), tissues=False)


def read_omim(folder: Path) -> Examples:
    """Read pathogenic (OMIM) against common variants, not coding: all for testing.

    What is trained on is ClinVar's training rows, since the task has none of its own.
    """
    names = ("vep_pathogenic_non_coding_subset", "vep_pathogenic_non_coding")
    omim = _variants(_table(folder, *(f"variant_effect_pathogenic/{n}" for n in names)), tissues=False, split="test")
    clinvar = read_clinvar(folder)
    return joined(clinvar.take(clinvar.split == "train"), omim.take(omim.split == "test"))


def joined(a: Examples, b: Examples) -> Examples:
    """Put the variants of two tables with the same labels one after the other."""
    both = {
        name: np.concatenate([getattr(a, name), getattr(b, name)])
        for name in ("contig", "start", "end", "labels", "split", "line", "alt")
    }
    ref = None if a.ref is None or b.ref is None else np.concatenate([a.ref, b.ref])
    return Examples(kind=a.kind, outputs=a.outputs, ref=ref, summit=True, **both)  # type: ignore[arg-type]


def read_bulk_rna(folder: Path) -> Examples:
    """Read expression in tissues around transcription starts, as published: log(1 + x), standardised."""
    path = _table(folder, "bulk_rna_expression/gene_coordinates")
    values = _table(folder, "bulk_rna_expression/rna_expression_values")
    columns, rows = Columns(path), read_rows(values)
    names: tuple[str, ...] = ()
    for line, row in read_rows(path):
        need_columns(path, row, ["chrom", "strand", "CAGE_representative_TSS"])
        start = whole_of(path, line, row, "CAGE_representative_TSS", 1) - 1
        if row["strand"] not in ("+", "-"):
            raise InputError(f"{path} line {line}: got strand {row['strand']!r}, expected + or -")
        found = next(rows, None)
        if found is None:
            raise InputError(f"{values}: got fewer rows than {path.name} has, {line - 1} or more")
        # An unnamed first column numbers the rows.
        names = names or tuple(name for name in found[1] if name and name != "id")
        columns.add(
            contig=row["chrom"], start=start, end=start + 1, split=_split(path, line, row), line=line,
            reverse=row["strand"] == "-", labels=[number_of(values, found[0], found[1], name) for name in names],
        )  # fmt: skip
    if next(rows, None) is not None:
        raise InputError(f"{values}: got more rows than {path.name} has")
    return _made(columns, "numbers", names, reverse=columns.array("reverse", np.bool_), summit=True)


def _read_chromatin(folder: Path, word: str) -> Examples:
    """Read the marks of one column, each row a list of those that are there."""
    path = _table(folder, "chromatin_features/histones_and_dnase_subset", "chromatin_features/histones_and_dnase")
    columns, rows = Columns(path), []
    for line, row in read_rows(path):
        name = next((name for name in row if name.upper() == word), word)
        need_columns(path, row, ["CHROM", "POS", name])
        start = whole_of(path, line, row, "POS", 1) - 1
        rows.append(_listed(path, line, row[name]))
        columns.add(contig=row["CHROM"], start=start, end=start + 1, split=_split(path, line, row), line=line)
    names = tuple(sorted({name for row in rows for name in row}))
    if all(_WHOLE.fullmatch(name) for name in names):
        names = tuple(sorted(names, key=int))
    place = {name: i for i, name in enumerate(names)}
    labels = np.zeros((len(rows), len(names)), np.float32)
    for i, found in enumerate(rows):
        labels[i, [place[name] for name in found]] = 1.0
    columns.values["labels"] = list(labels)
    return _made(columns, "labels", names, summit=True)


def _listed(path: Path, line: int, cell: str) -> list[str]:
    """Read a list of names as Python or numpy writes it."""
    try:
        if len(cell) > _LONGEST_LIST:
            raise ValueError("too long")
        found = ast.literal_eval(cell) if "," in cell or "'" in cell else cell.strip("[] ").split()
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list | tuple | set):
        raise InputError(f"{path} line {line}: got {cell[:40]!r}, expected a list of names")
    return [str(name) for name in found]


def read_histone(folder: Path) -> Examples:
    """Read histone marks: 20 labels a row."""
    return _read_chromatin(folder, "HISTONES")


def read_dnase(folder: Path) -> Examples:
    """Read open chromatin: 20 labels a row."""
    return _read_chromatin(folder, "DNASE")


def _read_bins(path: Path) -> Examples:
    columns = Columns(path)
    for line, row in read_rows(path):
        need_columns(path, row, ["CHROM", "START", "STOP"])
        start, end = whole_of(path, line, row, "START", 1) - 1, whole_of(path, line, row, "STOP", 1) - 1
        if end <= start:
            raise InputError(
                f"{path} line {line}: got START {row['START']} and STOP {row['STOP']}, expected START < STOP"
            )
        columns.add(contig=row["CHROM"], start=start, end=end, labels=[_label(path, line, row)],
                    split=_split(path, line, row), line=line)  # fmt: skip
    return _made(columns, "classes", ("label",))


def read_promoter(folder: Path) -> Examples:
    """Read promoters: bins of 200 bp."""
    names = ("promoter_dataset_subset", "promoter_dataset")
    return _read_bins(_table(folder, *(f"regulatory_elements/{name}" for name in names)))


def read_enhancer(folder: Path) -> Examples:
    """Read enhancers: bins of 200 bp."""
    names = ("enhancer_dataset_subset", "enhancer_dataset")
    return _read_bins(_table(folder, *(f"regulatory_elements/{name}" for name in names)))


def read_cage(folder: Path) -> Examples:
    """Read CAGE: counts of 50 tracks in 896 bins of 128 bp, of which as many are kept as a window holds."""
    path = _table(folder, "cage_prediction/sequences_coordinates")
    columns, wanted = Columns(path), []
    for line, row in read_rows(path):
        need_columns(path, row, ["chrom", "start", "stop", "npy_idx"])
        start, end = whole_of(path, line, row, "start", 1) - 1, whole_of(path, line, row, "stop", 1) - 1
        split = _split(path, line, row)
        wanted.append((split, whole_of(path, line, row, "npy_idx", 0)))
        columns.add(contig=row["chrom"], start=start, end=end, split=split, line=line)
    found = dict(_targets(path.parent / "targets_subset", set(wanted)))
    for (split, number), line in zip(wanted, columns.values.get("line", []), strict=True):
        if (split, number) not in found:
            raise InputError(f"{path} line {line}: no target {number} of {split} in {path.parent / 'targets_subset'}")
    columns.values["labels"] = [found[key] for key in wanted]
    tracks = columns.values["labels"][0].shape[-1] if wanted else 0
    return _made(columns, "numbers", tuple(f"track{i}" for i in range(tracks)))


def _targets(folder: Path, wanted: set[tuple[str, int]]) -> Iterator[tuple[tuple[str, int], npt.NDArray[np.float32]]]:
    """Yield the wanted (bins, tracks) of ``targets-SPLIT-FIRST-LAST.npz``, by split and number."""
    shape = None
    for path in sorted(folder.glob("*.npz")):
        match = _TARGETS.match(path.stem)
        if match is None:
            continue
        split = _SPLITS[match.group(1)]
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for name in arrays.files:
                    key = split, int(name.rsplit("-", 1)[-1])
                    if key not in wanted:
                        continue
                    target = np.asarray(arrays[name], dtype=np.float32)
                    target = target[0] if target.ndim == 3 else target
                    if target.ndim != 2 or target.shape != (shape or target.shape):
                        raise InputError(
                            f"{path}: {name} has shape {target.shape}, expected {shape or '(bins, tracks)'}"
                        )
                    shape = target.shape
                    yield key, target
        except (OSError, ValueError, EOFError, MemoryError, RuntimeError, BadZipFile, zlib.error) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: cannot be read as numpy arrays ({error})") from error


READERS: dict[str, Callable[[Path], Examples]] = {
    "vep-eqtl": read_eqtl,
    "vep-clinvar": read_clinvar,
    "omim": read_omim,
    "bulk-rna": read_bulk_rna,
    "cage": read_cage,
    "histone": read_histone,
    "dnase": read_dnase,
    "promoter": read_promoter,
    "enhancer": read_enhancer,
}
