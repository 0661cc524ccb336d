"""HDF5 files that point elsewhere, lie about their shapes or hold other types: refused before they are read."""

import os
import resource

import h5py
import numpy as np
import pytest
from hdf5_rows import table, write

from lrgenome.errors import InputError, OutputError
from lrgenome.io import hdf5
from lrgenome.io.hdf5 import read_embeddings

ROWS = 60


def replaced(name, make):
    def change(file, folder):
        del file[name]
        make(file, name, folder)

    return change


def dataset(shape, dtype, **how):
    return lambda file, name, folder: file.create_dataset(name, shape, dtype, **how)


def holding(values):
    return lambda file, name, folder: file.create_dataset(name, data=values)


def link(make):
    def change(file, name, folder):
        file[name] = make(folder)

    return change


def virtual(file, name, folder):
    layout = h5py.VirtualLayout((ROWS, 4), np.float32)
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "x", (ROWS, 4))
    file.create_virtual_dataset(name, layout)


def external(file, name, folder):
    file.create_dataset(name, (ROWS, 4), np.float32, external=[(str(folder / "secret.raw"), 0, h5py.h5f.UNLIMITED)])


def unknown_filter(file, name, folder):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((10, 4))
    plist.set_filter(33_333, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((ROWS, 4))
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, plist)


def attribute(name, value):
    def change(file, folder):
        file.attrs[name] = value

    return change


CASES = {
    "link to another file": (
        replaced("embeddings", link(lambda f: h5py.ExternalLink(str(f / "secret.h5"), "x"))),
        "is a link",
    ),
    "column of another file": (
        replaced("start", link(lambda f: h5py.ExternalLink(str(f / "secret.h5"), "c"))),
        "is a link",
    ),
    "group of another file": (
        replaced("contigs", link(lambda f: h5py.ExternalLink(str(f / "secret.h5"), "/"))),
        "is a link",
    ),
    "link to a column": (replaced("embeddings", link(lambda f: h5py.SoftLink("/start"))), "is a link"),
    "link to itself": (replaced("embeddings", link(lambda f: h5py.SoftLink("/embeddings"))), "is a link"),
    "virtual": (replaced("embeddings", virtual), "is not a dataset of this file"),
    "external bytes": (replaced("embeddings", external), "is not a dataset of this file"),
    "group": (
        replaced("embeddings", lambda file, name, folder: file.create_group(name)),
        "is not a dataset of this file",
    ),
    "2**60 rows": (replaced("embeddings", dataset((2**60, 4), np.float32, chunks=(16, 4))), "more than a file of"),
    "2**40 blocks": (replaced("done", dataset((2**40,), np.uint8, chunks=(16,))), "more than a file of"),
    "2**40 contigs": (replaced("contigs/name", dataset((2**40,), "S9", chunks=(16,))), "more than a file of"),
    "one huge chunk": (
        replaced("embeddings", dataset((ROWS, 4), np.float32, chunks=(2**29, 4), maxshape=(None, 4))),
        "holds",
    ),
    "unknown filter": (replaced("embeddings", unknown_filter), "a filter that is not there"),
    "references": (
        replaced(
            "chrom", lambda f, name, _: f.create_dataset(name, data=np.array([f["start"].ref] * ROWS, h5py.ref_dtype))
        ),
        "type object",
    ),
    "strings on the heap": (replaced("chrom", holding(["chr1"] * ROWS)), "type object"),
    "scalar": (replaced("embeddings", holding(1.0)), "has shape ()"),
    "scalar blocks": (replaced("done", holding(1)), "has shape ()"),
    "nothing": (replaced("embeddings", holding(h5py.Empty("f4"))), "has shape None"),
    "records": (replaced("embeddings", dataset((ROWS,), np.dtype([("a", "f4")]))), "expected others"),
    "opaque": (replaced("embeddings", dataset((ROWS, 4), np.dtype("V8"))), "type |V8"),
    "fewer places": (replaced("start", holding(np.arange(3))), "start has 3 rows, embeddings 60"),
    "places of no base": (replaced("start", holding(np.arange(ROWS) + 0.5)), "type float64"),
    "fewer lengths": (replaced("contigs/length", holding(np.array([5]))), "contigs have more names"),
    "bytes that are no text": (replaced("contigs/name", holding(np.array([b"\xff", b"b"]))), "can't decode byte 0xff"),
    "two answers": (attribute("complete", [True, False]), "neither true nor false"),
    "no answer": (lambda file, folder: file.attrs.__delitem__("complete"), "'complete'"),
}


@pytest.fixture
def secrets(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"], file["c"], file["name"], file["length"] = np.full((ROWS, 4), 7.0, "f4"), np.arange(ROWS), ["a"], [5]
    (tmp_path / "secret.raw").write_bytes(bytes(10_000))
    return tmp_path


@pytest.fixture
def little_memory():
    """A gigabyte more than is in use."""
    with open("/proc/self/statm") as handle:
        used = int(handle.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("case", CASES)
def test_read(secrets, monkeypatch, little_memory, case):
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", 256)
    change, message = CASES[case]
    path = secrets / "e.h5"
    write(path, ROWS)
    with h5py.File(path, "r+") as file:
        change(file, secrets)
    with pytest.raises(InputError) as caught:
        read_embeddings(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_resume(secrets, monkeypatch, little_memory, case):
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", 256)
    change, message = CASES[case]
    path, partial = secrets / "e.h5", secrets / "e.h5.partial"
    with pytest.raises(KeyboardInterrupt):
        write(path, ROWS, stop=35)
    with h5py.File(partial, "r+") as file:
        change(file, secrets)
    with pytest.raises(OutputError) as caught:
        write(path, ROWS, resume=True)
    assert str(partial) in str(caught.value) and message in str(caught.value)
    assert not path.exists()
    # Nothing holds the file: it can be begun anew at once.
    write(path, ROWS)
    with read_embeddings(path) as rows:
        np.testing.assert_array_equal(rows.embeddings[:], table(ROWS)["embeddings"])


@pytest.mark.parametrize("name", ["format", "format_version"])
def test_a_format_that_is_a_list(tmp_path, name):
    path = tmp_path / "e.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        file.attrs[name] = [1, 1]
    with pytest.raises(InputError, match=r"got .*\[1, 1\]"):
        read_embeddings(path)


def test_an_end_of_file_that_lies_far_away(tmp_path):
    """After a kill the recorded end may be beyond the true one; a file is not made terabytes long for it."""
    path, partial = tmp_path / "e.h5", tmp_path / "e.h5.partial"
    with pytest.raises(KeyboardInterrupt):
        write(path, stop=14)
    data = bytearray(partial.read_bytes())
    data[40:48] = (1 << 42).to_bytes(8, "little")
    partial.write_bytes(data)
    with pytest.raises(OutputError, match="damaged"):
        write(path, resume=True)
    assert os.path.getsize(partial) == len(data)
