"""The schema ``lrgenome-embeddings`` version 1, and its reader."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from lrgenome.errors import InputError, UsageError
from lrgenome.io.hdf5_chunks import load_filters

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
_ROW_BYTES = 8 + 8 + 4 + 1 + 16 + NAME_WIDTH  # start, end, n_frac, strand, a contig's name, name


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
    path: str | os.PathLike[str], *, allow_partial: bool = False, locking: bool = True
) -> EmbeddingFile:
    """Open a file of embeddings.

    Parameters
    ----------
    path
        The file.
    allow_partial
        Accept a file that is still to be completed (``NAME.partial``); its first `EmbeddingFile.rows` rows
        are valid. Default: False.
    locking
        Refuse a file that is being written. False is for its only writer. Default: True.

    Raises
    ------
    InputError
        If the file cannot be opened, is of another format or version, or is incomplete.
    UsageError
        If it is compressed with zstd and the plugin is not installed.
    """
    try:
        file = h5py.File(path, "r", locking="best-effort" if locking else False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as HDF5 ({error})") from error
    try:
        found, version = file.attrs.get("format"), file.attrs.get("format_version")
        if found != FORMAT:
            raise InputError(f"{path}: got format {found!r}, expected {FORMAT!r}")
        if version != FORMAT_VERSION:
            raise InputError(f"{path}: got {FORMAT} version {version}, expected {FORMAT_VERSION}")
        try:
            load_filters(file["embeddings"])
            embeddings = EmbeddingFile(path, file)
        except (KeyError, TypeError, OSError) as error:
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


def leading_blocks(file: h5py.File) -> int:
    """Blocks of rows that are done, counted from the first up to one that is not."""
    done = file["done"][:]
    return int(done.size if done.all() else np.argmin(done))


def contigs_of(file: h5py.File) -> dict[str, int]:
    """Contig name to its length in bp, in the order of the file."""
    names = file["contigs/name"].asstr()[:]
    return dict(zip(names.tolist(), file["contigs/length"][:].tolist(), strict=True))


def plain(value: Any) -> Any:
    """Turn an attribute into a `str`, `bool`, `int`, `float` or list of them, as it will be read back."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
