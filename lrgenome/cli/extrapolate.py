"""`lrgenome extrapolate`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lrgenome.cli import options as o

_what = partial(o.option, panel="Evaluation")


def command(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for tables, figures and the report.", envvar=o.env("output"),
                     rich_help_panel=o.OUTPUT),
    ],
    fasta: Annotated[
        Path,
        typer.Option("--fasta", "-f", help="FASTA, plain or BGZF.", envvar=o.env("fasta"), rich_help_panel=o.INPUT),
    ],
    model: Annotated[
        list[Path] | None,
        typer.Option("--model", "-m", help="Checkpoint folder, snapshot or hf:ORG/NAME; may be given again. Default "
                     "the embedded model.", envvar=o.env("model"), rich_help_panel=o.MODEL),
    ] = None,
    task: Annotated[
        str, _what("task", "mlm (loss at masked bases), or tuned: of fine-tuned models, on --table or --benchmark.")
    ] = "mlm",
    lengths: Annotated[
        str, _what("lengths", "Window lengths, as 2kbp,12kbp,1Mbp, or 2kbp..1Mbp for doublings.")
    ] = "2kbp,12kbp,120kbp",
    transfer: Annotated[
        list[str] | None, _what("transfer", "Of recurrent models, what crosses chunk edges: exact, forward, none; may "
                                            "be given again.")
    ] = None,
    positions: Annotated[
        list[str] | None, _what("positions", "Of transformers: none, plain, pi, ntk, yarn, self-extend; may be given "
                                             "again.")
    ] = None,
    chunk: Annotated[
        int | None,
        _what("chunk", "Chunk of --transfer forward and none; default 100kbp, as the paper.", parser=o.length,
              metavar="LENGTH"),
    ] = None,
    regions: o.Region = None,
    regions_file: o.RegionsFile = None,
    sites: Annotated[int, _what("sites", "Places where masked bases are predicted.")] = 16,
    target: Annotated[
        int,
        _what("target", "Bases around each place of which 15 % are masked, the same at every length.", parser=o.length,
              metavar="LENGTH"),
    ] = "2kbp",  # type: ignore[assignment]
    probe: Annotated[
        list[str] | None, _what("probe", "Whether far context is used: context, reach, timescales, recall, drift, or "
                                         "all; may be given again.")
    ] = None,
    near: Annotated[
        int | None,
        _what("near", "Of --probe context: bases that are not far; default the training length, at most half of the "
                      "longest window that is probed (131,072 bp).", parser=o.length, metavar="LENGTH"),
    ] = None,
    timescale_scale: Annotated[
        float | None, _what("timescale-scale", "Multiply every half-life of recurrent models by this, as a diagnostic.")
    ] = None,
    benchmark: Annotated[
        Path | None, _what("benchmark", "Of --task tuned: folder with a copy of the benchmark.", panel=o.INPUT)
    ] = None,
    table: Annotated[
        Path | None, _what("table", "Of --task tuned: labelled rows, as finetune takes them.", panel=o.INPUT)
    ] = None,
    label: Annotated[list[str] | None, _what("label", "Column of labels in --table.", panel=o.INPUT)] = None,
    test: Annotated[
        list[str] | None, _what("test", "Contigs or regions to test on; default as the table says.", panel=o.INPUT)
    ] = None,
    tissue_column: Annotated[str | None, _what("tissue-column", "Column of tissues in --table.", panel=o.INPUT)] = None,
    distance_column: Annotated[
        str | None, _what("distance-column", "Column of distances to a transcription start.", panel=o.INPUT)
    ] = None,
    gpu: o.Gpu = None,
    device: o.Device = None,
    threads: o.Threads = None,
    precision: o.Precision = "auto",
    max_memory: o.MaxMemory = None,
    store: o.Store = "auto",
    tmpdir: o.Tmpdir = None,
    offline: o.Offline = False,
    resume: o.Resume = False,
    no_clobber: o.NoClobber = False,
    seed: o.Seed = 0,
    log_file: o.LogFile = None,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:
    """Evaluate models at window lengths beyond training, and measure whether they use far context."""
    from lrgenome.cli import logs
    from lrgenome.cli.conflicts import refuse_folder, refuse_overwriting

    for one in (*(model or ()), None):
        refuse_overwriting(
            [("--log-file", log_file)], [("--fasta", fasta), ("--table", table), ("--regions-file", regions_file)], one
        )
        refuse_folder("--output", output, [("--model", one), ("--benchmark", benchmark)])
    logs.set_up(verbose, quiet, log_file)
    from lrgenome.errors import OutputExistsError, UsageError
    from lrgenome.io.lock import folder_held
    from lrgenome.tasks.extrapolate import ExtrapolateSettings, parse_lengths
    from lrgenome.tasks.extrapolate_run import TunedRows, run

    if task not in ("mlm", "tuned"):
        raise UsageError(f"--task: got {task!r}, expected mlm or tuned")
    if no_clobber and (output / "report.html").exists():
        raise OutputExistsError(f"{output}: holds a report already, and --no-clobber was given")
    settings = ExtrapolateSettings(
        lengths=parse_lengths(lengths), transfers=tuple(transfer or ("exact",)),
        extensions=tuple(positions or ("none",)), sites=sites, target=target, seed=seed, near=near,
    )  # fmt: skip
    rows = None
    if task == "tuned":
        rows = TunedRows(benchmark, table, tuple(label or ()), tuple(test or ()), tissue_column, distance_column)
    with folder_held(output):
        run(
            output, fasta, model or [None], settings, probes=tuple(probe or ()), regions=tuple(regions or ()),
            regions_file=regions_file, scale=timescale_scale, chunk=chunk, rows=rows, resume=resume,
            options={"gpu": gpu, "device": device, "threads": threads, "precision": precision, "store": store,
                     "tmpdir": tmpdir, "max_memory": max_memory, "offline": offline},
        )  # fmt: skip
