"""Masked loss of a model on held-out sequence, beside baselines at the same positions.

Windows tile each test region; in each, 15 % of the bases are masked by the pre-training objective and the model's
loss is taken there. Baselines saw the true, uncorrupted sequence; their losses at the same positions come from
``python tests/benchmarks/baselines --cache DIR``. Intervals are 95 % bootstraps over windows.

    python tests/benchmarks/heldout.py --data DIR [--model FOLDER] [--window 12kbp] [--baselines CACHE] [-o OUT.json]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from lrgenome.engine.sweep import hidden_states
from lrgenome.glossary import parse_length
from lrgenome.io.fasta import Fasta
from lrgenome.metrics import mean_interval
from lrgenome.models.checkpoint import load_model
from lrgenome.models.hawk import Hawk
from lrgenome.ops.jit import set_threads
from lrgenome.training.data import evenly, sample_rng
from lrgenome.training.objective import corrupt, masked_losses

TESTS = {
    "human": ("homo_sapiens.GRCh37.chr20.fa.gz", "20", 0, 10_000_000),
    "yeast": ("saccharomyces_cerevisiae.R64-1-1.fa.gz", "IV", 0, None),
    "arabidopsis": ("arabidopsis_thaliana.TAIR10.chr1.fa.gz", "1", 0, 3_000_000),
}
MASK_FRACTION = 0.15


@torch.no_grad()
def window_losses(model: Hawk, ids: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets of a window's targets and the model's losses there, in nats."""
    masked = corrupt(ids, sample_rng(0, 0, index), MASK_FRACTION)
    hidden = hidden_states(model, torch.from_numpy(masked.ids)[None])[0]
    targets = np.flatnonzero(masked.targets)
    losses = masked_losses(model.logits(hidden[targets]), torch.from_numpy(ids[targets]))
    return targets, losses.double().numpy()


def evaluate(model: Hawk, data: Path, window: int, per_species: int, cache: Path | None) -> list[dict[str, object]]:
    """Measure the model, and each cached baseline at the same positions, on every species."""
    rows: list[dict[str, object]] = []
    for species, (name, contig, start, end) in TESTS.items():
        sums: dict[str, list[float]] = {}
        counts: list[float] = []
        files = sorted(cache.glob(f"{species}.*.npy")) if cache else []
        rivals = {p.name.split(".")[1]: np.load(p, mmap_mode="r") for p in files}
        with Fasta(data / name) as fasta:
            stop = fasta.contigs[contig] if end is None else end
            starts = range(start, stop - window + 1, window)
            for index in evenly(len(starts), per_species):
                lo = starts[index]
                targets, losses = window_losses(model, fasta.fetch(contig, lo, lo + window), index)
                if not len(targets):
                    continue
                counts.append(float(len(targets)))
                sums.setdefault("lrgenome", []).append(float(losses.sum()))
                for rival, values in rivals.items():
                    theirs = np.asarray(values[lo - start : lo - start + window])[targets].astype(np.float64)
                    sums.setdefault(rival, []).append(float(theirs.sum()))
        n = np.array(counts)
        for who, values in sums.items():
            got = mean_interval(np.array(values), n)
            row: dict[str, object] = {
                "species": species, "model": who, "nats_per_bp": got.value, "low": got.low, "high": got.high,
                "perplexity": float(np.exp(got.value)), "targets": int(n.sum()),
            }  # fmt: skip
            if who != "lrgenome":
                gap = mean_interval(np.array(sums["lrgenome"]) - np.array(values), n)
                row |= {"ours_minus_it": gap.value, "gap_low": gap.low, "gap_high": gap.high}
            rows.append(row)
    return rows


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the genomes")
    parser.add_argument("--model", type=Path, help="checkpoint folder; default the embedded model")
    parser.add_argument("--window", type=parse_length, default=12_000)
    parser.add_argument("--windows", type=int, default=100, help="windows per species")
    parser.add_argument("--baselines", type=Path, help="cache folder of tests/benchmarks/baselines")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    set_threads(args.threads)
    loaded = load_model(args.model)
    model = loaded.model.for_inference(torch.float32)
    rows = evaluate(model, args.data, args.window, args.windows, args.baselines)
    print(f"{'species':12} {'model':20} {'nats/bp':>8}  {'95 % interval':>17}  {'ours - it':>9}  {'95 % interval':>17}")
    for r in rows:
        gap = f"{r['ours_minus_it']:+9.4f}  {r['gap_low']:+8.4f} {r['gap_high']:+8.4f}" if "gap_low" in r else ""
        print(f"{r['species']:12} {r['model']:20} {r['nats_per_bp']:8.4f}  {r['low']:8.4f} {r['high']:8.4f}  {gap}")
    result = {"model": loaded.name, "sha256": loaded.sha256, "window": args.window, "rows": rows}
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
