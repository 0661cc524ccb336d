"""Embedding files whose writer was interrupted, killed, or ran out of disk."""

import io
import itertools
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_rows import ATTRS, CONTIGS, WIDTH, assert_same, datasets, table, write

from lrgenome.errors import OutputError
from lrgenome.io import hdf5
from lrgenome.io.hdf5 import EmbeddingWriter, read_embeddings


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", 8 * WIDTH * 4)  # 8 rows


@pytest.mark.parametrize("stop", [0, 7, 14, 21])
def test_interrupted_then_resumed_equals_uninterrupted(tmp_path, small_chunks, stop):
    write(tmp_path / "whole.h5")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "e.h5", stop=stop)
    with EmbeddingWriter(tmp_path / "e.h5", width=WIDTH, rows=25, attrs=ATTRS, contigs=CONTIGS, resume=True) as writer:
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
import hdf5_rows
hdf5.CHUNK_BYTES = 8 * 4 * hdf5_rows.WIDTH
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
            f"try: hdf5_rows.write({str(tmp_path / 'e.h5')!r}, rows=4000, step=100, resume=True)\n"
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
        f"print('ready', flush=True)\nhdf5_rows.write({str(path)!r}, rows={rows}, step={step}, resume=True)"
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


@pytest.mark.parametrize(("row_shape", "compression"), [((WIDTH,), "gzip"), ((19, WIDTH), "gzip"), ((WIDTH,), "none")])
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
    # Of hundreds of partial files that are whole, each tenth is tried in a process of its own first.
    tried, count = hdf5.trouble_with, itertools.count()
    monkeypatch.setattr(hdf5, "trouble_with", lambda *of: None if next(count) % 10 else tried(*of))
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
