"""Miniature files in the formats of the Genomics Long-Range Benchmark, made from real sequence.

Contigs chr1 .. chr10 of 12 kbp are cut out of human chr20 (the demo's FASTA). Labels follow the sequence, so that there
is something to learn: 1 where the 200 bp around a place hold more G and C than most places do.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pysam

import lrgenome

DEMO = Path(lrgenome.__file__).parent / "assets" / "demo" / "GRCh37.chr20.first-2Mbp.fa.gz"
SIZE, FIRST = 12_000, 200_000
CONTIGS = tuple(f"chr{number}" for number in range(1, 11))
TEST = ("chr8", "chr9")
TISSUES = ("Adipose_Subcutaneous", "Whole_Blood", "Liver")
TRACKS, BINS = 3, 16


class Benchmark:
    """The files, and what was written to them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fasta = folder / "benchmark", folder / "genome.fa"
        with pysam.FastaFile(str(DEMO)) as source:
            text = source.fetch("20", FIRST, FIRST + SIZE * len(CONTIGS)).upper()
        self.sequences = {name: text[i * SIZE : (i + 1) * SIZE] for i, name in enumerate(CONTIGS)}
        assert "N" not in text
        with open(self.fasta, "w") as handle:
            for name, s in self.sequences.items():
                handle.write(f">{name}\n" + "".join(s[i : i + 60] + "\n" for i in range(0, SIZE, 60)))
        gc = [self.gc(name, at) for name in CONTIGS for at in range(200, SIZE - 200, 100)]
        self.middle = float(np.median(gc))
        self.rng = np.random.default_rng(0)
        self.write_variants()
        self.write_bins()
        self.write_chromatin()
        self.write_rna()
        self.write_cage()

    def gc(self, name: str, at: int) -> float:
        """Return the share of G and C in the 200 bp around a 0-based place."""
        around = self.sequences[name][at - 100 : at + 100]
        return (around.count("G") + around.count("C")) / 200

    def label(self, name: str, at: int) -> int:
        return int(self.gc(name, at) > self.middle)

    def places(self, each: int, low: int = 1_000) -> list[tuple[str, int]]:
        """Draw 0-based places, so many a contig, at least `low` from both ends."""
        return [(name, int(at)) for name in CONTIGS for at in np.sort(self.rng.integers(low, SIZE - low, each))]

    def table(self, name: str, rows: list[dict[str, object]]) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def write_variants(self) -> None:
        self.variants = self.places(24)
        eqtl, coding, non_coding = [], [], []
        for i, (name, at) in enumerate(self.variants):
            ref = self.sequences[name][at]
            alt = "ACGT"[("ACGT".index(ref) + 1 + i % 3) % 4]
            split = "test" if name in TEST else "train"
            base = {"CHROM": name, "POS": at + 1}
            eqtl += [
                {**base, "ALT": alt, "label": self.label(name, at), "tissue": tissue,
                 "distance_to_nearest_TSS": 10_000 * (i % 13), "split": split}
                for tissue in TISSUES
            ]  # fmt: skip
            coding.append({**base, "REF": ref, "ALT": alt, "INT_LABEL": self.label(name, at), "split": split})
            non_coding.append({**base, "REF": ref, "ALT": alt, "INT_LABEL": self.label(name, at)})
        self.table("variant_effect_causal_eqtl/All_Tissues.csv", eqtl)
        self.table("variant_effect_pathogenic/vep_pathogenic_coding.csv", coding)
        # The test rows of OMIM must not be ClinVar's training rows.
        self.table("variant_effect_pathogenic/vep_pathogenic_non_coding_subset.csv",
                   [row for row in non_coding if row["CHROM"] in TEST])  # fmt: skip

    def write_bins(self) -> None:
        rows = [
            {"CHROM": name, "START": at - 99, "STOP": at + 101, "label": self.label(name, at),
             "split": "test" if name in TEST else "train"}
            for name, at in self.places(30)
        ]  # fmt: skip
        self.table("regulatory_elements/promoter_dataset_subset.csv", rows)
        self.table("regulatory_elements/enhancer_dataset_subset.csv", rows)

    def write_chromatin(self) -> None:
        rows = []
        for name, at in self.places(30):
            marks = [mark for mark, more in enumerate((-0.05, 0.0, 0.05)) if self.gc(name, at) > self.middle + more]
            rows.append({"CHROM": name, "POS": at + 1, "HISTONES": str(marks), "DNASE": str(marks[:2]),
                         "split": "test" if name in TEST else "train"})  # fmt: skip
        self.table("chromatin_features/histones_and_dnase_subset.csv", rows)

    def write_rna(self) -> None:
        genes, values = [], []
        for i, (name, at) in enumerate(self.places(20)):
            genes.append({"id": f"ENSG{i:011d}", "chrom": name, "strand": "+-"[i % 2],
                          "CAGE_representative_TSS": at + 1, "split": "test" if name in TEST else "train"})  # fmt: skip
            level = 10 * (self.gc(name, at) - self.middle)
            values.append({f"tissue {t}": f"{level + 0.1 * self.rng.normal():.4f}" for t in range(4)})
        self.genes = genes
        self.table("bulk_rna_expression/gene_coordinates.csv", genes)
        self.table("bulk_rna_expression/rna_expression_values.csv", values)

    def write_cage(self) -> None:
        """Windows of 16 bins of 128 bp with three tracks each, in files of three windows."""
        rows: list[dict[str, object]] = []
        self.targets: dict[str, list[np.ndarray]] = {"train": [], "valid": [], "test": []}
        span = BINS * 128
        for name in CONTIGS:
            split = "test" if name in TEST else "validation" if name == "chr7" else "train"
            own = self.targets["valid" if split == "validation" else split]
            for start in range(1_000, SIZE - span - 1_000, span):
                rows.append({"chrom": name, "start": start + 1, "stop": start + span + 1, "split": split,
                             "npy_idx": len(own)})  # fmt: skip
                level = [self.gc(name, start + 64 + 128 * k) for k in range(BINS)]
                own.append(np.round(100 * np.outer(level, np.arange(1, TRACKS + 1))))
        self.table("cage_prediction/sequences_coordinates.csv", rows)
        folder = self.folder / "cage_prediction" / "targets_subset"
        folder.mkdir()
        for split, own in self.targets.items():
            for low in range(0, len(own), 3):
                high = min(low + 3, len(own)) - 1
                np.savez(folder / f"targets-{split}-{low}-{high}.npz",
                         **{f"target-{split}-{k}": own[k][None] for k in range(low, high + 1)})  # fmt: skip
