"""Custom content of MultiQC: sections that it shows without a module of its own.

MultiQC finds files that end in ``_mqc.json``, one plot in each, and joins those of one ``id`` by sample.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrgenome.io.alleles import STATUSES
from lrgenome.io.atomic import atomic_output
from lrgenome.io.summary import Summary

SUFFIX = "_mqc.json"

_COLOURS = {"OK": "#4daf4a", "EDGE": "#a6d854", "REF_MISMATCH": "#ff7f00"}
_NOT_SCORED = ("#e41a1c", "#984ea3", "#377eb8", "#f781bf", "#a65628", "#66c2a5", "#8da0cb", "#e5c494", "#666666")
_PARENT = {
    "parent_id": "lrgenome",
    "parent_name": "lrgenome",
    "parent_description": "State-space models of DNA: scores of variants, embeddings of genomes.",
}


def status_bars(sample: str, summary: Summary) -> dict[str, Any]:
    """Make a bar graph of the ALT alleles by status."""
    rest = iter(_NOT_SCORED)
    categories = {name: {"name": name, "color": _COLOURS.get(name) or next(rest)} for name in STATUSES}
    return {
        "id": "lrgenome_status", **_PARENT, "section_name": "Variants by status",
        "description": "ALT alleles that score-vcf read, by STATUS. An allele with two statuses counts in both.",
        "plot_type": "bargraph",
        "pconfig": {
            "id": "lrgenome_status_plot", "title": "lrgenome: variants by status", "ylab": "ALT alleles",
            "cpswitch_counts_label": "ALT alleles",
        },
        "categories": categories,
        "data": {sample: {name: summary.statuses.get(name, 0) for name in STATUSES}},
    }  # fmt: skip


def score_statistics(summary: Summary) -> dict[str, float]:
    """Give the values of score-vcf in the table of general statistics."""
    alleles = summary.alleles
    percent = {"scored": alleles - summary.skipped, "mismatch": summary.statuses.get("REF_MISMATCH", 0)}
    return {"alleles": alleles, **({name: 100 * n / alleles for name, n in percent.items()} if alleles else {})}


_HEADERS: dict[str, dict[str, dict[str, Any]]] = {
    "score": {
        "alleles": {"title": "Alleles", "description": "ALT alleles read", "format": "{:,.0f}", "min": 0,
                    "scale": "Blues"},
        "scored": {"title": "Scored", "description": "ALT alleles with a score", "suffix": "%", "format": "{:,.1f}",
                   "min": 0, "max": 100, "scale": "RdYlGn"},
        "mismatch": {"title": "REF differs", "description": "ALT alleles whose REF is not what the FASTA has",
                     "suffix": "%", "format": "{:,.2f}", "min": 0, "max": 100, "scale": "OrRd"},
    },
    "embed": {
        "rows": {"title": "Embeddings", "description": "Rows of embeddings", "format": "{:,.0f}", "min": 0,
                 "scale": "Purples"},
        "megabases": {"title": "Mbp", "description": "Bases embedded, in Mbp", "format": "{:,.2f}", "min": 0,
                      "scale": "Greens"},
        "unknown": {"title": "N", "description": "Of the bases embedded, those that are N", "suffix": "%",
                    "format": "{:,.2f}", "min": 0, "max": 100, "scale": "OrRd"},
    },
}  # fmt: skip


def general_statistics(kind: str, sample: str, values: Mapping[str, float]) -> dict[str, Any]:
    """Make columns of the table of general statistics, for ``score`` or ``embed``.

    MultiQC takes the columns of an ``id`` from the last file that it reads, so they do not depend on the values.
    """
    return {
        "id": f"lrgenome_{kind}", "plot_type": "generalstats",
        "pconfig": [{name: {"namespace": "lrgenome", **header}} for name, header in _HEADERS[kind].items()],
        "data": {sample: dict(values)},
    }  # fmt: skip


def write_content(path: Path, content: Mapping[str, Any]) -> None:
    """Write one file of custom content."""
    with atomic_output(path, "w") as handle:
        json.dump(content, handle, indent=1)
        handle.write("\n")
