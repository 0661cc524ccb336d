"""Readers give back what was written, however it was written: VCF, BED, FASTA of any shape."""

import contextlib
import gzip
import random
import struct
import tempfile
import zlib
from pathlib import Path

import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrgenome.dna import decode
from lrgenome.errors import BedError, FastaError
from lrgenome.io import fasta
from lrgenome.io.bed import BedInterval, read_bed
from lrgenome.io.bgzf import EOF_BLOCK
from lrgenome.io.fasta import Fasta
from lrgenome.io.vcf import open_variants, to_bytes, with_info

HEADER = b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
SPACES = b"\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f \x85\xa0\0"

# Bytes, not characters: a VCF may be of any encoding.
cells = st.binary(min_size=1, max_size=12).filter(lambda cell: not set(cell) & set(b"\t\n\r\0"))
plain_cells = st.binary(min_size=1, max_size=12).filter(lambda cell: cell.isascii() and not set(cell) & set(SPACES))
records = st.tuples(
    plain_cells.filter(lambda cell: not cell.startswith(b"#")), st.integers(0, 10**18 - 1).map(b"%d".__mod__), cells,
    plain_cells, cells, cells, cells, cells, st.lists(cells, max_size=2),
).map(lambda record: (*record[:8], *record[8]))  # fmt: skip
encodings = st.sampled_from(("plain", "gzip", "bgzf"))


@contextlib.contextmanager
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def write(path, data, encoding):
    if encoding == "bgzf":
        with pysam.BGZFile(str(path), "wb") as handle:
            handle.write(data)
    else:
        path.write_bytes(gzip.compress(data) if encoding == "gzip" else data)
    return path


@settings(max_examples=60, deadline=None)
@given(st.lists(records, max_size=6), st.sampled_from((b"\n", b"\r\n")), st.booleans(), encodings)
def test_records_keep_their_bytes(rows, end, last_end, encoding):
    lines = [b"\t".join(row) for row in rows]
    text = HEADER.replace(b"\n", end) + end.join(lines) + (end if last_end else b"")
    with folder() as here, open_variants(write(here / "v", text, encoding)) as source:
        found = list(source.records())
        assert [to_bytes(record.line) for record in found] == lines
        for row, record in zip(rows, found, strict=True):
            assert [to_bytes(text) for text in (record.chrom, record.id, record.ref)] == [row[0], row[2], row[3]]
            assert record.pos == int(row[1]) - 1
            assert b",".join(map(to_bytes, record.alts)) == (b"" if row[4] == b"." else row[4])
            added = to_bytes(with_info(record.line, {"LRG_LLR": "1.5"})).split(b"\t")
            assert [*added[:7], *added[8:]] == [*row[:7], *row[8:]]
            assert b"LRG_LLR=1.5" in added[7].split(b";")
        assert [record.line for record in source.records(skip=2)] == [record.line for record in found[2:]]


words = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=8)
intervals = st.builds(
    lambda chrom, start, length, name, strand: BedInterval(chrom, start, start + length, name, strand),
    words.filter(lambda word: not word.startswith(("#", "\ufeff")) and word not in ("track", "browser")),
    st.integers(0, 10**12), st.integers(1, 10**9), words, st.sampled_from("+-."),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(intervals, max_size=6), st.sampled_from(("\t", " ", "  ")), st.sampled_from(("\n", "\r\n")), encodings)
def test_intervals_come_back(rows, parting, end, encoding):
    lines = ["track name=x", "# comment", ""]
    lines += [parting.join((r.chrom, str(r.start), str(r.end), r.name, "0", r.strand)) for r in rows]
    with folder() as here:
        assert list(read_bed(write(here / "b", end.join(lines).encode(), encoding))) == rows


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_intervals_or_a_clean_error(data):
    with folder() as here:
        (here / "b.bed").write_bytes(data)
        try:
            for one in read_bed(here / "b.bed"):
                assert one.chrom and 0 <= one.start < one.end and one.strand in "+-."
        except BedError as error:
            assert "b.bed" in str(error)


contigs = st.lists(st.tuples(st.integers(0, 700), st.integers(1, 90)), min_size=1, max_size=5)


def genome(shape, seed, end, blank, last_end):
    """Make contigs of (bases, bases a line), as text and as strings; those without bases are in the text only."""
    rng = random.Random(seed)
    texts, sequences = [], {}
    for number, (length, width) in enumerate(shape):
        bases = "".join(rng.choices("ACGTNacgtnRYkm", k=length))
        lines = [bases[i : i + width] for i in range(0, length, width)]
        texts += [f">c{number} length={length}", *lines, *[""] * blank]
        if length:
            sequences[f"c{number}"] = bases
    return (end.join(texts) + (end if last_end else "")).encode(), sequences


def pack_in(data, sizes):
    """Compress to BGZF in blocks of these many bytes in turn, some of them empty."""
    out, at, number = b"", 0, 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        piece = data[at : at + size] if number % 7 != 6 else b""
        body = zlib.compress(piece, wbits=-15)
        out += b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + struct.pack("<H", len(body) + 25) + body
        out += struct.pack("<II", zlib.crc32(piece), len(piece))
        at, number = at + len(piece), number + 1
    return out + EOF_BLOCK


def read_as(bases):
    return "".join(c if c in "ACGT" else "N" for c in bases.upper())


@settings(max_examples=80, deadline=None)
@given(
    contigs.filter(lambda shape: any(length for length, _ in shape)), st.integers(0, 10**6),
    st.sampled_from(("\n", "\r\n")), st.integers(0, 2), st.booleans(), st.booleans(), st.data(),
)  # fmt: skip
def test_fasta_of_any_shape_is_the_plain_string(shape, seed, end, blank, last_end, packed, data):
    text, sequences = genome(shape, seed, end, blank, last_end)
    before, fasta._BLOCK = fasta._BLOCK, 128
    try:
        with (
            folder() as here,
            Fasta(write(here / ("g.fa.gz" if packed else "g.fa"), text, "bgzf" if packed else "plain")) as file,
        ):
            assert file.contigs == {name: len(bases) for name, bases in sequences.items()}
            for name, bases in sequences.items():
                assert decode(file.fetch(name, 0, len(bases))) == read_as(bases)
                start = data.draw(st.integers(0, len(bases)))
                stop = data.draw(st.integers(start, len(bases)))
                assert decode(file.fetch(name, start, stop)) == read_as(bases[start:stop])
    finally:
        fasta._BLOCK = before


@settings(max_examples=60, deadline=None)
@given(
    contigs.filter(lambda shape: all(length for length, _ in shape)),
    st.sampled_from(("\n", "\r\n")),
    st.booleans(),
    st.booleans(),
)
def test_an_index_is_that_of_htslib(shape, end, last_end, packed):
    text, _ = genome(shape, 1, end, 0, last_end)
    with folder() as here:
        name = "g.fa.gz" if packed else "g.fa"
        for kind in ("ours", "theirs"):
            (here / kind).mkdir()
            write(here / kind / name, text, "bgzf" if packed else "plain")
        Fasta(here / "ours" / name).close()
        pysam.faidx(str(here / "theirs" / name))
        ours, theirs = (
            [line.split("\t") for line in (here / k / f"{name}.fai").read_text().splitlines()]
            for k in ("ours", "theirs")
        )
        assert [row[:3] for row in ours] == [row[:3] for row in theirs]
        # A last line without an end may be counted as if it had one; it is read alike.
        for row, other in zip(ours, theirs, strict=True):
            assert row[3] == other[3] and (row[4] == other[4] or int(row[1]) <= int(row[3]))
        if packed:
            assert (here / "ours" / "g.fa.gz.gzi").read_bytes() == (here / "theirs" / "g.fa.gz.gzi").read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4000), st.lists(st.integers(20, 500), min_size=1, max_size=30), st.data())
def test_blocks_of_any_size_are_read_at_any_place(length, sizes, data):
    bases = "".join(random.Random(length).choices("ACGT", k=length))
    text = (">one\n" + "".join(bases[i : i + 50] + "\n" for i in range(0, length, 50))).encode()
    with folder() as here:
        (here / "g.fa.gz").write_bytes(pack_in(text, sizes))
        with Fasta(here / "g.fa.gz") as file:
            for _ in range(4):
                start = data.draw(st.integers(0, length - 1))
                stop = data.draw(st.integers(start, length))
                file._cache.clear()
                assert file._source("one", start, stop) == bases[start:stop]
                assert decode(file.fetch("one", start, stop)) == bases[start:stop]


@pytest.mark.parametrize("packed", [False, True])
def test_a_single_line_of_a_whole_contig(tmp_path, packed):
    bases = "".join(random.Random(5).choices("ACGT", k=300_000))
    path = write(
        tmp_path / ("g.fa.gz" if packed else "g.fa"),
        f">one\n{bases}\n>two\nACGT".encode(),
        "bgzf" if packed else "plain",
    )
    for _ in range(2):  # with an index that is made, and one that is there
        with Fasta(path) as file:
            assert (
                decode(file.fetch("one", 299_000, 300_000)) == bases[299_000:]
                and decode(file.fetch("two", 1, 4)) == "CGT"
            )
    with pytest.raises(FastaError):
        Fasta(tmp_path / "none.fa")
