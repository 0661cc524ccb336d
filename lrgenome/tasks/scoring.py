"""Scores of alleles from whole windows: masked LLR, embedding distances, pseudo-likelihood difference."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from lrgenome.dna import COMPLEMENT, FIRST_BASE, IdArray
from lrgenome.engine.runners import AnyRunner
from lrgenome.engine.sweep import Chunk
from lrgenome.errors import NumericalError
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.tasks.pooling import Pooled, distances
from lrgenome.tasks.readout import Readout
from lrgenome.tasks.variants import AlleleWindows

STRANDS = {"both": (FORWARD, REVERSE), "forward": (FORWARD,)}

Result = TypeVar("Result")
Spans = tuple[tuple[int, int], ...]
FloatArray = npt.NDArray[np.float64]


class Scores(NamedTuple):
    """Scores of one allele, averaged over strands; None is missing."""

    llr: float | None
    dist_cos: float
    dist_l2: float
    pll_diff: float
    extra: tuple[float, ...] = ()
    """What the readout says."""


class _Job(NamedTuple):
    """One window and what is wanted of it: log-probabilities at sites, or pooled spans."""

    ids: IdArray
    sites: tuple[int, ...] | None
    spans: Spans | None


class WindowScorer:
    """Scores alleles by running whole windows.

    Parameters
    ----------
    runner
        The model.
    strand
        "both" or "forward".
    batch_size
        Windows of one length at a time. Batches are always full (the last window is repeated), so that a
        window's result does not depend on how many others there are.
    readout
        Of a fine-tuned head.
    """

    def __init__(
        self, runner: AnyRunner, *, strand: str, batch_size: int, readout: Readout | None = None
    ) -> None:
        self.runner, self.strands, self.batch_size, self.readout = runner, STRANDS[strand], batch_size, readout

    def score(self, alleles: Sequence[tuple[AlleleWindows, str]]) -> list[Scores]:
        """Score alleles, given with a label for errors, in order."""
        totals = [np.zeros(4) for _ in alleles]
        means: list[list[FloatArray]] = [[] for _ in alleles]
        for strand in self.strands:
            jobs: dict[Hashable, _Job] = {}
            for windows, _ in alleles:
                for key, job in _jobs(windows):
                    jobs.setdefault(key, job)
            results = dict(zip(jobs, self._run(list(jobs.values()), strand), strict=True))
            for i, (windows, label) in enumerate(alleles):
                with np.errstate(invalid="ignore", over="ignore"):
                    one, pooled = _combine(windows, results, strand)
                if not np.isfinite(one).all():
                    raise NumericalError(f"{label}: the model gave scores that are not finite numbers: {one.tolist()}")
                totals[i] += one
                means[i].append(pooled)
        scores = []
        for total, own, (windows, _) in zip(totals, means, alleles, strict=True):
            llr, cosine, l2, pll = (float(value) / len(self.strands) for value in total)
            extra = () if self.readout is None else self.readout.read(own)
            scores.append(Scores(llr if windows.masked is not None else None, cosine, l2, pll, extra))
        return scores

    def _run(self, jobs: list[_Job], strand: int) -> list[Any]:
        results: list[Any] = [None] * len(jobs)
        # Of one sequence, different alleles may want different things: it is run once.
        same: dict[bytes, list[int]] = {}
        for i, job in enumerate(jobs):
            same.setdefault(job.ids.tobytes(), []).append(i)
        by_length: dict[int, list[list[int]]] = {}
        for members in same.values():
            by_length.setdefault(len(jobs[members[0]].ids), []).append(members)
        for rows in by_length.values():
            lo = 0
            while lo < len(rows):
                batch = rows[lo : lo + self.batch_size]
                try:
                    answers = self._run_batch([[jobs[i] for i in members] for members in batch], strand)
                except torch.cuda.OutOfMemoryError:
                    if self.batch_size == 1:
                        raise
                    torch.cuda.empty_cache()
                    self.batch_size = max(1, self.batch_size // 2)
                    continue
                for i, answer in zip(chain.from_iterable(batch), answers, strict=True):
                    results[i] = answer
                lo += len(batch)
        return results

    def _run_batch(self, rows: list[list[_Job]], strand: int) -> list[Any]:
        """Run one sequence a row, padded to a full batch; returns what its jobs want, row by row."""
        full = rows + [rows[-1]] * (self.batch_size - len(rows))
        ids = torch.from_numpy(np.stack([jobs[0].ids for jobs in full]))
        readers = [_reader(job, row, self.runner, strand) for row, jobs in enumerate(rows) for job in jobs]
        for part in self.runner.stream(ids, strand=strand):
            for take, _ in readers:
                take(part)
        return [finish() for _, finish in readers]


def _jobs(windows: AlleleWindows) -> list[tuple[Hashable, _Job]]:
    """List the passes an allele needs, by keys that alleles of one record share where the passes are equal."""
    jobs = [
        _pooled_job(windows.reference, windows.ref_spans),
        _pooled_job(windows.alternative, windows.alt_spans),
    ]
    if windows.masked is not None and windows.sites:
        key = ("masked", windows.masked.tobytes(), windows.sites)
        jobs.append((key, _Job(windows.masked, windows.sites, None)))
    return jobs


def _pooled_job(ids: IdArray, spans: Spans) -> tuple[Hashable, _Job]:
    return ("pooled", ids.tobytes(), spans), _Job(ids, None, spans)


def _reader(
    job: _Job, row: int, runner: AnyRunner, strand: int
) -> tuple[Callable[[Chunk], None], Callable[[], Any]]:
    """Make the pair (take a chunk, give the result) for a job, which is a row of the batch."""
    return _site_reader(job, row, runner) if job.sites is not None else _span_reader(job, row, runner, strand)


def _site_reader(
    job: _Job, row: int, runner: AnyRunner
) -> tuple[Callable[[Chunk], None], Callable[[], npt.NDArray[np.float64]]]:
    assert job.sites is not None
    sites = job.sites
    rows: dict[int, npt.NDArray[np.float64]] = {}

    def take(part: Chunk) -> None:
        # Rows are taken in a fixed number at a time: products of different shapes round differently.
        for site in sites:
            if part.start <= site < part.end:
                at = site - part.start
                rows[site] = runner.log_probabilities(part, row, at, at + 1)[0]

    return take, lambda: np.stack([rows[site] for site in sites])


def _span_reader(
    job: _Job, row: int, runner: AnyRunner, strand: int
) -> tuple[Callable[[Chunk], None], Callable[[], Pooled]]:
    assert job.spans is not None
    spans = job.spans
    count = sum(high - low for low, high in spans)
    observed = COMPLEMENT[job.ids] if strand == REVERSE else job.ids
    total: list[Any] = [0.0, 0.0]

    def take(part: Chunk) -> None:
        for low, high in spans:
            lo, hi = max(low, part.start), min(high, part.end)
            if lo < hi:
                rows = part.hidden[row, lo - part.start : hi - part.start]
                total[0] = total[0] + rows.double().sum(0).cpu().numpy()
                bases = observed[lo:hi]
                known = np.flatnonzero((bases >= FIRST_BASE) & (bases < FIRST_BASE + 4))
                log_p = runner.log_probabilities(part, row, lo - part.start, hi - part.start)
                total[1] += float(log_p[known, bases[known]].sum())

    return take, lambda: Pooled(np.asarray(total[0]) / max(1, count), total[1])


def _combine(
    windows: AlleleWindows, results: dict[Hashable, Any], strand: int
) -> tuple[FloatArray, FloatArray]:
    """Return (LLR, cosine distance, L2 distance, PLL difference), and means (2, w) of ALT and REF, of one strand."""
    jobs = _jobs(windows)
    ref, alt = results[jobs[0][0]], results[jobs[1][0]]
    llr = 0.0
    if len(jobs) == 3:
        log_p = results[jobs[2][0]]
        refs, alts = windows.ref_bases, windows.alt_bases
        if strand == REVERSE:
            refs, alts = COMPLEMENT[refs], COMPLEMENT[alts]
        which = np.arange(len(refs))
        llr = float((log_p[which, alts] - log_p[which, refs]).sum())
    values = np.array([llr, *distances(ref.mean, alt.mean), alt.log_likelihood - ref.log_likelihood])
    return values, np.stack([alt.mean, ref.mean])


__all__ = ["STRANDS", "Scores", "WindowScorer", "distances"]
