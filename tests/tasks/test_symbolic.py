"""Plans of symbolic alleles: those of the same changes written out, on human sequence; and those of real records."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lrgenome
from lrgenome.dna import decode, reverse_complement
from lrgenome.io.fasta import Fasta
from lrgenome.io.vcf import VcfRecord, open_variants
from lrgenome.tasks.variants import FLANK, VariantPlanner

DEMO = Path(lrgenome.__file__).parent / "assets" / "demo" / "GRCh37.chr20.first-2Mbp.fa.gz"
CONTEXT = 4_000
OTHER = {"A": "C", "C": "G", "G": "T", "T": "A"}
places = st.integers(1_000_000, 1_004_000)
lengths = st.integers(1, 60) | st.integers(1_500, CONTEXT // 2)
both_modes = pytest.mark.parametrize("tiles", [False, True], ids=["windows", "tiles"])


@pytest.fixture(scope="module")
def human():
    """The first 2 Mbp of chromosome 20, of which the first 60 kbp are N."""
    with Fasta(DEMO) as opened:
        yield opened


def plan(fasta, pos, ref, *alts, info=".", context=CONTEXT, **options):
    """Plan the alleles of a record at a 1-based position."""
    line = f"20\t{pos}\t.\t{ref}\t{','.join(alts)}\t.\t.\t{info}"
    planner = VariantPlanner(fasta, context, **{"check_ref": "error", "alias": "none", **options})
    return planner.plan(VcfRecord("20", pos - 1, ".", ref, alts, line, 0, 1))


def bases(fasta, start, end):
    return decode(fasta.fetch("20", start, end))


def assert_same(one, two):
    """Compare plans, apart from the kinds of their edits."""
    assert one.status == two.status and one.scored == two.scored
    for mine, yours in ((one.edit, two.edit), (one.windows, two.windows)):
        assert type(mine) is type(yours)
        for name in getattr(mine, "_fields", ()):
            if name != "kind":
                np.testing.assert_array_equal(getattr(mine, name), getattr(yours, name), err_msg=name)


@both_modes
@settings(max_examples=40, deadline=None)
@given(pos=places, length=lengths)
def test_a_deletion_is_the_one_written_out(human, tiles, pos, length):
    padded = bases(human, pos - 1, pos + length)
    (symbolic,) = plan(human, pos, padded[0], "<DEL>", info=f"END={pos + length}", tiles=tiles)
    (written,) = plan(human, pos, padded, padded[0], tiles=tiles)
    assert_same(symbolic, written)
    if tiles:
        assert (symbolic.edit.kind, written.edit.kind) == ("DEL", "SEQ")
        assert symbolic.edit.start == pos - (padded[0] == padded[-1])


@both_modes
@settings(max_examples=40, deadline=None)
@given(pos=places, length=lengths)
def test_a_duplication_is_the_insertion_behind_it(human, tiles, pos, length):
    end = pos + length
    after = bases(human, end, end + 1)
    (symbolic,) = plan(human, pos, "N", "<DUP>", info=f"SVLEN={length}", tiles=tiles)
    (written,) = plan(human, end + 1, after, bases(human, pos, end) + after, tiles=tiles)
    assert_same(symbolic, written)
    if tiles:
        assert (symbolic.edit.kind, written.edit.kind) == ("DUP", "SEQ")
        assert symbolic.edit.start == end and decode(symbolic.edit.alt) == bases(human, pos, end)


@settings(max_examples=40, deadline=None)
@given(pos=places, length=lengths)
def test_an_inversion_is_its_reverse_complement_without_sites(human, pos, length):
    end, info = pos + length, f"END={pos + length}"
    (windowed,), (edited,) = (plan(human, pos, "N", "<INV>", info=info, tiles=tiles) for tiles in (False, True))
    inside = human.fetch("20", pos, end)
    contig, start, ref, alt, *rest = edited.edit
    assert (contig, start, *rest) == ("20", pos, False, (), "INV")
    assert (ref == inside).all() and (alt == reverse_complement(inside)).all()
    windows = windowed.windows
    assert windows.masked is None and windows.sites == () and len(windows.ref_bases) == len(windows.alt_bases) == 0
    low = pos + length // 2 - CONTEXT // 2
    whole = bases(human, low, low + CONTEXT)
    assert decode(windows.reference) == whole
    turned = decode(reverse_complement(inside))
    assert decode(windows.alternative) == whole[: pos - low] + turned + whole[end - low :]
    assert windows.ref_spans == windows.alt_spans


@pytest.mark.parametrize(("alt", "spans"), [("<DEL>", (2, 1)), ("<DUP>", (1, 2)), ("<INV>", (2, 2))])
def test_of_a_long_event_the_ends_count(human, alt, spans):
    (planned,) = plan(human, 1_000_000, "N", alt, info="SVLEN=1800", context=8_000)
    windows = planned.windows
    assert (len(windows.ref_spans), len(windows.alt_spans)) == spans
    for found, count in zip((windows.ref_spans, windows.alt_spans), spans, strict=True):
        assert sum(high - low for low, high in found) == 2 * FLANK * count


CASES = [
    (1_000_000, "=", "<DEL>", "END=1000050", "OK"),
    (1_000_000, "N", "<DUP:TANDEM>", "END=1000050", "OK"),
    (1_000_000, "n", "<INV>", "END=1000050", "OK"),
    (1_000_000, "=", "<DEL>", "END=1002000", "OK"),
    (1_000_000, "=", "<DEL>", "END=1002001", "TOO_LONG"),
    (1_000_000, "=", "<CN2>", "SVLEN=2001", "TOO_LONG"),
    (1_000_000, "=", "<INV>", "END=1999999", "TOO_LONG"),
    (1_000_000, "=", "<INS:ME:ALU>", "SVLEN=281", "ALT_SYMBOLIC"),
    (1_000_000, "=", "<CN3>", "END=1000050", "ALT_SYMBOLIC"),
    (1_000_000, "=", "<DEL>", "END=1000000", "ALT_SYMBOLIC"),
    (1_000_000, "!", "<DEL>", "END=1000050", "REF_MISMATCH"),
    (1_000_000, "!", "<CN1>", "END=1000050", "REF_MISMATCH&ALT_SYMBOLIC"),
    (1_999_990, "=", "<DEL>", "END=2000000", "EDGE"),
    (1_999_990, "=", "<DUP>", "END=2000000", "EDGE"),
    (1_999_990, "!", "<INV>", "SVLEN=10", "EDGE&REF_MISMATCH"),
    (1_999_990, "=", "<DEL>", "END=2000001", "OUT_OF_RANGE"),
    (1_999_990, "!", "<INV>", "SVLEN=11", "REF_MISMATCH&OUT_OF_RANGE"),
    (1_999_990, "=", "<DUP>", "END=300000000", "OUT_OF_RANGE"),
    (0, "N", "<DEL>", "END=5", "OUT_OF_RANGE"),
    (59_990, "N", "<DEL>", "END=60010", "REF_AMBIGUOUS"),
    (59_999, "N", "<DUP>", "END=60010", "REF_AMBIGUOUS"),
    (59_990, "N", "<INV>", "END=60001", "REF_AMBIGUOUS"),
    (60_000, "N", "<DEL>", "END=60010", "OK"),
]


@both_modes
@pytest.mark.parametrize(("pos", "ref", "alt", "info", "status"), CASES)
def test_status(human, pos, ref, alt, info, status, tiles):
    if ref in "=!":
        here = bases(human, pos - 1, pos)
        ref = here if ref == "=" else OTHER[here]
    (planned,) = plan(human, pos, ref, alt, info=info, tiles=tiles, check_ref="warn")
    assert "&".join(planned.status) == status
    scored = {"OK", "EDGE", "REF_MISMATCH"}.issuperset(planned.status)
    assert planned.scored == scored and (planned.edit is not None) == (scored and tiles)


def test_mismatches_are_skipped_where_that_is_asked_for(human):
    wrong = OTHER[bases(human, 999_999, 1_000_000)]
    planned = plan(human, 1_000_000, wrong, "<DEL>", "<INS>", info="END=1000050", check_ref="skip")
    assert planned == [(("REF_MISMATCH",), None, None), (("REF_MISMATCH", "ALT_SYMBOLIC"), None, None)]


def test_nothing_is_read_of_an_event_that_is_too_long(human, monkeypatch):
    read, fetch = [], human.fetch
    monkeypatch.setattr(human, "fetch", lambda *where: read.append(where) or fetch(*where))
    planned = plan(human, 70_000, "N", "<DEL>", "<DUP>", "<INV>", info="END=1999999")
    assert [p.status for p in planned] == [("TOO_LONG",)] * 3
    assert read == [("20", 69_999, 70_000)]


def test_alleles_of_one_record_go_by_their_own_lengths(human):
    ref = bases(human, 999_999, 1_000_000)
    alts = ["<CN0>", OTHER[ref], "<CN2>", "<INS:ME:L1>", "<INV>", "*"]
    planned = plan(human, 1_000_000, ref, *alts, info="SVLEN=-30,.,40,50,60,.", tiles=True)
    unscored = {3: "ALT_SYMBOLIC", 5: "ALT_STAR"}
    assert [p.status for p in planned] == [(unscored.get(i, "OK"),) for i in range(6)]
    edits = [p.edit for p in planned if p.edit is not None]
    assert [edit.kind for edit in edits] == ["DEL", "SEQ", "DUP", "INV"]
    assert [(len(edit.ref), len(edit.alt)) for edit in edits] == [(30, 0), (1, 1), (0, 40), (60, 60)]


def test_an_event_of_a_large_context_spans_blocks_of_the_file(human):
    (planned,) = plan(human, 900_000, "N", "<INV>", info="END=1300000", context=1_000_000, tiles=True)
    assert planned.status == ("OK",)
    assert (planned.edit.alt == reverse_complement(planned.edit.ref)).all()
    assert (planned.edit.ref == human.fetch("20", 900_000, 1_300_000)).all()


@pytest.mark.parametrize(
    ("context", "too_long"),
    [(12_000, {1_307_697, 1_490_168, 1_560_739, 1_607_064}), (100_000, {1_490_168, 1_607_064}), (1_000_000, set())],
)
def test_those_of_the_1000_genomes(shared_data: Path, context, too_long):
    path = shared_data / "variants" / "1000genomes.chr20_1-2Mb.b37.vcf.gz"
    with open_variants(path) as source:
        records = [record for record in source.records() if "<" in record.line.split("\t", 5)[4]]
    assert Counter(alt for record in records for alt in record.alts) == {"<CN0>": 15, "<CN2>": 2, "<INS:ME:ALU>": 7}
    with Fasta(shared_data / "genomes" / "homo_sapiens.GRCh37.chr20.fa.gz") as fasta:
        planner = VariantPlanner(fasta, context, check_ref="error", alias="none", tiles=True)
        for record in records:
            (planned,) = planner.plan(record)
            if record.alts == ("<INS:ME:ALU>",):
                assert planned.status == ("ALT_SYMBOLIC",)
            elif record.pos + 1 in too_long:
                assert planned.status == ("TOO_LONG",)
            else:
                assert planned.status == ("OK",)
                (end,) = (int(entry[4:]) for entry in record.info.split(";") if entry.startswith("END="))
                size, edit = end - record.pos - 1, planned.edit
                deleted = record.alts == ("<CN0>",)
                assert edit.kind == ("DEL" if deleted else "DUP")
                assert (len(edit.ref), len(edit.alt)) == ((size, 0) if deleted else (0, size))
