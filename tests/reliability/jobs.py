"""A run of each command that writes something, small enough to be killed many times."""

import csv
import json
from pathlib import Path

import numpy as np
from places import Place

FILES = ("score-vcf.tsv", "score-vcf.tsv.gz", "score-vcf.vcf", "score-vcf.bcf", "embed.h5")
FOLDERS = ("pretrain", "finetune", "finetune-full", "extrapolate")
_TIMES = ("bp_per_s", "seconds", "seconds_per_window", "host_bytes", "device_bytes", "gb")
"""Columns that differ from run to run."""


class Jobs(Place):
    """What the jobs read, their arguments, and what they wrote."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, records=60)
        self.manifest, self.table = folder / "v.manifest.tsv", folder / "v.labels.tsv"
        self.manifest.write_text("path\tweight\tname\tholdout\tvalidation\ng.fa\t1\tone\t.\tone:1-2000\n")
        rows = ["CHROM\tSTART\tEND\ty"]
        for number, start in enumerate(range(500, 59_000, 900)):
            here = "".join(self.letters[start : start + 100])
            rows.append(f"one\t{start}\t{start + 100}\t{int(here.count('G') > 25) if number % 7 else number % 2}")
        self.table.write_text("\n".join(rows) + "\n")

    def job(self, name: str, model: Path, out: Path | None = None) -> list[object]:
        """Return the arguments of a job; the output is `out`, or of the job's name in the folder."""
        command, _, suffix = name.partition(".")
        out = out or self.out(name)
        if command in ("score-vcf", "embed"):
            how = super().arguments(command)
            if command == "embed":
                how[how.index("--bin-size") + 1] = "2"
            return [*how[: how.index("-o")], "-o", out, *(["-W"] if suffix in ("tsv.gz", "bcf") else [])]
        if command == "pretrain":
            return [
                "pretrain", self.manifest, "--init", model, "--window", "64", "--batch-size", "2", "--accumulate", "1",
                "--steps", "40", "--warmup", "2", "--lr", "1e-2", "--val-every", "15", "--val-windows", "2",
                "--save-every", "0", "--precision", "float32", "-o", out,
            ]  # fmt: skip
        if command == "extrapolate":
            return ["extrapolate", "-f", self.fasta, "--lengths", "200,400,800,1600", "--sites", "8", "--target", "200",
                    "--precision", "float32", "-o", out]  # fmt: skip
        return [
            "finetune", "--table", self.table, "--label", "y", "-f", self.fasta, "--context", "200", "--epochs", "2",
            "--test", "one:50,000-60,000", "--folds", "2", "--block", "5kbp", "--allow-leaks", "--batch-size", "8",
            "--precision", "float32", "--train", "full" if command == "finetune-full" else "head", "-o", out,
        ]  # fmt: skip

    def out(self, name: str) -> Path:
        return self.folder / (f"o.{name.partition('.')[2]}" if "." in name else f"o.{name}")

    def begun(self, name: str) -> bool:
        """Tell whether a part of a job's output is there that will be gone on from."""
        out = self.out(name)
        if name in FILES:
            partial = out.with_name(out.name + ".partial")
            return partial.is_file() and partial.stat().st_size > (200_000 if name == "embed.h5" else 1_500)
        wanted = {
            "pretrain": "snapshot-0*", "extrapolate": "partial/*", "finetune": ".lock",
            "finetune-full": "fold-1/snapshot-0*",
        }  # fmt: skip
        return any(out.glob(wanted[name]))

    def outcome(self, name: str) -> object:
        """Return what must not depend on interruptions."""
        out = self.out(name)
        if name in FILES:
            return self.content(out.name)
        if name == "pretrain":
            names = ("log.tsv", "validation.tsv", "model.safetensors", "best/model.safetensors")
        elif name == "extrapolate":
            names = ("lengths.tsv",)
        else:
            names = ("metrics.json", "predictions.tsv", "model.safetensors", "head.safetensors")
        return {one: _stable(out / one) for one in names}

    def left(self, name: str) -> list[str]:
        """Name what is there beside the output that should not be."""
        out = self.out(name)
        found = out.rglob("*") if out.is_dir() else self.folder.glob("o.*")
        return sorted(p.name for p in found if "partial" in p.name or p.name == ".lock" or ".new" in p.name)


def _stable(path: Path) -> object:
    """Return the content of a file without times and memory."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix != ".tsv":
        return path.read_bytes()
    with open(path, newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    return [{key: value for key, value in row.items() if key not in _TIMES} for row in rows]


def moments(count: int, longest: float, seed: int) -> list[float]:
    """Draw moments of a run."""
    return np.random.default_rng(seed).uniform(0.0, longest, count).tolist()
