import gzip
import io
import os
import sys
import threading
from pathlib import Path

import pysam
import pysam.bcftools
import pytest

from lrgenome.errors import OutputError, VcfError
from lrgenome.io.vcf import missing_declarations, open_variants, to_bytes, with_info

VARIANTS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "variants"
REAL = ("1000genomes.chr20_1-2Mb.b37", "clinvar.b37", "vt_indels.chr20.b37")

HEADER = (
    "##fileformat=VCFv4.2\n"
    "##reference=file:///data/ref.fa\n"
    '##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth, ID=x">\n'
    "##contig=<ID=20,length=63025520>\n"
    "##contig=<ID=1:100-200,assembly=b37>\n"
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
)
RECORDS = ("20\t5\trs1\tA\tC,<DEL>\t.\tPASS\tDP=3", "1:100-200\t7\t.\tg\t.\t.\t.\t.")
TEXT = "\n".join((HEADER, *RECORDS)) + "\n"


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lines_of(path):
    with open_variants(path) as source:
        return [record.line for record in source.records()]


def bgzip(path, data):
    with pysam.BGZFile(str(path), "wb") as handle:
        handle.write(data)
    return path


def bcf(path, text=TEXT):
    plain = write(path.with_suffix(".tmp.vcf"), text)
    pysam.bcftools.view("--no-version", "-Ob", "-o", str(path), str(plain), catch_stdout=False)
    return path


class FakeStdin:
    def __init__(self, data):
        self.buffer = io.BytesIO(data)


def encodings(folder):
    data = TEXT.encode()
    yield write(folder / "plain.vcf", data)
    yield write(folder / "gzip.vcf.gz", gzip.compress(data))
    yield write(folder / "members.vcf.gz", gzip.compress(data[:50]) + gzip.compress(data[50:]))
    yield bgzip(folder / "bgzf.vcf.gz", data)
    yield bcf(folder / "b.bcf")
    yield write(folder / "gzipped.bcf", gzip.compress(gzip.decompress((folder / "b.bcf").read_bytes())))
    yield write(folder / "raw.bcf", gzip.decompress((folder / "b.bcf").read_bytes()))


def test_every_encoding_gives_the_same_records_twice(tmp_path):
    for path in encodings(tmp_path):
        with open_variants(path, tmp_path) as source:
            assert source.is_bcf == path.name.endswith(".bcf")
            first, second = list(source.records()), list(source.records())
            assert first == second
            assert [r.line for r in first] == list(RECORDS), path
            assert source.contigs == {"20": 63025520, "1:100-200": None}
            assert source.reference == "/data/ref.fa"
            assert source.columns == HEADER.split("\n")[-1]
            assert first[0][:5] == ("20", 4, "rs1", "A", ("C", "<DEL>"))
            assert first[1][:5] == ("1:100-200", 6, ".", "g", ())
            assert [r.number for r in first] == [0, 1]
            assert first[1].line_number == first[0].line_number + 1 == len(source.meta) + 3
            assert list(source.records(skip=1)) == first[1:]
            assert list(source.records(skip=5)) == []
    assert not list(tmp_path.glob("*.spool"))


def test_bcf_of_a_symbolic_deletion_gets_no_end_added(tmp_path):
    assert lines_of(bcf(tmp_path / "a.bcf"))[0] == RECORDS[0]


@pytest.mark.parametrize("encode", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_standard_input_can_be_read_twice(tmp_path, monkeypatch, encode):
    monkeypatch.setattr(sys, "stdin", FakeStdin(encode(TEXT.encode())))
    with open_variants("-", tmp_path) as source:
        assert source.name == "standard input"
        assert len(list(source.records())) == len(list(source.records())) == 2
    assert not list(tmp_path.iterdir())


def test_bcf_on_standard_input(tmp_path, monkeypatch):
    data = bcf(tmp_path / "a.bcf").read_bytes()
    monkeypatch.setattr(sys, "stdin", FakeStdin(data))
    with open_variants("-", tmp_path) as source:
        assert [record.line for record in source.records()] == list(RECORDS)


def test_a_pipe_is_spooled(tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    writer = threading.Thread(target=write, args=(fifo, TEXT))
    writer.start()
    with open_variants(fifo, tmp_path) as source:
        writer.join()
        assert len(list(source.records())) == len(list(source.records())) == 2


def test_a_temporary_folder_that_is_not_there_is_an_output_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", FakeStdin(b"##x\n"))
    with pytest.raises(OutputError):
        open_variants("-", tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT.replace("\n", "\r\n"), list(RECORDS)),
        ("\ufeff" + TEXT, list(RECORDS)),
        (TEXT + "\n \n\r\n", list(RECORDS)),
        (TEXT.rstrip("\n"), list(RECORDS)),
        (HEADER + "\n", []),
        (HEADER, []),
        (
            "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nx\t0\t.\tacg\tt\t.\t.\t.\n",
            ["x\t0\t.\tacg\tt\t.\t.\t."],
        ),
    ],
    ids=["crlf", "bom", "blank-tail", "no-last-newline", "no-records", "bare-header", "no-meta-no-contig"],
)
def test_warts_are_accepted(tmp_path, text, expected):
    assert lines_of(write(tmp_path / "a.vcf", text)) == expected


def test_bytes_that_are_not_utf8_pass_through(tmp_path):
    data = TEXT.encode().replace(b"rs1", b"r\xe9s")
    (first, _) = lines_of(write(tmp_path / "a.vcf", data))
    assert to_bytes(first) == RECORDS[0].encode().replace(b"rs1", b"r\xe9s")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("20\t5\t.\tA\tC\t.\t.", "line 7: got 7 columns, expected at least 8"),
        ("20 5 . A C . . .", "separated by tabs"),
        ("20\t5x\t.\tA\tC\t.\t.\t.", "line 7: got POS '5x'"),
        ("20\t-5\t.\tA\tC\t.\t.\t.", "POS '-5'"),
        ("20\t1_0\t.\tA\tC\t.\t.\t.", "POS '1_0'"),
        ("20\t5\t.\t\tC\t.\t.\t.", "REF ''"),
        ("20\t5\t.\tA C\tC\t.\t.\t.", "REF 'A C'"),
        ("\t5\t.\tA\tC\t.\t.\t.", "CHROM ''"),
        ("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO", "POS 'POS'|CHROM"),
        ("20\t5\t.\tA\tC\t.\t.\tx\0y", "NUL"),
    ],
)
def test_damaged_records_are_named(tmp_path, record, message):
    path = write(tmp_path / "a.vcf", f"{HEADER}\n{record}\n{RECORDS[0]}\n")
    with open_variants(path) as source, pytest.raises(VcfError, match=message) as caught:
        list(source.records())
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (gzip.compress(b"", mtime=0), "empty file"),
        (b">chr1\nACGT\n", "FASTA"),
        (gzip.compress(b">chr1\nACGT\n", mtime=0), "FASTA"),
        (b"chr1\t5\t10\n", "BED"),
        (b"##fileformat=VCFv4.2\nchr1\t5\t10\n", "line 2: got what looks like BED, expected a #CHROM"),
        (b"##fileformat=VCFv4.2\n", "ends with the file, expected a #CHROM"),
        (b"\x7fELF\0\1\2", "binary"),
        (b"##x\n\0\0\0", "line 2: got binary data"),
        (b"BZh91AY", "bzip2"),
        (b"PK\3\4\0\0", "binary"),
        (b"chrom,pos\n", "a line 'chrom,pos'"),
        (HEADER.replace("\t", " ").encode() + b"\n", "the columns"),
        (b"##lrgenome-scores-version=1\n#CHROM\tPOS\tID\tREF\tALT\tLLR\tDIST_COS\tDIST_L2\n", "the columns"),
        (HEADER.encode() + b"\tFORMAT\tsam", "line 6: got a header line that ends with the file"),
    ],
)
def test_what_is_not_vcf_is_said(tmp_path, data, message):
    path = write(tmp_path / "a.vcf", data)
    with pytest.raises(VcfError, match=message):
        open_variants(path)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(VcfError, match="no such file"):
        open_variants(tmp_path / "absent.vcf")
    with pytest.raises(VcfError, match="a directory"):
        open_variants(tmp_path)


@pytest.mark.parametrize("tail", ["", "\tGT\t0|1"], ids=["sites", "genotypes"])
def test_a_cut_at_any_byte_of_the_last_line_is_an_error_or_loses_no_record(tmp_path, tail):
    columns = "\tFORMAT\tsample" if tail else ""
    whole = f"{HEADER}{columns}\n" + "".join(f"{record}{tail}\n" for record in RECORDS)
    start = whole.rindex("\n", 0, -1) + 1
    for cut in range(start + 1, len(whole) + 1):
        path = write(tmp_path / "a.vcf", whole[:cut])
        try:
            assert len(lines_of(path)) == 2
            assert cut > whole.rindex("\t")
        except VcfError as error:
            assert f"{path}, line 8" in str(error)
            assert cut <= whole.rindex("\t")


def test_a_cut_anywhere_in_compressed_data_is_an_error(tmp_path):
    big = TEXT + "".join(f"20\t{i}\trs{i * 7919}\tA\tC\t.\t.\tDP={i * 31}\n" for i in range(10, 6000))
    encoded = {
        "gzip": gzip.compress(big.encode()),
        "bgzf": bgzip(tmp_path / "b.vcf.gz", big.encode()).read_bytes(),
        "bcf": bcf(tmp_path / "b.bcf", big).read_bytes(),
    }
    for kind, data in encoded.items():
        for cut in {1, 5, 20, len(data) // 3, len(data) // 2, len(data) - 28, len(data) - 5, len(data) - 1}:
            path = write(tmp_path / "cut", data[:cut])
            with pytest.raises(VcfError):
                lines_of(path)
                pytest.fail(f"{kind} cut at {cut} of {len(data)}")


def test_damage_inside_compressed_data_is_an_error(tmp_path):
    data = bytearray(gzip.compress(TEXT.encode()))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(VcfError):
        lines_of(write(tmp_path / "a.vcf.gz", bytes(data)))


@pytest.mark.parametrize("name", REAL)
def test_real_files_line_for_line(name):
    path = VARIANTS / f"{name}.vcf.gz"
    if not path.exists():
        pytest.skip("the real variants are not on this machine")
    with gzip.open(path, "rt", newline="") as handle:
        expected = handle.read().split("\n")[:-1]
    with open_variants(path) as source:
        assert [*source.meta, source.columns] == expected[: len(source.meta) + 1]
        count = 0
        for record, line in zip(source.records(), expected[len(source.meta) + 1 :], strict=True):
            assert record.line == line
            assert expected[record.line_number - 1] == line
            assert record.chrom == line.split("\t")[0]
            count += 1
        if name.startswith("1000"):
            assert count == 28998
        if name.startswith("clinvar"):
            assert any(":" in contig and "-" in contig for contig in source.contigs)
            assert {record.chrom for record in source.records()} <= set(source.contigs)


def test_with_info_adds_replaces_and_keeps():
    def info(text, **entries):
        return with_info(f"1\t5\t.\tA\tC\t.\t.\t{text}\tGT\t0|1", entries).split("\t")[7]

    assert info(".", X="1") == "X=1"
    assert info("", X="1") == "X=1"
    assert info("DB;AC=3", X="1") == "DB;AC=3;X=1"
    assert info("DB;AC=3;", X="1") == "DB;AC=3;X=1"
    assert info("X=7;DB;XY=3;Y", X="1", Y="2") == "DB;XY=3;X=1;Y=2"
    assert info("X=7", X="1") == "X=1"
    assert with_info("1\t5\t.\tA\tC\t.\t.\t.", {"X": "1"}) == "1\t5\t.\tA\tC\t.\t.\tX=1"


def test_missing_declarations_are_found_once(tmp_path):
    text = f"{HEADER}\tFORMAT\ts\nchrX\t5\t.\tA\tC\t.\tq10;PASS\tDP=1;NEW=2;FLAG\tGT:XX\t0|1:2\n"
    text += "chrX\t6\t.\tA\tC\t.\tq10\tNEW=3\tGT\t0|1\n"
    with open_variants(write(tmp_path / "a.vcf", text)) as source:
        lines = missing_declarations(source.meta, source.records())
    assert [line.split(",")[0] for line in lines] == [
        "##contig=<ID=chrX>",
        "##FILTER=<ID=q10",
        "##INFO=<ID=NEW",
        "##INFO=<ID=FLAG",
        "##FORMAT=<ID=GT",
        "##FORMAT=<ID=XX",
    ]
