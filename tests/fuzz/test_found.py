"""What fuzzing found, as small as it gets."""

import gzip
import json
import os
import struct
import time

import numpy as np
import pysam
import pysam.bcftools
import pytest
from benchmark_files import Benchmark

from lrgenome.dna import decode
from lrgenome.errors import BedError, FastaError, InputError, ManifestError, OutputError
from lrgenome.io import benchmark, fasta
from lrgenome.io.bed import read_bed
from lrgenome.io.encoded import open_genome
from lrgenome.io.fasta import Fasta
from lrgenome.io.manifest import COLUMNS, read_data_sets, read_manifest, split_intervals
from lrgenome.io.scores import ScoreJournal, ScoreRow, format_rows, header_text
from lrgenome.io.user_table import read_table
from lrgenome.io.vcf import open_variants

from .mutate_formats import bgzip


@pytest.fixture
def sequence(monkeypatch):
    """Of two contigs, read in small blocks, so that each is found at its own place in the file."""
    monkeypatch.setattr(fasta, "_BLOCK", 100)
    rng = np.random.default_rng(4)
    return {name: "".join(rng.choice(list("ACGT"), size)) for name, size in (("one", 1200), ("two", 600))}


def text_of(sequence, width=60):
    return "".join(
        f">{name} x\n" + "".join(bases[i : i + width] + "\n" for i in range(0, len(bases), width))
        for name, bases in sequence.items()
    ).encode()


def assert_read(path, sequence):
    with Fasta(path) as found:
        assert {name: decode(found.fetch(name, 0, length)) for name, length in found.contigs.items()} == sequence


def newer(path, data):
    path.write_bytes(data)
    os.utime(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("60\t61\n", "120\t122\n"),  # ends lie where they should
        ("\t60\t61\n", "\t61\t62\n"),
        ("600\t1234\t60\t61", "600\t1234\t600\t601"),
        ("60\t61\n", "60\t61\tmore\n"),
        ("\t60\t", "\t６0\t"),
        ("\t60\t", "\t6_0\t"),
        ("one\t", "one\x85\t"),
    ],
)
def test_a_fasta_index_that_lies_is_not_used(tmp_path, sequence, packed, old, new):
    path = tmp_path / ("g.fa.gz" if packed else "g.fa")
    path.write_bytes(bgzip(text_of(sequence), 300) if packed else text_of(sequence))
    Fasta(path).close()
    index = tmp_path / f"{path.name}.fai"
    right = index.read_text()
    assert old in right
    newer(index, right.replace(old, new).encode())
    assert_read(path, sequence)
    assert index.read_text() == right


@pytest.mark.parametrize("packed", [False, True])
def test_a_contig_longer_than_it_is_is_a_file_that_was_cut(tmp_path, sequence, packed):
    path = tmp_path / ("g.fa.gz" if packed else "g.fa")
    path.write_bytes(bgzip(text_of(sequence), 300) if packed else text_of(sequence))
    Fasta(path).close()
    index = tmp_path / f"{path.name}.fai"
    newer(index, index.read_bytes().replace(b"two\t600", b"two\t601"))
    with pytest.raises(FastaError, match="cut short: got 2 contigs of 1,800 bp in all, expected 2 of 1,801"):
        Fasta(path)


@pytest.mark.parametrize("change", ["swap", "repeat", "shift", "drop"])
def test_an_index_of_blocks_that_lies_is_not_used(tmp_path, sequence, change):
    path, index = tmp_path / "g.fa.gz", tmp_path / "g.fa.gz.gzi"
    path.write_bytes(bgzip(text_of(sequence), 200))
    Fasta(path).close()
    right = index.read_bytes()
    pairs = [list(pair) for pair in struct.iter_unpack("<QQ", right[8:])]
    if change == "swap":
        pairs[3][0], pairs[4][0] = pairs[4][0], pairs[3][0]
    elif change == "repeat":
        pairs[3][0] = pairs[2][0]
    elif change == "shift":
        pairs[3][1] += 1
    else:
        del pairs[3]
    newer(index, struct.pack("<Q", len(pairs)) + b"".join(struct.pack("<QQ", *pair) for pair in pairs))
    assert_read(path, sequence)
    # Blocks that are left out can be found from the one before.
    assert (index.read_bytes() == right) == (change != "drop")


def test_empty_blocks_between_others_are_no_lie(tmp_path, sequence):
    text = text_of(sequence)
    path = tmp_path / "g.fa.gz"
    path.write_bytes(bgzip(text[:700], 200) + bgzip(text[700:], 200))
    pysam.faidx(str(path))
    before = (tmp_path / "g.fa.gz.gzi").read_bytes()
    assert_read(path, sequence)
    assert (tmp_path / "g.fa.gz.gzi").read_bytes() == before


def test_a_block_shorter_than_its_header(tmp_path, sequence):
    data = bytearray(bgzip(text_of(sequence), 300))
    data[16:18] = bytes(2)
    (tmp_path / "g.fa.gz").write_bytes(data)
    with pytest.raises(FastaError, match="damaged BGZF data"):
        Fasta(tmp_path / "g.fa.gz")


def test_a_pipe_in_place_of_an_index(tmp_path, sequence):
    (tmp_path / "g.fa").write_bytes(text_of(sequence))
    os.mkfifo(tmp_path / "g.fa.fai")
    assert_read(tmp_path / "g.fa", sequence)


def test_a_header_behind_a_lone_carriage_return(tmp_path, sequence):
    path, text = tmp_path / "g.fa", text_of(sequence)
    path.write_bytes(text)
    Fasta(path).close()
    path.write_bytes(text.replace(b"\n>two", b"\r>two"))
    os.utime(tmp_path / "g.fa.fai")
    with pytest.raises(FastaError, match=r"g\.fa"):
        assert_read(path, sequence)


def test_messages_have_an_end(tmp_path):
    path = tmp_path / "b.bed"
    path.write_text("20\t5\t9\ta\t0\t" + "+" * 3_000_000 + "\n")
    with pytest.raises(BedError) as caught:
        list(read_bed(path))
    assert len(str(caught.value)) < 1100
    assert str(caught.value).startswith(f"{path}, line 1: got strand '+++") and str(caught.value).endswith(
        "expected +, - or ."
    )


def test_a_manifest_or_table_of_a_million_columns(tmp_path):
    path = tmp_path / "m.tsv"
    path.write_text("\t".join(COLUMNS) + "\t" * 1_000_000 + "\n")
    began = time.monotonic()
    with pytest.raises(ManifestError, match="more than once"):
        read_manifest(path)
    path.write_text("CHROM\tPOS\tREF\tALT\ty" + "\tx" * 500_000 + "\n1\t2\tA\tC\t1\n")
    with pytest.raises(InputError, match="column 'x' is there more than once"):
        read_table(path, ["y"])
    assert time.monotonic() - began < 20


def test_a_region_of_a_manifest_is_named_with_its_line(tmp_path):
    path = tmp_path / "m.tsv"
    path.write_text("\t".join(COLUMNS) + "\ng.fa\t1\tx\t²\t.\n")
    (entry,) = read_manifest(path, check_files=False)
    with pytest.raises(ManifestError, match=r"m\.tsv, line 2: genome 'x', column holdout: got the region '²'"):
        split_intervals(entry, {"20": 100})


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["contigs"][0].__setitem__(0, "other"),
        lambda about: about["contigs"][0].__setitem__(1, 1199),
        lambda about: about["contigs"][1].__setitem__(2, 0),
        lambda about: about["contigs"][1].__setitem__(1, True),
        lambda about: about["contigs"].pop(),
        lambda about: about.__setitem__("bytes", 10**30),
        lambda about: about.__setitem__("contigs", None),
        lambda about: about.__setitem__("fingerprint", []),
    ],
)
def test_an_encoded_genome_that_lies_is_made_again(tmp_path, sequence, change):
    path = tmp_path / "g.fa"
    path.write_bytes(text_of(sequence))
    open_genome(path, tmp_path / "cache").close()
    (index,) = (tmp_path / "cache").glob("*.json")
    right = index.read_text()
    about = json.loads(right)
    change(about)
    index.write_text(json.dumps(about))
    with open_genome(path, tmp_path / "cache") as genome:
        assert {name: decode(genome.fetch(name, 0, length)) for name, length in genome.contigs.items()} == sequence
    assert index.read_text() == right
    for text in ("[]", "[" * 100_000):
        index.write_text(text)
        open_genome(path, tmp_path / "cache").close()
        assert index.read_text() == right


def test_bases_of_an_encoded_genome_that_are_none(tmp_path, sequence):
    path = tmp_path / "g.fa"
    path.write_bytes(text_of(sequence))
    open_genome(path, tmp_path / "cache").close()
    (bases,) = (tmp_path / "cache").glob("*.bases")
    bases.write_bytes(b"\xff" * bases.stat().st_size)
    with (
        open_genome(path, tmp_path / "cache") as genome,
        pytest.raises(FastaError, match="holds something else than bases"),
    ):
        genome.fetch("one", 5, 8)


def test_a_journal_with_zeros_for_scores(tmp_path):
    (tmp_path / "v.vcf").write_text("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n20\t5\t.\tA\tC\t.\t.\t.\n")
    header, path = header_text({"model": "toy"}), tmp_path / "o.tsv.partial"
    with open_variants(tmp_path / "v.vcf") as source:
        (record,) = source.records()
        row = format_rows(record, [ScoreRow(-1.5, 1e-9, 2.0, float("inf"), None, ("OK", "EDGE"))])
        with ScoreJournal(path, header) as journal:
            journal.append(row)
        with ScoreJournal(path, header, resume=True) as journal:
            assert journal.resume_from(source.records()) == 1
        for damaged in (
            row.replace("-1.5", "\0\0\0\0"),
            row.replace("OK", "\0\0"),
            row.replace("1e-09", ""),
            row.replace("-1.5", ".."),
            row.replace("2\t", "2x\t"),
        ):
            path.write_text(header + damaged)
            with (
                ScoreJournal(path, header, resume=True) as journal,
                pytest.raises(OutputError, match=r"o\.tsv\.partial is damaged"),
            ):
                journal.resume_from(source.records())


def test_files_of_the_benchmark_that_are_cut_or_empty(tmp_path):
    made = Benchmark(tmp_path)
    folder = made.folder
    table = folder / "variant_effect_pathogenic" / "vep_pathogenic_coding.csv"
    table.write_text(table.read_text().split("\n")[0] + "\n\n")
    with pytest.raises(InputError, match="no rows below the header"):
        benchmark.read_omim(folder)
    marks = folder / "chromatin_features" / "histones_and_dnase_subset.csv"
    for name in ("--5", "²", "9" * 5000):
        marks.write_text(f'CHROM,POS,HISTONES,DNASE,split\nchr1,5,"[{name}]",[],train\n')
        assert benchmark.read_histone(folder).outputs == (name,)
    marks.write_text(f'CHROM,POS,HISTONES,DNASE,split\nchr1,5,"[{"1, " * 100_000}]",[],train\n')
    with pytest.raises(InputError, match="expected a list of names"):
        benchmark.read_histone(folder)
    for path in (folder / "cage_prediction" / "targets_subset").iterdir():
        np.savez(path, **{name: np.zeros((1, 2), np.float32) for name in ()})
        with open(path, "wb") as handle:
            handle.write(b"PK\x05\x06" + bytes(18))
    with pytest.raises(InputError, match="no target 0"):
        benchmark.read_cage(folder)


def test_a_target_of_the_benchmark_without_its_data(tmp_path):
    import zipfile

    made = Benchmark(tmp_path)
    path = next((made.folder / "cage_prediction" / "targets_subset").glob("targets-train-0-*.npz"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("target-train-0.npy", b"")
    with pytest.raises(InputError, match="cannot be read as numpy arrays"):
        benchmark.read_cage(made.folder)


def test_bgzf_with_a_footer_that_lies_is_damage(tmp_path):
    """Of VCF; htslib, which reads FASTA, goes by what is in a block."""
    data = bytearray(bgzip(b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"))
    at = len(data) - 28 - 4
    data[at : at + 4] = struct.pack("<I", 7)
    (tmp_path / "v.vcf.gz").write_bytes(data)
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(bytes(data))
    with pytest.raises(InputError, match=r"v\.vcf\.gz"):
        open_variants(tmp_path / "v.vcf.gz")


def test_places_that_no_array_holds(tmp_path):
    made = Benchmark(tmp_path)
    path = made.folder / "bulk_rna_expression" / "gene_coordinates.csv"
    lines = path.read_text().split("\n")
    cells = lines[1].split(",")
    cells[3] = "9" * 30
    path.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]))
    with pytest.raises(InputError, match=r"line 2, column CAGE_representative_TSS: got '9999"):
        benchmark.read_bulk_rna(made.folder)


def test_a_partial_file_of_embeddings_that_lost_bytes(tmp_path):
    """HDF5 would not come to an end with it, and take all memory."""
    from .targets_binary import ROWS, _write_rows

    partial = tmp_path / "e.h5.partial"
    _write_rows(tmp_path / "e.h5", resume=False, stop=ROWS - 20)
    data = partial.read_bytes()
    partial.write_bytes(data[:6206] + data[6214:])
    with pytest.raises(OutputError, match=r"e\.h5\.partial is damaged"):
        _write_rows(tmp_path / "e.h5", resume=True)


@pytest.mark.parametrize("read", [read_manifest, read_data_sets])
def test_a_manifest_with_a_nul_byte(tmp_path, read):
    path = tmp_path / "m.tsv"
    path.write_text("\t".join((*COLUMNS, "kind")) + "\ng\0.fa\t1\tx\t.\t.\tgenome\ng.fa\t1\ty\t.\t.\tgenome\n")
    with pytest.raises(ManifestError, match=r"m\.tsv, line 2: got a NUL byte"):
        read(path)


def test_a_place_below_zero_in_bcf(tmp_path):

    (tmp_path / "v.vcf").write_text(
        "##fileformat=VCFv4.2\n##contig=<ID=20>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n20\t1000\t.\tA\tC\t.\t.\t.\n"
    )
    pysam.bcftools.view("-Ou", "-o", str(tmp_path / "v.bcf"), str(tmp_path / "v.vcf"), catch_stdout=False)
    data = gzip.decompress((tmp_path / "v.bcf").read_bytes())
    assert data.count(struct.pack("<ii", 0, 999)) == 1
    (tmp_path / "w.bcf").write_bytes(data.replace(struct.pack("<ii", 0, 999), struct.pack("<ii", 0, -(1 << 30))))
    with open_variants(tmp_path / "w.bcf") as source, pytest.raises(InputError, match=r"w\.bcf, line .*: got POS"):
        list(source.records())


def test_a_target_of_the_benchmark_that_is_encrypted(tmp_path):
    made = Benchmark(tmp_path)
    for path in (made.folder / "cage_prediction" / "targets_subset").glob("*.npz"):
        data = bytearray(path.read_bytes())
        for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.index(magic) + flags] |= 1
        path.write_bytes(data)
    with pytest.raises(InputError, match=r"cannot be read as numpy arrays .*encrypted"):
        benchmark.read_cage(made.folder)


@pytest.mark.parametrize("column", ["CHROM", "ALT", "gene"])
def test_one_long_word_is_not_memory_for_all_rows(tmp_path, column):
    row = {"CHROM": "20", "POS": "7", "REF": "A", "ALT": "C", "gene": "x", "y": "1"}
    lines = ["\t".join(row), "\t".join({**row, column: "A" * 10_000}.values()), *["\t".join(row.values())] * 500]
    (tmp_path / "t.tsv").write_text("\n".join(lines))
    assert len(read_table(tmp_path / "t.tsv", ["y"], group="gene")) == 501
    (tmp_path / "t.tsv").write_text("\n".join(lines).replace("A" * 10_000, "A" * 10_001))
    with pytest.raises(InputError, match=r"t\.tsv line 2: got 10,001 characters of \w+, expected at most 10,000"):
        read_table(tmp_path / "t.tsv", ["y"], group="gene")
