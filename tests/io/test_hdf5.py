import io
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

from lrgenome.errors import InputError, NumericalError, OutputError, UsageError
from lrgenome.io import hdf5
from lrgenome.io.hdf5 import EmbeddingWriter, expected_bytes, read_embeddings

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


@pytest.mark.parametrize("stop", [0, 7, 14, 21])
def test_interrupted_then_resumed_equals_uninterrupted(tmp_path, small_chunks, stop):
    write(tmp_path / "whole.h5")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "e.h5", stop=stop)
    with EmbeddingWriter(
        tmp_path / "e.h5", width=WIDTH, rows=25, attrs=ATTRS, contigs=CONTIGS, resume=True
    ) as writer:
        assert writer.rows_done == stop // 8 * 8
        writer.append(**table(25 - writer.rows_done, first=writer.rows_done))
    assert_same(tmp_path / "e.h5", tmp_path / "whole.h5")


def test_resume_without_a_partial_starts_and_no_resume_starts_anew(tmp_path, small_chunks):
    write(tmp_path / "whole.h5")
    write(tmp_path / "a.h5", resume=True)
    assert_same(tmp_path / "a.h5", tmp_path / "whole.h5")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "b.h5", stop=21, attrs=ATTRS | {"model": "other"})
    write(tmp_path / "b.h5")
    assert_same(tmp_path / "b.h5", tmp_path / "whole.h5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attrs": ATTRS | {"model": "other"}}, "its model is 'toy', expected 'other'"),
        ({"attrs": ATTRS | {"more": 1}}, "its more is None, expected 1"),
        (
            {"attrs": {name: ATTRS[name] for name in ATTRS if name != "note"}},
            "note is 'é', expected None",
        ),
        ({"contigs": {"chr1": 1, "chr2": 500_000}}, "contigs are others"),
        ({"rows": 26}, r"shape of its embeddings is \(25, 4\), expected \(26, 4\)"),
        ({"dtype": "float16"}, "type of its embeddings is float32, expected float16"),
        (
            {"compression": "none"},
            r"filters\) of its embeddings is \[2, 1\], expected \[\]",
        ),
        ({"name_width": 65}, "type of its name is"),
    ],
)
def test_resume_refuses_a_partial_of_other_settings(tmp_path, small_chunks, change, message):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "e.h5", stop=21)
    before = datasets(tmp_path / "e.h5.partial")
    with pytest.raises(OutputError, match=message):
        write(tmp_path / "e.h5", **({"rows": 25, "resume": True} | change))
    for name, values in datasets(tmp_path / "e.h5.partial").items():
        np.testing.assert_array_equal(values, before[name])


def test_resume_refuses_a_damaged_partial(tmp_path):
    (tmp_path / "e.h5.partial").write_bytes(b"not HDF5 at all" * 9)
    with pytest.raises(OutputError, match="damaged"):
        write(tmp_path / "e.h5", resume=True)


def test_two_writers_of_one_file(tmp_path):
    first = EmbeddingWriter(tmp_path / "e.h5", width=WIDTH, rows=2, attrs=ATTRS, contigs=CONTIGS)
    for resume in (False, True):
        with pytest.raises(OutputError, match="another process is writing"):
            write(tmp_path / "e.h5", rows=2, resume=resume)
    first.append(**table(2))
    first.close()
    with read_embeddings(tmp_path / "e.h5") as found:
        assert found.rows == 2


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


def test_full_disk_keeps_the_partial(tmp_path, small_chunks, monkeypatch):
    write(tmp_path / "whole.h5")
    free = iter([1 << 40, 1 << 40, 100])
    with monkeypatch.context() as patch:
        patch.setattr(hdf5, "free_disk", lambda _: next(free))
        with pytest.raises(OutputError, match="disk full"):
            write(tmp_path / "e.h5")
    with read_embeddings(tmp_path / "e.h5.partial", allow_partial=True) as found:
        assert found.rows == 16
    write(tmp_path / "e.h5", resume=True)
    assert_same(tmp_path / "e.h5", tmp_path / "whole.h5")


PROGRAM = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from lrgenome.io import hdf5
import test_hdf5
hdf5.CHUNK_BYTES = 8 * 4 * test_hdf5.WIDTH
"""


def python(program: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM + program]


def test_failing_writes_keep_the_partial(tmp_path, small_chunks):
    """A limit on the size of files fails inside HDF5, where no check of free space warns."""
    write(tmp_path / "whole.h5", rows=4000, step=100)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "e.h5", rows=4000, step=100, stop=0)
    limit = (tmp_path / "e.h5.partial").stat().st_size + 20_000
    done = subprocess.run(
        python(
            f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
            "from lrgenome.errors import OutputError\n"
            f"try: test_hdf5.write({str(tmp_path / 'e.h5')!r}, rows=4000, step=100, resume=True)\n"
            "except OutputError as error: print('OutputError', error)"
        ),
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("OutputError"), done
    write(tmp_path / "e.h5", rows=4000, step=100, resume=True)
    assert_same(tmp_path / "e.h5", tmp_path / "whole.h5")


def test_killed_at_random_moments_then_resumed(tmp_path, small_chunks):
    rows, step = 4000, 10
    write(tmp_path / "whole.h5", rows=rows, step=step)
    path = tmp_path / "e.h5"
    program = python(
        f"print('ready', flush=True)\ntest_hdf5.write({str(path)!r}, rows={rows}, step={step}, resume=True)"
    )
    moments = random.Random(1)
    kills, restarts = 0, 0
    while kills < 20:
        process = subprocess.Popen(program, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        if process.wait() == -signal.SIGKILL:
            kills += 1
        if path.exists():  # it came through: begin again
            assert_same(path, tmp_path / "whole.h5")
            path.unlink()
            restarts += 1
    write(path, rows=rows, step=step, resume=True)
    assert_same(path, tmp_path / "whole.h5")


class RecordingFile(io.BytesIO):
    """A file in memory that HDF5 writes, and what it wrote: (offset, bytes), or (None, new length)."""

    def __init__(self, content: bytes):
        super().__init__(content)
        self.log: list = []

    def write(self, data):
        self.log.append((self.tell(), bytes(data)))
        return super().write(data)

    def truncate(self, size=None):
        self.log.append((None, size))
        if size > len(self.getvalue()):
            here = self.tell()
            self.seek(size - 1)
            super().write(b"\0")
            self.seek(here)
            return size
        return super().truncate(size)


@pytest.mark.parametrize(
    ("row_shape", "compression"), [((WIDTH,), "gzip"), ((19, WIDTH), "gzip"), ((WIDTH,), "none")]
)
def test_resumes_after_a_kill_between_any_two_writes(tmp_path, monkeypatch, row_shape, compression):
    """Stop after every single write that HDF5 makes, not just where random kills happen to fall."""
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", 8 * WIDTH * 4)
    per_block = 8 if len(row_shape) == 1 else 1
    settings = {"rows": 100 * per_block, "step": 100, "row_shape": row_shape, "compression": compression}
    write(tmp_path / "whole.h5", **settings)
    path, partial = tmp_path / "e.h5", tmp_path / "e.h5.partial"
    with pytest.raises(KeyboardInterrupt):
        write(path, **settings, stop=0)
    start = partial.read_bytes()
    opened = h5py.File
    recorded = RecordingFile(start)
    with monkeypatch.context() as patch:

        def record(name, mode, **options):
            return opened(recorded, mode) if mode == "r+" else opened(name, mode, **options)

        patch.setattr(hdf5.h5py, "File", record)
        with pytest.raises(KeyboardInterrupt):  # ten blocks are enough of the same
            write(path, **(settings | {"step": per_block}), resume=True, stop=10 * per_block)
    log = recorded.log
    assert len(log) > 100
    content = bytearray(start)
    for offset, data in log:
        if offset is None:
            content = content[:data] + bytes(max(0, data - len(content)))
        else:
            content += bytes(max(0, offset + len(data) - len(content)))
            content[offset : offset + len(data)] = data
        partial.write_bytes(content)
        with pytest.raises(KeyboardInterrupt):
            write(path, **(settings | {"step": per_block}), resume=True, stop=12 * per_block)
        with (
            read_embeddings(partial, allow_partial=True) as found,
            read_embeddings(tmp_path / "whole.h5") as all_,
        ):
            assert found.rows == 12 * per_block
            np.testing.assert_array_equal(found.embeddings[: found.rows], all_.embeddings[: found.rows])
            for column in hdf5.ROW_COLUMNS:
                got, wanted = getattr(found, column), getattr(all_, column)
                assert (got[: found.rows] == wanted[: found.rows]).all(), column


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
