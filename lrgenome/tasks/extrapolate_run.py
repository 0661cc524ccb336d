"""Runs `lrgenome extrapolate`: models, lengths, probes, and their report."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lrgenome.config.head import HeadConfig
from lrgenome.engine.runners import AnyRunner
from lrgenome.engine.timescales import scale_timescales
from lrgenome.errors import MemoryLimitError, UsageError
from lrgenome.glossary import format_length
from lrgenome.io.atomic import os_error_as_output_error
from lrgenome.io.benchmark import READERS
from lrgenome.io.examples import Examples
from lrgenome.io.fasta import Fasta
from lrgenome.io.user_table import read_table
from lrgenome.models.checkpoint import LoadedModel, load_model
from lrgenome.models.nucleotide_transformer import NucleotideTransformer
from lrgenome.tasks.evaluation import MetricRow, evaluate
from lrgenome.tasks.extrapolate import (
    PROBE_LONGEST,
    Compared,
    ExtrapolateSettings,
    KeptLosses,
    LengthRow,
    Study,
    check_models,
    masked_losses,
    reference_length,
    trained_window,
)
from lrgenome.tasks.extrapolation_report import write_study
from lrgenome.tasks.finetune_settings import extras_of, labels_for
from lrgenome.tasks.meter import Meter
from lrgenome.tasks.probes import PROBES, Setting
from lrgenome.tasks.progress import Progress
from lrgenome.tasks.selection import Regions, parse_regions, read_regions
from lrgenome.tasks.setup import find_model, ready
from lrgenome.tasks.sites import choose_sites
from lrgenome.training.frozen import compute_features
from lrgenome.training.labelled import LabelledWindows
from lrgenome.training.tuning import Batches, predict

log = logging.getLogger(__name__)

PAPER_CHUNK = 100_000
"""Of the paper's hidden-state transfer, bp."""
_UNKNOWN = 12_000
"""Training length that is assumed where a checkpoint does not say."""
_PASS = 16_384


class TunedRows(NamedTuple):
    """The labelled rows that fine-tuned models are tested on."""

    benchmark: Path | None
    table: Path | None
    labels: tuple[str, ...]
    test: tuple[str, ...]
    tissue: str | None = None
    distance: str | None = None

    def read(self, config: HeadConfig) -> Examples:
        """Read them, for a model with a head; `UsageError` if they are not what it predicts."""
        examples = self._read(config)
        for what, got, expected in (
            ("labels", ", ".join(examples.outputs), ", ".join(config.outputs)), ("kind", examples.kind, config.kind),
            ("rows", *("variants" if it else "intervals" for it in (examples.variants, config.variants))),
        ):  # fmt: skip
            if got != expected:
                raise UsageError(f"--task tuned: got {what} {got}, expected {expected}, which the model was tuned on")
        return examples

    def _read(self, config: HeadConfig) -> Examples:
        task = config.task
        if self.table is not None:
            return read_table(
                self.table, list(self.labels), tissue=self.tissue, distance=self.distance, kind=config.kind
            )
        if task not in READERS or self.benchmark is None:
            raise UsageError(
                f"--task tuned: the model was tuned on {task!r}; expected --table with --label, or --benchmark"
            )
        return READERS[task](self.benchmark)


def run(
    output: Path, fasta_path: Path, models: Sequence[Path | None], settings: ExtrapolateSettings, *,
    probes: tuple[str, ...], regions: tuple[str, ...], regions_file: Path | None, scale: float | None,
    chunk: int | None, rows: TunedRows | None, resume: bool, options: dict[str, Any],
) -> Study:  # fmt: skip
    """Evaluate models at all lengths and by all probes, and write the report.

    Raises
    ------
    LrgenomeError
        As readers, models and writers raise it; lengths that a model cannot run are rows of the table instead.
    """
    # Gain is computed of the losses by length, whether it is named or not.
    chosen = tuple(PROBES) if "all" in probes else tuple(name for name in probes if name != "gain")
    if wrong := [name for name in chosen if name not in PROBES]:
        raise UsageError(f"--probe: got {wrong[0]!r}, expected some of {', '.join(PROBES)}, or all")
    if settings.near is not None and "context" not in chosen:
        raise UsageError(f"--near: got {settings.near} bp without --probe context")
    study, kept = Study(), KeptLosses(output / "partial", resume=resume)
    with Fasta(fasta_path) as fasta:
        where = read_regions(list(regions), regions_file, fasta.contigs, "auto")
        prepared = [_prepare(path, scale, chunk, options) for path in models]
        check_models(prepared)
        if rows is None:
            with os_error_as_output_error(output):
                masked_losses(prepared, fasta, where, settings, study, kept)
        else:
            for one in prepared:
                _tuned(one, fasta, settings, rows, study)
        trained = {one.name: one.trained for one in prepared if one.trained is not None}
        for name in chosen:
            study.probes[name] = []
        if chosen:
            with os_error_as_output_error(output):
                _probe(prepared, fasta, where, settings, chosen, study, kept)
    with os_error_as_output_error(output):
        output.mkdir(parents=True, exist_ok=True)
    what = "the task they were tuned on" if rows else "the loss at masked bases"
    write_study(
        output, study, title="Beyond the training length", trained=trained,
        intro=f"{', '.join(one.name for one in prepared)}; {what}, at windows of "
              f"{', '.join(format_length(length) for length in settings.lengths)} of {fasta_path.name}.",
    )  # fmt: skip
    kept.clear()
    for row in study.rows:
        value = f"{row.value:.4f}\t{row.low:.4f}\t{row.high:.4f}" if row.status == "OK" else f".\t.\t.\t{row.status}"
        print(f"{row.model}\t{row.strategy}\t{format_length(row.length)}\t{row.metric}\t{value}")
    return study


def _prepare(path: Path | None, scale: float | None, chunk: int | None, options: dict[str, Any]) -> Compared:
    """Load a model to see what it is; runners are made anew for each strategy."""

    def make(strategy: str) -> tuple[LoadedModel, AnyRunner]:
        recurrent = strategy in ("exact", "forward") or (strategy == "none" and not transformer)
        loaded, runner = ready(
            path, auto=None, chunk=None if not recurrent or strategy == "exact" else chunk or PAPER_CHUNK,
            transfer=strategy if recurrent else "exact", extension="none" if recurrent else strategy, **options,
        )  # fmt: skip
        return loaded, runner

    loaded = load_model(find_model(path, offline=bool(options.get("offline"))))
    transformer = isinstance(loaded.model, NucleotideTransformer)
    if scale is not None:
        if isinstance(loaded.model, NucleotideTransformer):
            raise UsageError("--timescale-scale is of recurrent models")
        scale_timescales(loaded.model, scale)

    def scaled(strategy: str) -> tuple[LoadedModel, AnyRunner]:
        made, runner = make(strategy)
        if scale is not None:
            assert not isinstance(made.model, NucleotideTransformer)
            scale_timescales(made.model, scale)
        return made, runner

    name = loaded.name if scale is None else f"{loaded.name} x{scale:g}"
    return Compared(name, loaded, trained_window(loaded), scaled)


def _probe(
    models: Sequence[Compared], fasta: Fasta, where: Regions | None, settings: ExtrapolateSettings,
    chosen: Sequence[str], study: Study, kept: KeptLosses,
) -> None:  # fmt: skip
    """Add the rows of each model's probes; those `kept` of a run before are not computed again."""
    longest = min(max(settings.lengths), PROBE_LONGEST)
    with Progress("probes", len(models) * len(chosen), "probes") as progress:
        for one in models:
            _, runner = one.make("none" if isinstance(one.loaded.model, NucleotideTransformer) else "exact")
            most = longest
            if isinstance(one.loaded.model, NucleotideTransformer):
                # Beyond its training length it is refused.
                most = min(longest, one.trained or longest)
            # Masked bases have as many beside them that are near, and these as many that are far.
            target = max(1, min(settings.masked, most // 4))
            sites = choose_sites(
                fasta, where, longest=longest, target=target, count=settings.sites, seed=settings.seed
            )
            with runner:
                at = Setting(
                    one.name, runner, fasta, sites, most, one.trained or _UNKNOWN, settings.seed, settings.near
                )  # fmt: skip
                for name in chosen:
                    near = at.near if name == "context" else None
                    what = f"probe {name} {most} {at.trained} {settings.seed} {near}"
                    key = kept.key(one.loaded.sha256, one.name, what, longest, runner, fasta, sites)
                    try:
                        if (found := (kept.load(key) or {}).get("rows")) is None:
                            found = list(PROBES[name](at))
                            kept.save(key, {"rows": found})
                        study.probes[name] += found
                    except (UsageError, MemoryLimitError) as error:
                        log.warning("%s, probe %s: %s", one.name, name, error)
                    progress.update(1)


def _tuned(
    one: Compared, fasta: Fasta, settings: ExtrapolateSettings, rows: TunedRows, study: Study
) -> None:
    """Add the metrics of a fine-tuned model on its test rows, the same ones at every length."""
    head = one.loaded.head
    if head is None:
        raise UsageError(f"--task tuned: {one.name} has no head; `lrgenome finetune` makes one")
    examples = rows.read(head.config)
    wanted = rows.test
    if not wanted and rows.table is not None:
        # What it was tested on, so that rows which it was trained on are not taken for test rows.
        wanted = tuple(one.loaded.meta.get("finetune", {}).get("settings", {}).get("test", ()))
        if wanted:
            log.info("%s is tested on %s, as when it was tuned", one.name, ", ".join(wanted))
    elif wanted:
        log.warning("--test: see that %s was not trained on %s", one.name, ", ".join(wanted))
    longest = LabelledWindows(examples, fasta, max(settings.lengths))
    kept = longest.keep(common=min(settings.lengths)).rows
    if wanted:
        regions = Regions(parse_regions(list(wanted), fasta.contigs, "auto"))
        inside = [
            regions.overlaps(str(longest.contigs[row]), int(examples.start[row]), int(examples.end[row]))
            for row in kept
        ]
        test = kept[np.array(inside, dtype=bool)]
    else:
        test = kept[examples.split[kept] == "test"]
    if not len(test):
        raise UsageError("--task tuned: no test rows have a window of every length; shorter --lengths, or --test")
    log.info("%d test rows have a window of %s", len(test), format_length(max(settings.lengths)))
    for strategy in settings.strategies(one.loaded.model):
        predictions = {}
        _, runner = one.make(strategy)
        with runner:
            for length in settings.lengths:
                config = dataclasses.replace(head.config, context=length)
                windows, row = LabelledWindows(examples, fasta, length), LengthRow(one.name, strategy, length, "")
                try:
                    runner.plan(1, length)
                    with Meter(runner.device) as meter:
                        features = compute_features(
                            runner, windows, test, config, model_sha256=one.loaded.sha256, cache=None,
                            at_once=max(2 if config.variants else 1, _PASS // length),
                        )  # fmt: skip
                except (UsageError, MemoryLimitError) as error:
                    row.metric, row.status = _main_metric(head.config.kind), f"{type(error).__name__}: {error}"
                    row.trained = head.config.context
                    study.rows.append(row)
                    continue
                labels = labels_for(examples, config)
                batches = _batches(examples, config, features, labels)
                predictions[length] = (predict(head, head, batches, test, 4_096), labels, meter)
        _add_metrics(study, one, strategy, settings, examples, test, predictions, head.config.context)


def _batches(examples: Examples, config: Any, features: Any, labels: Any) -> Batches:
    return Batches(
        lambda part: torch.from_numpy(np.asarray(features.values[features.place[part]])),
        extras_of(examples, config, torch.device("cpu")), lambda part: torch.from_numpy(labels[part]), examples.name_of,
    )  # fmt: skip


def _middle(values: Any, bins: int) -> Any:
    first = (values.shape[1] - bins) // 2
    return values[:, first : first + bins]


def _main_metric(kind: str) -> str:
    return "R2" if kind == "numbers" else "AUROC"


def _add_metrics(
    study: Study, one: Compared, strategy: str, settings: ExtrapolateSettings, examples: Examples, test: Any,
    predictions: dict[int, Any], trained: int,
) -> None:  # fmt: skip
    """Take metrics at each length, and how far they are from those at the reference length, at the same samples."""
    if not predictions:
        return
    reference = reference_length(trained, sorted(predictions))
    named = {format_length(length): found[0] for length, found in predictions.items()}
    labels = predictions[reference][1][test]
    if labels.ndim == 3:
        # The bins that the shortest window has, which lie in the middle of all.
        bins = min(values.shape[1] for values in named.values())
        named = {name: _middle(values, bins) for name, values in named.items()}
        labels = _middle(labels, bins)
    rows: list[MetricRow] = evaluate(
        dataclasses.replace(examples.take(test), labels=labels, group=None), named,
        baseline=format_length(reference), seed=settings.seed,
    )  # fmt: skip
    sides = 2 if examples.variants else 1
    for length, (_, _, meter) in predictions.items():
        for metric in rows:
            if metric.subset != "all" or metric.model != format_length(length):
                continue
            gap = metric.over_baseline
            over = (gap.value, gap.low, gap.high) if gap else (0.0, 0.0, 0.0)
            study.rows.append(LengthRow(
                one.name, strategy, length, metric.metric, metric.value, metric.low, metric.high, over, metric.n,
                meter.seconds, length * sides * len(test), meter.host, meter.gpu, trained,
            ))  # fmt: skip
