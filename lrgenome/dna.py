"""The alphabet: token ids (those of Caduceus), complement, encoding and decoding.

Ids 0-6 are special tokens, 7-11 are ``A C G T N``; the vocabulary is padded to 16. Lower case (soft-masked)
bases are bases. The other IUPAC codes become N. ``U`` is read as ``T``.
"""

import numpy as np
import numpy.typing as npt

IdArray = npt.NDArray[np.uint8]

CLS, SEP, BOS, MASK, PAD, RESERVED, UNK = range(7)
A, C, G, T, N = range(7, 12)
VOCAB_SIZE = 16
BASES = "ACGT"
FIRST_BASE = A
"""Ids FIRST_BASE .. FIRST_BASE + 3 are A, C, G, T."""

INVALID = 255
"""What `encode_table` holds for a byte that is no nucleotide code."""

AMBIGUOUS = "RYSWKMBDHVN"
"""IUPAC codes for more than one base; in sequence context they are read as N."""


def _encode_table() -> IdArray:
    table = np.full(256, INVALID, dtype=np.uint8)
    for letters, ident in (("A", A), ("C", C), ("G", G), ("TU", T), (AMBIGUOUS, N)):
        for letter in letters:
            table[ord(letter)] = table[ord(letter.lower())] = ident
    return table


def _complement_table() -> IdArray:
    table = np.arange(VOCAB_SIZE, dtype=np.uint8)
    table[[A, C, G, T]] = [T, G, C, A]
    return table


ENCODE = _encode_table()
"""(256,) uint8: byte to token id, `INVALID` for bytes that are no nucleotide code."""

COMPLEMENT = _complement_table()
"""(16,) uint8: token id to the id of the complementary base; special tokens map to themselves."""

_DECODE = np.frombuffer(b"NNNNNNNACGTNNNNN", dtype=np.uint8)


def encode(sequence: str | bytes) -> IdArray:
    """Encode nucleotides as token ids.

    Parameters
    ----------
    sequence
        Nucleotide codes, any case.

    Returns
    -------
    (t,) uint8
        Token ids.

    Raises
    ------
    ValueError
        At the first character that is not a nucleotide code, with its 0-based offset.
    """
    data = sequence.encode("latin-1", "replace") if isinstance(sequence, str) else sequence
    raw = np.frombuffer(data, dtype=np.uint8)
    ids = ENCODE[raw]
    bad = np.flatnonzero(ids == INVALID)
    if bad.size:
        offset = int(bad[0])
        got = sequence[offset] if isinstance(sequence, str) else chr(sequence[offset])
        raise ValueError(f"got {got!r} at offset {offset}, expected a nucleotide code (ACGTUN or IUPAC)")
    return ids


def decode(ids: npt.ArrayLike) -> str:
    """Write token ids as ``ACGTN``; special tokens become N."""
    return _DECODE[np.asarray(ids, dtype=np.uint8)].tobytes().decode("ascii")


def complement(ids: IdArray) -> IdArray:
    """Complement each base in place order (no reversal), shape kept."""
    return COMPLEMENT[ids]


def reverse_complement(ids: IdArray) -> IdArray:
    """Reverse complement along the last axis."""
    return np.ascontiguousarray(COMPLEMENT[ids][..., ::-1])
