"""What rows of one split know of another: windows that overlap, copies, and near copies."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lrgenome.dna import decode, reverse_complement
from lrgenome.errors import UsageError
from lrgenome.training.labelled import LabelledWindows

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]
CORE = 512
"""Bases around the centre that are compared for copies."""
_MOST = 20_000
"""Rows of a split that are looked through for near copies."""


class Leaks(NamedTuple):
    """What was found between two splits."""

    overlapping: Rows
    """Rows of the first split whose window overlaps one of the second."""
    copies: Rows
    """Rows of the first whose central bases are also those of one of the second, on either strand, elsewhere."""
    near: dict[str, Any] | None
    """What `seqleak` says of near copies; None where it is not installed or was not asked."""

    @property
    def rows(self) -> Rows:
        """Rows that are either."""
        return np.union1d(self.overlapping, self.copies).astype(np.int64)

    def to_json(self) -> dict[str, Any]:
        """Return counts."""
        return {"overlapping": len(self.overlapping), "copies": len(self.copies), "near": self.near}


class LeakFinder:
    """Compares splits of rows, of which it looks at each once.

    Parameters
    ----------
    windows
        The rows.
    rows
        Numbers of those that have windows.
    """

    def __init__(self, windows: LabelledWindows, rows: Rows) -> None:
        self._windows = windows
        self._digests = {row: _digest(windows, row) for row in windows.in_genome_order(rows)}

    def find(self, first: Rows, second: Rows, *, near: bool) -> Leaks:
        """Compare two splits.

        Parameters
        ----------
        first, second
            Numbers of rows: training rows, and those that they must not know.
        near
            Whether to look for near copies too.
        """
        overlapping = _overlapping(self._windows, first, second)
        known = set(overlapping.tolist())
        digests = {self._digests[int(row)] for row in second}
        copies = [row for row in first.tolist() if row not in known and self._digests[row] in digests]
        return Leaks(
            overlapping, np.array(copies, dtype=np.int64), _near_copies(self._windows, first, second) if near else None
        )


def _overlapping(windows: LabelledWindows, first: Rows, second: Rows) -> Rows:
    """Return the rows of the first split whose window overlaps one of the second."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for row in second:
        spans.setdefault(str(windows.contigs[row]), []).append(windows.span(int(row)))
    merged = {}
    for contig, own in spans.items():
        own.sort()
        starts, ends = [own[0][0]], [own[0][1]]
        for low, high in own[1:]:
            if low < ends[-1]:
                ends[-1] = max(ends[-1], high)
            else:
                starts.append(low)
                ends.append(high)
        merged[contig] = np.array(starts), np.array(ends)
    found = []
    for row in first:
        if str(windows.contigs[row]) in merged:
            starts_, ends_ = merged[str(windows.contigs[row])]
            low, high = windows.span(int(row))
            at = int(np.searchsorted(starts_, high)) - 1
            if at >= 0 and ends_[at] > low:
                found.append(row)
    return np.array(found, dtype=np.int64)


def _core(windows: LabelledWindows, row: int) -> npt.NDArray[np.uint8]:
    """Return the central bases: as many on either side of a variant or start, or of the middle of an interval.

    So the core of a copy on the other strand is the reverse complement.
    """
    contig, e = windows.contigs[row], windows.examples
    assert contig is not None
    start, end = (int(e.start[row]),) * 2 if e.summit else (int(e.start[row]), int(e.end[row]))
    half = max(0, min(CORE, windows.context) - (end - start)) // 2
    low, high = start - half, (end + 1 if e.summit else end) + half
    return windows.fasta.fetch(contig, max(0, low), min(windows.fasta.contigs[contig], high))


def _digest(windows: LabelledWindows, row: int) -> bytes:
    """Digest the central bases, the same for both strands."""
    core = _core(windows, row)
    return hashlib.blake2b(min(core.tobytes(), reverse_complement(core).tobytes()), digest_size=16).digest()


def _near_copies(windows: LabelledWindows, first: Rows, second: Rows) -> dict[str, Any] | None:
    """Have `seqleak` look for shared k-mers; returns its verdicts of near copies."""
    try:
        from seqleak.audit import load_task, run_audit
    except ImportError:
        log.info("near copies between splits were not looked for: pip install 'lrgenome[leaks]'")
        return None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = []
        for name, rows in (("train", first), ("test", second)):
            file = Path(folder) / f"{name}.tsv"
            chosen = rows if len(rows) <= _MOST else rows[np.linspace(0, len(rows) - 1, _MOST).astype(int)]
            lines = [f"{row}\t{decode(_core(windows, int(row)))}\t{i % 2}" for i, row in enumerate(chosen)]
            file.write_text("id\tsequence\tlabel\n" + "\n".join(lines) + "\n", encoding="utf-8")
            files.append(str(file))
        task = load_task(
            train=files[:1], test=files[1:], seq_col="sequence", label_col="label", id_col="id", coords="none"
        )
        report, _ = run_audit(task, checks=["overlap.exact", "overlap.near"], homology="off", quiet=True)
    found = report["checks"]["overlap.near"]
    return {"status": found["status"], "share": found["value"], "reason": found["reason"]}


def check_leaks(found: Leaks, what: str, *, allow: bool) -> None:
    """Say what was found between two splits.

    Raises
    ------
    UsageError
        If there is a leak and `allow` is false.
    """
    said = []
    if len(found.overlapping):
        said.append(f"{len(found.overlapping)} training rows whose windows overlap those of {what} rows")
    if len(found.copies):
        said.append(f"{len(found.copies)} that are copies of them, on either strand")
    near = found.near
    if near is not None and near["status"] != "PASS":
        log.warning("%s rows: %s", what, near["reason"])
        if near["status"] == "FAIL":
            said.append(f"near copies ({near['reason']})")
    if not said:
        return
    if not allow:
        raise UsageError(
            f"leaks into the {what} rows: got {'; '.join(said)}; --drop-leaks leaves training rows of the first two "
            "kinds out, --allow-leaks goes on"
        )
    log.warning("leaks into the %s rows: %s", what, "; ".join(said))
