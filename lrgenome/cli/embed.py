"""`lrgenome embed`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from lrgenome.cli import options as o


def command(
    fasta: Annotated[Path, typer.Argument(help="FASTA, plain or BGZF.", envvar=o.env("fasta"))],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="HDF5, or AnnData by the suffix .h5ad.", envvar=o.env("output"),
                     rich_help_panel=o.OUTPUT),
    ],
    bed: Annotated[
        Path | None,
        typer.Option(help="Embed these intervals instead of bins.", envvar=o.env("bed"), rich_help_panel=o.INPUT),
    ] = None,
    regions: o.Region = None,
    regions_file: o.RegionsFile = None,
    shard: o.Shard = None,
    chrom_alias: Annotated[
        str,
        typer.Option(help="Contig names: auto (with or without chr, MT), none, or a two-column TSV.",
                     envvar=o.env("chrom_alias"), rich_help_panel=o.INPUT),
    ] = "auto",
    bin_size: Annotated[
        int,
        typer.Option(parser=o.length, metavar="LENGTH", help="Length of a bin.", envvar=o.env("bin_size"),
                     rich_help_panel=o.OUTPUT),
    ] = "1024",  # type: ignore[assignment]
    pool: Annotated[
        str,
        typer.Option(help="mean, or none: every base of --bed intervals of one length.", envvar=o.env("pool"),
                     rich_help_panel=o.OUTPUT),
    ] = "mean",
    dtype: Annotated[
        str, typer.Option(help="float32 or float16.", envvar=o.env("dtype"), rich_help_panel=o.OUTPUT)
    ] = "float32",
    compression: Annotated[
        str, typer.Option(help="gzip, zstd or none.", envvar=o.env("compression"), rich_help_panel=o.OUTPUT)
    ] = "gzip",
    resume: o.Resume = False,
    no_clobber: o.NoClobber = False,
    no_version: o.NoVersion = False,
    dry_run: o.DryRun = False,
    model: o.Model = None,
    context: Annotated[
        int | None,
        typer.Option(parser=o.length, metavar="LENGTH", help="Length of a core; a quarter of it is run on each side; "
                     "default 100kbp, of --layer head that of the head's training.",
                     envvar=o.env("context"), rich_help_panel=o.MODEL),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(help="Take the output of this block, 1-based; default the last, after the final norm. head: what "
                     "a fine-tuned head of intervals predicts.", envvar=o.env("layer"), rich_help_panel=o.MODEL),
    ] = None,
    strand: Annotated[
        str,
        typer.Option(help="forward, reverse or both (their mean).", envvar=o.env("strand"), rich_help_panel=o.MODEL),
    ] = "forward",
    length_extension: o.LengthExtension = "none",
    gpu: o.Gpu = None,
    device: o.Device = None,
    threads: o.Threads = None,
    precision: o.Precision = "auto",
    chunk: o.Chunk = None,
    max_memory: o.MaxMemory = None,
    store: o.Store = "auto",
    tmpdir: o.Tmpdir = None,
    transfer: o.Transfer = "exact",
    offline: o.Offline = False,
    log_file: o.LogFile = None,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:
    """Embed a genome: mean hidden states of bins of the whole input, or of intervals, as HDF5."""
    from lrgenome.cli import logs
    from lrgenome.cli.conflicts import refuse_overwriting

    refuse_overwriting(
        [("--output", output), ("--log-file", log_file)],
        [("FASTA", fasta), ("--bed", bed), ("--regions-file", regions_file), ("--chrom-alias", chrom_alias)], model,
    )  # fmt: skip
    logs.set_up(verbose, quiet, log_file)
    from lrgenome.errors import UsageError
    from lrgenome.tasks import embed as task
    from lrgenome.tasks.setup import ready

    if layer is not None and layer != "head" and not layer.isdigit():
        raise UsageError(f"--layer: got {layer!r}, expected the number of a block, or head")
    settings = task.EmbedSettings(
        context=task.core_length(context, None), bin_size=bin_size,
        layer=int(layer) if layer not in (None, "head") else None, head=layer == "head",
        pool=pool, strand=strand, bed=bed, chrom_alias=chrom_alias,
        regions=tuple(regions or ()), regions_file=regions_file, shard=shard,
    )  # fmt: skip
    loaded, runner = ready(
        model, gpu=gpu, device=device, threads=threads, precision=precision, auto=None, chunk=chunk,
        transfer=transfer, store=store, tmpdir=tmpdir, max_memory=max_memory,
        extension=length_extension, offline=offline,
    )  # fmt: skip
    if settings.head and loaded.head is not None:
        settings = dataclasses.replace(settings, context=task.core_length(context, loaded.head.config))
    with runner:
        task.run(
            fasta, output, loaded, runner, settings, dtype=dtype, compression=compression, resume=resume,
            no_clobber=no_clobber, no_version=no_version, dry_run=dry_run,
        )  # fmt: skip
