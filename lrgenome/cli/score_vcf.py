"""`lrgenome score-vcf`."""

from pathlib import Path
from typing import Annotated

import typer

from lrgenome.cli import options as o


def command(
    vcf: Annotated[
        str | None,
        typer.Argument(show_default=False,
                       help="VCF (plain, gzip, BGZF) or BCF; - is standard input. None with --saturate."),
    ] = None,
    fasta: o.Fasta = None,
    regions: o.Region = None,
    regions_file: o.RegionsFile = None,
    shard: o.Shard = None,
    saturate: Annotated[
        list[str] | None,
        typer.Option(help="In place of a VCF, score every SNV of a region, as 20:1,000,001-1,002,000 (1-based); may be "
                     "repeated.", envvar=o.env("saturate"), rich_help_panel=o.INPUT),
    ] = None,
    saturate_deletions: Annotated[
        bool,
        typer.Option("--saturate-deletions", help="Add every deletion of one base.", envvar=o.env("saturate_deletions"),
                     rich_help_panel=o.INPUT),
    ] = False,
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
    track: Annotated[
        Path | None,
        typer.Option(help="With --saturate: mean over the SNVs of each base, .bedgraph[.gz], .bg, .bw or .bigwig.",
                     envvar=o.env("track"), rich_help_panel=o.OUTPUT),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="With --saturate: heat map, or for a long region a line, .png or .svg.",
                     envvar=o.env("plot"), rich_help_panel=o.OUTPUT),
    ] = None,
    track_score: Annotated[
        str | None,
        typer.Option(help="What track and plot show: llr, dist_l2, dist_cos or pll_diff.", show_default="llr",
                     envvar=o.env("track_score"), rich_help_panel=o.OUTPUT),
    ] = None,
    resume: o.Resume = False,
    no_clobber: o.NoClobber = False,
    no_version: o.NoVersion = False,
    dry_run: o.DryRun = False,
    model: o.Model = None,
    context: Annotated[
        int,
        typer.Option(parser=o.length, metavar="LENGTH", envvar=o.env("context"), rich_help_panel=o.MODEL,
                     help="Surroundings of an allele: the core of a tile, with half of that on each side; with "
                     "--exact-windows the length of a window."),
    ] = "12kbp",  # type: ignore[assignment]
    strand: Annotated[
        str, typer.Option(help="both (averaged) or forward.", envvar=o.env("strand"), rich_help_panel=o.MODEL)
    ] = "both",
    exact_windows: Annotated[
        bool | None,
        typer.Option("--exact-windows/--boundary-states", envvar=o.env("exact_windows"), rich_help_panel=o.MODEL,
                     help="Run whole windows centred on each allele. Recurrent models otherwise run a tile once, and a "
                     "short region for each allele."),
    ] = None,
    llr: Annotated[
        str | None,
        typer.Option(help="LLR of substitutions from masked sites (masked), or read off one pass over the tile "
                     "(wildtype), which gives no other score.", envvar=o.env("llr"), rich_help_panel=o.MODEL,
                     show_default="masked"),
    ] = None,
    tissue: Annotated[
        list[str] | None,
        typer.Option(help="Of a fine-tuned model that knows tissues: predict for this one; may be given again.",
                     envvar=o.env("tissue"), rich_help_panel=o.MODEL),
    ] = None,
    region_size: Annotated[
        int | None,
        typer.Option(parser=o.length, metavar="LENGTH", help="Bases run for each allele.", show_default="1,792",
                     envvar=o.env("region_size"), rich_help_panel=o.ADVANCED),
    ] = None,
    state_every: Annotated[
        int | None,
        typer.Option(parser=o.length, metavar="LENGTH", help="Grid of the regions' edges.", show_default="128",
                     envvar=o.env("state_every"), rich_help_panel=o.ADVANCED),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="ERR_EST of LLR from which a region is doubled; of PLL_DIFF (50 + |PLL_DIFF|) times that.",
                     show_default="0.01, in bfloat16 0.5", envvar=o.env("tolerance"), rich_help_panel=o.ADVANCED),
    ] = None,
    verify: Annotated[
        int | None,
        typer.Option(min=0, help="Score so many alleles again on their whole tiles, and log the differences.",
                     envvar=o.env("verify"), rich_help_panel=o.ADVANCED),
    ] = None,
    seed: o.Seed = 0,
    length_extension: o.LengthExtension = "none",
    gpu: o.Gpu = None,
    device: o.Device = None,
    threads: o.Threads = None,
    precision: o.Precision = "auto",
    batch_size: o.BatchSize = "auto",
    chunk: o.Chunk = None,
    max_memory: o.MaxMemory = None,
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
    from lrgenome.cli.conflicts import refuse_overwriting

    refuse_overwriting(
        [("--output", output), ("--summary", summary), ("--track", track), ("--plot", plot), ("--log-file", log_file)],
        [("VCF", vcf), ("--fasta", fasta), ("--regions-file", regions_file), ("--chrom-alias", chrom_alias)], model,
    )  # fmt: skip
    logs.set_up(verbose, quiet, log_file)
    import torch

    from lrgenome.errors import UsageError
    from lrgenome.tasks import score_vcf as task
    from lrgenome.tasks.readout import readout_of
    from lrgenome.tasks.saturation import Saturation
    from lrgenome.tasks.setup import ready

    of_tiles = {
        "llr": llr, "region_size": region_size, "state_every": state_every, "tolerance": tolerance, "verify": verify,
    }  # fmt: skip
    given = {name: value for name, value in of_tiles.items() if value is not None}
    settings = task.ScoreSettings(
        context=context, strand=strand, check_ref=check_ref, chrom_alias=chrom_alias, regions=tuple(regions or ()),
        regions_file=regions_file, shard=shard, seed=seed, **given,  # type: ignore[arg-type]
    )  # fmt: skip
    target = task.ScoreOutput(
        path=output, header=header, write_index=write_index, resume=resume, no_clobber=no_clobber,
        no_version=no_version, summary=summary, strict=strict,
    )  # fmt: skip
    if given and exact_windows:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} and --exact-windows exclude each other; got both")
    variants: str | Saturation
    if saturate:
        if vcf is not None:
            raise UsageError(f"got both a VCF ({vcf}) and --saturate, expected one of them")
        if track_score is not None and track is None and plot is None:
            raise UsageError("--track-score is of --track and --plot; got neither")
        variants = Saturation(tuple(saturate), saturate_deletions, track, plot, track_score or "llr")
    else:
        of_saturation = {
            "saturate-deletions": saturate_deletions, "track": track, "plot": plot, "track-score": track_score,
        }  # fmt: skip
        if wrong := [name for name, value in of_saturation.items() if value]:
            raise UsageError(f"--{wrong[0]} is of --saturate, which was not given")
        if vcf is None:
            raise UsageError("got neither a VCF nor --saturate, expected one of them")
        variants = vcf
    loaded, runner = ready(
        model, gpu=gpu, device=device, threads=threads, precision=precision, auto=torch.float32, chunk=chunk,
        transfer=transfer, store=store, tmpdir=tmpdir, max_memory=max_memory,
        extension=length_extension, offline=offline,
    )  # fmt: skip
    with runner:
        settings = task.choose_scoring(settings, runner, exact_windows=exact_windows, only_tiles=list(given))
        batch = task.default_batch_size(batch_size, runner.device, context, tiles=settings.tiles)
        readout = readout_of(loaded.head, tissues=tissue or (), strands=strand, halves=loaded.model.strands)
        task.run(
            variants, fasta, loaded, runner, settings, target, batch_size=batch, tmpdir=tmpdir, dry_run=dry_run,
            readout=readout,
        )  # fmt: skip
