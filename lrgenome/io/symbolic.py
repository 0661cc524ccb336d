"""Symbolic structural alleles: the stretch of the reference that a ``<DEL>``, ``<DUP>`` or ``<INV>`` is about.

Everything here is a pure function of text; the reference genome is not consulted.
"""

import re
from typing import NamedTuple

_EVENT = re.compile(r"<(?:(DEL(?::[^<>]+)?|DUP(?::TANDEM)?|INV)|CN([02]))>", re.IGNORECASE)
_OF_COPIES = {"0": "DEL", "2": "DUP"}
_NUMBER = re.compile(r"-?[0-9]{1,18}")


class SymbolicEvent(NamedTuple):
    """What happens to which bases of the reference.

    Attributes
    ----------
    kind
        "DEL": they are gone; "DUP": they are there twice, one copy after the other; "INV": they are replaced by
        their reverse complement.
    start, end
        The bases, 0-based half-open, in bp; at least one.
    """

    kind: str
    start: int
    end: int


def resolve_symbolic(alt: str, pos: int, info: str, which: int = 0, of: int = 1) -> SymbolicEvent | None:
    """Say what a symbolic ALT allele does to the reference, as far as its record tells.

    The event covers the bases after POS, up to END; without a usable END, as many as SVLEN says, whatever its sign.
    A copy number is taken as that of one haplotype: ``<CN0>`` is a deletion, ``<CN2>`` a duplication.

    Parameters
    ----------
    alt
        The ALT allele as the VCF has it, any case.
    pos
        0-based position of the record, in bp: the base before the event.
    info
        The INFO column as the VCF has it.
    which, of
        The 0-based number of the allele among the ALT alleles of its record, and how many there are: SVLEN has one
        value for each of them, or one for all.

    Returns
    -------
    SymbolicEvent or None
        None where the allele is none of these, or where the record does not tell its end.
    """
    match = _EVENT.fullmatch(alt)
    if match is None:
        return None
    kind = match[1][:3].upper() if match[1] else _OF_COPIES[match[2]]
    start = pos + 1
    ends, lengths = _numbers(info, "END"), _numbers(info, "SVLEN")
    end = ends[0] if len(ends) == 1 else None
    if end is not None and end <= start:
        end = None
    length = lengths[which if len(lengths) == of else 0] if len(lengths) in (1, of) else None
    # One END cannot be that of alleles of several lengths; it is that of the longest, then.
    if length and (end is None or len({abs(n) for n in lengths if n}) > 1):
        end = start + abs(length)
    return SymbolicEvent(kind, start, end) if end is not None else None


def _numbers(info: str, name: str) -> list[int | None]:
    """Read the values of an INFO entry, None for each that is no whole number.

    There are none where the entry is missing, or there more than once and not the same.
    """
    found = {entry.partition("=")[2] for entry in info.split(";") if entry.startswith(f"{name}=")}
    if len(found) != 1:
        return []
    return [int(text) if _NUMBER.fullmatch(text) else None for text in found.pop().split(",")]
