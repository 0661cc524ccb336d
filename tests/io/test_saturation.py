"""Records of saturation mutagenesis, against every change made by brute force."""

import tracemalloc
from pathlib import Path

import pysam
import pytest

import lrgenome
from lrgenome.io import saturation
from lrgenome.io.fasta import Fasta
from lrgenome.io.saturation import SaturationSource, changed_bases
from lrgenome.io.vcf import open_variants

DEMO = Path(lrgenome.__file__).parent / "assets" / "demo" / "GRCh37.chr20.first-2Mbp.fa.gz"


def fasta_of(folder, **sequences):
    path = folder / "some.fa"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in sequences.items()))
    return path


def keys(source):
    return [(r.chrom, r.pos, r.ref, r.alts[0]) for r in source.records()]


def applied(sequence, pos, ref, alt):
    assert sequence[pos : pos + len(ref)] == ref
    return sequence[:pos] + alt + sequence[pos + len(ref) :]


def test_every_snv_of_real_sequence():
    start, end = 1_373_700, 1_374_100
    with pysam.FastaFile(str(DEMO)) as raw:
        bases = raw.fetch("20", start, end).upper()
    expected = [
        ("20", start + i, base, alt) for i, base in enumerate(bases) for alt in "ACGT" if alt != base
    ]
    with Fasta(DEMO) as fasta:
        source = SaturationSource(fasta, [("20", start, end)])
        assert keys(source) == expected
        assert (source.bases, source.ambiguous) == (400, 0)


@pytest.mark.parametrize("block", [1, 7, 1 << 16])
@pytest.mark.parametrize("start", [0, 1, 2, 20])
def test_each_base_is_deleted_once(tmp_path, monkeypatch, block, start):
    monkeypatch.setattr(saturation, "_BLOCK", block)
    sequence = "ACCCGTTTTAGCAAGGTCCATTGGACGTAC"
    with Fasta(fasta_of(tmp_path, one=sequence)) as fasta:
        records = keys(SaturationSource(fasta, [("one", start, 30)], deletions=True))
    deletions = [record for record in records if len(record[2]) == 2]
    assert [applied(sequence, *record[1:]) for record in deletions] == [
        sequence[:base] + sequence[base + 1 :] for base in range(start, 30)
    ]
    assert [base for _, *record in deletions for base in changed_bases(*record)] == list(range(start, 30))
    # The base before is the anchor, but that of the first is the base after.
    assert deletions[0][1:] == {0: (0, "AC", "C"), 1: (0, "AC", "A")}.get(start, deletions[0][1:])
    assert len(records) == 4 * (30 - start)
    places = [(pos, len(ref), alt) for _, pos, ref, alt in records]
    assert places == sorted(places) or start == 0
    assert [pos for pos, _, _ in places] == sorted(pos for pos, _, _ in places)


def test_the_first_bases_of_a_contig(tmp_path):
    with Fasta(fasta_of(tmp_path, one="GATC", two="AAT", three="C", four="CN")) as fasta:
        whole = [(name, 0, length) for name, length in fasta.contigs.items()]
        source = SaturationSource(fasta, whole, deletions=True)
        found = [record for record in keys(source) if len(record[2]) == 2]
        assert found == [
            ("one", 0, "GA", "A"), ("one", 0, "GA", "G"), ("one", 1, "AT", "A"), ("one", 2, "TC", "T"),
            ("two", 0, "AA", "A"), ("two", 0, "AA", "A"), ("two", 1, "AT", "A"),
        ]  # fmt: skip
        assert [record[1:] for record in keys(source)][:5] == [
            (0, "G", "A"), (0, "G", "C"), (0, "G", "T"), (0, "GA", "A"), (0, "GA", "G"),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "bases"),
    [
        ((5, "A", "C"), (5,)), ((5, "AC", "A"), (6,)), ((5, "AA", "A"), (6,)), ((0, "AC", "A"), (1,)),
        ((0, "AC", "C"), (0,)), ((0, "AA", "A"), (0, 1)),
    ],
)  # fmt: skip
def test_changed_bases(record, bases):
    assert changed_bases(*record) == bases


def test_what_is_no_base_has_no_records(toy_fasta, toy_sequences):
    with Fasta(toy_fasta) as fasta:
        source = SaturationSource(fasta, [("chr2", 395, 430), ("chr1", 298, 305)], deletions=True)
        found = keys(source)
    two = [record for record in found if record[0] == "chr2"]
    known = [i for i in range(395, 430) if toy_sequences["chr2"][i] in "ACGT"]
    assert known == [*range(395, 400), *range(422, 430)]
    assert sorted({pos for _, pos, ref, _ in two if len(ref) == 1}) == known
    # The first base after the others has no anchor.
    assert [pos for _, pos, ref, _ in two if len(ref) == 2] == [*range(394, 399), *range(422, 429)]
    assert {pos for name, pos, _, _ in found if name == "chr1"} == {300, 301, 302, 303, 304}
    assert (source.bases, source.ambiguous) == (42, 24)


def test_lower_case_is_a_base(toy_fasta, toy_sequences):
    assert toy_sequences["chr1"][1000:1010].islower()
    with Fasta(toy_fasta) as fasta:
        found = keys(SaturationSource(fasta, [("chr1", 1000, 1010)]))
    assert [ref for _, _, ref, _ in found[::3]] == list(toy_sequences["chr1"][1000:1010].upper())


def test_regions_are_joined_in_the_order_of_the_fasta(toy_fasta):
    regions = [("chr2", 50, 60), ("MT", 5, 6), ("chr1", 20, 30), ("chr1", 10, 20), ("chr2", 55, 70), ("chr1", 40, 41)]
    with Fasta(toy_fasta) as fasta:
        source = SaturationSource(fasta, regions)
        assert source.regions == [("chr1", 10, 30), ("chr1", 40, 41), ("chr2", 50, 70), ("MT", 5, 6)]
        assert len({*keys(source)}) == len(keys(source)) == 3 * source.bases


def test_it_reads_like_a_vcf(toy_fasta, tmp_path):
    path = tmp_path / "made.vcf"
    with Fasta(toy_fasta) as fasta, SaturationSource(fasta, [("chr1", 0, 30)], deletions=True) as source:
        records = list(source.records())
        assert list(source.records()) == records and list(source.records(skip=17)) == records[17:]
        assert list(source.records(skip=1_000)) == []
        path.write_text("\n".join([*source.meta, source.columns, *(r.line for r in records)]) + "\n")
        with open_variants(path) as read:
            assert list(read.records()) == records
            assert (read.meta, read.columns) == (source.meta, source.columns)
            assert read.contigs == fasta.contigs and read.reference == str(toy_fasta) == source.reference
    with pysam.VariantFile(str(path)) as file:
        assert sum(1 for _ in file) == len(records)


def test_memory_does_not_grow_with_the_region():
    with Fasta(DEMO) as fasta:
        records = SaturationSource(fasta, [("20", 1_100_000, 1_140_000)]).records()
        next(records)
        tracemalloc.start()
        try:
            count = sum(1 for _ in records)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert count == 120_000 - 1 and peak < 200_000
