"""6-mer tokens against a tokenizer that reads letter by letter."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lrgenome import dna, kmers

VOCABULARY = [
    "<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>",
    *("".join(letters) for letters in itertools.product("ATCG", repeat=6)),
    "A", "T", "C", "G", "N",
]  # fmt: skip
NUMBER = {token: number for number, token in enumerate(VOCABULARY)}
bases = st.lists(
    st.sampled_from([7, 8, 9, 10] * 6 + [dna.MASK, dna.N, dna.PAD, dna.CLS]), max_size=60
).map(lambda values: np.array(values, dtype=np.uint8))


def letters_of(ids):
    """One letter a base: ACGT, M where it is masked, N for everything else."""
    return "".join({7: "A", 8: "C", 9: "G", 10: "T", dna.MASK: "M"}.get(int(i), "N") for i in ids)


def read(ids):
    """(token, first base, bases) of each token, read from left to right."""
    text, at, found = letters_of(ids), 0, [("<cls>", 0, 0)]
    while at < len(text):
        piece = text[at : at + 6]
        if len(piece) < 6 or "N" in piece:
            piece = text[at]
        found.append(("<mask>" if "M" in piece else piece, at, len(piece)))
        at += len(piece)
    return found


@given(bases)
@example(np.zeros(0, dtype=np.uint8))
@example(dna.encode("ACGTACGTACGTA"))
def test_tokens_and_their_bases_are_those_of_a_plain_reader(ids):
    tokens, expected = kmers.tokenize(ids), read(ids)
    assert [VOCABULARY[i] for i in tokens.ids] == [token for token, _, _ in expected]
    assert tokens.first.tolist() == [first for _, first, _ in expected]
    assert tokens.size.tolist() == [size for _, _, size in expected]
    assert np.array_equal(tokens.first[tokens.token] + tokens.offset, np.arange(len(ids)))
    assert (tokens.offset < tokens.size[tokens.token]).all()
    assert all(array.dtype == np.int64 for array in tokens)


def test_examples_of_the_published_documentation():
    for sequence, expected in [
        ("ACGTGTACGTGCACGGACGACTAGTCAGCA", "ACGTGT ACGTGC ACGGAC GACTAG TCAGCA"),
        ("ACGTGTACNTGCACGGANCGACTAGTCTGA", "ACGTGT A C N TGCACG G A N CGACTA GTCTGA"),
    ]:
        ids = kmers.tokenize(dna.encode(sequence)).ids
        assert [VOCABULARY[i] for i in ids] == ["<cls>", *expected.split()]
    assert kmers.VOCAB_SIZE == len(VOCABULARY) == 4107


@given(bases.filter(len), st.data())
def test_masking_a_base_moves_no_token(ids, data):
    site = data.draw(st.integers(0, len(ids) - 1))
    masked = ids.copy()
    masked[site] = dna.MASK
    before, after = kmers.tokenize(ids), kmers.tokenize(masked)
    if letters_of(ids)[site] == "N":
        return
    for name in ("first", "size", "token", "offset"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name
    changed = np.arange(len(before.ids)) == before.token[site]
    assert np.array_equal(before.ids[~changed], after.ids[~changed])
    assert (after.ids[changed] == kmers.MASK).all()


def test_single_bases_are_themselves():
    ids = np.arange(16, dtype=np.uint8)
    tokens = kmers.single_bases(ids)
    assert np.array_equal(tokens.ids, ids)
    assert np.array_equal(tokens.first, np.arange(16)) and np.array_equal(tokens.token, np.arange(16))
    assert (tokens.size == 1).all() and not tokens.offset.any()


def test_carriers_are_the_6_mers_with_a_base_at_an_offset():
    assert kmers.CARRIERS.shape == (6, 4, 1024)
    for offset, (x, base) in itertools.product(range(6), enumerate("ACGT")):
        expected = [NUMBER[token] for token in VOCABULARY if len(token) == 6 and token[offset] == base]
        assert kmers.CARRIERS[offset, x].tolist() == expected
    assert [VOCABULARY[i] for i in kmers.SINGLES] == list("ACGT")


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_base_probabilities_are_sums_over_tokens(scale):
    rng = np.random.default_rng(3)
    logits = scale * rng.standard_normal((5, 4107))
    row = np.array([0, 0, 1, 2, 3, 4, 4, 2])
    offset = np.array([0, 5, 3, 2, 1, 4, 0, 0])
    size = np.array([6, 6, 6, 6, 6, 6, 1, 1])
    got = kmers.base_log_probabilities(logits, row, offset, size)
    for i in range(len(row)):
        able = [number for number, token in enumerate(VOCABULARY[:-1]) if number > 5 and len(token) == size[i]]
        sums = dict.fromkeys("ACGT", 0.0)
        for number, value in zip(able, np.exp(logits[row[i], able] - logits[row[i], able].max()), strict=True):
            sums[VOCABULARY[number][offset[i]]] += float(value)
        want = np.array([sums[base] for base in "ACGT"]) / sum(sums.values())
        assert np.exp(got[i]) == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert np.exp(got).sum(1) == pytest.approx(1.0, abs=1e-12) and np.isfinite(got).all()


def test_a_long_window_takes_milliseconds():
    ids = np.random.default_rng(0).choice([7, 8, 9, 10, 11], 120_000, p=[0.2499] * 4 + [0.0004]).astype(np.uint8)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        kmers.tokenize(ids)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.1
