"""Masked loss of a model on held-out sequence, beside baselines at the same positions, and at other window lengths.

Windows tile each test region; in each, 15 % of the bases are masked by the pre-training objective and the model's
loss is taken there. Other models (``--rival``) see the same corrupted windows. Counted baselines saw the true,
uncorrupted sequence; their losses at the same positions come from ``python tests/benchmarks/baselines --cache DIR``.
Intervals are 95 % bootstraps over windows, of differences too, which are taken position by position.

With ``--lengths`` the same corrupted windows, as long as the longest, are also run in pieces of each length; each
target is scored once, and differences are from ``--window``.

    python tests/benchmarks/heldout.py --data DIR [--model FOLDER] [--window 12kbp] [--baselines CACHE] [-o OUT.json]
    python tests/benchmarks/heldout.py --data DIR --lengths 2kbp,12kbp,128kbp --figure lengths.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

# So that it can be run, and imported by its tests.
sys.path.append(str(Path(__file__).parent))
import cnn

from lrgenome.dna import reverse_complement
from lrgenome.engine.chunking import default_chunk
from lrgenome.engine.sweep import stream
from lrgenome.glossary import format_length, parse_length
from lrgenome.io.fasta import Fasta
from lrgenome.metrics import mean_interval
from lrgenome.models.checkpoint import load_model
from lrgenome.models.families import Model
from lrgenome.models.nucleotide_transformer import NucleotideTransformer
from lrgenome.ops.jit import set_threads
from lrgenome.training.data import evenly, sample_rng
from lrgenome.training.objective import Masked, corrupt

Region = tuple[str, str, int, int | None]
TESTS: dict[str, Region] = {
    "human": ("homo_sapiens.GRCh37.chr20.fa.gz", "20", 0, 10_000_000),
    "yeast": ("saccharomyces_cerevisiae.R64-1-1.fa.gz", "IV", 0, None),
    "arabidopsis": ("arabidopsis_thaliana.TAIR10.chr1.fa.gz", "1", 0, 3_000_000),
}
VALIDATION: dict[str, Region] = {
    "human": ("homo_sapiens.GRCh37.chr20.fa.gz", "20", 10_000_000, 12_000_000),
    "yeast": ("saccharomyces_cerevisiae.R64-1-1.fa.gz", "VII", 0, None),
    "arabidopsis": ("arabidopsis_thaliana.TAIR10.chr1.fa.gz", "1", 3_000_000, 4_000_000),
}
MASK_FRACTION = 0.15
Losses = Callable[[np.ndarray, Masked], np.ndarray]
"""From the true ids of a window and the corrupted ones to the losses at its targets, (n,) float64, nats."""


@torch.no_grad()
def model_losses(model: Model, both: bool, truth: np.ndarray, masked: Masked) -> np.ndarray:
    """Return what a checkpoint loses at the targets; with `both`, of the mean of both strands' log-probabilities."""
    values = _one_strand(model, masked)
    if both:
        flipped = Masked(reverse_complement(masked.ids), masked.targets[::-1].copy())
        # The complements of A, C, G and T are these in reverse.
        values = (values + _one_strand(model, flipped)[::-1, ::-1]) / 2
    places = np.searchsorted([7, 8, 9, 10], truth[masked.targets])
    values = values - np.logaddexp.reduce(values, axis=1, keepdims=True) if both else values
    # Alone as in training, over all ids; the mean of strands over the four bases.
    return np.asarray(-values[np.arange(len(places)), places])


def _one_strand(model: Model, masked: Masked) -> np.ndarray:
    """Return (n, 4) log-probabilities of A, C, G and T at targets, over all ids."""
    ids, wanted = torch.from_numpy(masked.ids)[None], torch.from_numpy(masked.targets)
    if isinstance(model, NucleotideTransformer):
        logits = model.head(model.encode(ids)[0, wanted])
    else:
        parts = stream(model, ids, chunk=default_chunk(model, "cpu"))
        logits = torch.cat([model.logits(part.hidden[0, wanted[part.start : part.end]]) for part in parts])
    return np.asarray(logits.double().log_softmax(-1)[:, 7:11].numpy())


@torch.no_grad()
def cnn_losses(model: cnn.Convolutional, truth: np.ndarray, masked: Masked) -> np.ndarray:
    """Return what the convolutional network loses at the targets."""
    return np.asarray(model.losses([(truth, masked)], torch.float32).double().numpy())


def regions(data: Path, of: dict[str, Region], window: int, per_species: int) -> Any:
    """Yield (species, FASTA, contig, first base of the region, starts of its windows)."""
    for species, (name, contig, start, end) in of.items():
        with Fasta(data / name) as fasta:
            stop = fasta.contigs[contig] if end is None else end
            starts = range(start, stop - window + 1, window)
            yield species, fasta, contig, start, [(i, starts[i]) for i in evenly(len(starts), per_species)]


def evaluate(
    models: dict[str, Losses], data: Path, of: dict[str, Region], window: int, per_species: int, cache: Path | None
) -> list[dict[str, object]]:
    """Measure the models, the first of them ours, and each cached baseline at the same positions, on every species."""
    rows: list[dict[str, object]] = []
    ours = next(iter(models))
    for species, fasta, contig, start, windows in regions(data, of, window, per_species):
        sums: dict[str, list[float]] = {}
        counts: list[float] = []
        files = sorted(cache.glob(f"{species}.*.npy")) if cache else []
        counted = {p.name.split(".")[1]: np.load(p, mmap_mode="r") for p in files}
        for index, lo in windows:
            truth = fasta.fetch(contig, lo, lo + window)
            masked = corrupt(truth, sample_rng(0, 0, index), MASK_FRACTION)
            if not masked.targets.any():
                continue
            counts.append(float(masked.targets.sum()))
            for name, losses in models.items():
                sums.setdefault(name, []).append(float(losses(truth, masked).sum()))
            for name, values in counted.items():
                theirs = np.asarray(values[lo - start : lo - start + window])[masked.targets].astype(np.float64)
                sums.setdefault(name, []).append(float(theirs.sum()))
        n = np.array(counts)
        for who, values in sums.items():
            got = mean_interval(np.array(values), n)
            row: dict[str, object] = {
                "species": species, "model": who, "nats_per_bp": got.value, "low": got.low, "high": got.high,
                "perplexity": float(np.exp(got.value)), "targets": int(n.sum()),
            }  # fmt: skip
            if who != ours:
                gap = mean_interval(np.array(sums[ours]) - np.array(values), n)
                row |= {"ours_minus_it": gap.value, "gap_low": gap.low, "gap_high": gap.high}
            rows.append(row)
    return rows


def in_pieces(losses: Losses, truth: np.ndarray, masked: Masked, length: int) -> np.ndarray:
    """Return the losses at all targets of a window, run in pieces of `length`; the last overlaps the one before."""
    found = np.full(len(truth), np.nan)
    for low in range(0, len(truth), length):
        piece = slice(max(0, min(low, len(truth) - length)), min(low + length, len(truth)))
        part = Masked(masked.ids[piece], masked.targets[piece])
        if part.targets.any():
            at = np.flatnonzero(part.targets) + piece.start
            fresh = np.isnan(found[at])
            found[at[fresh]] = losses(truth[piece], part)[fresh]
    return found[masked.targets]


def by_length(
    losses: Losses, data: Path, of: dict[str, Region], lengths: list[int], reference: int, per_species: int
) -> list[dict[str, object]]:
    """Measure one model on the same windows, run in pieces of each length; differences from those of `reference`."""
    rows: list[dict[str, object]] = []
    longest = max(lengths)
    for species, fasta, contig, _, windows in regions(data, of, longest, per_species):
        sums: dict[int, list[float]] = {length: [] for length in sorted({*lengths, reference})}
        counts: list[float] = []
        for index, lo in windows:
            truth = fasta.fetch(contig, lo, lo + longest)
            masked = corrupt(truth, sample_rng(0, 1, index), MASK_FRACTION)
            if not masked.targets.any():
                continue
            counts.append(float(masked.targets.sum()))
            for length, values in sums.items():
                values.append(float(in_pieces(losses, truth, masked, length).sum()))
        n = np.array(counts)
        for length, values in sums.items():
            got = mean_interval(np.array(values), n)
            gap = mean_interval(np.array(values) - np.array(sums[reference]), n)
            rows.append({
                "species": species, "length": length, "nats_per_bp": got.value, "low": got.low, "high": got.high,
                "minus_reference": gap.value, "gap_low": gap.low, "gap_high": gap.high, "windows": len(n),
            })  # fmt: skip
    return rows


def draw(rows: list[dict[str, Any]], reference: int, path: Path) -> None:
    """Draw the difference from the training length against length, a line a species."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.axhline(0.002, color="0.6", linewidth=0.8, linestyle=":")
    axes.axvline(reference, color="0.6", linewidth=0.8, linestyle="--")
    axes.annotate(" training", (reference, 1), xycoords=("data", "axes fraction"), va="top", color="0.4", fontsize=8)
    for species in dict.fromkeys(row["species"] for row in rows):
        own = [row for row in rows if row["species"] == species]
        x = [row["length"] for row in own]
        (line,) = axes.plot(x, [row["minus_reference"] for row in own], marker="o", markersize=3, label=species)
        axes.fill_between(x, [row["gap_low"] for row in own], [row["gap_high"] for row in own],
                          color=line.get_color(), alpha=0.15, linewidth=0)  # fmt: skip
    axes.set_xscale("log")
    lengths = sorted({row["length"] for row in rows})
    axes.set_xticks(lengths, [format_length(length) for length in lengths], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("window")
    axes.set_ylabel(f"loss - loss at {format_length(reference)}, nats/bp")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the genomes")
    parser.add_argument("--model", type=Path, help="checkpoint folder; default the embedded model")
    parser.add_argument("--rival", type=Path, action="append", default=[], help="another, or a run of cnn.py")
    parser.add_argument("--both-strands", action="store_true", help="mean of both strands' log-probabilities")
    parser.add_argument("--regions", choices=("test", "validation"), default="test")
    parser.add_argument("--species", help="of these only, as human,yeast")
    parser.add_argument("--window", type=parse_length, default=12_000)
    parser.add_argument("--windows", type=int, default=100, help="windows per species")
    parser.add_argument("--lengths", help="compare these window lengths instead, as 2kbp,12kbp,128kbp")
    parser.add_argument("--figure", type=Path, help="PNG of --lengths")
    parser.add_argument("--baselines", type=Path, help="cache folder of tests/benchmarks/baselines")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    set_threads(args.threads)
    loaded = load_model(args.model)
    dtype, of = getattr(torch, args.precision), TESTS if args.regions == "test" else VALIDATION
    if args.species:
        of = {name: of[name] for name in args.species.split(",")}
    models: dict[str, Losses] = {
        "lrgenome": partial(model_losses, loaded.model.for_inference(dtype), args.both_strands)
    }
    for rival in args.rival:
        models[rival.name] = (
            partial(cnn_losses, cnn.load(rival)) if (rival / "cnn.json").exists()
            else partial(model_losses, load_model(rival).model.for_inference(dtype), args.both_strands)
        )  # fmt: skip
    if args.lengths:
        lengths = [parse_length(text) for text in args.lengths.split(",")]
        rows = by_length(models["lrgenome"], args.data, of, lengths, args.window, args.windows)
        print(f"{'species':12} {'length':>8} {'nats/bp':>8}  {'- at ' + format_length(args.window):>12}  95 % interval")
        for r in rows:
            print(f"{r['species']:12} {r['length']:8} {r['nats_per_bp']:8.4f}  {r['minus_reference']:+12.4f}  "
                  f"{r['gap_low']:+8.4f} {r['gap_high']:+8.4f}")  # fmt: skip
        if args.figure:
            draw(rows, args.window, args.figure)
    else:
        rows = evaluate(models, args.data, of, args.window, args.windows, args.baselines)
        print(f"{'species':12} {'model':20} {'nats/bp':>8}  {'95 % interval':>17}  {'ours - it':>9}  95 % interval")
        for r in rows:
            gap = f"{r['ours_minus_it']:+9.4f}  {r['gap_low']:+8.4f} {r['gap_high']:+8.4f}" if "gap_low" in r else ""
            print(f"{r['species']:12} {r['model']:20} {r['nats_per_bp']:8.4f}  {r['low']:8.4f} {r['high']:8.4f}  {gap}")
    result = {"model": loaded.name, "sha256": loaded.sha256, "window": args.window, "rows": rows}
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
