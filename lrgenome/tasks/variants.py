"""From a VCF record to the windows that score it, or to the reason why it cannot be scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lrgenome.dna import MASK, IdArray, N, decode, encode, reverse_complement
from lrgenome.errors import AssemblyMismatchError, InputError, UsageError
from lrgenome.io.alleles import FLANK, classify, is_substitution, scored_spans, trim
from lrgenome.io.fasta import Fasta, resolve_contig
from lrgenome.io.symbolic import SymbolicEvent, resolve_symbolic
from lrgenome.io.vcf import VcfRecord

CHECK_REF = ("warn", "skip", "error")
_ASSEMBLY_RECORDS = 20


class AlleleWindows(NamedTuple):
    """Everything that scores one allele."""

    reference: IdArray
    """(t,) window with the reference allele."""
    alternative: IdArray
    """(t + len(alt) - len(ref),) the same window with the ALT allele."""
    masked: IdArray | None
    """(t,) the reference window with the differing bases masked; None unless ALT is a substitution."""
    sites: tuple[int, ...]
    """Offsets of the differing bases in the window."""
    ref_bases: IdArray
    """(n,) reference bases at `sites`."""
    alt_bases: IdArray
    """(n,) ALT bases at `sites`."""
    ref_spans: tuple[tuple[int, int], ...]
    """Allele and flanks in the reference window, as `scored_spans` gives them."""
    alt_spans: tuple[tuple[int, int], ...]
    """Allele and flanks in the alternative window."""


class AlleleEdit(NamedTuple):
    """An allele as a change of the reference."""

    contig: str
    """Name in the FASTA."""
    start: int
    """0-based."""
    ref: IdArray
    """(r,) the FASTA's bases that are replaced."""
    alt: IdArray
    """(a,) what replaces them."""
    substitution: bool
    """Whether bases are replaced by as many, so that there is an LLR; an inversion is no substitution."""
    sites: tuple[int, ...]
    """Offsets of the differing bases of a substitution; empty for other alleles."""
    kind: str = "SEQ"
    """Of a symbolic ALT "DEL", "DUP" or "INV"; of one that is sequence "SEQ"."""

    def core(self, context: int) -> tuple[str, int]:
        """Return contig and number of the core of `context` bp that the allele's middle lies in."""
        return self.contig, (self.start + len(self.ref) // 2) // context


class AllelePlan(NamedTuple):
    """One ALT allele: its statuses, and what scores it: whole windows, or an edit of a tile; neither if nothing can."""

    status: tuple[str, ...]
    windows: AlleleWindows | None
    edit: AlleleEdit | None = None

    @property
    def scored(self) -> bool:
        """Whether there is something to score."""
        return self.windows is not None or self.edit is not None


class VariantPlanner:
    """Turns records into allele plans, and counts how well variants and reference agree.

    Parameters
    ----------
    fasta
        The reference.
    context
        Window length, bp.
    check_ref
        "warn": score a mismatching REF against the FASTA's bases and flag it; "skip"; "error".
    alias
        As `io.fasta.resolve_contig` takes it.
    tiles
        Plan edits of tiles rather than windows.
    """

    def __init__(
        self, fasta: Fasta, context: int, *, check_ref: str, alias: dict[str, str] | str, tiles: bool = False
    ) -> None:
        if check_ref not in CHECK_REF:
            raise UsageError(f"--check-ref: got {check_ref!r}, expected one of {', '.join(CHECK_REF)}")
        self.fasta, self.context, self.check_ref, self._alias = fasta, context, check_ref, alias
        self.tiles = tiles
        self._names: dict[str, str | None] = {}
        self.checked = 0
        self.mismatched = 0
        self.first_mismatch = ""
        self.placed = 0

    def contig(self, name: str) -> str | None:
        """Find the FASTA's name of a contig, or None."""
        if name not in self._names:
            self._names[name] = resolve_contig(name, self.fasta.contigs, self._alias)
        return self._names[name]

    def plan(self, record: VcfRecord) -> list[AllelePlan]:
        """Plan each ALT allele of a record; a record without ALT has one plan, ALT_MISSING."""
        alts = record.alts or (".",)
        contig = self.contig(record.chrom)
        if contig is None:
            return [AllelePlan(("CONTIG_MISSING",), None)] * len(alts)
        self.placed += 1
        end = record.pos + len(record.ref)
        if record.pos < 0 or end > self.fasta.contigs[contig]:
            return [AllelePlan(("OUT_OF_RANGE",), None)] * len(alts)
        here = self.fasta.fetch(contig, record.pos, end)
        mismatch = self._check_reference(record, here)
        return [self._plan_allele(record, which, contig, here, mismatch) for which in range(len(alts))]

    def _check_reference(self, record: VcfRecord, here: IdArray) -> bool:
        """Compare REF with the FASTA; only bases that are unambiguous in both count."""
        try:
            stated = encode(record.ref)
        except ValueError:
            return False
        both = (stated != N) & (here != N)
        mismatch = bool((stated[both] != here[both]).any())
        self.checked += 1
        self.mismatched += mismatch
        if mismatch:
            what = (f"{record.chrom}:{record.pos + 1} (line {record.line_number}): REF is {record.ref[:20]}, the FASTA "
                    f"has {decode(here)[:20]} there")  # fmt: skip
            self.first_mismatch = self.first_mismatch or what
            if self.check_ref == "error":
                raise InputError(f"{what}; --check-ref warn or skip goes on")
        return mismatch

    def _plan_allele(
        self, record: VcfRecord, which: int, contig: str, here: IdArray, mismatch: bool
    ) -> AllelePlan:
        flags = ("REF_MISMATCH",) if mismatch else ()
        alt = record.alts[which] if record.alts else "."
        reason = classify(record.ref, alt)
        event: SymbolicEvent | None = None
        if reason == "ALT_SYMBOLIC":
            event = resolve_symbolic(alt, record.pos, record.info, which, len(record.alts))
        if reason is not None and event is None:
            return AllelePlan((*flags, reason), None)
        if mismatch and self.check_ref == "skip":
            return AllelePlan(flags, None)
        edit = self._edit_of_event(event, contig) if event is not None else self._edit(record, alt, contig, here)
        if isinstance(edit, str):
            return AllelePlan((*flags, edit), None)
        if self.tiles:
            half = self.context // 2
            edge = edit.start < half or edit.start + len(edit.ref) + half > self.fasta.contigs[contig]
            return AllelePlan(((("EDGE",) if edge else ()) + flags) or ("OK",), None, edit)
        windows, edge = self._windows(edit)
        status = (("EDGE",) if edge else ()) + flags
        return AllelePlan(status or ("OK",), windows)

    def _edit(self, record: VcfRecord, alt: str, contig: str, here: IdArray) -> AlleleEdit | str:
        """Make the edit of an ALT that is sequence, or say why there is none."""
        allele = trim(record.pos, record.ref, alt)
        inside = here[allele.start - record.pos : allele.start - record.pos + len(allele.ref)]
        if (inside == N).any():
            return "REF_AMBIGUOUS"
        if 2 * max(len(allele.ref), len(allele.alt)) > self.context:
            return "TOO_LONG"
        new = encode(allele.alt)
        sites: tuple[int, ...] = ()
        if substitution := is_substitution(allele):
            # The FASTA's base is the reference: where REF disagrees with it, a base may not differ at all.
            sites = tuple(np.flatnonzero(inside != new).tolist())
        return AlleleEdit(contig, allele.start, inside, new, substitution, sites)

    def _edit_of_event(self, event: SymbolicEvent, contig: str) -> AlleleEdit | str:
        """Make the edit of an event, its sequence written out, or say why there is none."""
        if event.end > self.fasta.contigs[contig]:
            return "OUT_OF_RANGE"
        # Before anything is read: an event may be a chromosome.
        if 2 * (event.end - event.start) > self.context:
            return "TOO_LONG"
        padded = self.fasta.fetch(contig, event.start - 1, event.end)
        inside, nothing = padded[1:], padded[:0]
        if (inside == N).any():
            return "REF_AMBIGUOUS"
        if event.kind == "DUP":
            return AlleleEdit(contig, event.end, nothing, inside, False, (), "DUP")
        if event.kind == "INV":
            return AlleleEdit(contig, event.start, inside, reverse_complement(inside), False, (), "INV")
        # Written out with the base before it, a deletion that ends in that base is trimmed to the one before it.
        back = int(padded[0] == padded[-1])
        return AlleleEdit(contig, event.start - back, padded[1 - back : len(padded) - back], nothing, False, (), "DEL")

    def _windows(self, edit: AlleleEdit) -> tuple[AlleleWindows, bool]:
        length, r, a = self.fasta.contigs[edit.contig], len(edit.ref), len(edit.alt)
        start = edit.start + r // 2 - self.context // 2
        end = start + self.context
        edge = start < 0 or end > length
        start, end = max(0, start), min(length, end)
        reference = self.fasta.fetch(edit.contig, start, end)
        at = edit.start - start
        alternative = np.concatenate([reference[:at], edit.alt, reference[at + r :]])
        masked, sites = None, np.array(edit.sites, dtype=np.int64)
        if edit.substitution:
            masked = reference.copy()
            masked[at + sites] = MASK
        return AlleleWindows(
            reference, alternative, masked, tuple((at + sites).tolist()), edit.ref[sites], edit.alt[sites],
            scored_spans(at, r, len(reference)), scored_spans(at, a, len(alternative)),
        ), edge  # fmt: skip

    def assert_same_assembly(self) -> None:
        """Raise `AssemblyMismatchError` if more than half of the REF alleles so far differ from the FASTA."""
        if self.checked >= _ASSEMBLY_RECORDS and 2 * self.mismatched > self.checked:
            raise AssemblyMismatchError(
                f"{self.mismatched} of {self.checked} REF alleles differ from {self.fasta.path.name}: wrong assembly? "
                f"The first: {self.first_mismatch}"
            )

    def assert_some_placed(self, records: int) -> None:
        """Raise `AssemblyMismatchError` if no record's contig was in the FASTA."""
        if records and not self.placed:
            ours = ", ".join(list(self.fasta.contigs)[:3])
            theirs = ", ".join(list(self._names)[:3])
            raise AssemblyMismatchError(
                f"no contig in common: the variants are on {theirs}, {self.fasta.path.name} has {ours}: wrong "
                "assembly, or give --chrom-alias"
            )


def preflight(planner: VariantPlanner, records: Iterator[VcfRecord], limit: int = 1000) -> None:
    """Look at the first records before any work, so that a wrong assembly costs no time.

    It reads on past `limit` until enough contigs were found: variants of a whole genome may begin with others.
    Only here is the assembly judged, and by the whole input, so that all shards agree.
    """
    count = 0
    for count, record in enumerate(records, 1):
        planner.plan(record)
        planner.assert_same_assembly()
        if count >= limit and planner.checked >= _ASSEMBLY_RECORDS:
            break
    planner.assert_some_placed(count)


__all__ = [
    "CHECK_REF", "FLANK", "AlleleEdit", "AllelePlan", "AlleleWindows", "VariantPlanner", "preflight", "scored_spans",
]  # fmt: skip
