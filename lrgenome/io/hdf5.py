"""Embeddings in HDF5: schema ``lrgenome-embeddings`` version 1 (drawn in ``docs/formats.md``).

Model -> `EmbeddingWriter.append` -> ``NAME.partial`` -> `EmbeddingWriter.close` -> ``NAME`` ->
`read_embeddings`. A process can be killed at any moment and resume, because

* every chunk of every dataset is there from the start, holding compressed zeros, so the indexes of chunks
  never change their shape: writing a chunk replaces one entry of an index, by one write;
* a chunk is compressed in memory, written once and whole, and flushed before the next, so that no two
  entries are ever on their way to the disk at once;
* a block of rows is marked in ``/done``, which is contiguous, after all of its chunks;
* the end of the file as HDF5 recorded it, which a kill leaves behind the true one, is put right before the
  file is opened again; HDF5 would else give out the same bytes twice.

Strings have fixed lengths (UTF-8, padded with NUL): variable-length strings live in heaps that are shared
between rows and rewritten, and are lost when a write is cut short.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from lrgenome.errors import NumericalError, OutputError, UsageError
from lrgenome.io.atomic import is_stream, os_error_as_output_error, partial_path, publish
from lrgenome.io.h5ad import write_h5ad
from lrgenome.io.hdf5_chunks import ChunkedDataset, filters_of, mend_end_of_file
from lrgenome.io.hdf5_reader import (
    COORDINATE_SYSTEM,
    FORMAT,
    FORMAT_VERSION,
    NAME_WIDTH,
    ROW_COLUMNS,
    EmbeddingFile,
    check_attributes,
    contigs_of,
    expected_bytes,
    leading_blocks,
    plain,
    read_embeddings,
)
from lrgenome.io.lock import lock, open_alone
from lrgenome.io.resources import free_disk

__all__ = ["EmbeddingFile", "EmbeddingWriter", "expected_bytes", "read_embeddings"]

CHUNK_BYTES = 1 << 20
"""Aim for the uncompressed bytes of one chunk of embeddings."""
FLOAT16_MAX = 65504.0


class EmbeddingWriter:
    """Writer of embeddings and the genome coordinates of their rows, resumable after a kill.

    Use it as a context manager: leaving it normally publishes the file; an exception keeps the partial.

    Parameters
    ----------
    path
        The file to be. A suffix ``.h5ad`` makes an AnnData file of it when it is complete.
    width
        Model width d.
    rows
        Total number of rows N.
    length
        Positions a row L: embeddings are (N, L, d) instead of (N, d). Default: None.
    dtype
        ``float32`` or ``float16``. Default: ``float32``.
    compression
        ``gzip`` (level 4 after a byte shuffle), ``zstd`` or ``none``. Default: ``gzip``.
    attrs
        Root attributes: those of `REQUIRED_ATTRIBUTES` and any others; strings, numbers, booleans or flat
        lists of them.
    contigs
        Contig name to its length in bp. Rows lie on these.
    resume
        Continue from ``NAME.partial`` where there is one. Default: False, which starts anew.
    name_width
        Bytes that the longest row name takes in UTF-8. Default: 64.

    Attributes
    ----------
    rows_done : int
        Rows that are safely in the file; after a resume the caller continues from this row.
    block_rows : int
        Rows that are written at once.

    Raises
    ------
    UsageError
        If the settings contradict each other, or zstd is asked for without its plugin.
    OutputError
        If the file cannot be written, another process writes it, or the partial is of other settings.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        width: int,
        rows: int,
        attrs: Mapping[str, Any],
        contigs: Mapping[str, int],
        length: int | None = None,
        dtype: str = "float32",
        compression: str = "gzip",
        resume: bool = False,
        name_width: int = NAME_WIDTH,
    ) -> None:
        self.path = Path(os.path.realpath(path))  # a symbolic link stays; its target is replaced
        self.partial = Path(partial_path(self.path))
        self.rows = rows
        self._contigs = dict(contigs)
        self._to_h5ad = self.path.suffix.lower() == ".h5ad"
        if is_stream(path):
            raise UsageError(f"got {path}, expected a file: HDF5 cannot be written to a pipe or device")
        _check_settings(rows, width, length, dtype, name_width, self._to_h5ad)
        check_attributes(attrs)
        self._row_shape = (width,) if length is None else (length, width)
        self.rows_done = 0
        self._filled = 0
        self._file: h5py.File | None = None
        attributes = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "coordinate_system": COORDINATE_SYSTEM,
            "complete": False,
            **attrs,
        }
        layout = self._layout(np.dtype(dtype), name_width)
        filters = filters_of(compression)
        with os_error_as_output_error(self.partial):
            self._datasets = {name: ChunkedDataset(name, *spec, filters) for name, spec in layout.items()}
            self._alone = open_alone(self.partial, "r+b", buffering=0)
            try:
                # Of no bytes it is from a process that was killed before it had written any.
                if not (resume and os.fstat(self._alone.fileno()).st_size):
                    self._start_anew(attributes)
                self._open(attributes)
            except BaseException:
                self._alone.close()
                raise
        assert self._file is not None
        self.rows_done = min(leading_blocks(self._file) * self.block_rows, rows)
        self._buffer: dict[str, npt.NDArray[Any]] = {
            name: np.zeros((self.block_rows, *dataset.shape[1:]), dataset.dtype)
            for name, dataset in self._datasets.items()
        }

    def _layout(
        self, dtype: np.dtype[Any], name_width: int
    ) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], Any]]:
        """Shape, chunk shape and dtype of every dataset that has a row a row."""
        row_bytes = int(np.prod(self._row_shape)) * dtype.itemsize
        self.block_rows = block = max(1, min(self.rows, CHUNK_BYTES // row_bytes))
        row_chunk = self._row_shape
        if row_bytes > CHUNK_BYTES and len(row_chunk) == 2:  # rows too long for a chunk are cut along L
            cut = max(1, CHUNK_BYTES // (row_chunk[1] * dtype.itemsize))
            row_chunk = (min(row_chunk[0], cut), row_chunk[1])
        contig_width = max((len(name.encode()) for name in self._contigs), default=1)
        columns: dict[str, Any] = {
            "chrom": h5py.string_dtype("utf-8", contig_width),
            "start": np.dtype("int64"),
            "end": np.dtype("int64"),
            "strand": h5py.string_dtype("utf-8", 1),
            "name": h5py.string_dtype("utf-8", name_width),
            "n_frac": np.dtype("float32"),
        }
        layout: dict[str, tuple[tuple[int, ...], tuple[int, ...], Any]]
        layout = {"embeddings": ((self.rows, *self._row_shape), (block, *row_chunk), dtype)}
        return layout | {name: ((self.rows,), (block,), columns[name]) for name in ROW_COLUMNS}

    def _create(self, path: Path, attributes: Mapping[str, Any]) -> None:
        with h5py.File(path, "w") as file:
            for name, value in attributes.items():
                file.attrs[name] = value
            names = [name.encode() for name in self._contigs]
            text = h5py.string_dtype("utf-8", max(map(len, names), default=1))
            file.create_dataset("contigs/name", data=np.array(names, text))
            file.create_dataset("contigs/length", data=np.array([*self._contigs.values()], np.int64))
            for dataset in self._datasets.values():
                dataset.create_in(file)
            blocks = -(-self.rows // self.block_rows)
            file.create_dataset("done", data=np.zeros(blocks, np.uint8))  # contiguous: changed in place

    def _start_anew(self, attributes: Mapping[str, Any]) -> None:
        """Put a fresh file in the partial's place, and hold that one."""
        # Made under another name, so that a partial has its whole structure, or nothing.
        unborn = self.partial.with_name(self.partial.name + ".new")
        self._create(unborn, attributes)
        fresh = open(unborn, "r+b", buffering=0)
        try:
            lock(fresh.fileno(), self.partial)
            os.replace(unborn, self.partial)
        except BaseException:
            fresh.close()
            raise
        self._alone.close()
        self._alone = fresh

    def _open(self, attributes: Mapping[str, Any]) -> None:
        mend_end_of_file(self.partial)
        try:
            # HDF5's own lock would be refused: this process holds one already.
            self._file = h5py.File(self.partial, "r+", locking=False)
            difference = self._difference(self._file, attributes)
        except (OSError, KeyError, RuntimeError) as error:
            raise OutputError(
                f"{self.partial} is damaged ({error}); remove it, or run without --resume to start anew"
            ) from error
        if difference:
            self._file.close()
            raise OutputError(f"{self.partial} cannot be resumed: {difference}")

    def _difference(self, file: h5py.File, attributes: Mapping[str, Any]) -> str | None:
        """Say what differs first between the partial and what would be written now."""
        found = {name: plain(value) for name, value in file.attrs.items()}
        wanted = {name: plain(value) for name, value in attributes.items()}
        for name in [*wanted, *(name for name in found if name not in wanted)]:
            if name != "complete" and found.get(name) != wanted.get(name):
                return f"its {name} is {found.get(name)!r}, expected {wanted.get(name)!r}"
        if contigs_of(file) != self._contigs:
            return "its contigs are others"
        for name, dataset in self._datasets.items():
            for what, got, expected in dataset.compare(file[name]):
                if got != expected:
                    return f"the {what} of its {name} is {got}, expected {expected}"
        return None

    def append(
        self,
        embeddings: npt.ArrayLike,
        chrom: Sequence[str],
        start: npt.ArrayLike,
        end: npt.ArrayLike,
        strand: Sequence[str],
        name: Sequence[str],
        n_frac: npt.ArrayLike,
    ) -> None:
        """Append rows; they are written as soon as they fill a block.

        Parameters
        ----------
        embeddings
            (n, d) or (n, L, d).
        chrom
            Contig names, n.
        start, end
            (n,) 0-based half-open, in bp.
        strand
            ``+``, ``-`` or ``.``, n.
        name
            Row names, n; empty where there is none.
        n_frac
            (n,) fraction of the row's bases that are N.

        Raises
        ------
        OutputError
            If a value does not fit in its column (named by row), more rows come than were announced, or the
            file cannot be written.
        NumericalError
            If an embedding is NaN or infinite.
        """
        values = np.asarray(embeddings)
        n = values.shape[0]
        first = self.rows_done + self._filled
        if values.shape[1:] != self._row_shape:
            raise ValueError(f"got embeddings {values.shape}, expected {('n', *self._row_shape)}")
        if first + n > self.rows:
            raise OutputError(f"{self.path}: got {first + n} rows, expected {self.rows}")
        known = [contig in self._contigs for contig in chrom]
        if not all(known):
            row = known.index(False)
            raise OutputError(
                f"row {first + row}: contig {chrom[row]!r} is not among the contigs of the file"
            )
        block: dict[str, npt.NDArray[Any]] = {
            "embeddings": values,
            "chrom": self._fixed("chrom", chrom, first),
            "start": np.asarray(start, np.int64),
            "end": np.asarray(end, np.int64),
            "strand": self._fixed("strand", strand, first),
            "name": self._fixed("name", name, first),
            "n_frac": np.asarray(n_frac, np.float32),
        }
        for column, array in block.items():
            if array.shape[0] != n:
                raise ValueError(f"got {array.shape[0]} values of {column} for {n} embeddings")
        self._check_values(values, block, first)
        taken = 0
        while taken < n:
            take = min(self.block_rows - self._filled, n - taken)
            for column, array in block.items():
                self._buffer[column][self._filled : self._filled + take] = array[taken : taken + take]
            self._filled += take
            taken += take
            if self._filled == self.block_rows:
                self._write_block()

    def _fixed(self, column: str, strings: Sequence[str], first: int) -> npt.NDArray[np.bytes_]:
        encoded = [text.encode() for text in strings]
        width = self._datasets[column].dtype.itemsize
        for row, raw in enumerate(encoded):
            if len(raw) > width or b"\0" in raw:
                raise OutputError(
                    f"row {first + row}: {column} {strings[row]!r} takes more than {width} bytes"
                )
        return np.array(encoded, f"S{width}")

    def _check_values(self, values: npt.NDArray[Any], block: Mapping[str, Any], first: int) -> None:
        flat = values.reshape(values.shape[0], -1)
        half = self._datasets["embeddings"].dtype == np.float16
        peak = np.maximum(flat.max(axis=1, initial=0), -flat.min(axis=1, initial=0))
        for bad, error, problem in (
            (half & (peak > FLOAT16_MAX), OutputError, "is above 65504, too large for float16; use float32"),
            (~np.isfinite(peak), NumericalError, "is not a finite number"),
        ):
            if bad.any():
                row = int(np.argmax(bad))
                place = f"{block['chrom'][row].decode()}:{block['start'][row]}-{block['end'][row]}"
                raise error(f"row {first + row} ({place}): an embedding of magnitude {peak[row]:g} {problem}")

    def _write_block(self) -> None:
        assert self._file is not None
        with os_error_as_output_error(self.partial):
            # HDF5 does not survive a failed write well, so a full disk is noticed before.
            need = sum(buffer.nbytes for buffer in self._buffer.values()) + CHUNK_BYTES
            if free_disk(self.partial) < need:
                raise OutputError(
                    f"disk full: {self.partial} needs {need} more bytes; make room, then use --resume"
                )
            for name, dataset in self._datasets.items():
                self._buffer[name][self._filled :] = np.zeros((), dataset.dtype)
                dataset.write(self._file, self.rows_done, self._buffer[name])
            self._file["done"][self.rows_done // self.block_rows] = 1
            self._file.flush()
        self.rows_done += self._filled
        self._filled = 0

    def close(self, complete: bool = True) -> None:
        """Write the last rows and publish the file, or keep the partial.

        Parameters
        ----------
        complete
            All rows were appended. False drops the rows of a block that is not full and keeps the partial,
            from which a writer with ``resume=True`` continues. Default: True.

        Raises
        ------
        OutputError
            If rows are missing or the file cannot be written; the partial is kept.
        """
        if self._file is None:
            return
        try:
            if complete:
                if self.rows_done + self._filled != self.rows:
                    raise OutputError(
                        f"{self.path}: got {self.rows_done + self._filled} rows, expected {self.rows}; "
                        f"{self.partial} is kept"
                    )
                if self._filled:
                    self._write_block()
                with os_error_as_output_error(self.partial):
                    self._file.attrs.modify("complete", True)
                    self._file.flush()
            self._close_file(complete)
            if complete:
                self._publish()
        finally:
            self._close_file(complete=False)
            # The last thing: until then nobody else may write the partial.
            self._alone.close()

    def _close_file(self, complete: bool) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        for dataset in self._datasets.values():
            dataset.close()
        try:
            file.close()
        except (OSError, RuntimeError) as error:  # what it could not write is not marked as done
            if complete:
                raise OutputError(f"{self.partial} could not be closed: {error}") from error

    def _publish(self) -> None:
        if not self._to_h5ad:
            publish(self.partial, self.path)
            return
        converted = self.partial.with_name(self.partial.name + ".h5ad")
        with os_error_as_output_error(converted), read_embeddings(self.partial, locking=False) as source:
            write_h5ad(source, converted)
        publish(converted, self.path)
        self.partial.unlink()

    def __enter__(self) -> "EmbeddingWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(complete=kind is None)


def _check_settings(
    rows: int, width: int, length: int | None, dtype: str, name_width: int, to_h5ad: bool
) -> None:
    if dtype not in ("float32", "float16"):
        raise UsageError(f"got dtype {dtype!r}, expected float32 or float16")
    if rows < 0 or width < 1 or name_width < 1 or (length is not None and length < 1):
        raise UsageError(f"got {rows} rows of width {width}, length {length}, names of {name_width} bytes")
    if to_h5ad and length is not None:
        raise UsageError(
            "an .h5ad file has one vector a row; write .h5, or pool with another --pool than none"
        )
