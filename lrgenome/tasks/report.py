"""The report of a fine-tuning: metrics as JSON and TSV, predictions, and a figure."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lrgenome.config.head import HeadConfig
from lrgenome.errors import OutputExistsError
from lrgenome.io.atomic import atomic_output
from lrgenome.io.evaluation_figure import evaluation_figure
from lrgenome.io.examples import Examples
from lrgenome.tasks.evaluation import MetricRow

Floats = npt.NDArray[np.float32]
REPORT = "metrics.json"
"""Written last: a folder that has it holds a finished run."""
METRIC_COLUMNS = ("model", "subset", "metric", "value", "low", "high", "n", "positives", "over_composition",
                  "over_low", "over_high")  # fmt: skip


@dataclass
class FinetuneReport:
    """What a run found."""

    rows: dict[str, Any] = field(default_factory=dict)
    """How many rows were read, dropped, trained on and tested."""
    validation: list[float] = field(default_factory=list)
    """Lowest validation loss of each fold."""
    metrics: list[MetricRow] = field(default_factory=list)
    predictions: dict[str, Floats] = field(default_factory=dict)
    """Of test rows, by model."""


def metric_cells(row: MetricRow) -> list[str]:
    """Write a metric as cells of `METRIC_COLUMNS`."""
    over = row.over_baseline or (math.nan,) * 3
    return [row.model, row.subset, row.metric, *map(_cell, row[3:6]), str(row.n), str(row.positives), *map(_cell, over)]


def _cell(value: float) -> str:
    return "." if math.isnan(value) else f"{value:.6g}"


def write_report(
    output: Path, report: FinetuneReport, examples: Examples, test: npt.NDArray[np.int64], labels: Floats,
    config: HeadConfig,
) -> None:  # fmt: skip
    """Write ``metrics.tsv``, ``predictions.tsv``, ``test.png`` and, last, ``metrics.json`` to a folder."""
    with atomic_output(output / "metrics.tsv", "w") as handle:
        handle.write("\t".join(METRIC_COLUMNS) + "\n")
        handle.writelines("\t".join(metric_cells(row)) + "\n" for row in report.metrics)
    _write_predictions(output / "predictions.tsv", report, examples, test, labels)
    first = next(iter(report.predictions))
    evaluation_figure(
        output / "test.png", config.kind, _flat(labels[test]),
        {name: _flat(values) for name, values in report.predictions.items() if name in (first, "composition")},
        config.task,
    )  # fmt: skip
    content = {
        "rows": report.rows, "validation_loss": report.validation, "head": config.to_json(),
        "metrics": [
            {**row._asdict(), "over_baseline": row.over_baseline._asdict() if row.over_baseline else None}
            for row in report.metrics
        ],
    }  # fmt: skip
    with atomic_output(output / REPORT, "w") as handle:
        json.dump(_finite(content), handle, indent=1)
        handle.write("\n")


def print_report(report: FinetuneReport) -> None:
    """Print the metrics over all rows, and within groups, as a table."""
    print("\t".join(("model", "subset", "metric", "value", "low", "high", "n")))
    for row in report.metrics:
        if row.subset in ("all", "within groups"):
            print("\t".join([row.model, row.subset, row.metric, *(f"{v:.4f}" for v in row[3:6]), str(row.n)]))


def _finite(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {name: _finite(of) for name, of in value.items()}
    if isinstance(value, list):
        return [_finite(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(values: Floats) -> Floats:
    return values.reshape(-1, values.shape[-1])


def _write_predictions(
    path: Path, report: FinetuneReport, examples: Examples, test: npt.NDArray[np.int64], labels: Floats
) -> None:
    """Write a row for each test row and output: what is true, and what each model says."""
    models = list(report.predictions)
    with atomic_output(path, "w") as handle:
        handle.write("\t".join(["#line", "contig", "start", "end", "ref", "alt", "tissue", "bin", "output", "label",
                                *(name.replace(" ", "_") for name in models)]) + "\n")  # fmt: skip
        for i, row in enumerate(test):
            key = [
                str(examples.line[row]), str(examples.contig[row]), str(examples.start[row]), str(examples.end[row]),
                "." if examples.ref is None else str(examples.ref[row]),
                "." if examples.alt is None else str(examples.alt[row]),
                "." if examples.tissue is None else examples.tissues[examples.tissue[row]],
            ]  # fmt: skip
            own = labels[row] if labels.ndim == 3 else labels[row][None]
            for place in range(len(own)):
                where = str(place) if labels.ndim == 3 else "."
                for output, name in enumerate(examples.outputs):
                    said = [
                        float(values[i, place, output] if values.ndim == 3 else values[i, output])
                        for values in report.predictions.values()
                    ]
                    cells = [*key, where, name, _cell(float(own[place, output])), *map(_cell, said)]
                    handle.write("\t".join(cells) + "\n")


def check_output(output: Path, *, resume: bool, no_clobber: bool) -> None:
    """See that a run may write to its folder.

    Raises
    ------
    OutputExistsError
        If there is a run, and it is neither to be resumed nor replaced.
    """
    if no_clobber and (output / REPORT).exists():
        raise OutputExistsError(f"{output}: holds a report already, and --no-clobber was given")
    if _folds(output) and not resume and not (output / REPORT).exists():
        raise OutputExistsError(f"{output}: holds a run already; --resume continues it, or remove the folder")


def clear_output(output: Path) -> None:
    """Remove the report and the folds of a run before this one."""
    # The report first: without it, folds are those of a run to go on with.
    for fold in _folds(output):
        shutil.rmtree(fold)
    (output / REPORT).unlink(missing_ok=True)


def _folds(output: Path) -> list[Path]:
    return sorted(path for path in output.glob("fold-*") if path.name.removeprefix("fold-").isdigit())
