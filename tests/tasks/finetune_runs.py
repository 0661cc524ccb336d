"""Runs of `lrgenome finetune` on the miniature benchmark, and what they wrote."""


import csv
import json
from pathlib import Path

from benchmark_files import Benchmark
from typer.testing import CliRunner

from lrgenome.cli.app import app

FAST = ["--epochs", "3", "--folds", "2", "-t", "1", "--device", "cpu", "--precision", "float32", "-q"]
CONTEXT = "600"
FILES = ("metrics.json", "predictions.tsv", "model.safetensors", "head.safetensors")


def finetune(benchmark: Benchmark, out: Path, *arguments: object, status: int = 0) -> str:
    command = ["finetune", *map(str, arguments), "-f", str(benchmark.fasta), "-o", str(out), *FAST]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == status, result.output + (repr(result.exception) if status != result.exit_code else "")
    return result.output


def report(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


def metric(out: Path, name: str, model: str = "mean of folds", subset: str = "all") -> dict:
    (found,) = [m for m in report(out)["metrics"] if (m["model"], m["subset"], m["metric"]) == (model, subset, name)]
    return found


def predictions(out: Path) -> list[dict[str, str]]:
    with open(out / "predictions.tsv", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))
