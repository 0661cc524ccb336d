"""Rows that the tests of embedding files write, and what they compare."""

import h5py
import numpy as np

from lrgenome.io.hdf5 import EmbeddingWriter

ATTRS = {
    "model": "toy",
    "sha256": "0" * 64,
    "layer": 3,
    "pool": "mean",
    "bin_size": 1024,
    "context": 100_000,
    "stride": 100_000,
    "both_strands": True,
    "note": "é",
}
CONTIGS = {"chr1": 1_000_000, "chr2": 500_000}
WIDTH = 4


def table(rows: int, row_shape: tuple[int, ...] = (WIDTH,), first: int = 0) -> dict:
    """Rows first .. first + rows, each a function of its number."""
    number = np.arange(first, first + rows)
    size = int(np.prod(row_shape))
    values = np.sin(number[:, None] + np.arange(size) / 7).astype(np.float32)
    return {
        "embeddings": values.reshape(rows, *row_shape),
        "chrom": [("chr1", "chr2")[i // 50 % 2] for i in number],
        "start": number * 1024,
        "end": number * 1024 + 1024,
        "strand": ["+-."[i % 3] for i in number],
        "name": [f"région{i}" if i % 5 else "" for i in number],
        "n_frac": number / 1000,
    }


def write(path, rows=25, step=7, row_shape=(WIDTH,), resume=False, stop=None, **settings):
    """Write rows in steps, continuing after a resume; `stop` leaves by an error after that many."""
    settings = {"attrs": ATTRS, "contigs": CONTIGS, "width": row_shape[-1]} | settings
    length = row_shape[0] if len(row_shape) == 2 else None
    with EmbeddingWriter(path, rows=rows, length=length, resume=resume, **settings) as writer:
        for first in range(writer.rows_done, rows, step):
            if stop is not None and first >= stop:
                raise KeyboardInterrupt
            writer.append(**table(min(step, rows - first), row_shape, first))


def datasets(path) -> dict[str, np.ndarray]:
    found = {}

    def collect(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(collect)
    return found


def assert_same(path, expected):
    got, wanted = datasets(path), datasets(expected)
    assert got.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)
