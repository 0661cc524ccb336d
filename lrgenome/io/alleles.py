"""Alleles: which ones can be scored, and their minimal form.

Everything here is a pure function of text; the reference genome is not consulted.
"""

import re
from typing import NamedTuple

from lrgenome import dna

STATUSES = (
    "OK",
    "EDGE",
    "REF_MISMATCH",
    "REF_AMBIGUOUS",
    "ALT_AMBIGUOUS",
    "ALT_MISSING",
    "ALT_STAR",
    "ALT_SYMBOLIC",
    "ALT_BREAKEND",
    "CONTIG_MISSING",
    "OUT_OF_RANGE",
    "TOO_LONG",
)
"""Every value of the STATUS column, in the order in which several are joined and counted."""

_STAR = frozenset(("*", "<*>", "<NON_REF>"))
_SINGLE_BREAKEND = re.compile(r"\.[A-Za-z]+|[A-Za-z]+\.")
_SYMBOLIC = re.compile(r"[A-Za-z]*<.*>[A-Za-z]*", re.DOTALL)
_NOT_A_BASE = re.compile(f"[^{dna.BASES}{dna.BASES.lower()}]")


FLANK = 768
"""Bases on each side of each end of an allele over which embeddings and pseudo-likelihood are taken, bp."""


class Allele(NamedTuple):
    """A change of sequence in its minimal form, as `trim` gives it.

    Attributes
    ----------
    start
        0-based position, in bp, of the first reference base replaced; for a pure insertion, the base before
        which it is inserted.
    ref
        Reference bases replaced, upper case; empty for a pure insertion.
    alt
        Bases that replace them, upper case; empty for a pure deletion.
    """

    start: int
    ref: str
    alt: str


def classify(ref: str, alt: str) -> str | None:
    """Say why an allele cannot be scored.

    Parameters
    ----------
    ref, alt
        The REF and one ALT allele as the VCF has them, any case.

    Returns
    -------
    str or None
        One of `STATUSES`; None when both alleles consist of A, C, G and T. What the ALT is comes before what
        is wrong with the REF.
    """
    if alt in ("", "."):
        return "ALT_MISSING"
    if alt.upper() in _STAR:
        return "ALT_STAR"
    if "[" in alt or "]" in alt or _SINGLE_BREAKEND.fullmatch(alt):
        return "ALT_BREAKEND"
    if _SYMBOLIC.fullmatch(alt):
        return "ALT_SYMBOLIC"
    if _NOT_A_BASE.search(alt):
        return "ALT_AMBIGUOUS"
    if not ref or _NOT_A_BASE.search(ref):
        return "REF_AMBIGUOUS"
    return None


def trim(pos: int, ref: str, alt: str) -> Allele:
    """Bring an allele to its minimal form: upper case, common suffix cut first, then common prefix.

    No anchor base is kept, and cutting the suffix first puts an indel in a repeat as far left as the record's
    own bases reach. Alleles that are equal leave nothing: ``Allele(pos, "", "")``.

    Parameters
    ----------
    pos
        0-based position of the first base of `ref`, in bp.
    ref, alt
        Bases, any case.
    """
    ref, alt = ref.upper(), alt.upper()
    shorter = min(len(ref), len(alt))
    suffix = 0
    while suffix < shorter and ref[-1 - suffix] == alt[-1 - suffix]:
        suffix += 1
    prefix = 0
    while prefix < shorter - suffix and ref[prefix] == alt[prefix]:
        prefix += 1
    return Allele(pos + prefix, ref[prefix : len(ref) - suffix], alt[prefix : len(alt) - suffix])


def is_substitution(allele: Allele) -> bool:
    """Say whether the allele leaves the length of the sequence as it is (SNV or MNV)."""
    return len(allele.ref) == len(allele.alt)


def differing_offsets(allele: Allele) -> tuple[int, ...]:
    """Give the 0-based offsets from `allele.start` of the bases of an SNV or MNV that differ.

    Raises
    ------
    ValueError
        If the allele changes the length of the sequence.
    """
    if not is_substitution(allele):
        raise ValueError(f"got {allele.ref!r} > {allele.alt!r}, expected alleles of one length")
    return tuple(i for i, (old, new) in enumerate(zip(allele.ref, allele.alt, strict=True)) if old != new)


def scored_spans(at: int, length: int, total: int) -> tuple[tuple[int, int], ...]:
    """Say over which positions of a sequence an allele is pooled: itself and its flanks.

    Of an allele longer than two flanks only its first and last `FLANK` bases count: were it all of them, a long one
    would be compared by how its sequence is, not by what it does to its surroundings.

    Parameters
    ----------
    at
        Where the allele begins in the sequence, 0-based.
    length
        Its length there, bp.
    total
        Length of the sequence; flanks are cut at its ends.

    Returns
    -------
    tuple of (int, int)
        Half-open spans of positions, in order and disjoint: one, or two for a long allele.
    """
    low, high = max(0, at - FLANK), min(total, at + length + FLANK)
    if length <= 2 * FLANK:
        return ((low, high),)
    return (low, at + FLANK), (at + length - FLANK, high)
