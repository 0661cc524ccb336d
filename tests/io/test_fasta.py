import gzip
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pysam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrgenome.dna import FIRST_BASE, N, decode, encode
from lrgenome.errors import FastaError, InputError, UsageError
from lrgenome.io import fasta as fasta_module
from lrgenome.io.fasta import Fasta, format_region, parse_region, read_alias_table, resolve_contig


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def bgzip(path):
    packed = path.with_name(path.name + ".gz")
    pysam.tabix_compress(str(path), str(packed))
    return packed


@pytest.fixture(params=["plain", "bgzf"])
def either(request, toy_fasta):
    return toy_fasta if request.param == "plain" else bgzip(toy_fasta)


# Reading


def test_every_contig_is_read_as_written(either, toy_sequences):
    with Fasta(either) as fasta:
        assert list(fasta.contigs.items()) == [("chr1", 5003), ("chr2", 1200), ("MT", 61)]
        assert fasta.path == either
        for name, sequence in toy_sequences.items():
            ids = fasta.fetch(name, 0, len(sequence))
            assert ids.dtype == np.uint8
            np.testing.assert_array_equal(ids, encode(sequence))
        assert (fasta.fetch("chr1", 100, 300) == N).all()
        assert (fasta.fetch("chr2", 400, 422) == N).all()
        assert fasta.fetch("MT", 61, 61).shape == (0,)


def test_intervals_across_blocks_and_evictions(either, toy_sequences, monkeypatch):
    monkeypatch.setattr(fasta_module, "_BLOCK", 7)
    monkeypatch.setattr(fasta_module, "_BLOCKS_KEPT", 2)
    expected = encode(toy_sequences["MT"])
    with Fasta(either) as fasta:
        for start in range(62):
            for end in range(start, 62):
                np.testing.assert_array_equal(fasta.fetch("MT", start, end), expected[start:end])


def test_result_is_the_callers_own(toy_fasta):
    with Fasta(toy_fasta) as fasta:
        first = fasta.fetch("MT", 0, 61)
        kept = first.copy()
        first[:] = 0
        np.testing.assert_array_equal(fasta.fetch("MT", 0, 61), kept)


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (0, 62), (61, 62), (6, 5), (100, 100)])
def test_nothing_is_clipped(either, start, end):
    with Fasta(either) as fasta, pytest.raises(FastaError, match=rf"\[{start}, {end}\).*\[0, 61\)"):
        fasta.fetch("MT", start, end)


def test_unknown_contig(toy_fasta):
    with Fasta(toy_fasta) as fasta, pytest.raises(FastaError, match="no contig 'chr3', only chr1, chr2, MT"):
        fasta.fetch("chr3", 0, 1)


def test_closed(either):
    fasta = Fasta(either)
    fasta.close()
    fasta.close()
    with pytest.raises(ValueError, match="is closed"):
        fasta.fetch("MT", 0, 1)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        b">a x\r\nACGTA\r\nCGTAC\r\nGT\r\n>b\r\nAC\r\n",
        b">a\nACGTA\nCGTAC\nGT\n>b\nAC",
        b"\n\n>a\n\nACGTA\nCGTAC\nGT\n\n\n>b\nAC\n\n",
        b">a\nACGTACGTACGT\n>b\nAC",
        b">empty\n>a\nACGTA\nCGTAC\nGT\n>b\tdescription\nAC\n>last",
    ],
)
def test_line_ends_and_blank_lines(tmp_path, content, packed):
    path = write(tmp_path / "a.fa", content)
    path = bgzip(path) if packed else path
    for _ in range(2):
        with Fasta(path) as fasta:
            assert fasta.contigs == {"a": 12, "b": 2}
            for start in range(12):
                for end in range(start + 1, 13):
                    assert decode(fasta.fetch("a", start, end)) == "ACGTACGTACGT"[start:end]
            assert decode(fasta.fetch("b", 0, 2)) == "AC"


def test_contigs_without_sequence_are_named(tmp_path, caplog):
    with Fasta(write(tmp_path / "a.fa", ">x\n>y\nA\n>z\n")) as fasta:
        assert fasta.contigs == {"y": 1}
    assert "2 contigs have no sequence, the first is x" in caplog.text


def test_contig_names_with_colons(tmp_path):
    path = bgzip(write(tmp_path / "a.fa", ">1:100-111\nACGTACGTACGT\n>HLA-A*01:01\nTTTT\n"))
    with Fasta(path) as fasta:
        assert decode(fasta.fetch("1:100-111", 1, 4)) == "CGT"
        assert decode(fasta.fetch(*parse_region("HLA-A*01:01:2-3", fasta.contigs))) == "TT"


def test_threads_and_forked_children(either, toy_sequences, monkeypatch):
    monkeypatch.setattr(fasta_module, "_BLOCK", 64)
    expected = encode(toy_sequences["chr1"])
    wrong = []

    def read(fasta, seed):
        for start in np.random.default_rng(seed).integers(0, 4000, 200):
            if not np.array_equal(fasta.fetch("chr1", start, start + 500), expected[start : start + 500]):
                wrong.append(start)

    with Fasta(either) as fasta:
        threads = [threading.Thread(target=read, args=(fasta, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        monkeypatch.setattr(os, "getpid", lambda: -1)
        read(fasta, 9)
        assert fasta._pid == -1
        assert not wrong


# Damage


def test_file_cut_while_it_is_open(toy_fasta):
    with Fasta(toy_fasta) as fasta:
        os.truncate(toy_fasta, 4000)
        with pytest.raises(FastaError, match="was changed while it was read"):
            fasta.fetch("chr1", 0, 5003)
        # As on file systems whose times are coarse.
        fasta._found = os.stat(toy_fasta)
        with pytest.raises(FastaError, match=r"'chr1', 1-5,003: got 3,9\d\d bp, expected 5,003"):
            fasta.fetch("chr1", 0, 10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "only blanks"),
        (b">a\n", "got 1 headers and no sequence"),
        (b"##fileformat=VCFv4.2\n", r"got '##fileformat=VCFv4.2' at the start, expected '>' .a VCF"),
        (b"@read\nACGT\n+\nIIII\n", "FASTQ"),
        (b"\xef\xbb\xbf>a\nACGT\n", "byte order mark"),
        (b"\x00\x01\x02\x03", "not a FASTA file"),
        (b"ACGT\n>a\nACGT\n", "got 'ACGT"),
        (b"BZh91AY", "got bzip2 data"),
        (b"\x28\xb5\x2f\xfd123", "got zstd data.*bgzip"),
        (gzip.compress(b">a\nACGT\n", mtime=0), "plain gzip.*recompress it with `bgzip`"),
        (b"\x1f\x8b\x08", "plain gzip"),
        (b">a\nACGT\n>b\nA\n>a\nAC\n", "line 5: got the contig 'a' a second time"),
        (b">a\nACGT\n>a other\nAC\n", "line 3: got the contig 'a' a second time"),
        (b">a\nACGT\n>b\nACGT\nAC\nACGT\n", "line 6: contig 'b' has lines of unequal length"),
        (b">a\nAC\nACGT\n", "line 3: contig 'a' has lines of unequal length .got 4 bases after lines of 2"),
        (b">a\nACGT\n\nACGT\n", "line 4: contig 'a' has lines of unequal length"),
        (b">a\rACGT\r", "line 1: got lines that end with CR alone"),
        (b">\nACGT\n", "line 1: got a header without a name"),
        (b">\xff\xfe\nACGT\n", "line 1: got a contig name that is not UTF-8"),
    ],
)
def test_files_that_are_refused(tmp_path, content, message):
    path = write(tmp_path / "a.fa", content)
    with pytest.raises(FastaError, match=message):
        Fasta(path)
    assert os.listdir(tmp_path) == ["a.fa"]


def test_names_and_content_need_not_agree(toy_fasta, toy_sequences):
    path = bgzip(toy_fasta).rename(toy_fasta)
    with Fasta(path) as fasta:
        assert decode(fasta.fetch("MT", 0, 61)) == toy_sequences["MT"]
    plain = write(toy_fasta.with_name("plain.fa.gz"), ">a\nACGT\n")
    with pytest.raises(FastaError, match="plain text under the name of a compressed file"):
        Fasta(plain)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b">a\nAC\n>a\nAC\n", "line 3: got the contig 'a' a second time"), (b"BAM\x01", "not a FASTA file")],
)
def test_packed_files_that_are_refused(tmp_path, content, message):
    path = bgzip(write(tmp_path / "a.fa", content))
    with pytest.raises(FastaError, match=message):
        Fasta(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("letter", ["*", "1", "-", "E", "."])
def test_letters_that_are_no_bases(tmp_path, letter, packed):
    path = write(tmp_path / "a.fa", f">a\nACGT\n>b\nACGT\nAC{letter}T\n")
    with Fasta(bgzip(path) if packed else path) as fasta:
        assert decode(fasta.fetch("a", 0, 4)) == "ACGT"
        with pytest.raises(FastaError, match=re.escape(f"contig 'b', position 7: got '{letter}'")):
            fasta.fetch("b", 0, 8)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("line", [b"AC T", b"AC\xffT", b"A\xc3\xa9T"])
def test_bytes_that_are_no_letters(tmp_path, line, packed):
    path = write(tmp_path / "a.fa", b">a\nACGT\n" + line + b"\n")
    with Fasta(bgzip(path) if packed else path) as fasta, pytest.raises(FastaError, match="contig 'a'"):
        fasta.fetch("a", 0, 8)


def test_lines_that_end_in_two_ways(tmp_path):
    path = write(tmp_path / "a.fa", b">a\nACGTA\nACGT\r\nACGTA\nACG\n")
    with Fasta(path) as fasta, pytest.raises(FastaError, match="line ends of two kinds"):
        fasta.fetch("a", 0, 18)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(FastaError, match="no such FASTA"):
        Fasta(tmp_path / "none.fa")
    with pytest.raises(FastaError, match="expected a regular file"):
        Fasta(tmp_path)


def test_fingerprint(either, toy_sequences, tmp_path_factory):
    with Fasta(either) as fasta:
        fingerprint = fasta.fingerprint()
    assert fingerprint.startswith(f"{either.name}:{either.stat().st_size}:")
    assert os.sep not in fingerprint
    moved = tmp_path_factory.mktemp("moved") / either.name
    shutil.copy(either, moved)
    with Fasta(moved) as fasta:
        assert fasta.fingerprint() == fingerprint
    moved.unlink()
    other = write(moved.with_name("toy.fa"), ">chr1\n" + toy_sequences["chr1"] + "\n")
    for index in moved.parent.glob("*i"):
        index.unlink()
    other = bgzip(other) if either.suffix == ".gz" else other
    with Fasta(other) as fasta:
        assert fasta.fingerprint() != fingerprint


def test_home_is_not_touched(toy_fasta, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    program = f"from lrgenome.io.fasta import Fasta; print(Fasta({str(toy_fasta)!r}).fetch('MT', 0, 3))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert os.listdir(home) == []


# Real genomes


def test_chr20_agrees_with_pysam(shared_data):
    path = shared_data / "genomes" / "homo_sapiens.GRCh37.chr20.fa.gz"
    with Fasta(path) as fasta, pysam.FastaFile(str(path)) as other:
        assert fasta.contigs == {"20": 63_025_520}
        for start, end in (
            (0, 70_000),
            (1_000_000, 1_010_000),
            (1_040_000, 3_200_000),
            (62_900_000, 63_025_520),
        ):
            assert decode(fasta.fetch("20", start, end)) == other.fetch("20", start, end).upper()
        assert (fasta.fetch("20", 0, 60_000) == N).all()
        assert fasta.fetch("20", 60_000, 60_001) >= FIRST_BASE
        with pytest.raises(FastaError, match="63025521"):
            fasta.fetch("20", 63_025_519, 63_025_521)


def test_rcrs_has_its_n_at_3107(shared_data):
    with Fasta(shared_data / "genomes" / "homo_sapiens.rCRS.fa.gz") as fasta:
        assert resolve_contig("chrM", fasta.contigs) == "MT"
        ids = fasta.fetch("MT", 0, 16_569)
        assert np.flatnonzero(ids == N).tolist() == [3106]


def test_names_of_real_loci_are_regions_too(shared_data):
    with Fasta(shared_data / "genomes" / "homo_sapiens.GRCh37.loci.fa.gz") as fasta:
        assert len(fasta.contigs) == 274
        for name, length in fasta.contigs.items():
            assert parse_region(name, fasta.contigs) == (name, 0, length)
            assert parse_region(f"{name}:2-11", fasta.contigs) == (name, 1, 11)


# Names and regions


@pytest.mark.parametrize(
    ("name", "contigs", "alias", "found"),
    [
        ("20", ["20", "chr20"], "auto", "20"),
        ("chr20", ["20"], "auto", "20"),
        ("20", ["chr20"], "auto", "chr20"),
        ("20", ["chr20"], "none", None),
        ("chr20", ["chr20"], "none", "chr20"),
        ("chrM", ["MT"], "auto", "MT"),
        ("MT", ["chrM"], "auto", "chrM"),
        ("M", ["MT"], "auto", "MT"),
        ("chrMT", ["M"], "auto", "M"),
        ("chrM", ["M", "MT"], "auto", "M"),
        ("21", ["chr20", "20"], "auto", None),
        ("chr", [""], "none", None),
        ("NC_000020.10", ["20"], {"NC_000020.10": "20"}, "20"),
        ("NC_000020.10", ["21"], {"NC_000020.10": "20"}, None),
        ("20", ["20", "21"], {"20": "21"}, "20"),
        ("chr20", ["20"], {}, None),
    ],
)
def test_resolve_contig(name, contigs, alias, found):
    assert resolve_contig(name, dict.fromkeys(contigs, 1), alias) == found


def test_alias_must_be_known():
    with pytest.raises(UsageError, match="--chrom-alias 'table"):
        resolve_contig("1", {}, "table.tsv")


def test_alias_table(tmp_path):
    path = write(tmp_path / "a.tsv", "# UCSC\n\nchr20\t20\r\nNC_000020.10\t20\nchr20\t20\n")
    assert read_alias_table(path) == {"chr20": "20", "NC_000020.10": "20"}
    for content, message in (
        ("a\n", "line 1: got 'a', expected two"),
        ("a\tb\nc\t\n", "line 2"),
        ("a\tb\na\tc\n", "line 2: 'a' is an alias of 'b' already"),
        (b"\xff\xfe", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            read_alias_table(write(path, content))
    with pytest.raises(InputError, match="No such file"):
        read_alias_table(tmp_path / "none")


CONTIGS = {"20": 5000, "1:100-200": 101, "1": 1000, "HLA-A*01:01": 50, "a:1": 9}


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("20", ("20", 0, 5000)),
        (" 20:1,000-2,000 ", ("20", 999, 2000)),
        ("20:1000", ("20", 999, 5000)),
        ("20:1000-", ("20", 999, 5000)),
        ("20:5000-5000", ("20", 4999, 5000)),
        ("1:100-200", ("1:100-200", 0, 101)),
        ("1:100-201", ("1", 99, 201)),
        ("1:100-200:5-10", ("1:100-200", 4, 10)),
        ("HLA-A*01:01", ("HLA-A*01:01", 0, 50)),
        ("HLA-A*01:01:50", ("HLA-A*01:01", 49, 50)),
    ],
)
def test_parse_region(text, region):
    assert parse_region(text, CONTIGS) == region


@pytest.mark.parametrize(
    "text",
    ["", ":", "21", "21:1-5", "20:", "20:0-5", "20:5-4", "20:1-5001", "20:5001", "20:-5", "20:1-2-3",
     "20:a-b", "20:1.5-2", "20:1e2-2e2", "20:+1-2", "20:,1-2", "20:١-٢", "20:1 - 5", "1:100-200:102"],
)  # fmt: skip
def test_bad_regions(text):
    with pytest.raises(UsageError, match="got the region"):
        parse_region(text, CONTIGS)


@given(st.data())
def test_region_round_trip(data):
    names = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=12)
    contigs = data.draw(st.dictionaries(names, st.integers(1, 10**9), min_size=1, max_size=4))
    contig = data.draw(st.sampled_from(sorted(contigs)))
    start = data.draw(st.integers(0, contigs[contig] - 1))
    end = data.draw(st.integers(start + 1, contigs[contig]))
    text = format_region(contig, start, end)
    assert parse_region(contig, contigs) == (contig, 0, contigs[contig])
    if text not in contigs:
        assert parse_region(text, contigs) == (contig, start, end)
