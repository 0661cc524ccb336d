import gzip
import io
import os
import sys
from types import SimpleNamespace

import pysam
import pytest

from lrgenome.errors import BedError
from lrgenome.io.bed import BedInterval, read_bed


def read(tmp_path, text):
    path = tmp_path / "a.bed"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(read_bed(path))


def test_columns(tmp_path):
    assert read(tmp_path, "20\t0\t10\n20\t5\t6\tgene\t0\t-\textra\nX\t1\t2\t\t.\t\n") == [
        BedInterval("20", 0, 10, ".", "."),
        BedInterval("20", 5, 6, "gene", "-"),
        BedInterval("X", 1, 2, ".", "."),
    ]


def test_warts(tmp_path):
    text = (
        '\ufeffbrowser position chr7:1-2\r\ntrack name="a b"\r\n#c\r\n\r\n  \r\n'
        "track1\t1\t2\r\n1:100-200\t3\t4\r\nchr1 5 6 n"
    )
    assert read(tmp_path, text) == [
        BedInterval("track1", 1, 2),
        BedInterval("1:100-200", 3, 4),
        BedInterval("chr1", 5, 6, "n"),
    ]


def test_track_line_with_tabs(tmp_path):
    assert read(tmp_path, "track name=x\tdescription=y\n1\t0\t1\n") == [BedInterval("1", 0, 1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("20\t1", "line 2: got 2 columns, expected at least 3"),
        ("20\t-1\t5", "line 2: got start -1, expected 0 or more"),
        ("20\t5\t5", "line 2: got start 5 and end 5"),
        ("20\t6\t5", "line 2: got start 6 and end 5"),
        ("20\tx\t5", "line 2: got start 'x', expected a whole number"),
        ("20\t1\t5.0", "line 2: got end '5.0'"),
        ("20\t1_0\t50", "line 2: got start '1_0'"),
        ("20\t1e3\t5000", "line 2: got start '1e3'"),
        ("20\t١\t5000", "line 2: got start"),
        ("\t1\t5", "line 2: got an empty contig name"),
        ("20\t1\t5\tn\t0\tplus", r"line 2: got strand 'plus', expected \+, - or \."),
    ],
)
def test_bad_lines(tmp_path, line, message):
    with pytest.raises(BedError, match=message):
        read(tmp_path, f"20\t0\t1\n{line}\n")


def test_compressed_whatever_the_suffix(tmp_path):
    text = b"20\t1\t2\n" * 3
    assert read(tmp_path, gzip.compress(text)) == [BedInterval("20", 1, 2)] * 3
    (tmp_path / "p").write_bytes(text)
    pysam.tabix_compress(str(tmp_path / "p"), str(tmp_path / "p.bed.gz"))
    assert len(list(read_bed(tmp_path / "p.bed.gz"))) == 3


def test_damaged_files(tmp_path):
    lines = "".join(f"20\t{i}\t{i + 7}\n" for i in range(20_000)).encode()
    with pytest.raises(BedError, match=r"a\.bed, after line [1-9][0-9]*: damaged or cut gzip"):
        read(tmp_path, gzip.compress(lines)[:20_000])
    with pytest.raises(BedError, match="not text"):
        read(tmp_path, b"20\t1\t2\n\xff\xfe\x00")
    with pytest.raises(BedError, match=r"missing\.bed: cannot be read: No such file"):
        list(read_bed(tmp_path / "missing.bed"))
    assert read(tmp_path, "") == []


@pytest.mark.parametrize("packed", [False, True])
def test_stdin_is_read_and_left_open(tmp_path, monkeypatch, packed):
    text = b"20\t1\t2\n"
    stdin = io.BytesIO(gzip.compress(text) if packed else text)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
    assert list(read_bed("-")) == [BedInterval("20", 1, 2)]
    assert not stdin.closed


def test_file_is_closed_when_the_reader_stops_early(tmp_path):
    path = tmp_path / "a.bed"
    path.write_text("20\t1\t2\n" * 10)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    intervals = read_bed(path)
    next(intervals)
    intervals.close()
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
