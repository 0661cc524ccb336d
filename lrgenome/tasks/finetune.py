"""`lrgenome finetune`: train a head, or a head and its model, on labelled variants or intervals, and test it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lrgenome.engine.memory import graph_bytes
from lrgenome.engine.runners import AnyRunner
from lrgenome.engine.warm import compile_kernels
from lrgenome.errors import UsageError
from lrgenome.io.atomic import os_error_as_output_error
from lrgenome.io.examples import Examples
from lrgenome.io.fasta import Fasta, read_alias_table
from lrgenome.models.checkpoint import LoadedModel, save_model
from lrgenome.models.families import Model
from lrgenome.models.heads import Head, save_head
from lrgenome.models.nucleotide_transformer import NucleotideTransformer
from lrgenome.tasks import composition
from lrgenome.tasks.benchmarks import TASKS
from lrgenome.tasks.compute import Compute, free_memory
from lrgenome.tasks.evaluation import evaluate
from lrgenome.tasks.finetune_settings import FinetuneSettings, extras_of, head_config, labels_for
from lrgenome.tasks.leaks import LeakFinder, check_leaks
from lrgenome.tasks.progress import Progress
from lrgenome.tasks.report import FinetuneReport, clear_output, write_report
from lrgenome.tasks.score_vcf import measure_rate
from lrgenome.tasks.selection import Regions, parse_regions
from lrgenome.tasks.splits import Fold, Splits, split_rows
from lrgenome.training.frozen import LINEAR, compute_features, fit_linear
from lrgenome.training.labelled import LabelledWindows
from lrgenome.training.stretches import pools_alleles, stretches_of, width_of
from lrgenome.training.tuning import (
    Batches,
    TunedModel,
    Windows,
    fit_rows,
    identity_of,
    mean_loss,
    positive_weights,
    predict,
    rows_at_once,
)

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
PASS = 16_384
"""Bases that go through a model at once, as far as whole rows allow."""
_GRAPH_SHARE = 0.6
_HEAD_BATCH = 4_096
_DONE = "fold.json"


class Finetuner:
    """One run: rows, windows, folds, and what is made of them.

    Parameters
    ----------
    examples
        All rows.
    fasta
        The genome.
    loaded
        The model.
    runner
        It, ready for inference; None where it is trained too.
    compute
        Device and precision.
    output
        Folder for the checkpoint and the report.
    cache
        Folder of features; None: not kept.
    """

    def __init__(
        self, examples: Examples, fasta: Fasta, loaded: LoadedModel, runner: AnyRunner | None,
        settings: FinetuneSettings, compute: Compute, output: Path, *, cache: Path | None, resume: bool,
    ) -> None:  # fmt: skip
        self.settings, self.loaded, self.runner, self.compute = settings, loaded, runner, compute
        self.output, self.cache, self.resume = output, cache, resume
        alias = settings.chrom_alias
        self.alias = alias if alias in ("auto", "none") else read_alias_table(alias)
        self.windows = LabelledWindows(examples, fasta, settings.context, self.alias)
        self.examples = examples
        self.config = head_config(settings, examples, width_of(loaded.model))
        stretches_of(self.config, settings.context)
        self.labels = labels_for(examples, self.config)
        self.extras = extras_of(examples, self.config, compute.device)
        self.report = FinetuneReport()

    # --- rows
    def divide(self) -> Splits:
        """Find the rows that have windows, divide them into folds, and see that no fold knows its test rows."""
        settings, fasta = self.settings, self.windows.fasta
        kept = self.windows.keep(common=settings.common, max_n=settings.max_n)
        for reason, count in kept.dropped.items():
            log.warning("%d of %d rows dropped: %s", count, len(self.examples), reason)
        regions = [
            Regions(parse_regions(list(texts), fasta.contigs, self.alias)) if texts else None
            for texts in (settings.test, settings.validation)
        ]
        splits = split_rows(
            self.windows, kept.rows, test=regions[0], validation=regions[1], folds=settings.folds, only=settings.fold,
            block=settings.block, whole_contigs=settings.task in TASKS, seed=settings.tune.seed,
        )  # fmt: skip
        finder = LeakFinder(self.windows, kept.rows)
        leaks: dict[str, Any] = {}
        folds: list[Fold] = []
        for fold in splits.folds:
            number = fold.number + 1
            known = np.union1d(fold.train, fold.validation).astype(np.int64)
            found = {
                "test": finder.find(known, splits.test, near=not folds),
                "validation": finder.find(fold.train, fold.validation, near=not folds),
            }
            if settings.leaks == "drop":
                drop = np.union1d(found["test"].rows, found["validation"].rows)
                validation = np.setdiff1d(fold.validation, found["test"].rows)
                fold = Fold(np.setdiff1d(fold.train, drop), validation, fold.number)
                log.info("fold %d: %d rows left out, which would know of test or validation rows", number, len(drop))
            for what, leak in found.items():
                if settings.leaks == "drop":
                    leak = leak._replace(overlapping=leak.overlapping[:0], copies=leak.copies[:0])
                check_leaks(leak, what, allow=settings.leaks != "stop")
            if not len(fold.train) or not len(fold.validation):
                raise UsageError(f"fold {number}: no rows left to train or validate on")
            if settings.max_rows is not None and len(fold.train) > settings.max_rows:
                rng = np.random.default_rng([settings.tune.seed, number])
                fold = fold._replace(train=np.sort(rng.choice(fold.train, settings.max_rows, replace=False)))
            leaks[f"fold {number}"] = {what: leak.to_json() for what, leak in found.items()}
            folds.append(fold)
        self.report.rows = {
            "read": len(self.examples), "dropped": kept.dropped, "test": len(splits.test), "leaks": leaks,
            "folds": [{"train": len(fold.train), "validation": len(fold.validation)} for fold in folds],
        }  # fmt: skip
        log.info("%d rows to test; to train and validate, by fold: %s", len(splits.test),
                 ", ".join(f"{len(fold.train)} + {len(fold.validation)}" for fold in folds))  # fmt: skip
        return Splits(folds, splits.test)

    # --- training
    def plan(self) -> None:
        """Print how many rows, windows and bases there are, and for a frozen model how long its features take."""
        splits = self.divide()
        used = self._used(splits)
        windows = len({self.windows.identity(int(row)) for row in used})
        bases = windows * self.settings.context * (2 if self.config.variants else 1)
        bases *= 2 if self.config.strand == "both" else 1
        print(f"rows\t{len(self.examples)}\ntest\t{len(splits.test)}")
        for fold in splits.folds:
            print(f"fold {fold.number + 1}\t{len(fold.train)} to train, {len(fold.validation)} to validate")
        print(f"windows\t{windows}\nbases_to_run\t{bases}")
        if self.runner is not None:
            rate = measure_rate(self.runner, max(1, PASS // self.settings.context), self.settings.context)
            print(f"expected_seconds\t{bases / rate:.0f}")

    def run(self) -> FinetuneReport:
        """Train every fold, test, and write checkpoint and report."""
        splits = self.divide()
        if not self.resume:
            with os_error_as_output_error(self.output):
                clear_output(self.output)
        train = self._full if self.settings.train == "full" else self._frozen(splits)
        predictions: list[Floats] = []
        base: list[Floats] = []
        best: tuple[float, Model, Head] | None = None
        used = self._used(splits)
        known = composition.composition(self.windows, used)
        place = {int(row): i for i, row in enumerate(used)}
        for fold in splits.folds:
            loss, model, head, tested = train(fold.number, fold, splits.test)
            predictions.append(tested)
            base.append(self._baseline(known, place, fold, splits.test))
            self.report.validation.append(loss)
            if best is None or loss < best[0]:
                best = loss, model, head
            log.info("fold %d: validation loss %.4f", fold.number + 1, loss)
        assert best is not None
        self._evaluate(splits.test, predictions, base)
        with os_error_as_output_error(self.output):
            self.output.mkdir(parents=True, exist_ok=True)
            meta = {**_origin(self.loaded.meta), "finetune": self._meta()}
            save_model(best[1], self.output, meta)
            save_head(best[2], self.output)
        write_report(self.output, self.report, self.examples, splits.test, self.labels, self.config)
        return self.report

    def _used(self, splits: Splits) -> Rows:
        return np.unique(np.concatenate([splits.test, *(rows for fold in splits.folds for rows in fold[:2])]))

    def _meta(self) -> dict[str, Any]:
        return {
            "task": self.settings.task, "settings": _plain(dataclasses.asdict(self.settings)),
            "model": self.loaded.name, "model_sha256": self.loaded.sha256,
            "reference": self.windows.fasta.fingerprint(), "torch": torch.__version__,
        }  # fmt: skip

    def _frozen(self, splits: Splits) -> Any:
        """Compute features of all rows, and return what trains a fold on them."""
        assert self.runner is not None
        used, config = self._used(splits), self.config
        sides = 2 if config.variants else 1
        with Progress("features", len({self.windows.identity(int(row)) for row in used}), "windows") as progress:
            features = compute_features(
                self.runner, self.windows, used, config, model_sha256=self.loaded.sha256, cache=self.cache,
                at_once=max(sides, PASS // self.settings.context), progress=progress,
            )  # fmt: skip

        def inputs(rows: Rows) -> torch.Tensor:
            return torch.from_numpy(np.asarray(features.values[features.place[rows]])).to(self.compute.device)

        def train(number: int, fold: Fold, test: Rows) -> tuple[float, Model, Head, Floats]:
            torch.manual_seed(self.settings.tune.seed + number)
            batches = self._batches(inputs)
            if self.settings.train in LINEAR:
                blank = Head(config)
                x, x_val = (
                    torch.cat([
                        blank.inputs_of(inputs(part), self.extras(part))[:, 0].cpu()
                        for part in np.array_split(rows, max(1, len(rows) // _HEAD_BATCH))
                    ]).numpy()
                    for rows in fold[:2]
                )  # fmt: skip
                head = fit_linear(
                    self.settings.train, config, x, self.labels[fold.train], x_val, self.labels[fold.validation],
                    balanced=self.settings.tune.class_weights == "balanced", seed=self.settings.tune.seed,
                )  # fmt: skip
                head = head.to(self.compute.device)
                loss = mean_loss(
                    head, head, batches, fold.validation, torch.ones(len(config.outputs), device=self.compute.device),
                    _HEAD_BATCH,
                )  # fmt: skip
            else:
                head = Head(config)
                standardise(head, features.values[np.unique(features.place[fold.train])])
                head = head.to(self.compute.device)
                loss = fit_rows(
                    head, head, batches, fold.train, fold.validation, self.settings.tune, fold=number,
                    weights=self._weights(fold), at_once=_HEAD_BATCH,
                )  # fmt: skip
            return loss, self.loaded.model, head, predict(head, head, batches, test, _HEAD_BATCH)

        return train

    def _weights(self, fold: Fold) -> torch.Tensor:
        return positive_weights(self.config, self.labels[fold.train], self.settings.tune).to(self.compute.device)

    def _batches(self, inputs: Any) -> Batches:
        device = self.compute.device
        return Batches(
            inputs, self.extras, lambda rows: torch.from_numpy(self.labels[rows]).to(device), self.examples.name_of
        )

    def _full(self, number: int, fold: Fold, test: Rows) -> tuple[float, Model, Head, Floats]:
        """Train model and head on a fold, from its last snapshot."""
        device, tune, config = self.compute.device, self.settings.tune, self.config
        folder = self.output / f"fold-{number + 1}"
        identity = identity_of(
            tune, config, model=self.loaded.sha256, precision=str(self.compute.dtype), fold=number,
            rows=self.windows.fingerprint(np.concatenate([fold.train, fold.validation])),
            labels=self._digest(np.concatenate([fold.train, fold.validation])),
        )  # fmt: skip
        torch.manual_seed(tune.seed + number)
        model = copy.deepcopy(self.loaded.model).to(device)
        model.set_compute_dtype(self.compute.dtype, residual=torch.float32)
        head = Head(config).to(device)
        sides = 2 if config.variants else 1
        at_once = rows_at_once(self.settings.context, tune.batch_size, sides, PASS)
        recompute = False
        if not isinstance(model, NucleotideTransformer):
            compile_kernels(model, device, backward=True)
            tokens = at_once * sides * self.settings.context * (2 if config.strand == "both" else 1)
            recompute = graph_bytes(model, tokens, recompute=False) > _GRAPH_SHARE * free_memory(device)
        tuned = TunedModel(model, head, recompute=recompute)

        def inputs(rows: Rows) -> Windows:
            ids = torch.from_numpy(np.stack([self.windows.windows(int(row)) for row in rows])).to(device)
            each = [own for row in rows for own in self.windows.spans(int(row))] if pools_alleles(config) else None
            return Windows(ids, each)

        batches = self._batches(inputs)
        steps = tune.epochs * len(fold.train)
        with Progress(f"fold {number + 1}", steps, "rows") as progress, os_error_as_output_error(folder):
            loss = fit_rows(
                tuned, head, batches, fold.train, fold.validation, tune, fold=number, weights=self._weights(fold),
                at_once=at_once, folder=folder, identity=_plain(identity), progress=progress,
            )  # fmt: skip
            tested = self._tested(folder, identity, tuned, head, batches, test, at_once)
        return loss, model, head, tested

    def _digest(self, rows: Rows) -> str:
        """Digest what else is known of rows: labels, tissues and distances."""
        digest, e = hashlib.sha256(), self.examples
        for values in (self.labels, e.tissue, e.distance):
            digest.update(b"." if values is None else np.ascontiguousarray(values[rows]).tobytes())
        return digest.hexdigest()

    def _tested(
        self, folder: Path, identity: dict[str, Any], tuned: TunedModel, head: Head, batches: Batches, test: Rows,
        at_once: int,
    ) -> Floats:  # fmt: skip
        """Return the predictions of test rows: those of a run before, if it got so far."""
        note = {"identity": _plain(identity), "test": self.windows.fingerprint(test)}
        path, kept = folder / _DONE, folder / "test.npy"
        if path.is_file() and kept.is_file():
            # What cannot be read is predicted again.
            with contextlib.suppress(OSError, ValueError, RecursionError):
                if json.loads(path.read_text(encoding="utf-8")) == note:
                    return np.asarray(np.load(kept, allow_pickle=False), dtype=np.float32)
        tested = predict(tuned, head, batches, test, at_once)
        np.save(kept, tested)
        path.write_text(json.dumps(note), encoding="utf-8")
        return tested

    # --- testing
    def _baseline(self, values: Floats, place: dict[int, int], fold: Fold, test: Rows) -> Floats:
        """Predict test rows from composition, tissue and distance alone."""
        config = dataclasses.replace(
            self.config, width=values.shape[1], variants=False, alleles="both", pool="mean", bin_size=0, hidden=(),
            low=0, high=1,
            tissue="onehot" if self.examples.tissues else "none", tissues=self.examples.tissues,
            distance=self.examples.distance is not None,
        )  # fmt: skip
        extras = extras_of(self.examples, config, torch.device("cpu"))
        blank = Head(config)

        def inputs(rows: Rows) -> Floats:
            own = torch.from_numpy(values[[place[int(row)] for row in rows]])[:, None, None]
            return np.asarray(blank.inputs_of(own, extras(rows))[:, 0].numpy())

        labels = self.labels
        bins = labels.ndim == 3
        if bins:
            # All bins of a window alike: the mean is what composition can know.
            labels = np.nanmean(labels, axis=1)
        head = fit_linear(
            "ridge" if config.kind == "numbers" else "logistic", config, inputs(fold.train), labels[fold.train],
            inputs(fold.validation), labels[fold.validation], balanced=False, seed=self.settings.tune.seed,
        )  # fmt: skip
        with torch.no_grad():
            own = torch.from_numpy(values[[place[int(row)] for row in test]])[:, None, None]
            found = head.predictions(head(own, extras(test))).numpy()
        return np.repeat(found[:, None], self.labels.shape[1], axis=1) if bins else found

    def _evaluate(self, test: Rows, predictions: list[Floats], base: list[Floats]) -> None:
        rows = dataclasses.replace(self.examples.take(test), labels=self.labels[test])
        found = {"mean of folds" if len(predictions) > 1 else "model": np.mean(predictions, axis=0)}
        if len(predictions) > 1:
            found |= {f"fold {number}": values for number, values in enumerate(predictions, 1)}
        found[composition.NAME] = np.mean(base, axis=0)
        self.report.predictions = found
        self.report.metrics = evaluate(rows, found, baseline=composition.NAME, seed=self.settings.tune.seed)


def _origin(meta: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint says of its pre-training."""
    return {name: meta[name] for name in ("training", "legs") if name in meta}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def standardise(head: Head, features: Floats) -> None:
    """Have a head shift and scale its inputs to mean 0 and deviation 1 over features (u, S, K, d)."""
    flat = head.compared(torch.from_numpy(np.asarray(features))).flatten(0, 1).double().numpy()
    spread = flat.std(0)
    head.mean.copy_(torch.from_numpy(flat.mean(0)))
    # Without a spread, a value says nothing.
    head.scale.copy_(torch.from_numpy(1.0 / np.where(spread > 0, spread, 1.0)))
