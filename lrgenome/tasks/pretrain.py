"""`lrgenome pretrain`: train a model on the genomes of a manifest."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

import torch

from lrgenome.config import (
    HALF_LIFE_LIMIT,
    CaduceusConfig,
    HawkConfig,
    ModelConfig,
    NucleotideTransformerConfig,
    preset,
)
from lrgenome.engine.warm import compile_kernels
from lrgenome.errors import OutputExistsError, UsageError
from lrgenome.io.atomic import os_error_as_output_error
from lrgenome.io.plot import training_curve
from lrgenome.models.checkpoint import CONFIG_NAME, load_model, save_model
from lrgenome.models.families import Model, build
from lrgenome.models.nucleotide_transformer import NucleotideTransformer
from lrgenome.tasks.compute import Compute, free_memory
from lrgenome.tasks.progress import Progress
from lrgenome.training.data import Corpus
from lrgenome.training.loop import PretrainSettings, choose_recompute, fit, set_precision
from lrgenome.training.objective import tokens_of
from lrgenome.training.snapshot import last_step, load_weights, snapshots

log = logging.getLogger(__name__)


def choose_model(
    preset_name: str, half_life_max: float | None, ring: bool, init: Path | None, seed: int, window: int
) -> tuple[Model, ModelConfig]:
    """Make the model to train: a preset with fresh weights, or a checkpoint to go on from."""
    if init is not None:
        if half_life_max is not None or ring:
            raise UsageError("--half-life-max and --ring set initial weights; got them with --init")
        if not (init / CONFIG_NAME).exists() and snapshots(init):
            model = load_weights(init)
            return model, model.config
        loaded = load_model(init)
        log.info("weights of %s, sha256 %s", init, loaded.sha256)
        if isinstance(loaded.model, NucleotideTransformer):
            loaded.model.config = with_window(loaded.model.config, window)
        return loaded.model, loaded.model.config
    if half_life_max is not None and ring:
        raise UsageError("--half-life-max and --ring exclude each other; got both")
    config = preset(preset_name)
    if isinstance(config, HawkConfig) and (half_life_max is not None or ring):
        config = dataclasses.replace(config, half_life_max=half_life_max)
    elif ring:
        raise UsageError(f"--ring is of a Hawk; got --preset {preset_name}")
    elif half_life_max is not None:
        config = slowest_step(config, preset_name, half_life_max)
    if isinstance(config, NucleotideTransformerConfig):
        config = with_window(config, window)
    return build(config, seed=seed), config


def with_window(config: NucleotideTransformerConfig, window: int) -> NucleotideTransformerConfig:
    """Let a transformer remember how long the windows are that it is trained on (without N, each a token more)."""
    return dataclasses.replace(config, max_tokens=max(config.max_tokens, tokens_of(config, window)))


def slowest_step(config: ModelConfig, preset_name: str, half_life_max: float) -> ModelConfig:
    """Lower a Caduceus's smallest step so that its slowest state, exp(-dt) a base, halves in `half_life_max` bp."""
    if not isinstance(config, CaduceusConfig):
        raise UsageError(f"--half-life-max is of recurrent models; got --preset {preset_name}")
    least = math.log(2.0) / config.dt_max
    if not least < half_life_max <= HALF_LIFE_LIMIT:
        raise UsageError(
            f"--half-life-max: got {half_life_max!r}, expected more than {least:.0f} bp and at most {HALF_LIFE_LIMIT:g}"
        )
    return dataclasses.replace(config, dt_min=math.log(2.0) / half_life_max)


def run(
    manifest: Path,
    output: Path,
    *,
    model: Model,
    settings: PretrainSettings,
    compute: Compute,
    resume: bool,
    no_clobber: bool,
    dry_run: bool,
    save_every: float,
    recompute: str,
    init: Path | None,
) -> None:
    """Train, write the checkpoint folder `output` and in it the log ``log.tsv`` and its plot ``curve.png``."""
    if snapshots(output) and not resume:
        raise OutputExistsError(f"{output}: holds a run already; --resume continues it, or remove the folder")
    if no_clobber and (output / "model.safetensors").exists():
        raise OutputExistsError(f"{output}: holds a model already, and --no-clobber was given")
    parameters = sum(p.numel() for p in model.parameters())
    with Corpus(manifest, settings.window) as corpus:
        log.info("%d parameters; %d genomes; %d steps of %s bp", parameters, len(corpus.names), settings.steps,
                 f"{settings.tokens_per_step:,}")  # fmt: skip
        if dry_run:
            bases = settings.steps * settings.tokens_per_step
            print(f"parameters\t{parameters}\nsteps\t{settings.steps}\nbases\t{bases}")
            return
        with os_error_as_output_error(output):
            output.mkdir(parents=True, exist_ok=True)
        model.to(compute.device)
        set_precision(model, settings)
        again = choose_recompute(model, settings, recompute, free_memory(compute.device))
        if not isinstance(model, NucleotideTransformer):
            compile_kernels(model, compute.device, backward=True)
        done = last_step(output) if resume else 0
        with os_error_as_output_error(output), Progress("pretrain", settings.steps, "steps", done=done) as progress:
            scores = fit(
                model, corpus, settings, output,
                resume=resume, recompute=again, save_every=save_every, progress=progress,
            )  # fmt: skip
        training = {
            "settings": dataclasses.asdict(settings), "genomes": corpus.fingerprint(), "validation": scores,
            "init": None if init is None else init.name, "torch": torch.__version__,
        }  # fmt: skip
    with os_error_as_output_error(output):
        sha256 = save_model(model, output, {"training": training})
    training_curve(output / "log.tsv", output / "curve.png")
    log.info("model: %s, sha256 %s", output, sha256)
    for name, loss in scores.items():
        print(f"{name}\t{loss:.4f}")
