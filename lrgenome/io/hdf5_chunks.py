"""Chunks of HDF5 datasets that survive a kill: compressed in memory, written once and whole.

`lrgenome.io.hdf5` says why this is enough. Nothing here knows what the datasets mean.
"""

import contextlib
import faulthandler
import itertools
import os
import resource
import signal
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import psutil

from lrgenome.errors import UsageError

COMPRESSIONS = ("gzip", "zstd", "none")
ZSTD_FILTER = 32015  # registered with The HDF Group
_SUPERBLOCK_0 = b"\x89HDF\r\n\x1a\n\x00"
_MOST_LOST = 1 << 28
_PATIENCE = 20
"""Seconds that a look at the structure of a file may take."""
_MEMORY = 1 << 28
"""Bytes that it may take."""
_END_OF_FILE = slice(40, 48)  # in a version 0 superblock; little-endian, no checksum


def filters_of(compression: str) -> dict[str, Any]:
    """Arguments of ``create_dataset`` for a compression.

    Raises
    ------
    UsageError
        If the compression is unknown or needs a plugin that is not installed.
    """
    if compression == "none":
        return {}
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    if compression == "zstd":
        return {**_zstd_plugin().Zstd(clevel=3), "shuffle": True}
    raise UsageError(f"got compression {compression!r}, expected one of {', '.join(COMPRESSIONS)}")


def load_filters(dataset: h5py.Dataset) -> None:
    """Load the plugin that decompresses `dataset`, if it needs one.

    Raises
    ------
    UsageError
        If the plugin is not installed.
    """
    if ZSTD_FILTER in filter_ids(dataset):
        _zstd_plugin()


def filter_ids(dataset: h5py.Dataset) -> list[int]:
    """Numbers of the HDF5 filters of a dataset, in the order in which they are applied."""
    plist = dataset.id.get_create_plist()
    return [int(plist.get_filter(i)[0]) for i in range(plist.get_nfilters())]


def _zstd_plugin() -> Any:
    try:
        import hdf5plugin
    except ImportError as error:
        raise UsageError(
            "zstd compression of HDF5 needs a plugin: pip install lrgenome[hdf5plugin]"
        ) from error
    return hdf5plugin


class ChunkedDataset:
    """Layout of one dataset, and the writer of its blocks of rows.

    Parameters
    ----------
    name
        Path of the dataset in its file.
    shape
        Shape of the dataset; its first axis are rows.
    chunks
        Shape of a chunk: a block of rows, whole or cut along the second axis.
    dtype
        Type of an element.
    filters
        From `filters_of`.
    """

    def __init__(
        self, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: Any, filters: dict[str, Any]
    ) -> None:
        self.name, self.shape, self.chunks, self.dtype = name, shape, chunks, np.dtype(dtype)
        self._filters = filters
        # A dataset of one chunk in memory, with the same filters: HDF5 compresses there.
        self._memory = h5py.File(f"memory-{uuid.uuid4().hex}", "w", driver="core", backing_store=False)
        self._one = self._memory.create_dataset("one", chunks, dtype=dtype, chunks=chunks, **filters)

    def create_in(self, file: h5py.File) -> None:
        """Create the dataset with all of its chunks allocated and holding zeros."""
        if not self.shape[0]:
            file.create_dataset(self.name, self.shape, dtype=self.dtype)
            return
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        if not self._filters:
            plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        dataset = file.create_dataset(
            self.name, self.shape, dtype=self.dtype, chunks=self.chunks, dcpl=plist, **self._filters
        )
        if self._filters:
            mask, zeros = self._encode(np.zeros(self.chunks, self.dtype))
            for corner in itertools.product(
                *(range(0, size, step) for size, step in zip(self.shape, self.chunks, strict=True))
            ):
                dataset.id.write_direct_chunk(corner, zeros, mask)

    def compare(self, dataset: h5py.Dataset) -> Iterator[tuple[str, Any, Any]]:
        """Yield what a dataset has and what it should have: property, got, expected."""
        yield "shape", dataset.shape, self.shape
        yield "type", dataset.dtype, self.dtype
        if self.shape[0]:
            yield "chunk shape", dataset.chunks, self.chunks
            yield "compression (HDF5 filters)", filter_ids(dataset), filter_ids(self._one)

    def write(self, file: h5py.File, first_row: int, block: npt.NDArray[Any]) -> None:
        """Write one block of rows, chunk by chunk, each flushed before the next.

        Parameters
        ----------
        file
            The open file.
        first_row
            Row of the dataset at which the block starts, a multiple of the chunk's rows.
        block
            As many rows as a chunk has; rows past the end of the dataset are ignored by readers.
        """
        dataset = file[self.name]
        step = self.chunks[1] if len(self.chunks) > 1 else 1
        for offset in range(0, self.shape[1] if len(self.shape) > 1 else 1, step):
            piece = block[:, offset : offset + step] if len(self.chunks) > 1 else block
            if piece.shape != self.chunks:
                whole = np.zeros(self.chunks, self.dtype)
                whole[:, : piece.shape[1]] = piece
                piece = whole
            mask, raw = self._encode(piece)
            corner = (first_row, offset, 0)[: len(self.shape)]
            dataset.id.write_direct_chunk(corner, raw, mask)
            file.flush()

    def _encode(self, chunk: npt.NDArray[Any]) -> tuple[int, bytes]:
        self._one[...] = chunk.view(self.dtype)  # of strings it says that they are UTF-8
        mask, raw = self._one.id.read_direct_chunk((0,) * len(self.chunks))
        return mask, raw

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()


def trouble_with(path: Path, check: Callable[[h5py.File], None]) -> str | None:
    """Open a file and check it in a process of its own; say what is wrong with it, None if nothing is.

    At some damage the HDF5 library ends its process, or asks for memory without end.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, of which the child has none
        child = os.fork()
    if not child:
        said = b"nothing was said"
        try:
            os.close(reader)
            faulthandler.disable()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_PATIENCE)
            limit = psutil.Process().memory_info().vms + _MEMORY
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            with h5py.File(path, "r", locking=False) as file:
                check(file)
            said = b""
        except BaseException as error:
            said = (str(error) or type(error).__name__)[:500].encode("utf-8", "replace")
        finally:
            with contextlib.suppress(OSError):
                os.write(writer, said)
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        said = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"the HDF5 library did not survive it, exit status {status}" if status else said.decode() or None


def mend_end_of_file(path: Path) -> None:
    """Make the end of the file that HDF5 recorded, and the true one, agree after a kill.

    HDF5 writes the new end after what lies before it. Killed in between, it would give out the last bytes
    of the file once more (end recorded too low), or refuse to open it (too high).
    """
    with open(path, "r+b") as raw:
        head = raw.read(_END_OF_FILE.stop)
        if len(head) < _END_OF_FILE.stop or not head.startswith(_SUPERBLOCK_0):
            return  # not as HDF5's default settings write it; opening it will say what is wrong
        recorded = int.from_bytes(head[_END_OF_FILE], "little")
        actual = os.fstat(raw.fileno()).st_size
        if recorded > actual + _MOST_LOST:
            return  # no kill does that
        if recorded > actual:
            raw.truncate(recorded)
        elif recorded < actual:
            raw.seek(_END_OF_FILE.start)
            raw.write(actual.to_bytes(8, "little"))
