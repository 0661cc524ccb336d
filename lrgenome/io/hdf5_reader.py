"""The schema ``lrgenome-embeddings`` version 1, and its reader."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import h5py
import numpy as np

from lrgenome.errors import InputError, LrgenomeError, UsageError
from lrgenome.io.hdf5_chunks import ZSTD_FILTER, filter_ids, load_filters

FORMAT = "lrgenome-embeddings"
FORMAT_VERSION = 1
COORDINATE_SYSTEM = "0-based half-open"
REQUIRED_ATTRIBUTES = ("model", "sha256", "layer", "pool", "bin_size", "context", "stride")
"""Root attributes that the producer of a file gives; it may give more."""
OWN_ATTRIBUTES = ("format", "format_version", "coordinate_system", "complete")
"""Root attributes that the writer sets itself."""
ROW_COLUMNS = ("chrom", "start", "end", "strand", "name", "n_frac")
NAME_WIDTH = 64
"""Default bytes for a row's name."""
_KINDS = {
    "embeddings": ("f", (2, 3)), "chrom": ("S", (1,)), "start": ("i", (1,)), "end": ("i", (1,)), "strand": ("S", (1,)),
    "name": ("S", (1,)), "n_frac": ("f", (1,)), "contigs/name": ("S", (1,)), "contigs/length": ("i", (1,)),
    "done": ("u", (1,)),
}  # fmt: skip
"""Datasets, the kinds of their types and their dimensions."""
_CHUNK_LIMIT = 1 << 28
_ROW_BYTES = 8 + 8 + 4 + 1 + 16 + NAME_WIDTH  # start, end, n_frac, strand, a contig's name, name


class RowRange(NamedTuple):
    """Which rows of a run a file has: the attribute ``rows``."""

    low: int
    high: int
    """One past the last."""
    total: int
    """Of all shards together."""
    digest: str
    """Of where all those rows lie."""

    def __str__(self) -> str:
        return f"{self.low}-{self.high} of {self.total}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> "RowRange":
        """Read the attribute.

        Raises
        ------
        ValueError
            If it is not of that form.
        """
        match = re.fullmatch(r"(\d+)-(\d+) of (\d+):(\w+)", text)
        if match is None:
            raise ValueError(f"got rows {text!r}, expected LOW-HIGH of TOTAL:DIGEST")
        return cls(int(match[1]), int(match[2]), int(match[3]), match[4])


def expected_bytes(rows: int, width: int, length: int | None = None, dtype: str = "float32") -> int:
    """Size of a file of embeddings before compression, in bytes.

    Parameters
    ----------
    rows
        Number of rows N.
    width
        Model width d.
    length
        Positions a row L, for embeddings that are not pooled. Default: None.
    dtype
        ``float32`` or ``float16``. Default: ``float32``.
    """
    return rows * ((length or 1) * width * np.dtype(dtype).itemsize + _ROW_BYTES)


def check_attributes(attrs: Mapping[str, Any]) -> None:
    """Refuse attributes that the schema does not allow.

    Raises
    ------
    UsageError
        If one that is required is missing, or one is of a type that HDF5 readers in R do not know.
    """
    missing = [name for name in REQUIRED_ATTRIBUTES if name not in attrs]
    if missing:
        raise UsageError(f"attributes {', '.join(missing)} are missing")
    for name, value in attrs.items():
        if name in OWN_ATTRIBUTES or name == "contigs":
            raise UsageError(f"attribute {name} is the writer's own")
        if not all(isinstance(item, str | bool | int | float | np.generic) for item in _items(value)):
            raise UsageError(f"attribute {name}: got {value!r}, expected strings, numbers or a list of them")


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


class EmbeddingFile:
    """A file of embeddings, read lazily: slicing a dataset reads that slice.

    Use it as a context manager, or close it.

    Attributes
    ----------
    embeddings : h5py.Dataset
        (N, d) or (N, L, d) float32 or float16.
    chrom, strand, name
        (N,), sliced as `str`.
    start, end : h5py.Dataset
        (N,) int64, 0-based half-open, in bp.
    n_frac : h5py.Dataset
        (N,) float32.
    attrs : dict
        Root attributes as plain Python values.
    contigs : dict of str to int
        Length of every contig, in bp.
    complete : bool
        Whether all rows are there.
    rows : int
        Rows that are there, from the first; N where the file is complete.
    name_width : int
        Bytes that a row's name may take.
    """

    def __init__(self, path: str | os.PathLike[str], file: h5py.File) -> None:
        self.path = Path(path)
        self._file = file
        self.attrs = {name: plain(value) for name, value in file.attrs.items()}
        self.contigs = contigs_of(file)
        self.embeddings: h5py.Dataset = file["embeddings"]
        self.chrom, self.strand, self.name = (file[column].asstr() for column in ("chrom", "strand", "name"))
        self.start: h5py.Dataset = file["start"]
        self.end: h5py.Dataset = file["end"]
        self.n_frac: h5py.Dataset = file["n_frac"]
        self.name_width = int(file["name"].dtype.itemsize)
        self.complete = bool(self.attrs["complete"])
        total = int(self.embeddings.shape[0])
        if self.complete or not total:
            self.rows = total
        else:
            self.rows = min(total, leading_blocks(file) * int(self.embeddings.chunks[0]))

    def __len__(self) -> int:
        return self.rows

    def close(self) -> None:
        """Close the file; its datasets cannot be read any more."""
        self._file.close()

    def __enter__(self) -> "EmbeddingFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_embeddings(
    path: str | os.PathLike[str], *, allow_partial: bool = False, lock: bool = True
) -> EmbeddingFile:
    """Open a file of embeddings.

    Parameters
    ----------
    path
        The file.
    allow_partial
        Accept a file that is still to be completed (``NAME.partial``); its first `EmbeddingFile.rows` rows
        are valid. Default: False.
    lock
        Keep writers away where the file system can; not for whoever has the file to itself. Default: True.

    Raises
    ------
    InputError
        If the file cannot be opened, is of another format or version, or is incomplete.
    UsageError
        If it is compressed with zstd and the plugin is not installed.
    """
    try:
        file = h5py.File(path, "r", locking="best-effort" if lock else False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as HDF5 ({error})") from error
    try:
        try:
            found, version = (plain(file.attrs.get(name)) for name in ("format", "format_version"))
            if found != FORMAT:
                raise InputError(f"{path}: got format {found!r}, expected {FORMAT!r}")
            if version != FORMAT_VERSION:
                raise InputError(f"{path}: got {FORMAT} version {version}, expected {FORMAT_VERSION}")
            check_layout(file)
            load_filters(file["embeddings"])
            embeddings = EmbeddingFile(path, file)
        except (KeyError, TypeError, OSError, RuntimeError, ValueError) as error:
            if isinstance(error, LrgenomeError):
                raise
            raise InputError(f"{path}: damaged {FORMAT} file ({error})") from error
        if not (embeddings.complete or allow_partial):
            raise InputError(
                f"{path}: only {embeddings.rows} of {embeddings.embeddings.shape[0]} rows are there; "
                "complete it with --resume, or read it with allow_partial=True"
            )
    except BaseException:
        file.close()
        raise
    return embeddings


def check_layout(file: h5py.File) -> None:
    """Refuse datasets that are not in the file itself, or are of other types and shapes than the schema's.

    Links and virtual or external datasets would read other files of whoever opens this one.

    Raises
    ------
    ValueError
        Naming the dataset and what was expected.
    KeyError
        If one is missing.
    """
    size = os.fstat(file.id.get_vfd_handle()).st_size
    found = {}
    for name, (kind, dimensions) in _KINDS.items():
        for part in (name.rpartition("/")[0], name):
            if part and not isinstance(file.get(part, getlink=True), h5py.HardLink):
                raise ValueError(f"{part} is a link, expected it in the file itself")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
            raise ValueError(f"{name} is not a dataset of this file")
        if dataset.shape is None or dataset.ndim not in dimensions or dataset.dtype.kind not in kind:
            raise ValueError(f"{name} has shape {dataset.shape} and type {dataset.dtype}, expected others")
        # Every chunk is in the file and in its index, so a shape that is a lie is known before memory is asked for.
        if dataset.chunks:
            chunks = math.prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
            fits = 16 * chunks <= size and math.prod(dataset.chunks) * dataset.dtype.itemsize <= _CHUNK_LIMIT
        else:
            fits = math.prod(dataset.shape) * dataset.dtype.itemsize <= size
        if not fits:
            raise ValueError(f"{name} has shape {dataset.shape}, more than a file of {size:,} bytes holds")
        for number in filter_ids(dataset):
            # Zstd says itself what to install.
            if number != ZSTD_FILTER and not h5py.h5z.filter_avail(number):
                raise ValueError(f"{name} is compressed by a filter that is not there (number {number})")
        found[name] = dataset.shape[0]
    if odd := [name for name in ROW_COLUMNS if found[name] != found["embeddings"]]:
        raise ValueError(f"{odd[0]} has {found[odd[0]]} rows, embeddings {found['embeddings']}")
    if found["contigs/name"] != found["contigs/length"]:
        raise ValueError("contigs have more names than lengths, or fewer")
    if not isinstance(plain(file.attrs["complete"]), bool):
        raise ValueError("attribute complete is neither true nor false")


def leading_blocks(file: h5py.File) -> int:
    """Blocks of rows that are done, counted from the first up to one that is not."""
    done = file["done"][:]
    return int(done.size if done.all() else np.argmin(done))


def contigs_of(file: h5py.File) -> dict[str, int]:
    """Contig name to its length in bp, in the order of the file."""
    names = file["contigs/name"].asstr("utf-8")[:]
    return dict(zip(names.tolist(), file["contigs/length"][:].tolist(), strict=True))


def plain(value: Any) -> Any:
    """Turn an attribute into a `str`, `bool`, `int`, `float` or list of them, as it will be read back."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
