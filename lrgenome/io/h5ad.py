"""Embeddings as an AnnData file (``.h5ad``), for scanpy and its relatives.

The layout is AnnData's on-disk specification, written with h5py alone and block by block, since AnnData would
hold all rows in memory.
"""

import os
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from lrgenome.io.hdf5_chunks import filters_of
from lrgenome.io.hdf5_reader import ROW_COLUMNS, EmbeddingFile

_TEXT = h5py.string_dtype("utf-8")
_STRANDS = ("+", "-", ".")
_COPY_ROWS = 4096  # rows of the columns copied at once, where the embeddings have no chunks


def write_h5ad(source: EmbeddingFile, path: str | os.PathLike[str]) -> None:
    """Write complete, pooled embeddings as AnnData: ``X`` (N, d) float32, coordinates in ``obs``.

    ``obs`` is indexed by row number; ``chrom`` and ``strand`` are categorical. ``uns`` holds the attributes
    and the contigs.

    Parameters
    ----------
    source
        Complete embeddings (N, d).
    path
        The file to write; one that is there is replaced.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    rows, width = source.embeddings.shape
    chunks = source.embeddings.chunks
    compression = filters_of("gzip") if chunks else {}
    with h5py.File(path, "w") as file:
        _mark(file, "anndata", "0.1.0")
        x = file.create_dataset("X", (rows, width), np.float32, chunks=chunks, **compression)
        _mark(x, "array", "0.2.0")
        obs = _frame(file, "obs", ROW_COLUMNS)
        index = obs.create_dataset("_index", (rows,), _TEXT)
        name = obs.create_dataset("name", (rows,), _TEXT)
        for text in (index, name):
            _mark(text, "string-array", "0.2.0")
        codes = {
            "chrom": _categorical(obs, "chrom", rows, list(source.contigs)),
            "strand": _categorical(obs, "strand", rows, _STRANDS),
        }
        numbers = {
            column: obs.create_dataset(column, (rows,), getattr(source, column).dtype)
            for column in ("start", "end", "n_frac")
        }
        for dataset in numbers.values():
            _mark(dataset, "array", "0.2.0")
        code_of = {
            "chrom": {contig: code for code, contig in enumerate(source.contigs)},
            "strand": {strand: code for code, strand in enumerate(_STRANDS)},
        }
        step = chunks[0] if chunks else _COPY_ROWS
        for first in range(0, rows, step):
            part = slice(first, min(first + step, rows))
            x[part] = source.embeddings[part]
            index[part] = [str(row) for row in range(part.start, part.stop)]
            name[part] = source.name[part]
            for column, dataset in codes.items():
                dataset[part] = [code_of[column][text] for text in getattr(source, column)[part]]
            for column, dataset in numbers.items():
                dataset[part] = getattr(source, column)[part]
        _strings(_frame(file, "var", ()), "_index", [str(feature) for feature in range(width)])
        for empty in ("layers", "obsm", "obsp", "varm", "varp"):
            _mark(file.create_group(empty), "dict", "0.1.0")
        _write_uns(file, source)


def _write_uns(file: h5py.File, source: EmbeddingFile) -> None:
    uns = file.create_group("uns")
    _mark(uns, "dict", "0.1.0")
    for key, value in source.attrs.items():
        _element(uns, key, value)
    contigs = uns.create_group("contigs")
    _mark(contigs, "dict", "0.1.0")
    _strings(contigs, "name", list(source.contigs))
    _element(contigs, "length", np.array([*source.contigs.values()], np.int64))


def _mark(element: Any, kind: str, version: str) -> None:
    element.attrs["encoding-type"] = kind
    element.attrs["encoding-version"] = version


def _frame(file: h5py.File, name: str, columns: Sequence[str]) -> h5py.Group:
    group = file.create_group(name)
    _mark(group, "dataframe", "0.2.0")
    group.attrs["_index"] = "_index"
    group.attrs["column-order"] = np.array(columns, dtype=_TEXT) if columns else np.array([], np.float64)
    return group


def _strings(group: h5py.Group, name: str, values: Sequence[str]) -> None:
    _mark(
        group.create_dataset(name, data=np.array(values, dtype=object), dtype=_TEXT), "string-array", "0.2.0"
    )


def _categorical(obs: h5py.Group, name: str, rows: int, categories: Sequence[str]) -> h5py.Dataset:
    """Create a categorical column; returns its codes, to be filled."""
    group = obs.create_group(name)
    _mark(group, "categorical", "0.2.0")
    group.attrs["ordered"] = False
    _strings(group, "categories", categories)
    codes: npt.DTypeLike = np.int8 if len(categories) < 128 else np.int32
    dataset = group.create_dataset("codes", (rows,), codes)
    _mark(dataset, "array", "0.2.0")
    return dataset


def _element(group: h5py.Group, name: str, value: Any) -> None:
    if isinstance(value, str):
        _mark(group.create_dataset(name, data=value, dtype=_TEXT), "string", "0.2.0")
    elif isinstance(value, list | np.ndarray):
        if len(value) and isinstance(value[0], str):
            _strings(group, name, list(value))
        else:
            _mark(group.create_dataset(name, data=np.asarray(value)), "array", "0.2.0")
    else:
        _mark(group.create_dataset(name, data=value), "numeric-scalar", "0.2.0")
