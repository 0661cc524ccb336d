"""Writes what `lrgenome extrapolate` found: tables, figures and one HTML report."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrgenome.io import extrapolation_figures as figures
from lrgenome.io.atomic import atomic_output
from lrgenome.io.html_report import Section, html_report
from lrgenome.tasks.extrapolate import LengthRow, Study, gains
from lrgenome.tasks.probes import summary_of_timescales

Row = Mapping[str, Any]
_TEXTS = {
    "lengths": "The same masked bases, or rows, at every length. Dashed: training length. A cross marks a length that "
               "could not be run; its reason is in the table.",
    "cost": "Wall-clock time of one window, and the most memory that the process held while it ran.",
    "gain": "How much lower the loss is than at the length before, of the same bases: what more context is worth.",
    "context": "reset: without any state from beyond the near bases. swap: with the far bases of another place. "
               "Intervals are of paired differences; where both include zero, far bases are not used.",
    "reach": "Change of the predictions when all beyond so many bases is swapped for another place.",
    "timescales": "Median half-life of each state on real sequence.",
    "recall": "How much lower the loss at a segment is when a copy of it lies so far to its left.",
    "drift": "Norm of each block's state as it sees more, over its mean within the training length.",
}  # fmt: skip
_WIDE, _NARROW = (9.6, 3.8), (7.2, 3.8)
_TITLES = {
    "lengths": "Metric by window length", "cost": "Time and memory", "gain": "What each doubling of context is worth",
    "context": "Carried, reset and swapped context", "reach": "Reach", "timescales": "Timescales", "recall": "Recall",
    "drift": "Drift of states",
}  # fmt: skip


def length_cells(row: LengthRow) -> dict[str, Any]:
    """Write a row of the table of lengths."""
    windows = row.bases / row.length if row.length else 0
    peak = row.device if row.device is not None else row.host
    return {
        "model": row.model, "strategy": row.strategy, "length": row.length, "metric": row.metric, "value": row.value,
        "low": row.low, "high": row.high, "over_reference": row.over[0], "over_low": row.over[1],
        "over_high": row.over[2], "n": row.n, "seconds": row.seconds,
        "seconds_per_window": row.seconds / windows if windows else math.nan,
        "bp_per_s": row.bases / row.seconds if row.seconds > 0 else math.nan, "host_bytes": row.host,
        "device_bytes": row.device, "gb": None if peak is None else peak / 1e9, "trained": row.trained,
        "status": row.status,
    }  # fmt: skip


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with the same keys as TSV; what is not known is ``.``."""
    with atomic_output(path, "w") as handle:
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([_cell(value) for value in row.values()] for row in rows)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "."
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())


def write_study(output: Path, study: Study, *, title: str, intro: str, trained: Mapping[str, int]) -> None:
    """Write a table and a figure of everything that was found, and ``report.html``.

    Raises
    ------
    OutputError
        If something cannot be written.
    """
    sections: list[Section] = []
    lengths = [length_cells(row) for row in study.rows]
    known = [row["model"] for rows in (lengths, *study.probes.values()) for row in rows]
    looks = figures.Looks(known, [row["strategy"] for row in lengths])

    def add(name: str, rows: Sequence[Row], draw: Callable[[Any], None], shown: Sequence[Row] | None = None) -> None:
        write_table(output / f"{name}.tsv", rows)
        svg = figures.save_both(output, name, draw, size=_WIDE if name == "recall" else _NARROW)
        sections.append(Section(_TITLES[name], _TEXTS[name], svg, rows if shown is None else shown))

    if lengths:
        for metric in dict.fromkeys(row["metric"] for row in lengths):
            own = [row for row in lengths if row["metric"] == metric]
            name = "lengths" if metric == lengths[0]["metric"] else f"lengths-{metric.lower()}"
            write_table(output / f"{name}.tsv", own)
            svg = figures.save_both(output, name, figures.metric_figure(own, metric, looks), size=_WIDE)
            shown = [{k: v for k, v in row.items() if k not in ("host_bytes", "device_bytes")} for row in own]
            sections.append(Section(f"{_TITLES['lengths']}: {metric}", _TEXTS["lengths"], svg, shown))
        svg = figures.save_both(output, "cost", figures.cost_figure(lengths, looks), size=_WIDE)
        sections.append(Section(_TITLES["cost"], _TEXTS["cost"], svg, []))
    if steps := list(gains(study)):
        add("gain", steps, figures.gain_figure(steps, looks))
    for name, rows in study.probes.items():
        if not rows:
            continue
        if name == "timescales":
            models = dict.fromkeys(row["model"] for row in rows)
            summary = [
                line for model in models
                for line in summary_of_timescales([r for r in rows if r["model"] == model], trained.get(model, 12_000))
            ]  # fmt: skip
            add(name, rows, figures.timescale_figure(rows, looks, trained), summary)
            write_table(output / "timescales-summary.tsv", summary)
        else:
            draw = {"context": figures.context_figure, "reach": figures.reach_figure, "recall": figures.recall_figure,
                    "drift": figures.drift_figure}[name]  # fmt: skip
            add(name, rows, draw(rows, looks))
    with atomic_output(output / "report.html", "w") as handle:
        handle.write(html_report(title, intro, sections))

