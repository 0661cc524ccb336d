"""6-mer tokens of Nucleotide Transformer v2, and the one mapping between tokens and bases.

A CLS token comes first. Each run of bases is cut into 6-mers from its left end, and what remains of it into single
bases. A masked base belongs to the run, so that masking moves no other token; a token that covers one is ``<mask>``.
Everything else (N, padding) is one N token a position and ends a run.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lrgenome import dna

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

K = 6
UNK, PAD, MASK, CLS, EOS, BOS = range(6)
FIRST_KMER = 6
"""Id of AAAAAA; the others follow in the order of `LETTERS`, the last letter fastest."""
LETTERS = "ATCG"
FIRST_SINGLE = FIRST_KMER + 4**K
"""Ids FIRST_SINGLE .. FIRST_SINGLE + 3 are the single bases of `LETTERS`."""
SINGLE_N = FIRST_SINGLE + 4
VOCAB_SIZE = SINGLE_N + 1

_MASKED, _OTHER = 4, 5
_POWERS = 4 ** np.arange(K - 1, -1, -1)
_SINGLES = np.array([*range(FIRST_SINGLE, FIRST_SINGLE + 4), MASK, SINGLE_N], dtype=np.int64)
_ORDER = [LETTERS.index(base) for base in dna.BASES]


def _digit_table() -> npt.NDArray[np.uint8]:
    table = np.full(256, _OTHER, dtype=np.uint8)
    table[[dna.FIRST_BASE + dna.BASES.index(letter) for letter in LETTERS]] = range(4)
    table[dna.MASK] = _MASKED
    return table


_DIGIT = _digit_table()

SINGLES: IntArray = _SINGLES[_ORDER]
"""(4,) ids of the tokens A, C, G and T."""


def _carriers() -> IntArray:
    letters = np.arange(4**K)[:, None] // _POWERS % 4
    return np.array([[np.flatnonzero(letters[:, o] == x) + FIRST_KMER for x in _ORDER] for o in range(K)])


CARRIERS: IntArray = _carriers()
"""(6, 4, 1024) ids of the 6-mers that have base A, C, G or T at an offset."""


class Tokens(NamedTuple):
    """Tokens of a sequence of t bases, and which bases each covers."""

    ids: IntArray
    """(n,) token ids."""
    first: IntArray
    """(n,) first base of each token, 0-based; 0 for CLS."""
    size: IntArray
    """(n,) bases of each token; 0 for CLS."""
    token: IntArray
    """(t,) token of each base."""
    offset: IntArray
    """(t,) place of each base in its token."""


def tokenize(bases: dna.IdArray) -> Tokens:
    """Cut the base ids (t,) of `lrgenome.dna` into CLS, 6-mers and single bases."""
    digits, length = _DIGIT[bases], len(bases)
    position = np.arange(length)
    grouped = digits != _OTHER
    before = np.maximum.accumulate(np.where(grouped, -1, position))
    after = np.minimum.accumulate(np.where(grouped, length, position)[::-1])[::-1]
    place = position - before - 1
    in_kmer = place < (after - before - 1) // K * K
    offset = np.where(in_kmer, place % K, 0)
    starts = offset == 0
    first = np.flatnonzero(starts)
    whole = in_kmer[first]
    ids = _SINGLES[digits[first]]
    letters = digits[first[whole, None] + np.arange(K)]
    ids[whole] = np.where((letters == _MASKED).any(1), MASK, letters @ _POWERS + FIRST_KMER)
    size = np.where(whole, K, 1)
    return Tokens(np.r_[CLS, ids], np.r_[0, first], np.r_[0, size], np.cumsum(starts), offset)


def single_bases(bases: dna.IdArray) -> Tokens:
    """Make each base id (t,) a token of its own, with the id that it has; no CLS."""
    position, zeros = np.arange(len(bases)), np.zeros(len(bases), dtype=np.int64)
    return Tokens(bases.astype(np.int64), position, zeros + 1, position, zeros)


def normalise(logits: FloatArray) -> FloatArray:
    """Return log-probabilities over the last axis."""
    return logits - _logsumexp(logits)[..., None]


def _logsumexp(x: FloatArray) -> FloatArray:
    top = x.max(-1, keepdims=True)
    total: FloatArray = top[..., 0] + np.log(np.exp(x - top).sum(-1))
    return total


def base_log_probabilities(logits: FloatArray, row: IntArray, offset: IntArray, size: IntArray) -> FloatArray:
    """Marginalise token logits to log-probabilities of bases.

    Parameters
    ----------
    logits
        (m, 4107) logits of tokens.
    row
        (n,) for each base wanted, which of these tokens covers it.
    offset, size
        (n,) the base's place in that token, and the bases that the token covers.

    Returns
    -------
    (n, 4) float64
        Log-probabilities of A, C, G and T: of a 6-mer's base, the sum over all 6-mers that have the letter there; of
        a token of one base, over the four single bases. Each row sums to 1.
    """
    result = np.empty((len(row), 4))
    single = size == 1
    result[single] = logits[row[single, None], SINGLES]
    for place in range(K):
        chosen = ~single & (offset == place)
        result[chosen] = _logsumexp(logits[row[chosen, None, None], CARRIERS[place]])
    return normalise(result)
