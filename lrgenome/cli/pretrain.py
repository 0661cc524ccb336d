"""`lrgenome pretrain`."""

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lrgenome.cli import options as o

_WINDOW, _STEPS = 12_000, 260_417
_PRESETS = (
    "Shape: hawk-mini, hawk-50m, caduceus-mini(-ps), caduceus-7.7m(-ps), caduceus-50m(-ps), transformer-mini or "
    "nt-v2-50m."
)


_train = partial(o.option, panel="Training")


def command(
    manifest: Annotated[
        Path,
        typer.Argument(help="TSV of genomes: path, weight, name, holdout, validation.", exists=True, dir_okay=False),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for the model, its log and curve.", envvar=o.env("output"),
                     rich_help_panel=o.OUTPUT),
    ],
    preset: Annotated[
        str, typer.Option(help=_PRESETS, envvar=o.env("preset"), rich_help_panel=o.MODEL)
    ] = "hawk-mini",
    init: Annotated[
        Path | None,
        typer.Option(help="Go on from the weights of this checkpoint or run.", envvar=o.env("init"),
                     rich_help_panel=o.MODEL),
    ] = None,
    half_life_max: Annotated[
        int | None,
        typer.Option(parser=o.length, metavar="LENGTH", envvar=o.env("half_life_max"), rich_help_panel=o.MODEL,
                     help="Initial half-lives log-uniform up to this; default as in the preset."),
    ] = None,
    half_life_share: Annotated[
        float | None,
        typer.Option(envvar=o.env("half_life_share"), rich_help_panel=o.MODEL,
                     help="Of --half-life-max: share of a Hawk's channels that it is of, the rest on the ring."),
    ] = None,
    ring: Annotated[
        bool,
        typer.Option("--ring", help="Initial radii on the paper's ring instead.", envvar=o.env("ring"),
                     rich_help_panel=o.MODEL),
    ] = False,
    window: Annotated[
        int,
        typer.Option(parser=o.length, metavar="LENGTH", help="Window length.", envvar=o.env("window"),
                     rich_help_panel="Training"),
    ] = "12kbp",  # type: ignore[assignment]
    batch_size: Annotated[int, _train("batch-size", "Windows of a batch.")] = 8,
    accumulate: Annotated[int, _train("accumulate", "Batches per optimizer step.")] = 12,
    steps: Annotated[int, _train("steps", "Optimizer steps.")] = _STEPS,
    schedule: Annotated[
        str | None,
        _train("schedule", "Windows that grow, as 2kbp:20000,4kbp:20000,12kbp:220000 (length:steps), in place of "
               "--window and --steps."),
    ] = None,
    warmup: Annotated[int, _train("warmup", "Steps of linear warm-up.")] = 2_000,
    lr: Annotated[float, _train("lr", "Highest learning rate.")] = 1e-4,
    lr_min: Annotated[float, _train("lr-min", "Learning rate at both ends.")] = 1e-8,
    weight_decay: Annotated[float, _train("weight-decay", "AdamW's, on matrices only.")] = 0.1,
    clip: Annotated[float, _train("clip", "Largest norm of the gradient.")] = 1.0,
    mask_fraction: Annotated[float, _train("mask-fraction", "Share of bases that are targets.")] = 0.15,
    val_every: Annotated[int, _train("val-every", "Steps between validations.")] = 1_000,
    val_windows: Annotated[int, _train("val-windows", "Validation windows per genome.")] = 16,
    val_lengths: Annotated[
        str | None,
        _train("val-lengths", "Validate at these lengths too, as 2kbp,12kbp,128kbp, with a figure of them."),
    ] = None,
    divergence: Annotated[
        float, _train("divergence", "Stop when the mean loss of 100 steps is so far above its lowest, nats; 0: never.")
    ] = 0.1,
    repeats: Annotated[
        float, _train("repeats", "Share of windows into which a repeat is written, for the sake of long memory.")
    ] = 0.0,
    state_init: Annotated[
        str,
        _train("state-init", "What half of the windows begin with: zero (nothing), pass (the final state of another "
                             "window), noise (like final states)."),
    ] = "zero",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Log to OUTPUT/tensorboard too.", envvar=o.env("tensorboard"),
                           rich_help_panel=o.OUTPUT)
    ] = False,
    save_every: Annotated[float, _train("save-every", "Seconds between snapshots.")] = 300.0,
    recompute: Annotated[
        str, _train("recompute", "Run blocks again in the backward pass, to save memory: auto, always, never.")
    ] = "auto",
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of encoded genomes; default .lrgenome-cache beside the manifest, or under TMPDIR.",
                     envvar=o.env("cache"), rich_help_panel=o.ADVANCED),
    ] = None,
    no_cache: Annotated[
        bool,
        typer.Option("--no-cache", help="Read windows from the FASTA files themselves.", envvar=o.env("no_cache"),
                     rich_help_panel=o.ADVANCED),
    ] = False,
    resume: o.Resume = False,
    no_clobber: o.NoClobber = False,
    dry_run: o.DryRun = False,
    gpu: o.Gpu = None,
    device: o.Device = None,
    threads: o.Threads = None,
    precision: o.Precision = "auto",
    chunk: o.Chunk = None,
    seed: o.Seed = 0,
    log_file: o.LogFile = None,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:
    """Pre-train a masked language model on the genomes of a manifest.

    The defaults are the paper's: 12 kbp windows, effective batch 96, learning rate 1e-8 to 1e-4.
    """
    from lrgenome.cli import logs
    from lrgenome.cli.conflicts import refuse_folder, refuse_overwriting

    refuse_overwriting([("--log-file", log_file)], [("MANIFEST", manifest)], init)
    refuse_folder("--output", output, [("--init", init)])
    # Of the processes that torchrun starts, the first one speaks for all.
    follows = os.environ.get("RANK", "0") != "0"
    logs.set_up(verbose, quiet or follows, None if follows else log_file)
    from lrgenome.errors import UsageError
    from lrgenome.io.encoded import default_cache
    from lrgenome.io.lock import folder_held
    from lrgenome.tasks.compute import choose_compute, share_machine
    from lrgenome.tasks.pretrain import choose_model, run
    from lrgenome.training.parallel import join
    from lrgenome.training.settings import PretrainSettings, parse_schedule

    if schedule is not None and (window != _WINDOW or steps != _STEPS):
        raise UsageError("--schedule takes the place of --window and --steps; got it with one of them")
    if no_cache and cache is not None:
        raise UsageError(f"--cache and --no-cache exclude each other; got --cache {cache}")
    gpu, device, threads = share_machine(gpu, device, threads)
    compute = choose_compute(gpu=gpu, device=device, threads=threads, precision=precision)
    settings = PretrainSettings(
        window=window, batch_size=batch_size, accumulate=accumulate, steps=steps,
        schedule=parse_schedule(schedule) if schedule is not None else (), warmup=warmup, lr=lr, lr_min=lr_min,
        weight_decay=weight_decay, clip=clip, mask_fraction=mask_fraction, repeats=repeats, state_init=state_init,
        val_every=val_every,
        val_windows=val_windows, val_lengths=tuple(map(o.length, val_lengths.split(","))) if val_lengths else (),
        divergence=divergence, seed=seed, chunk=chunk or 0, precision=str(compute.dtype).removeprefix("torch."),
    )  # fmt: skip
    model, _ = choose_model(preset, half_life_max, ring, init, seed, settings.window, half_life_share)
    with join(compute.device) as group, folder_held(output) if group.leads and not dry_run else nullcontext():
        run(
            manifest, output, model=model, settings=settings, compute=compute, resume=resume, no_clobber=no_clobber,
            dry_run=dry_run, save_every=save_every, recompute=recompute, init=init, tensorboard=tensorboard,
            cache=None if no_cache else cache or default_cache(manifest), group=group,
        )  # fmt: skip
