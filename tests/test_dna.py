"""The alphabet: what is read as which token, and both ways round."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrgenome import dna

CODES = "ACGTUN" + dna.AMBIGUOUS
sequences = st.text(alphabet=CODES + CODES.lower())


def test_token_ids_are_those_of_caduceus():
    assert (dna.CLS, dna.SEP, dna.BOS, dna.MASK, dna.PAD, dna.RESERVED, dna.UNK) == (0, 1, 2, 3, 4, 5, 6)
    assert dna.encode("ACGTN").tolist() == [7, 8, 9, 10, 11]
    assert dna.VOCAB_SIZE == 16
    assert dna.FIRST_BASE == dna.A and dna.BASES == "ACGT"


@given(sequences)
def test_round_trip_keeps_bases_and_makes_the_rest_n(sequence):
    expected = "".join(c if c in "ACGT" else "N" for c in sequence.upper().replace("U", "T"))
    assert dna.decode(dna.encode(sequence)) == expected
    assert np.array_equal(dna.encode(sequence), dna.encode(sequence.encode()))
    assert dna.encode(sequence).dtype == np.uint8


@given(sequences)
def test_reverse_complement_undoes_itself(sequence):
    ids = dna.encode(sequence)
    assert np.array_equal(dna.reverse_complement(dna.reverse_complement(ids)), ids)
    assert np.array_equal(dna.complement(dna.complement(ids)), ids)
    assert np.array_equal(dna.reverse_complement(ids), dna.complement(ids)[::-1])
    assert dna.reverse_complement(ids).flags.c_contiguous


def test_reverse_complement_by_hand():
    assert dna.decode(dna.reverse_complement(dna.encode("AACGTN"))) == "NACGTT"
    both = np.stack([dna.encode("AAC"), dna.encode("GTN")])
    assert [dna.decode(row) for row in dna.reverse_complement(both)] == ["GTT", "NAC"]


def test_special_tokens_are_their_own_complement_and_decode_to_n():
    special = np.array([0, 1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15], dtype=np.uint8)
    assert np.array_equal(dna.complement(special), special)
    assert dna.decode(special) == "N" * 12


@pytest.mark.parametrize("letter", [chr(i) for i in range(128) if chr(i).upper() not in CODES])
def test_what_is_no_nucleotide_is_refused(letter):
    with pytest.raises(ValueError, match="at offset 2, expected a nucleotide"):
        dna.encode("AC" + letter)


@pytest.mark.parametrize(
    ("sequence", "got", "offset"),
    [
        ("ACXG-", "'X'", 2),
        ("A-µ", "'-'", 1),
        ("Aµ", "'µ'", 1),
        ("AC中X", "'中'", 2),
        ("-中", "'-'", 0),
        (b"A\xff", "'ÿ'", 1),
    ],
)
def test_the_first_bad_character_is_named_whatever_its_encoding(sequence, got, offset):
    with pytest.raises(ValueError, match=f"^got {got} at offset {offset},"):
        dna.encode(sequence)


def test_empty():
    assert dna.encode("").shape == (0,) and dna.decode(dna.encode(b"")) == ""
