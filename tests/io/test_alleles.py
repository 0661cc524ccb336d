import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrgenome.io.alleles import STATUSES, Allele, classify, differing_offsets, is_substitution, trim

bases = st.text("ACGT", min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("ref", "alt", "status"),
    [
        ("A", "C", None),
        ("a", "cg", None),
        ("A", "A", None),
        ("A", ".", "ALT_MISSING"),
        ("A", "", "ALT_MISSING"),
        ("A", "*", "ALT_STAR"),
        ("A", "<*>", "ALT_STAR"),
        ("A", "<NON_REF>", "ALT_STAR"),
        ("A", "<CN0>", "ALT_SYMBOLIC"),
        ("A", "<INS:ME:ALU>", "ALT_SYMBOLIC"),
        ("C", "C<ctg1>", "ALT_SYMBOLIC"),
        ("N", "<DEL>", "ALT_SYMBOLIC"),
        ("G", "G]17:198982]", "ALT_BREAKEND"),
        ("G", "]13:123456]T", "ALT_BREAKEND"),
        ("G", "[<ctg1>:7[G", "ALT_BREAKEND"),
        ("G", "G.", "ALT_BREAKEND"),
        ("G", ".TGCA", "ALT_BREAKEND"),
        ("A", "N", "ALT_AMBIGUOUS"),
        ("A", "R", "ALT_AMBIGUOUS"),
        ("A", "U", "ALT_AMBIGUOUS"),
        ("A", "C C", "ALT_AMBIGUOUS"),
        ("A", "<DEL", "ALT_AMBIGUOUS"),
        ("R", "N", "ALT_AMBIGUOUS"),
        ("N", "A", "REF_AMBIGUOUS"),
        (".", "A", "REF_AMBIGUOUS"),
        ("", "A", "REF_AMBIGUOUS"),
    ],
)
def test_classify(ref, alt, status):
    assert classify(ref, alt) == status
    assert status is None or status in STATUSES


@pytest.mark.parametrize(
    ("ref", "alt", "expected"),
    [
        ("A", "C", Allele(10, "A", "C")),
        ("a", "c", Allele(10, "A", "C")),
        ("CA", "CAA", Allele(11, "", "A")),
        ("CAAA", "CA", Allele(11, "AA", "")),
        ("GACG", "GTCC", Allele(11, "ACG", "TCC")),
        ("ACGT", "AGGT", Allele(11, "C", "G")),
        ("A", "A", Allele(10, "", "")),
        ("AT", "T", Allele(10, "A", "")),
        ("T", "AT", Allele(10, "", "A")),
        ("CC", "A", Allele(10, "CC", "A")),
    ],
)
def test_trim(ref, alt, expected):
    assert trim(10, ref, alt) == expected


@given(bases, bases, bases)
def test_trimmed_allele_makes_the_same_change(flank, ref, alt):
    allele = trim(len(flank), ref, alt)
    before = flank + ref + flank
    after = before[: allele.start] + allele.alt + before[allele.start + len(allele.ref) :]
    assert before[allele.start : allele.start + len(allele.ref)] == allele.ref
    assert after == flank + alt + flank
    if allele.ref and allele.alt:
        assert allele.ref[0] != allele.alt[0] and allele.ref[-1] != allele.alt[-1]
    assert trim(*allele) == allele


def test_differing_offsets_leave_out_equal_bases():
    allele = trim(0, "ACGTA", "TCGAC")
    assert is_substitution(allele)
    assert differing_offsets(allele) == (0, 3, 4)
    assert differing_offsets(trim(0, "A", "A")) == ()


def test_differing_offsets_of_an_indel_is_an_error():
    allele = trim(0, "CA", "C")
    assert not is_substitution(allele)
    with pytest.raises(ValueError, match="one length"):
        differing_offsets(allele)
