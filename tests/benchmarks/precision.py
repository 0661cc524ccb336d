"""Agreement of scores in bfloat16 with those in float32.

``python tests/benchmarks/precision.py variants.vcf.gz --fasta GRCh37.fa.gz --records 1000`` scores the first
substitutions of a VCF in both precisions with ``lrgenome score-vcf --exact-windows`` and compares every score column:
Spearman's rank correlation and the largest absolute difference. A table, then one line of JSON.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import pysam
from agreement import compare

COLUMNS = ("LLR", "DIST_COS", "DIST_L2", "PLL_DIFF")
PRECISIONS = ("float32", "bfloat16")


def substitutions(source: str, count: int, target: Path) -> int:
    """Write the first `count` records that have one ALT of one base to a VCF; returns how many there were."""
    written = 0
    with pysam.VariantFile(source) as records, pysam.VariantFile(str(target), "w", header=records.header) as out:
        for record in records:
            alts = record.alts or ()
            if written < count and len(record.ref or "") == 1 and len(alts) == 1 and alts[0] in "ACGT":
                out.write(record)
                written += 1
    return written


def scores(vcf: Path, precision: str, options: Any, folder: Path) -> dict[str, np.ndarray]:
    """Score the VCF as a user does; returns the columns."""
    out = folder / f"{precision}.tsv"
    command = [sys.executable, "-m", "lrgenome", "score-vcf", vcf, "--fasta", options.fasta, "--precision", precision]
    command += ["--context", options.context, "--threads", options.threads, "-o", out, "-q", "--exact-windows"]
    subprocess.run([str(part) for part in command], check=True)
    with open(out, encoding="utf-8") as lines:
        rows = list(csv.DictReader((line for line in lines if not line.startswith("##")), delimiter="\t"))
    return {name: np.array([float(row[name]) for row in rows if row["STATUS"] == "OK"]) for name in COLUMNS}


def measure(options: Any) -> dict[str, Any]:
    """Measure; `options` is what `parse` returns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = substitutions(options.vcf, options.records, folder / "v.vcf")
        wide, narrow = (scores(folder / "v.vcf", precision, options, folder) for precision in PRECISIONS)
    result: dict[str, Any] = {"records": count, "context": options.context, "scores": {}}
    for column in COLUMNS:
        result["scores"][column] = compare(wide[column], narrow[column])
    rounded: dict[str, Any] = common.rounded(result)
    return rounded


def report(r: dict[str, Any]) -> str:
    """Write a result as a table."""
    rows = [(c, v["spearman"], v["max_difference"], v["standard_deviation"]) for c, v in r["scores"].items()]
    text = [[name, f"{rank:.5f}", f"{off:.3g}", f"{spread:.3g}"] for name, rank, off, spread in rows]
    head = ("bfloat16 against float32", "Spearman", "largest difference", "standard deviation")
    return f"{r['records']:,} substitutions, {r['context']} of context\n" + common.table(head, text)


def parse(arguments: Sequence[str] | None = None) -> Any:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Agreement of scores in bfloat16 with those in float32.")
    parser.add_argument("vcf")
    parser.add_argument("--fasta", required=True)
    parser.add_argument("--records", type=int, default=1000, help="substitutions (%(default)s)")
    parser.add_argument("--context", default="1kbp", help="as of score-vcf (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    common.run(measure, report, parse(arguments))


if __name__ == "__main__":
    main()
