"""What scores without any training on labels say of ClinVar and of saturation mutagenesis.

ClinVar: the area under the ROC curve of pathogenic against benign, higher scores first: LLR and PLL_DIFF with their
sign turned, DIST_L2 as it is; over all variants that have the score, and the share of pairs in order of those of one
gene, and of those of one substitution between the same two bases (how mutable a place is counts for nothing there).
Beside them the share of G and C within 100 bp, which knows nothing of the variant.
Mutagenesis (MPRA): Spearman's correlation of LLR with the measured effect, and of |LLR| with its size, a locus at a
time. Intervals are 95 % bootstraps over variants, and over genes where pairs are of one gene.

    python tests/benchmarks/zero_shot.py --data DIR -o OUT [--model FOLDER] [--context 1kbp] [--only mpra]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pysam
from scipy.stats import rankdata

# So that it can be run, and imported by its tests.
sys.path.append(str(Path(__file__).parent))
from finetuning import both_genomes, clinvar, mpra

from lrgenome.io.scores import read_scores
from lrgenome.metrics import Interval, Ranked, mean_interval, percentile_interval, resampled, weighted_correlation

SCORES = {"LLR": -1.0, "PLL_DIFF": -1.0, "DIST_L2": 1.0}
"""Columns, and the sign that makes more of them more harmful."""


def write_vcf(path: Path, rows: list[tuple[object, ...]]) -> Path:
    """Write (contig, position, ref, alt, ...) as a VCF."""
    lines = [f"{contig}\t{pos}\t.\t{ref}\t{alt}\t.\t.\t." for contig, pos, ref, alt, *_ in rows]
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    path.write_text(head + "\n".join(lines) + "\n")
    return path


def scores_of(
    args: argparse.Namespace, name: str, rows: list[tuple[object, ...]], fasta: Path
) -> list[dict[str, object]]:
    """Score variants, unless that is done, and return the rows of the table, one a variant."""
    out = args.output / f"{name}.tsv"
    if not out.exists():
        vcf = write_vcf(args.output / f"{name}.vcf", rows)
        model = ["-m", str(args.model)] if args.model else []
        command = [sys.executable, "-m", "lrgenome", "score-vcf", str(vcf), "-f", str(fasta), "-o", str(out),
                   "--context", args.context, "--exact-windows", "-t", str(args.threads), "--resume",
                   *model]  # fmt: skip
        subprocess.run(command, check=True)
    found = list(read_scores(out))
    if len(found) != len(rows):
        raise SystemExit(f"{out}: got {len(found)} rows, expected {len(rows)}")
    return found


def substitutions(rows: list[tuple[object, ...]], fasta: Path) -> np.ndarray:
    """Name the substitution of each row with the bases either side of it; "" where more than a base changes."""
    with pysam.FastaFile(str(fasta)) as genome:
        return np.array([
            f"{genome.fetch(str(contig), int(pos) - 2, int(pos) + 1).upper()}>{alt}"  # type: ignore[call-overload]
            if len(str(ref)) == len(str(alt)) == 1 else ""
            for contig, pos, ref, alt, *_ in rows
        ])  # fmt: skip


def gc_shares(rows: list[tuple[object, ...]], fasta: Path) -> np.ndarray:
    """Return the share of G and C among the 201 bp around each row."""
    with pysam.FastaFile(str(fasta)) as genome:
        texts = [genome.fetch(str(row[0]), max(0, int(row[1]) - 101), int(row[1]) + 100).upper() for row in rows]  # type: ignore
    return np.array([(text.count("G") + text.count("C")) / len(text) for text in texts])


def area_within(groups: np.ndarray, truth: np.ndarray, values: np.ndarray) -> Interval:
    """Take the share of pairs in order of those within a group."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups) if group]
    parts = [(at, truth[at] > 0.5, Ranked(truth[at], values[at])) for at in members if 0 < truth[at].sum() < len(at)]

    def metric(weights: np.ndarray | None) -> float:
        weights = np.ones(len(truth)) if weights is None else weights
        good = total = 0.0
        for at, positive, ranked in parts:
            own = weights[at]
            pairs = own[positive].sum() * own[~positive].sum()
            if pairs > 0:
                good, total = good + pairs * ranked.auroc(own), total + pairs
        return good / total if total else float("nan")

    return percentile_interval(metric(None), resampled(metric, np.arange(len(truth)), resamples=1000, seed=0))


def of_clinvar(
    scores: list[dict[str, object]], rows: list[tuple[object, ...]], kinds: np.ndarray, gc: np.ndarray
) -> list[dict[str, object]]:
    """Take areas of each score: over all variants, within genes and within `kinds`; everywhere and on chr20."""
    truth, genes = np.array([float(row[4]) for row in rows]), np.array([str(row[5]) for row in rows])
    on_20 = np.array([str(row[0]) == "20" for row in rows])
    columns = {
        name: np.array([np.nan if s[name] is None else sign * float(s[name]) for s in scores])  # type: ignore
        for name, sign in SCORES.items()
    }
    columns["GC"] = np.where(np.isnan(columns["LLR"]), np.nan, gc)
    found: list[dict[str, object]] = []
    for where, mask in (("all", np.ones(len(rows), dtype=bool)), ("chr20", on_20)):
        for name, values in columns.items():
            known = mask & ~np.isnan(values)
            y, v, g = truth[known], values[known], genes[known]
            ranked = Ranked(y, v)
            samples = resampled(ranked.auroc, np.arange(len(y)), resamples=1000, seed=0)
            area = percentile_interval(ranked.auroc(), samples)
            pairs = np.array([Ranked(y[g == gene], v[g == gene]).pairs() for gene in np.unique(g)])
            within = mean_interval(pairs[:, 0], pairs[:, 1])
            alike = area_within(kinds[known], y, v)
            for what, interval in (
                ("AUROC", area), ("AUROC within genes", within), ("AUROC within substitutions", alike),
            ):  # fmt: skip
                found.append(row_of(f"ClinVar, {where}", name, what, interval, len(y)))
    return found


def of_mpra(scores: list[dict[str, object]], rows: list[tuple[object, ...]]) -> list[dict[str, object]]:
    """Take correlations of LLR with effects, a locus at a time."""
    found: list[dict[str, object]] = []
    for contig in sorted({str(row[0]) for row in rows}):
        own = np.array([
            (s["LLR"], row[4]) for s, row in zip(scores, rows, strict=True)
            if str(row[0]) == contig and s["LLR"] is not None
        ], dtype=float)  # fmt: skip
        llr, effect = own.T
        for what, x, y in (("Spearman", llr, effect), ("Spearman of sizes", np.abs(llr), np.abs(effect))):
            a, b = rankdata(x)[:, None], rankdata(y)[:, None]

            def metric(w: np.ndarray | None, a: np.ndarray = a, b: np.ndarray = b) -> float:
                return weighted_correlation(a, b, w)

            samples = resampled(metric, np.arange(len(a)), resamples=1000, seed=0)
            found.append(row_of(f"MPRA, {contig}", "LLR", what, percentile_interval(metric(None), samples), len(a)))
    return found


def row_of(task: str, score: str, metric: str, value: Interval, n: int) -> dict[str, object]:
    """Make a row of the table."""
    return {"task": task, "score": score, "metric": metric, **value._asdict(), "n": n}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with genomes/, labels/ and variants/")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="checkpoint folder; default the embedded model")
    parser.add_argument("--context", default="1kbp")
    parser.add_argument("--only", choices=("clinvar", "mpra"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    fasta = both_genomes(args.data, args.output)
    rows: list[dict[str, object]] = []
    if args.only != "mpra":
        variants = [tuple(row) for row in clinvar(args.data)]
        scores = scores_of(args, "clinvar", variants, fasta)
        rows += of_clinvar(scores, variants, substitutions(variants, fasta), gc_shares(variants, fasta))
    if args.only != "clinvar":
        effects = [tuple(row) for row in mpra(args.data)]
        rows += of_mpra(scores_of(args, "mpra", effects, fasta), effects)
    print("| task | score | metric | value | n |\n|---|---|---|---|---|")
    for row in rows:
        value = f"{row['value']:.3f} ({row['low']:.3f} - {row['high']:.3f})"
        print(f"| {row['task']} | {row['score']} | {row['metric']} | {value} | {row['n']:,} |")
    (args.output / "zero_shot.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
