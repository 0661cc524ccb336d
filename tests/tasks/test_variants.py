from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrgenome.dna import MASK, decode
from lrgenome.errors import AssemblyMismatchError, InputError, UsageError
from lrgenome.io.alleles import STATUSES
from lrgenome.io.fasta import Fasta
from lrgenome.io.vcf import VcfRecord
from lrgenome.tasks.variants import FLANK, VariantPlanner, preflight, scored_spans

CONTEXT = 200
OTHER = {"A": "C", "C": "G", "G": "T", "T": "A", "N": "A"}


def record(chrom, pos, ref, *alts, number=0):
    """A record at a 1-based position."""
    alts = tuple(alts)
    line = f"{chrom}\t{pos}\t.\t{ref}\t{','.join(alts) or '.'}\t.\t.\t."
    return VcfRecord(chrom, pos - 1, ".", ref, alts, line, number, number + 2)


@pytest.fixture
def fasta(toy_fasta):
    with Fasta(toy_fasta) as opened:
        yield opened


@pytest.fixture(scope="module")
def module_fasta(tmp_path_factory, toy_sequences):
    path = tmp_path_factory.mktemp("planner") / "toy.fa"
    path.write_text("".join(f">{name}\n{text}\n" for name, text in toy_sequences.items()))
    with Fasta(path) as opened:
        yield opened


@pytest.fixture
def planner(fasta):
    return make(fasta)


def make(fasta, context=CONTEXT, check_ref="warn", alias="auto"):
    return VariantPlanner(fasta, context, check_ref=check_ref, alias=alias)


def bases(toy_sequences, chrom, pos, length=1):
    return toy_sequences[chrom][pos - 1 : pos - 1 + length].upper()


# "=" is the FASTA's base, "!" one that it is not.
CASES = [
    ("chr1", 2000, "=", "!", "OK", True),
    ("chr1", 1200, "=", "!", "OK", True),
    ("chr1", 50, "=", "!", "EDGE", True),
    ("chr1", 5003, "=", "!", "EDGE", True),
    ("MT", 30, "=", "!", "EDGE", True),
    ("chr1", 2000, "!", "=", "REF_MISMATCH", True),
    ("MT", 30, "!", "=", "EDGE&REF_MISMATCH", True),
    ("chr1", 150, "N", "A", "REF_AMBIGUOUS", False),
    ("chr1", 150, "A", "C", "REF_AMBIGUOUS", False),
    ("chr1", 2000, "R", "A", "REF_AMBIGUOUS", False),
    ("chr2", 401, "G", "A", "REF_AMBIGUOUS", False),
    ("chr2", 415, "w", "A", "REF_AMBIGUOUS", False),
    ("chr1", 2000, "=", "N", "ALT_AMBIGUOUS", False),
    ("chr1", 2000, "=", "AY", "ALT_AMBIGUOUS", False),
    ("chr1", 2000, "=", ".", "ALT_MISSING", False),
    ("chr1", 2000, "=", "*", "ALT_STAR", False),
    ("chr1", 2000, "=", "<*>", "ALT_STAR", False),
    ("chr1", 2000, "=", "<NON_REF>", "ALT_STAR", False),
    ("chr1", 2000, "=", "<DEL>", "ALT_SYMBOLIC", False),
    ("chr1", 2000, "=", "<CN0>", "ALT_SYMBOLIC", False),
    ("chr1", 2000, "=", "<INS:ME:ALU>", "ALT_SYMBOLIC", False),
    ("chr1", 2000, "!", "<DEL>", "REF_MISMATCH&ALT_SYMBOLIC", False),
    ("chr1", 2000, "=", "A[chr2:100[", "ALT_BREAKEND", False),
    ("chr1", 2000, "=", "]chr2:100]A", "ALT_BREAKEND", False),
    ("chr1", 2000, "=", "G.", "ALT_BREAKEND", False),
    ("chr1", 2000, "=", ".G", "ALT_BREAKEND", False),
    ("chrX", 2000, "A", "C", "CONTIG_MISSING", False),
    ("chr1", 0, "N", "A", "OUT_OF_RANGE", False),
    ("chr1", 5004, "A", "C", "OUT_OF_RANGE", False),
    ("MT", 61, "==", "=", "OUT_OF_RANGE", False),
    ("chr1", 2000, "=", "A" * 102, "TOO_LONG", False),
    ("chr1", 4950, "=" * 54, "=", "EDGE", True),
]


def fill(toy_sequences, chrom, pos, text):
    """Write what "=" and "!" stand for."""
    if set(text) <= {"="}:
        return bases(toy_sequences, chrom, pos, len(text)) if chrom in toy_sequences else "A"
    return OTHER[bases(toy_sequences, chrom, pos)] if text == "!" else text


@pytest.mark.parametrize(("chrom", "pos", "ref", "alt", "status", "scored"), CASES)
def test_status(planner, toy_sequences, chrom, pos, ref, alt, status, scored):
    beyond = status == "OUT_OF_RANGE"
    ref = ref.replace("=", "A") if beyond else fill(toy_sequences, chrom, pos, ref)
    alt = alt.replace("=", "A") if beyond else fill(toy_sequences, chrom, pos, alt)
    (plan,) = planner.plan(record(chrom, pos, ref, alt))
    assert "&".join(plan.status) == status
    assert (plan.windows is not None) == scored
    positions = [STATUSES.index(s) for s in plan.status]
    assert positions == sorted(positions)


def test_the_cases_above_show_every_status():
    assert {s for case in CASES for s in case[4].split("&")} == set(STATUSES)


def test_a_record_without_alt_has_one_plan(planner, toy_sequences):
    (plan,) = planner.plan(record("chr1", 2000, bases(toy_sequences, "chr1", 2000)))
    assert plan == (("ALT_MISSING",), None, None)
    assert len(planner.plan(record("chrX", 1, "A"))) == 1


@pytest.mark.parametrize(("pos", "edge"), [(100, True), (101, False), (1101, False), (1102, True)])
def test_edge_begins_where_the_window_leaves_the_contig(planner, toy_sequences, pos, edge):
    ref = bases(toy_sequences, "chr2", pos)
    (plan,) = planner.plan(record("chr2", pos, ref, OTHER[ref]))
    assert plan.status == (("EDGE",) if edge else ("OK",))
    assert len(plan.windows.reference) == CONTEXT - edge


def test_a_contig_shorter_than_the_context_is_the_window(planner, toy_sequences):
    (plan,) = planner.plan(record("MT", 30, bases(toy_sequences, "MT", 30), "ACGT"))
    assert decode(plan.windows.reference) == toy_sequences["MT"]


@pytest.mark.parametrize(("length", "long"), [(100, False), (101, True)])
def test_an_allele_may_take_half_of_the_context(planner, toy_sequences, length, long):
    gone = bases(toy_sequences, "chr1", 3000, length + 1)
    new = gone[0] + ("ACGTT" * 25)[:length]
    for ref, alt in ((gone, gone[0]), (gone[0], new)):
        (plan,) = planner.plan(record("chr1", 3000, ref, alt))
        assert (plan.status == ("TOO_LONG",)) == long
        if not long:
            assert abs(len(plan.windows.alternative) - CONTEXT) == length


def test_lower_case_alleles_are_bases(planner, toy_sequences):
    ref = bases(toy_sequences, "chr1", 1200)
    upper, lower = (
        planner.plan(record("chr1", 1200, r, a))[0]
        for r, a in ((ref, OTHER[ref]), (ref.lower(), OTHER[ref].lower()))
    )
    assert upper.status == lower.status == ("OK",)
    assert (upper.windows.masked == lower.windows.masked).all()
    assert (upper.windows.alternative == lower.windows.alternative).all()


def test_warn_scores_against_the_base_of_the_fasta(fasta, toy_sequences):
    real = bases(toy_sequences, "chr1", 2000)
    stated, alt = OTHER[real], OTHER[OTHER[real]]
    (plan,) = make(fasta).plan(record("chr1", 2000, stated, alt))
    assert plan.status == ("REF_MISMATCH",)
    assert decode(plan.windows.ref_bases) == real
    assert decode(plan.windows.alt_bases) == alt
    assert decode(plan.windows.reference)[plan.windows.sites[0]] == real


def test_an_alt_that_the_fasta_has_differs_nowhere(fasta, toy_sequences):
    real = bases(toy_sequences, "chr1", 2000)
    (plan,) = make(fasta).plan(record("chr1", 2000, OTHER[real], real))
    assert plan.windows.sites == ()
    assert (plan.windows.reference == plan.windows.alternative).all()


def test_skip_leaves_mismatches_without_windows(fasta, toy_sequences):
    real = bases(toy_sequences, "chr1", 2000)
    plans = make(fasta, check_ref="skip").plan(record("chr1", 2000, OTHER[real], real, "<DEL>"))
    assert plans == [(("REF_MISMATCH",), None, None), (("REF_MISMATCH", "ALT_SYMBOLIC"), None, None)]


def test_error_names_the_record(fasta, toy_sequences):
    planner = make(fasta, check_ref="error")
    planner.plan(record("chr1", 2000, bases(toy_sequences, "chr1", 2000), "<DEL>"))
    wrong = OTHER[bases(toy_sequences, "chr1", 2001)]
    here = bases(toy_sequences, "chr1", 2001)
    with pytest.raises(InputError, match=rf"chr1:2001 \(line 9\): REF is {wrong}, the FASTA has {here} there; --check"):
        planner.plan(record("chr1", 2001, wrong, "<DEL>", number=7))


def test_check_ref_is_one_of_three(fasta):
    with pytest.raises(UsageError, match="--check-ref: got 'maybe', expected one of warn, skip, error"):
        make(fasta, check_ref="maybe")


def test_an_mnv_masks_only_the_bases_that_differ(planner, toy_sequences):
    ref = bases(toy_sequences, "chr1", 2000, 5)
    alt = OTHER[ref[0]] + ref[1:3] + OTHER[ref[3]] + ref[4]
    (plan,) = planner.plan(record("chr1", 2000, ref, alt))
    windows = plan.windows
    masked = np.flatnonzero(windows.masked == MASK)
    assert tuple(masked) == windows.sites and len(masked) == 2 and masked[1] - masked[0] == 3
    assert decode(windows.ref_bases) == ref[0] + ref[3]
    assert decode(windows.alt_bases) == alt[0] + alt[3]
    unmasked = np.delete(np.arange(CONTEXT), masked)
    assert (windows.masked[unmasked] == windows.reference[unmasked]).all()


def test_an_mnv_over_a_mismatch_masks_what_differs_from_the_fasta(planner, toy_sequences):
    real = bases(toy_sequences, "chr1", 2000, 3)
    alt = OTHER[real[0]] + real[1] + OTHER[real[2]]
    (plan,) = planner.plan(record("chr1", 2000, real[0] + OTHER[real[1]] + real[2], alt))
    assert plan.status == ("REF_MISMATCH",)
    assert decode(plan.windows.alt_bases) == alt[0] + alt[2]


def test_alleles_of_one_record_are_planned_apart(planner, toy_sequences):
    ref = bases(toy_sequences, "chr1", 2000)
    alts = [base for base in "ACGT" if base != ref] + ["<DEL>", "*", ref + "TT"]
    plans = planner.plan(record("chr1", 2000, ref, *alts))
    assert [p.status for p in plans] == [("OK",)] * 3 + [("ALT_SYMBOLIC",), ("ALT_STAR",), ("OK",)]
    assert [decode(p.windows.alt_bases) for p in plans[:3]] == alts[:3]
    assert plans[5].windows.masked is None


def test_an_ambiguous_anchor_does_not_matter_once_it_is_trimmed(planner, toy_sequences):
    # chr1:300 is the last N of the run.
    after = bases(toy_sequences, "chr1", 301, 2)
    (plan,) = planner.plan(record("chr1", 301, after, after[0]))
    assert plan.status == ("OK",)
    assert decode(plan.windows.reference).startswith("N" * 100)


@settings(max_examples=60, deadline=None)
@given(
    pos=st.integers(400, 4900),
    length=st.integers(1, 6),
    alt=st.text("ACGT", min_size=1, max_size=6),
    left=st.integers(0, 5),
    right=st.integers(0, 5),
)
def test_windows_are_those_of_the_edited_genome(module_fasta, toy_sequences, pos, length, alt, left, right):
    """Whatever bases a record repeats around its change."""
    genome = toy_sequences["chr1"].upper()
    start, end = pos - left, pos + length + right
    ref, padded = genome[start:end], genome[start:pos] + alt + genome[pos + length : end]
    (plan,) = make(module_fasta).plan(record("chr1", start + 1, ref, padded))
    windows = plan.windows
    edited = genome[:start] + padded + genome[end:]
    at = genome.index(decode(windows.reference), max(0, pos - CONTEXT), pos + CONTEXT)
    assert decode(windows.alternative) == edited[at : at + len(windows.alternative)]
    ((low, high),), ((alt_low, alt_high),) = windows.ref_spans, windows.alt_spans
    assert low == alt_low
    # Outside the spans' allele the two windows agree, from the left and from the right.
    assert len(windows.reference) - high == len(windows.alternative) - alt_high
    if len(ref) == len(padded):
        differ = [i for i in range(start, end) if genome[i] != edited[i]]
        assert [at + site for site in windows.sites] == differ
    else:
        assert windows.masked is None and windows.sites == ()


def test_spans_hold_the_allele_and_its_flanks(fasta, toy_sequences):
    ref = bases(toy_sequences, "chr1", 2500, 4)
    (plan,) = make(fasta, context=2000).plan(record("chr1", 2500, ref, ref[0]))
    windows = plan.windows
    # The three bases after the anchor go: 768 + 3 + 768 bp, and 768 + 768.
    ((low, high),), ((alt_low, alt_high),) = windows.ref_spans, windows.alt_spans
    assert high - low == 2 * FLANK + 3
    assert alt_high - alt_low == 2 * FLANK
    assert low + FLANK == 2000 // 2 - 1


lengths = st.integers(0, 2 * FLANK + 3) | st.integers(0, 10 * FLANK)


@given(at=st.integers(0, 2 * FLANK), length=lengths, after=st.integers(0, 2 * FLANK))
def test_what_counts_is_near_an_end_of_the_allele(at, length, after):
    total, position = at + length + after, np.arange(at + length + after)
    near = [(-FLANK <= position - end) & (position - end < FLANK) for end in (at, at + length)]
    spans = scored_spans(at, length, total)
    counted = np.concatenate([np.arange(low, high) for low, high in spans])
    assert counted.tolist() == np.flatnonzero(near[0] | near[1]).tolist()
    assert len(spans) == (2 if length > 2 * FLANK else 1)


def test_scored_spans_by_hand():
    assert scored_spans(1_000, 1, 3_000) == ((232, 1_769),)
    assert scored_spans(1_000, 0, 3_000) == ((232, 1_768),)
    assert scored_spans(100, 1_536, 1_800) == ((0, 1_800),)
    assert scored_spans(100, 1_537, 1_800) == ((0, 868), (869, 1_800))
    assert scored_spans(0, 5_000, 5_000) == ((0, 768), (4_232, 5_000))


@pytest.mark.parametrize(
    ("name", "alias", "found"),
    [
        ("1", "auto", "chr1"), ("chr1", "auto", "chr1"), ("M", "auto", "MT"), ("chrM", "auto", "MT"),
        ("chrMT", "auto", "MT"), ("1", "none", None), ("chrM", "none", None),
        ("one", {"one": "chr1"}, "chr1"), ("1", {"one": "chr1"}, None),
    ],
)  # fmt: skip
def test_contig_names(fasta, name, alias, found):
    planner = make(fasta, alias=alias)
    assert planner.contig(name) == found
    (plan,) = planner.plan(record(name, 30, "A", "<DEL>"))
    assert ("CONTIG_MISSING" in plan.status) == (found is None)


def test_a_variant_on_20_is_found_on_chr20_and_back(tmp_path):
    for ours, theirs in (("20", "chr20"), ("chr20", "20")):
        path = tmp_path / f"{ours}.fa"
        path.write_text(f">{ours}\n{'ACGT' * 100}\n")
        with Fasta(path) as fasta:
            assert make(fasta).plan(record(theirs, 201, "A", "C"))[0].status == ("OK",)


def mixed(toy_sequences, right, wrong):
    for i in range(right + wrong):
        real = bases(toy_sequences, "chr1", 2000 + i)
        yield record("chr1", 2000 + i, real if i < right else OTHER[real], "<DEL>", number=i)


@pytest.mark.parametrize(
    ("right", "wrong", "refused"), [(0, 19, False), (0, 20, True), (10, 10, False), (10, 11, True)]
)
def test_more_than_half_mismatching_is_another_assembly(fasta, toy_sequences, right, wrong, refused):
    planner = make(fasta)
    if refused:
        many = f"{wrong} of {right + wrong} REF alleles differ from toy.fa: wrong assembly"
        expected = rf"{many}\? The first: chr1:.* REF is ., the FASTA has . there"
        with pytest.raises(AssemblyMismatchError, match=expected):
            preflight(planner, mixed(toy_sequences, right, wrong))
    else:
        preflight(planner, mixed(toy_sequences, right, wrong))
        assert (planner.checked, planner.mismatched) == (right + wrong, wrong)


def test_ambiguous_references_do_not_count_as_mismatches(fasta):
    planner = make(fasta)
    for i in range(60):
        planner.plan(record("chr1", 120 + i, "A", "C"))
    assert planner.mismatched == 0


def test_no_contig_in_common_is_another_assembly(fasta):
    with pytest.raises(
        AssemblyMismatchError, match=r"no contig in common: .* on chr7, chr8, .* chr1, chr2, MT"
    ):
        preflight(make(fasta), iter([record("chr7", 5, "A", "C"), record("chr8", 5, "A", "C")]))
    preflight(make(fasta), iter([]))


def test_contigs_in_common_may_come_late(fasta, toy_sequences):
    records = [record("chr7", i + 1, "A", "C", number=i) for i in range(1500)]
    preflight(make(fasta), iter([*records, record("MT", 5, bases(toy_sequences, "MT", 5), "A")]))


def test_preflight_reads_no_more_than_it_must(fasta, toy_sequences):
    read = 0

    def records():
        nonlocal read
        while True:
            read += 1
            yield record("MT", 5, bases(toy_sequences, "MT", 5), "<DEL>")

    preflight(make(fasta), records(), limit=50)
    assert read == 50


def test_the_mitochondrial_n(shared_data: Path):
    """rCRS keeps an N at 3107, so that positions stay those of the first sequence."""
    with Fasta(shared_data / "genomes" / "homo_sapiens.rCRS.fa.gz") as fasta:
        planner = make(fasta)
        here = decode(fasta.fetch("MT", 3104, 3108))
        assert here[2] == "N"
        status = {}
        before = here[1]
        for pos, ref, alt in (
            (3107, "N", "T"),
            (3106, before + "N", before),
            (3106, before, "A"),
            (3107, "C", "T"),
        ):
            (plan,) = planner.plan(record("chrM", pos, ref, alt))
            status[pos, ref] = plan.status
        assert status[3107, "N"] == status[3106, before + "N"] == status[3107, "C"] == ("REF_AMBIGUOUS",)
        assert status[3106, before] == ("OK",)
