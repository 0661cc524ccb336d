import gzip
import importlib.util
import sys

import numpy as np
import pysam
import pytest

from lrgenome.errors import OutputError, UsageError
from lrgenome.io import tracks
from lrgenome.io.tracks import SUFFIXES, Stretch, check_track_suffix, write_track

CONTIGS = {"chr1": 1_000, "chr2": 500}
STRETCHES = [
    Stretch("chr1", 10, np.array([0.25, np.nan, -1.5, -0.0])),
    Stretch("chr1", 20, np.array([1e-7, np.nan])),
    Stretch("chr2", 498, np.array([3.0, 123456.789])),
]
LINES = [
    "chr1\t10\t11\t0.25", "chr1\t12\t13\t-1.5", "chr1\t13\t14\t0", "chr1\t20\t21\t1e-07", "chr2\t498\t499\t3",
    "chr2\t499\t500\t123457",
]  # fmt: skip


@pytest.mark.parametrize("name", ["a.bedgraph", "a.bg", "a.BedGraph"])
def test_bedgraph(tmp_path, name):
    write_track(tmp_path / name, STRETCHES, CONTIGS, "LLR", 'of "this" model')
    first, *lines = (tmp_path / name).read_text().splitlines()
    assert first == """track type=bedGraph name="LLR" description="of 'this' model\""""
    assert lines == LINES
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_bgzf(tmp_path):
    write_track(tmp_path / "a.bg", STRETCHES, CONTIGS, "LLR", "")
    write_track(tmp_path / "a.bedgraph.gz", STRETCHES, CONTIGS, "LLR", "")
    assert gzip.decompress((tmp_path / "a.bedgraph.gz").read_bytes()) == (tmp_path / "a.bg").read_bytes()
    pysam.tabix_index(str(tmp_path / "a.bedgraph.gz"), seq_col=0, start_col=1, end_col=2, zerobased=True, line_skip=1)
    with pysam.TabixFile(str(tmp_path / "a.bedgraph.gz")) as table:
        assert list(table.fetch("chr1", 12, 21)) == LINES[1:4]


@pytest.mark.parametrize("suffix", [".bw", ".bigwig"])
def test_bigwig(tmp_path, monkeypatch, suffix):
    bigwig = pytest.importorskip("pyBigWig", reason="needs pyBigWig: pip install 'lrgenome[bigwig]'")
    monkeypatch.setattr(tracks, "_BLOCK", 2)
    long = np.linspace(-2, 2, 301)
    long[[0, 7, 8, 200]] = np.nan
    path = tmp_path / f"a{suffix}"
    write_track(path, [*STRETCHES[:2], Stretch("chr2", 100, long)], CONTIGS, "LLR", "")
    with bigwig.open(str(path)) as file:
        assert file.isBigWig() and file.chroms() == CONTIGS
        found = np.array(file.values("chr2", 90, 500))
        one = np.array(file.values("chr1", 8, 24))
    expected = np.full(410, np.nan)
    expected[10:311] = long
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(
        one, [np.nan, np.nan, 0.25, np.nan, -1.5, 0, *[np.nan] * 6, 1e-7, *[np.nan] * 3], rtol=1e-6
    )
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_track_without_values(tmp_path, suffix):
    if suffix in (".bw", ".bigwig"):
        pytest.importorskip("pyBigWig", reason="needs pyBigWig: pip install 'lrgenome[bigwig]'")
    write_track(tmp_path / f"a{suffix}", [Stretch("chr1", 3, np.array([np.nan]))], CONTIGS, "LLR", "")
    assert (tmp_path / f"a{suffix}").stat().st_size > 0


def test_other_suffixes():
    for path in ("a.wig", "-", "a.bed.gz", "bw"):
        with pytest.raises(UsageError, match=r"--track: got '.*', expected a name ending in \.bedgraph, "):
            check_track_suffix(path)


def test_bigwig_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs pyBigWig: pip install 'lrgenome\[bigwig\]'"):
        check_track_suffix(tmp_path / "a.bw")
    assert check_track_suffix("a.bedgraph") == ".bedgraph"


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match=r"cannot write .*absent"):
        write_track(tmp_path / "absent" / "a.bg", STRETCHES, CONTIGS, "LLR", "")

    class Broken:
        def open(self, *_):
            raise RuntimeError("no room")

    monkeypatch.setitem(sys.modules, "pyBigWig", Broken())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    (tmp_path / "a.bw").write_text("earlier")
    with pytest.raises(OutputError, match="no room"):
        write_track(tmp_path / "a.bw", STRETCHES, CONTIGS, "LLR", "")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("a.bw", "earlier")]
