"""Scores and hidden states the slow way: whole windows in float64, in loops; and a contig to try them on."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lrgenome.dna import MASK, complement, encode, reverse_complement
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.models.checkpoint import load_model
from lrgenome.ops import backend
from lrgenome.ops.workspace import Workspace

Array = npt.NDArray[np.float64]
Triple = tuple[int, str, str]

CONTEXT, FLANK = 151, 30

# Minimal alleles (0-based start, ref, alt) on the contig "one"; "" is nothing.
ALLELES = {
    "snv": (400, "A", "G"),
    "mnv": (500, "ACG", "TCA"),
    "insertion": (300, "", "GATTACA"),
    "deletion": (350, "ACGTAC", ""),
    "complex": (420, "ACG", "T"),
    "left edge": (3, "A", "C"),
    "right edge": (897, "C", "T"),
    "near an N": (205, "T", "A"),
    "at the very end": (900, "", "GG"),
}


def genome() -> str:
    """Give a contig of 900 bp with N, IUPAC and lower case, and the bases of `ALLELES` in their places."""
    rng = np.random.default_rng(3)
    letters = rng.choice(list("ACGT"), 900)
    letters[200:203], letters[206] = list("NNR"), "Y"
    for start, ref, _ in ALLELES.values():
        letters[start : start + len(ref)] = list(ref)
    # No indel ends with the base before it: else its record would mean the one a base to the left.
    letters[[299, 349, 899]] = list("CGT")
    letters[250:340] = np.char.lower(letters[250:340])
    return "".join(letters)


def anchored(sequence: str, allele: Triple) -> Triple:
    """Add to an insertion or deletion the base before it, as VCF has it."""
    start, ref, alt = allele
    if ref and alt:
        return allele
    anchor = sequence[start - 1].upper()
    return start - 1, anchor + ref, anchor + alt


class SlowModel:
    """The definition of the model's outputs: whole windows, float64, naive ops, block after block."""

    def __init__(self, folder: Path) -> None:
        self.model = load_model(folder).model.for_inference(torch.float64)

    def states(
        self, sequence: str | npt.NDArray[np.uint8], strand: int = FORWARD, layers: int | None = None
    ) -> Array:
        """Return (t, d) hidden states in genomic order: final-norm ones, or block `layers`'s raw output.

        The reverse strand is the reverse complement itself, run like any window, its states turned back.
        """
        ids = encode(sequence) if isinstance(sequence, str) else sequence
        if strand == REVERSE:
            return self.states(reverse_complement(ids), FORWARD, layers)[::-1]
        with torch.no_grad(), backend.use("naive"):
            ws = Workspace(enabled=False)
            x = self.model.embed(torch.from_numpy(ids.astype(np.int64))[None])
            for block in self.model.stack[:layers]:
                u, start = block.prepare(x, ws), block.initial_state(len(x), x.device)
                ys = [
                    block.scan(u, start, weights=way, reverse=way == REVERSE, reset=True, ws=ws)[0]
                    for way in (FORWARD, REVERSE)
                ]
                x = block.combine(x, u, *ys, ws)
            return self.model.finish(x, norm=not layers)[0].numpy().copy()

    def log_p(self, states: Array) -> Array:
        """Return (t, v) log-probabilities of tokens."""
        logits = self.model.logits(torch.from_numpy(states.copy())).numpy()
        top = logits.max(-1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def slow_scores(
    slow: SlowModel,
    sequence: str,
    allele: Triple,
    *,
    strand: str = "both",
    context: int = CONTEXT,
    flank: int = FLANK,
) -> Array:
    """Score one minimal allele the slow way: (LLR, cosine distance, L2 distance, PLL difference)."""
    start, ref, alt = allele
    first = start + len(ref) // 2 - context // 2
    low, high = max(0, first), min(len(sequence), first + context)
    ref_window = encode(sequence[low:high])
    at = start - low
    assert sequence[start : start + len(ref)].upper() == ref
    alt_window = np.concatenate([ref_window[:at], encode(alt), ref_window[at + len(ref) :]])
    totals = []
    for way in (FORWARD, REVERSE)[: 2 if strand == "both" else 1]:

        def seen(base: int, way: int = way) -> int:
            """Give the base as the strand has it."""
            return int(complement(np.array([base], np.uint8))[0]) if way == REVERSE else int(base)

        pooled, likelihood = [], []
        for window, length in ((ref_window, len(ref)), (alt_window, len(alt))):
            states = slow.states(window, way)
            log_p = slow.log_p(states)
            mean, count, total = np.zeros(states.shape[1]), 0, 0.0
            for position in range(max(0, at - flank), min(len(window), at + length + flank)):
                # The middle of a long allele does not count.
                if at + flank <= position < at + length - flank:
                    continue
                mean += states[position]
                count += 1
                if window[position] in encode("ACGT"):
                    total += log_p[position, seen(window[position])]
            pooled.append(mean / count)
            likelihood.append(total)
        llr = 0.0
        if len(ref) == len(alt):
            masked = ref_window.copy()
            sites = [at + i for i in range(len(ref)) if ref[i] != alt[i]]
            for site in sites:
                masked[site] = MASK
            log_p = slow.log_p(slow.states(masked, way))
            for site in sites:
                new = encode(alt)[site - at]
                llr += log_p[site, seen(new)] - log_p[site, seen(ref_window[site])]
        u, v = pooled
        cosine = 1.0 - (u @ v) / np.sqrt((u @ u) * (v @ v))
        totals.append([llr, cosine, np.sqrt(((u - v) ** 2).sum()), likelihood[1] - likelihood[0]])
    return np.mean(totals, 0)
