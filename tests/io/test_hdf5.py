import os
import sys
import warnings

import h5py
import numpy as np
import pytest
from hdf5_rows import ATTRS, CONTIGS, WIDTH, assert_same, table, write

from lrgenome.errors import InputError, NumericalError, OutputError, UsageError
from lrgenome.io import hdf5
from lrgenome.io.hdf5 import EmbeddingWriter, expected_bytes, read_embeddings


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", 8 * WIDTH * 4)  # 8 rows


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_plain_h5py_reads_the_schema(tmp_path, small_chunks, compression):
    path = tmp_path / "e.h5"
    write(path, compression=compression)
    expected = table(25)
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["embeddings"][:], expected["embeddings"])
        assert file["embeddings"].dtype == np.float32
        for column, kind in (("start", np.int64), ("end", np.int64), ("n_frac", np.float32)):
            assert file[column].dtype == kind
            np.testing.assert_array_equal(file[column][:], np.asarray(expected[column], kind))
        for column in ("chrom", "strand", "name"):
            assert file[column].dtype.kind == "S"
            assert [text.decode() for text in file[column][:]] == expected[column]
        assert file["contigs/name"][:].tolist() == [b"chr1", b"chr2"]
        assert file["contigs/length"][:].tolist() == [1_000_000, 500_000]
        assert file["done"][:].tolist() == [1, 1, 1, 1]
        assert file["done"].chunks is None
        for name in ("embeddings", *hdf5.ROW_COLUMNS):
            assert file[name].chunks[0] == 8
            assert (file[name].compression == "gzip" and file[name].shuffle) == (compression == "gzip")
        assert {name: file.attrs[name] for name in ATTRS} == ATTRS
        assert file.attrs["format"] == "lrgenome-embeddings"
        assert file.attrs["format_version"] == 1
        assert file.attrs["coordinate_system"] == "0-based half-open"
        assert file.attrs["complete"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["e.h5"]


def test_chunks_are_about_a_mebibyte(tmp_path):
    path = tmp_path / "e.h5"
    write(path, rows=600, step=600, row_shape=(512,))
    with h5py.File(path, "r") as file:
        assert file["embeddings"].chunks == (512, 512)
        assert file["start"].chunks == (512,)


def test_bytes_depend_on_content_only(tmp_path, small_chunks):
    write(tmp_path / "a.h5", step=7)
    write(tmp_path / "b.h5", step=25)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_rows_without_pooling_are_cut_when_longer_than_a_chunk(tmp_path, small_chunks):
    path = tmp_path / "e.h5"
    write(path, rows=5, step=2, row_shape=(19, WIDTH))
    with h5py.File(path, "r") as file:
        assert file["embeddings"].chunks == (1, 8, WIDTH)
        np.testing.assert_array_equal(file["embeddings"][:], table(5, (19, WIDTH))["embeddings"])
    write(path, rows=5, step=2, row_shape=(2, WIDTH))
    with h5py.File(path, "r") as file:
        assert file["embeddings"].chunks == (4, 2, WIDTH)
        np.testing.assert_array_equal(file["embeddings"][:], table(5, (2, WIDTH))["embeddings"])


@pytest.mark.parametrize("suffix", ["h5", "h5ad"])
def test_no_rows_at_all(tmp_path, suffix):
    path = tmp_path / f"e.{suffix}"
    write(path, rows=0)
    with h5py.File(path, "r") as file:
        assert file["X" if suffix == "h5ad" else "embeddings"].shape == (0, WIDTH)


def test_reader(tmp_path, small_chunks):
    path = tmp_path / "e.h5"
    write(path)
    expected = table(25)
    with read_embeddings(path) as found:
        assert len(found) == found.rows == 25
        assert found.complete
        assert found.contigs == CONTIGS
        assert {name: found.attrs[name] for name in ATTRS} == ATTRS
        assert isinstance(found.attrs["layer"], int)
        assert found.chrom[3:6].tolist() == expected["chrom"][3:6]
        assert found.name[24] == expected["name"][24]
        np.testing.assert_array_equal(found.embeddings[8:10], expected["embeddings"][8:10])
        assert found.start[2] == 2048


def test_reader_refuses_what_is_foreign_or_incomplete(tmp_path, small_chunks):
    path = tmp_path / "e.h5"
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        read_embeddings(path)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(InputError, match="expected 'lrgenome-embeddings'"):
        read_embeddings(path)
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": "lrgenome-embeddings", "format_version": 2})
    with pytest.raises(InputError, match="version 2, expected 1"):
        read_embeddings(path)
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": "lrgenome-embeddings", "format_version": 1})
    with pytest.raises(InputError, match="damaged"):
        read_embeddings(path)
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        write(path, stop=21)
    assert not path.exists()
    partial = tmp_path / "e.h5.partial"
    with pytest.raises(InputError, match="only 16 of 25 rows"):
        read_embeddings(partial)
    with read_embeddings(partial, allow_partial=True) as found:
        assert (found.rows, found.complete) == (16, False)
        np.testing.assert_array_equal(found.embeddings[:16], table(16)["embeddings"])


def test_float16_is_guarded(tmp_path, small_chunks):
    write(tmp_path / "half.h5", dtype="float16")
    with read_embeddings(tmp_path / "half.h5") as found:
        assert found.embeddings.dtype == np.float16
        np.testing.assert_array_equal(found.embeddings[:], table(25)["embeddings"].astype(np.float16))
    rows = table(3)
    rows["embeddings"][2, 1] = -65505
    rows["embeddings"][1, 1] = 65504
    with (
        pytest.raises(OutputError, match=r"row 2 \(chr1:2048-3072\).*65505.*float16"),
        EmbeddingWriter(
            tmp_path / "e.h5", width=WIDTH, rows=3, attrs=ATTRS, contigs=CONTIGS, dtype="float16"
        ) as writer,
    ):
        writer.append(**rows)


@pytest.mark.parametrize(
    ("column", "value", "error", "message"),
    [
        ("embeddings", np.nan, NumericalError, "row 1 .*not a finite"),
        ("embeddings", -np.inf, NumericalError, "row 1 .*not a finite"),
        ("chrom", "chr9", OutputError, "row 1: contig 'chr9'"),
        ("name", "x" * 65, OutputError, "row 1: name 'x.*64 bytes"),
        ("strand", "forward", OutputError, "row 1: strand 'forward'"),
    ],
)
def test_values_that_do_not_fit(tmp_path, column, value, error, message):
    rows = table(3)
    rows[column][1] = value
    writer = EmbeddingWriter(tmp_path / "e.h5", width=WIDTH, rows=3, attrs=ATTRS, contigs=CONTIGS)
    with pytest.raises(error, match=message):
        writer.append(**rows)
    writer.close(complete=False)


def test_wrong_numbers_of_rows(tmp_path):
    writer = EmbeddingWriter(tmp_path / "e.h5", width=WIDTH, rows=3, attrs=ATTRS, contigs=CONTIGS)
    with pytest.raises(OutputError, match="got 4 rows, expected 3"):
        writer.append(**table(4))
    with pytest.raises(ValueError, match=r"expected \('n', 4\)"):
        writer.append(**table(2, (5,)))
    with pytest.raises(ValueError, match="got 1 values of strand for 2"):
        writer.append(**(table(2) | {"strand": ["+"]}))
    with pytest.raises(OutputError, match="got 0 rows, expected 3"):
        writer.close()
    assert (tmp_path / "e.h5.partial").exists()
    assert not (tmp_path / "e.h5").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attrs": {}}, "model, sha256"),
        ({"attrs": ATTRS | {"complete": True}}, "complete is the writer's own"),
        ({"attrs": ATTRS | {"layer": None}}, "layer: got None"),
        ({"dtype": "float64"}, "expected float32 or float16"),
        ({"compression": "lzf"}, "expected one of gzip"),
        ({"width": 0}, "width 0"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        write(tmp_path / "e.h5", **settings)
    assert not list(tmp_path.iterdir())


def test_pipes_are_refused():
    with pytest.raises(UsageError, match="pipe or device"):
        write("/dev/stdout")


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write(tmp_path / "absent" / "e.h5")


def read_h5ad(path):
    with warnings.catch_warnings():
        # anndata announces deprecations of its own and of its dependencies when it is imported.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        anndata = pytest.importorskip("anndata")
    return anndata.read_h5ad(path)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_h5ad_is_read_by_anndata(tmp_path, small_chunks, dtype):
    path = tmp_path / "e.h5ad"
    with pytest.raises(KeyboardInterrupt):
        write(path, dtype=dtype, stop=14)
    write(path, dtype=dtype, resume=True)
    assert os.listdir(tmp_path) == ["e.h5ad"]
    expected = table(25)
    found = read_h5ad(path)
    assert found.X.dtype == np.float32
    np.testing.assert_array_equal(found.X, expected["embeddings"].astype(dtype).astype(np.float32))
    assert list(found.obs.columns) == list(hdf5.ROW_COLUMNS)
    assert found.obs.index.tolist() == [str(row) for row in range(25)]
    for column in ("chrom", "strand", "name"):
        assert found.obs[column].astype(str).tolist() == expected[column]
    assert found.obs["start"].dtype == np.int64
    np.testing.assert_array_equal(found.obs["end"], expected["end"])
    np.testing.assert_array_equal(found.obs["n_frac"], expected["n_frac"].astype(np.float32))
    assert found.var_names.tolist() == ["0", "1", "2", "3"]
    assert {name: found.uns[name] for name in ATTRS} == ATTRS
    assert found.uns["contigs"]["name"].tolist() == ["chr1", "chr2"]
    assert found.uns["contigs"]["length"].tolist() == [1_000_000, 500_000]


def test_h5ad_without_pooling_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.h5ad"):
        write(tmp_path / "e.h5ad", row_shape=(3, WIDTH))


def test_zstd_without_its_plugin_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(UsageError, match=r"pip install lrgenome\[hdf5plugin\]"):
        write(tmp_path / "e.h5", compression="zstd")


def test_zstd(tmp_path, small_chunks):
    pytest.importorskip("hdf5plugin")
    write(tmp_path / "whole.h5")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "e.h5", compression="zstd", stop=14)
    write(tmp_path / "e.h5", compression="zstd", resume=True)
    assert_same(tmp_path / "e.h5", tmp_path / "whole.h5")


def test_expected_bytes_is_near_the_uncompressed_file(tmp_path):
    path = tmp_path / "e.h5"
    write(path, rows=1000, step=1000, row_shape=(128,), compression="none")
    assert path.stat().st_size == pytest.approx(expected_bytes(1000, 128), rel=0.1)
    assert expected_bytes(1, 3, 5, "float16") - expected_bytes(1, 3, 4, "float16") == 6
