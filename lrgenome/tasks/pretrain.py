"""`lrgenome pretrain`: train a model on the genomes of a manifest."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

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
from lrgenome.io.length_curves import length_curves
from lrgenome.io.plot import training_curve
from lrgenome.models.checkpoint import CONFIG_NAME, load_model, save_model
from lrgenome.models.families import Model, build
from lrgenome.models.nucleotide_transformer import NucleotideTransformer
from lrgenome.tasks.compute import Compute, free_memory, local_place
from lrgenome.tasks.progress import Progress
from lrgenome.training.data import Corpus
from lrgenome.training.loop import fit
from lrgenome.training.objective import tokens_of
from lrgenome.training.parallel import Group
from lrgenome.training.run_log import LOG_NAME, VALIDATION_NAME
from lrgenome.training.settings import PretrainSettings
from lrgenome.training.snapshot import last_step, load_weights, snapshots
from lrgenome.training.step import choose_recompute, measure_step, set_precision

log = logging.getLogger(__name__)


def choose_model(
    preset_name: str,
    half_life_max: float | None,
    ring: bool,
    init: Path | None,
    seed: int,
    window: int,
    half_life_share: float | None = None,
) -> tuple[Model, ModelConfig]:
    """Make the model to train: a preset with fresh weights, or a checkpoint to go on from."""
    if init is not None:
        if half_life_max is not None or half_life_share is not None or ring:
            raise UsageError("--half-life-max, --half-life-share and --ring set initial weights; got them with --init")
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
    if isinstance(config, HawkConfig):
        if half_life_max is not None or ring:
            config = dataclasses.replace(config, half_life_max=half_life_max)
        if half_life_share is not None:
            config = dataclasses.replace(config, half_life_share=half_life_share)
    elif ring or half_life_share is not None:
        raise UsageError(f"{'--ring' if ring else '--half-life-share'} is of a Hawk; got --preset {preset_name}")
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
    tensorboard: bool,
    cache: Path | None,
    group: Group,
) -> None:
    """Train, and write the checkpoint folder `output`: the model, its logs and their figures."""
    if snapshots(output) and not resume:
        raise OutputExistsError(f"{output}: holds a run already; --resume continues it, or remove the folder")
    if no_clobber and (output / "model.safetensors").exists():
        raise OutputExistsError(f"{output}: holds a model already, and --no-clobber was given")
    if settings.windows_per_step < group.size:
        raise UsageError(
            f"--batch-size x --accumulate: got {settings.windows_per_step} windows a step, expected at least one for "
            f"each of the {group.size} processes"
        )
    if settings.repeats and isinstance(model, NucleotideTransformer) and model.config.kmers:
        raise UsageError("--repeats is of models that read single bases; this one reads 6-mers")
    if settings.state_init != "zero" and isinstance(model, NucleotideTransformer):
        raise UsageError(f"--state-init {settings.state_init} is of recurrent models; a transformer has no state")
    parameters = sum(p.numel() for p in model.parameters())
    with ExitStack() as stack:
        if not group.leads:
            # The first process encodes genomes, the others find them there.
            group.total([0.0])
        lengths = [window for window, _ in settings.phases]
        corpus = stack.enter_context(Corpus(manifest, settings.window, *lengths, cache=None if dry_run else cache))
        if group.leads:
            group.total([0.0])
        bases = settings.bases_until(settings.steps)
        log.info("%d parameters; %d genomes; %d steps, %s bp", parameters, len(corpus.names), settings.steps,
                 f"{bases:,}")  # fmt: skip
        if dry_run and group.leads:
            print(f"parameters\t{parameters}\nsteps\t{settings.steps}\nbases\t{bases}")
        if not dry_run:
            with os_error_as_output_error(output):
                output.mkdir(parents=True, exist_ok=True)
        model.to(compute.device)
        set_precision(model, settings)
        # Of a machine's memory that is not a GPU's, its processes take equal parts.
        free = free_memory(compute.device) // (local_place()[1] if compute.device.type == "cpu" else 1)
        again = choose_recompute(model, settings, recompute, free)
        if not isinstance(model, NucleotideTransformer):
            compile_kernels(model, compute.device, backward=True)
        if dry_run:
            mine = len(group.share(settings.windows_per_step))
            seconds = sum(
                steps * measure_step(model, settings, window, recompute=again, windows=mine)
                for window, steps in settings.phases
            )
            if group.leads:
                # Without validation.
                print(f"expected_seconds\t{seconds:.0f}")
            return
        done = last_step(output) if resume else 0
        board = stack.enter_context(_board(output, done)) if tensorboard and group.leads else None
        progress = None
        if group.leads:
            progress = stack.enter_context(Progress("pretrain", settings.steps, "steps", done=done))
        with os_error_as_output_error(output):
            scores = fit(
                model, corpus, settings, output, resume=resume, recompute=again, save_every=save_every,
                progress=progress, board=board, group=group,
            )  # fmt: skip
        training = {
            "settings": dataclasses.asdict(settings), "genomes": corpus.fingerprint(), "validation": scores,
            "init": None if init is None else init.name, "torch": torch.__version__, "processes": group.size,
        }  # fmt: skip
    if not group.leads:
        return
    with os_error_as_output_error(output):
        sha256 = save_model(model, output, {"training": training})
    training_curve(output / LOG_NAME, output / "curve.png")
    if settings.val_lengths and (output / VALIDATION_NAME).read_text(encoding="utf-8").count("\n") > 1:
        length_curves(output / VALIDATION_NAME, output / "lengths.png")
    log.info("model: %s, sha256 %s", output, sha256)
    for name, loss in scores.items():
        print(f"{name}\t{loss:.4f}")


@contextmanager
def _board(output: Path, done: int) -> Iterator[Any]:
    """Open TensorBoard's log of a run, without what a killed process wrote after step `done`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(f"--tensorboard: got no tensorboard ({error}); pip install 'lrgenome[tensorboard]'") from error
    with SummaryWriter(str(output / "tensorboard"), purge_step=done + 1) as writer:
        yield writer
