"""Fine-tuning on real labels: regulatory intervals of human chr20, ClinVar, and saturation mutagenesis.

Makes tables of the files of a data folder and runs ``lrgenome finetune`` on each, once a head, then prints the tables
of docs/finetuning.md. What is there already is not run again.

    python tests/benchmarks/finetuning.py --data DIR -o OUT [--model FOLDER] [--only clinvar] [--threads 2]
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pysam

CHR20 = "homo_sapiens.GRCh37.chr20.fa.gz"
LOCI = "homo_sapiens.GRCh37.loci.fa.gz"
TEST = "20:1-10000000"
"""Of chr20, never seen in pre-training."""
ALL = "all"

Row = Sequence[object]


def write(path: Path, header: Row, rows: Iterable[Row]) -> Path:
    """Write a table, unless it is there."""
    if not path.exists():
        with open(path, "w", newline="") as handle:
            writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
    return path


def intervals(data: Path, dataset: str, positive: str) -> list[Row]:
    """List (chrom, start, end, label) of a set of intervals, each once."""
    found: dict[Row, int] = {}
    with gzip.open(data / "labels" / "regulatory_intervals.chr20.b37.tsv.gz", "rt") as handle:
        for row in csv.DictReader(handle, delimiter="\t"):
            if row["dataset"] == dataset:
                found[row["chrom"], row["start"], row["end"]] = int(row["label"] == positive)
    return [(*key, label) for key, label in sorted(found.items(), key=lambda item: int(item[0][1]))]


def clinvar(data: Path) -> Iterable[Row]:
    """Yield (contig, position, ref, alt, label, gene) of ClinVar."""
    with pysam.VariantFile(str(data / "variants" / "clinvar.b37.vcf.gz")) as file:
        for record in file:
            (alt,) = record.alts
            yield record.chrom, record.pos, record.ref, alt, int(record.info["LABEL"] == "P"), record.info["GENE"]


def mpra(data: Path) -> Iterable[Row]:
    """Yield (contig, position, ref, alt, effect) of saturation mutagenesis; of conditions of one element, the mean."""
    sums: dict[Row, list[float]] = {}
    with open(data / "labels" / "mpra_saturation.b37.tsv") as handle:
        for row in csv.DictReader(handle, delimiter="\t"):
            key = row["contig"], row["pos"], row["ref"], row["alt"]
            if set(row["ref"] + row["alt"]) <= set("ACGT"):
                sums.setdefault(key, []).append(float(row["coefficient"]))
    for key, values in sums.items():
        yield *key, sum(values) / len(values)


def both_genomes(data: Path, out: Path) -> Path:
    """Write chr20 and the loci to one file."""
    path = out / "chr20_and_loci.fa"
    if not path.exists():
        with open(path, "w") as handle:
            for name in (CHR20, LOCI):
                with pysam.FastxFile(str(data / "genomes" / name)) as records:
                    for record in records:
                        handle.write(f">{record.name}\n")
                        text = record.sequence
                        handle.writelines(text[i : i + 80] + "\n" for i in range(0, len(text), 80))
    return path


def tune(args: argparse.Namespace, name: str, arguments: Sequence[object]) -> dict[str, object]:
    """Run one fine-tuning, unless it is done; returns its report."""
    out = args.output / name
    if not (out / "metrics.json").exists():
        model = ["-m", str(args.model)] if args.model else []
        command = [sys.executable, "-m", "lrgenome", "finetune", *map(str, arguments), *model, "-o", str(out), "-t",
                   str(args.threads), "--context", args.context, "--resume"]  # fmt: skip
        print(" ".join(command), file=sys.stderr)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report: dict[str, object] = json.loads((out / "metrics.json").read_text())
    return report


def cells(report: dict[str, object], metric: str, subset: str = ALL) -> list[str]:
    """Format a metric of the model, the baseline's, and the difference."""
    rows = [row for row in report["metrics"] if (row["metric"], row["subset"]) == (metric, subset)]  # type: ignore
    ours = next(row for row in rows if row["model"] in ("mean of folds", "model"))
    base = next(row for row in rows if row["model"] == "composition")
    over = ours["over_baseline"]
    return [
        f"{ours['value']:.3f} ({ours['low']:.3f} - {ours['high']:.3f})",
        f"{base['value']:.3f} ({base['low']:.3f} - {base['high']:.3f})",
        f"{over['value']:+.3f} ({over['low']:+.3f} to {over['high']:+.3f})",
    ]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with genomes/, labels/ and variants/")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="checkpoint folder; default the embedded model")
    parser.add_argument("--context", default="2kbp")
    parser.add_argument("--only", choices=("regulatory", "clinvar", "mpra"), action="append")
    parser.add_argument("--full", action="store_true", help="fine-tune the model too, on the regulatory intervals")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    only = args.only or ["regulatory", "clinvar", "mpra"]
    print("| task | head | metric | model | composition | difference |\n|---|---|---|---|---|---|")
    features = ["--cache", args.output / "features"]
    if "regulatory" in only:
        sets = {
            "enhancer": ("human_enhancers_ensembl", "positive"),
            "open chromatin": ("human_ocr_ensembl", "positive"),
            "promoter": ("human_ensembl_regulatory", "promoter"),
        }
        for task, (dataset, positive) in sets.items():
            short = task.split()[0]
            table = write(args.output / f"{short}.tsv", ("CHROM", "START", "END", "label"),
                          intervals(args.data, dataset, positive))  # fmt: skip
            common = ["--table", table, "--label", "label", "-f", args.data / "genomes" / CHR20, "--test", TEST,
                      "--block", "1Mbp", "--drop-leaks"]  # fmt: skip
            for head in ("logistic", "head", *(["full"] if args.full else [])):
                more = ["--fold", "1", "--epochs", "6", "--lr", "3e-4"] if head == "full" else features
                report = tune(args, f"{short}-{head}", [*common, "--train", head, *more])
                for metric in ("AUROC", "AUPRC"):
                    print("|", " | ".join([task, head, metric, *cells(report, metric)]), "|")
    fasta = both_genomes(args.data, args.output) if {"clinvar", "mpra"} & set(only) else None
    if "clinvar" in only:
        table = write(args.output / "clinvar.tsv", ("CHROM", "POS", "REF", "ALT", "label", "GENE"), clinvar(args.data))
        for head in ("logistic", "head"):
            report = tune(args, f"clinvar-{head}", [
                "--table", table, "--label", "label", "-f", fasta, "--test", "20", "--within", "GENE", "--train", head,
                "--alleles", "difference", "--drop-leaks", *features,
            ])  # fmt: skip
            for subset in (ALL, "within groups"):
                print("|", " | ".join(["ClinVar" + (", within genes" if subset != ALL else ""), head, "AUROC",
                                       *cells(report, "AUROC", subset)]), "|")  # fmt: skip
    if "mpra" in only:
        rows = list(mpra(args.data))
        table = write(args.output / "mpra.tsv", ("CHROM", "POS", "REF", "ALT", "effect"), rows)
        contigs = sorted({str(row[0]) for row in rows})
        for contig in contigs:
            others = [other for other in contigs if other != contig]
            for head in ("ridge", "head"):
                # Of two loci, each is once trained on and once validated on.
                report = tune(args, f"mpra-{contig.replace(':', '_')}-{head}", [
                    "--table", table, "--label", "effect", "-f", fasta, "--test", contig, "--folds", len(others),
                    "--train", head, "--alleles", "difference", "--allow-leaks", *features,
                ])  # fmt: skip
                for metric in ("SPEARMAN", "R2"):
                    print("|", " | ".join([f"MPRA, {contig} left out", head, metric, *cells(report, metric)]), "|")


if __name__ == "__main__":
    main()
