"""What recall-bench (on PyPI), which is not ours, says of how far back a model can use a copy.

Its windows: a segment of 256 bp, so many bp of background, and the segment again; the control has the genome's own
bases in place of the first copy. The advantage is the loss over the second copy in the control less that with the first
copy, in nats/bp. Its protocol for masked models hides the whole second copy, which leaves a model nothing to find the
first one by; so every seventh base of the copy is masked, in seven passes, and handed over as the predictions of a
causal model. Whatever recall-bench does with the windows and the numbers is its own.

    python tests/benchmarks/recall_judge.py -f FASTA -r 20:1-10,000,000 [-m MODEL]... [--distances 64,256,1024,4096]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import recall_bench
import torch

import lrgenome
from lrgenome.dna import FIRST_BASE, MASK, decode
from lrgenome.io.fasta import parse_region

EVERY = 7
SEGMENT = 256


def background(fasta: Path, region: str, shortest: int) -> recall_bench.DNABackground:
    """Return the stretches of a region without N that hold a whole window."""
    with lrgenome.Fasta(fasta) as genome:
        text = decode(genome.fetch(*parse_region(region, genome.contigs)))
    blocks = [block for block in text.split("N") if len(block) >= shortest]
    if not blocks:
        raise SystemExit(f"{region} has no {shortest} bp without N")
    return recall_bench.DNABackground.from_strings(blocks)


def judged(model: lrgenome.Model, name: str) -> recall_bench.CallableModel:
    """Wrap a model as recall-bench takes one that predicts the next base."""

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        ids = (tokens[0].numpy() + FIRST_BASE).astype(np.uint8)
        first = len(ids) - SEGMENT
        found = np.zeros((len(ids), 4), np.float32)
        for phase in range(EVERY):
            places = np.arange(first + phase, len(ids), EVERY)
            masked = ids.copy()
            masked[places] = MASK
            for part in model.stream(masked, log_p=True):
                here = places[(places >= part.start) & (places < part.end)]
                # What is predicted at a base stands before it.
                found[here - 1] = part.log_p[here - part.start]
        return torch.from_numpy(found)[None]

    letters = {base: number for number, base in enumerate("ACGT")}
    return recall_bench.CallableModel(
        logits_fn=logits, tokenize=lambda text: [letters[base] for base in text], causal=True, max_ctx=1 << 24,
        name=name,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    """Run the sweep of each model and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-f", "--fasta", type=Path, required=True)
    parser.add_argument("-r", "--region", required=True)
    parser.add_argument("-m", "--model", action="append")
    parser.add_argument("--distances", default="64,256,1024,4096")
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--variant", default="exact", choices=("exact", "mutate", "revcomp"))
    parser.add_argument("--threads", "-t", type=int, default=1)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--length-extension", default="none", help="of a transformer, beyond its training length")
    args = parser.parse_args(argv)
    distances = [int(d) for d in args.distances.split(",")]
    longest = 1 << (max(distances) + 2 * SEGMENT + 511).bit_length()
    genome = background(args.fasta, args.region, longest)
    rows = []
    print("model\tvariant\tdistance\tadvantage\tlow\thigh\ttrials")
    for path in args.model or [None]:
        with lrgenome.load(
            path, device="cpu", threads=args.threads, precision=args.precision, length_extension=args.length_extension
        ) as model:
            for row in recall_bench.evaluate(
                judged(model, model.name), distances, seg=SEGMENT, trials=args.trials, variant=args.variant,
                mut_rate=0.05, background=genome, verbose=False,
            ):  # fmt: skip
                if row["status"] != "ok":
                    raise SystemExit(f"{model.name}, {row['dist']} bp: {row['status']}")
                rows.append(row)
                print(model.name, args.variant, row["dist"], f"{row['copy_advantage']:.4f}", f"{row['ci_lo']:.4f}",
                      f"{row['ci_hi']:.4f}", row["n"], sep="\t", flush=True)  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
