"""Check published weights on real sequence: that what was converted is the model that was trained.

``python tests/benchmarks/verify_published.py --model hf:ORG/NAME --fasta GRCh38.fa --region chr20:10000001-10400000``
loads published weights as the commands do (a name on the hub, or a downloaded folder), and masks 15 % of the bases
of windows of the region. A network whose weights lie in the wrong places predicts no better than the composition of
the sequence; the right one predicts much better. It also compares both strands of an equivariant model. The last
line is one JSON object; the exit status is 1 if a check fails.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from lrgenome.dna import COMPLEMENT, FIRST_BASE, MASK
from lrgenome.io.fasta import Fasta, parse_region
from lrgenome.tasks.setup import ready

NEEDED = 0.02
"""Nats/bp by which the loss has to be below that of the composition."""


def measure(options: Any) -> dict[str, Any]:
    """Measure; `options` is what `parse` returns."""
    loaded, runner = ready(
        options.model, gpu=None, device="cpu", threads=options.threads, precision="float32", auto=None, chunk=None,
        transfer="exact", store="auto", tmpdir=None, extension="none", offline=options.offline,
    )  # fmt: skip
    losses: list[float] = []
    counts = np.zeros(4)
    strands = 0.0
    with runner, Fasta(options.fasta) as fasta:
        contig, start, end = parse_region(options.region, fasta.contigs)
        for at in range(start, end - options.window + 1, options.window):
            ids = fasta.fetch(contig, at, at + options.window)
            known = (ids >= FIRST_BASE) & (ids < FIRST_BASE + 4)
            counts += np.bincount(ids[known] - FIRST_BASE, minlength=4)
            targets = known & (np.random.default_rng(at).random(len(ids)) < 0.15)
            masked = np.where(targets, MASK, ids).astype(np.uint8)
            log_p = _log_probabilities(runner, masked)
            losses += (-log_p[targets, ids[targets]]).tolist()
            if getattr(runner.model.config, "equivariant", False) and not strands:
                other = _log_probabilities(runner, np.ascontiguousarray(COMPLEMENT[masked][::-1]))[::-1, COMPLEMENT]
                strands = float(np.abs(other - log_p)[:, FIRST_BASE : FIRST_BASE + 4].max())
    share = counts / counts.sum()
    rounded: dict[str, Any] = common.rounded({
        "model": loaded.name,
        "sha256": loaded.sha256,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "targets": len(losses),
        "loss": float(np.mean(losses)),
        "composition_loss": float(-(share * np.log(share)).sum()),
        "strands_differ_by": strands,
        "passed": bool(np.mean(losses) < -(share * np.log(share)).sum() - NEEDED and strands < 1e-3),
    })  # fmt: skip
    return rounded


def _log_probabilities(runner: Any, ids: np.ndarray) -> np.ndarray:
    parts = []
    for part in runner.stream(torch.from_numpy(ids)[None]):
        parts.append(runner.log_probabilities(part, 0, 0, part.end - part.start))
    return np.concatenate(parts)


def report(r: dict[str, Any]) -> str:
    """Write a result as text."""
    return (
        f"{r['model']}  {r['parameters']:,} parameters  sha256 {r['sha256']}\n"
        f"loss at {r['targets']:,} masked bases: {r['loss']:.4f} nats/bp; of the composition alone "
        f"{r['composition_loss']:.4f}\n" + ("passed" if r["passed"] else "FAILED")
    )


def parse(arguments: Sequence[str] | None = None) -> Any:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Check published weights on real sequence.")
    parser.add_argument("--model", type=Path, help="hf:ORG/NAME or a folder; default the embedded model")
    parser.add_argument("--fasta", type=Path, required=True)
    parser.add_argument("--region", required=True, help="as chr20:10,000,001-10,400,000")
    parser.add_argument("--window", type=common.length_option, default=6_000, help="bp (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--offline", action="store_true", help="take the model from the cache only")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the checks."""
    if not common.run(measure, report, parse(arguments))["passed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
