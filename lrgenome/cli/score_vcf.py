"""`lrgenome score-vcf`."""

from pathlib import Path
from typing import Annotated

import typer

from lrgenome.cli import options as o


def command(
    vcf: Annotated[str, typer.Argument(help="VCF (plain, gzip, BGZF) or BCF; - is standard input.")],
    fasta: o.Fasta = None,
    regions: o.Region = None,
    regions_file: o.RegionsFile = None,
    shard: o.Shard = None,
    check_ref: Annotated[
        str,
        typer.Option(help="Where REF differs from the FASTA: warn (score against the FASTA and flag), skip, error.",
                     envvar=o.env("check_ref"), rich_help_panel=o.INPUT),
    ] = "warn",
    chrom_alias: Annotated[
        str,
        typer.Option(help="Contig names: auto (with or without chr, MT), none, or a two-column TSV.",
                     envvar=o.env("chrom_alias"), rich_help_panel=o.INPUT),
    ] = "auto",
    output: Annotated[
        str,
        typer.Option("--output", "-o", help=".tsv[.gz], .vcf[.gz] or .bcf; - is TSV on standard output.",
                     envvar=o.env("output"), rich_help_panel=o.OUTPUT),
    ] = "-",
    header: Annotated[
        str,
        typer.Option(help="auto (none for shards after the first), always, never.", envvar=o.env("header"),
                     rich_help_panel=o.OUTPUT),
    ] = "auto",
    write_index: Annotated[
        bool,
        typer.Option("--write-index", "-W", help="Index .tsv.gz, .vcf.gz and .bcf.", envvar=o.env("write_index"),
                     rich_help_panel=o.OUTPUT),
    ] = False,
    summary: Annotated[
        Path | None,
        typer.Option(help="JSON of the status counts.", envvar=o.env("summary"), rich_help_panel=o.OUTPUT),
    ] = None,
    resume: o.Resume = False,
    no_clobber: o.NoClobber = False,
    no_version: o.NoVersion = False,
    dry_run: o.DryRun = False,
    model: o.Model = None,
    context: Annotated[
        int,
        typer.Option(parser=o.length, metavar="LENGTH", help="Window length, centred on each allele.",
                     envvar=o.env("context"), rich_help_panel=o.MODEL),
    ] = "12kbp",  # type: ignore[assignment]
    strand: Annotated[
        str, typer.Option(help="both (averaged) or forward.", envvar=o.env("strand"), rich_help_panel=o.MODEL)
    ] = "both",
    tiles: Annotated[
        bool,
        typer.Option("--boundary-states/--exact-windows", envvar=o.env("boundary_states"), rich_help_panel=o.MODEL,
                     help="Score from states kept in one pass over tiles of twice the context, or run a whole window "
                     "centred on each allele."),
    ] = False,
    region_size: Annotated[
        int | None,
        typer.Option(parser=o.length, metavar="LENGTH", help="Of boundary states: bases run for each allele (2,048).",
                     envvar=o.env("region_size"), rich_help_panel=o.ADVANCED),
    ] = None,
    state_every: Annotated[
        int | None,
        typer.Option(parser=o.length, metavar="LENGTH", help="Of boundary states: grid of the regions' edges (256).",
                     envvar=o.env("state_every"), rich_help_panel=o.ADVANCED),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Of boundary states: ERR_EST from which a region is doubled (0.5).",
                     envvar=o.env("tolerance"), rich_help_panel=o.ADVANCED),
    ] = None,
    length_extension: o.LengthExtension = "none",
    gpu: o.Gpu = None,
    device: o.Device = None,
    threads: o.Threads = None,
    precision: o.Precision = "auto",
    batch_size: o.BatchSize = "auto",
    chunk: o.Chunk = None,
    store: o.Store = "auto",
    tmpdir: o.Tmpdir = None,
    transfer: o.Transfer = "exact",
    strict: o.Strict = False,
    offline: o.Offline = False,
    log_file: o.LogFile = None,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:
    """Score every ALT allele of a VCF with a masked language model.

    LLR is log p(ALT) - log p(REF) at the masked site (substitutions); DIST_COS, DIST_L2 and PLL_DIFF compare
    the two sequences around any allele. All are averaged over both strands. No record is ever dropped.
    """
    from lrgenome.cli import logs

    logs.set_up(verbose, quiet, log_file)
    import torch

    from lrgenome.errors import UsageError
    from lrgenome.tasks import score_vcf as task
    from lrgenome.tasks.setup import ready

    of_tiles = {"region_size": region_size, "state_every": state_every, "tolerance": tolerance}
    given = {name: value for name, value in of_tiles.items() if value is not None}
    if given and not tiles:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} is of --boundary-states")
    if tiles and batch_size != "auto":
        raise UsageError("--batch-size is of whole windows; --boundary-states runs one allele at a time")
    settings = task.ScoreSettings(
        context=context, strand=strand, check_ref=check_ref, chrom_alias=chrom_alias, regions=tuple(regions or ()),
        regions_file=regions_file, shard=shard, tiles=tiles, **given,  # type: ignore[arg-type]
    )  # fmt: skip
    target = task.ScoreOutput(
        path=output, header=header, write_index=write_index, resume=resume, no_clobber=no_clobber,
        no_version=no_version, summary=summary, strict=strict,
    )  # fmt: skip
    loaded, runner = ready(
        model, gpu=gpu, device=device, threads=threads, precision=precision, auto=torch.float32, chunk=chunk,
        transfer=transfer, store=store, tmpdir=tmpdir, extension=length_extension, offline=offline,
    )  # fmt: skip
    with runner:
        task.run(
            vcf, fasta, loaded, runner, settings, target,
            batch_size=task.default_batch_size(batch_size, runner.device, context), tmpdir=tmpdir, dry_run=dry_run,
        )  # fmt: skip
