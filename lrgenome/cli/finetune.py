"""`lrgenome finetune`."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lrgenome.cli import options as o

_TASKS = "vep-eqtl, vep-clinvar, omim, bulk-rna, cage, histone, dnase, promoter or enhancer"


_data = partial(o.option, panel=o.INPUT)
_head = partial(o.option, panel="Head")
_train = partial(o.option, panel="Training")


def command(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for the tuned model and its report.", envvar=o.env("output"),
                     rich_help_panel=o.OUTPUT),
    ],
    fasta: Annotated[
        Path,
        typer.Option("--fasta", "-f", help="Reference FASTA of the rows' assembly, plain or BGZF.",
                     envvar=o.env("fasta"), rich_help_panel=o.INPUT),
    ],
    task: Annotated[
        str | None, typer.Argument(help=f"Of the Genomics Long-Range Benchmark: {_TASKS}.", envvar=o.env("task"))
    ] = None,
    benchmark: Annotated[
        Path | None, _data("benchmark", "Folder with a copy of the benchmark's files.")
    ] = None,
    table: Annotated[
        Path | None, _data("table", "Labelled rows of your own instead: CSV, TSV or Parquet; CHROM POS REF ALT, or "
                                    "CHROM START END.")
    ] = None,
    label: Annotated[list[str] | None, _data("label", "Column of labels in --table; may be given again.")] = None,
    kind: Annotated[
        str | None, _data("kind", "What labels are: classes (one, 0 or 1), labels (several), numbers; default by them.")
    ] = None,
    tissue_column: Annotated[str | None, _data("tissue-column", "Column of tissues in --table.")] = None,
    distance_column: Annotated[
        str | None, _data("distance-column", "Column of distances to the nearest transcription start, bp.")
    ] = None,
    within: Annotated[
        str | None, _data("within", "Column of groups, as genes, that AUROC is also taken within.")
    ] = None,
    test: Annotated[
        list[str] | None, _data("test", "Contigs or regions (1-based) to test on; default as the table says.")
    ] = None,
    validation: Annotated[
        list[str] | None, _data("validation", "Contigs or regions to validate on, in place of folds.")
    ] = None,
    folds: Annotated[int, _data("folds", "Folds, each with other contigs held out to validate on.")] = 5,
    fold: Annotated[int | None, _data("fold", "Run this one only, 1-based.")] = None,
    block: Annotated[
        int | None,
        _data("block", "Hold out blocks of this length rather than whole contigs.", parser=o.length, metavar="LENGTH"),
    ] = None,
    max_rows: Annotated[int | None, _data("max-rows", "Train on so many rows, drawn by chance.")] = None,
    common_rows: Annotated[
        int | None,
        _data("common-rows", "Only rows whose window fits at this length too, to compare lengths on the same rows.",
              parser=o.length, metavar="LENGTH"),
    ] = None,
    max_n: Annotated[float, _data("max-n", "Largest share of N in a window.")] = 1.0,
    drop_leaks: Annotated[
        bool, _data("drop-leaks", "Leave out training rows that overlap or repeat test or validation rows.")
    ] = False,
    allow_leaks: Annotated[bool, _data("allow-leaks", "Go on although there are such rows.")] = False,
    chrom_alias: Annotated[
        str, _data("chrom-alias", "Contig names: auto (with or without chr, MT), none, or a two-column TSV.")
    ] = "auto",
    model: o.Model = None,
    context: Annotated[
        int,
        typer.Option(parser=o.length, metavar="LENGTH", help="Window length.", envvar=o.env("context"),
                     rich_help_panel=o.MODEL),
    ] = "12kbp",  # type: ignore[assignment]
    strand: Annotated[
        str,
        typer.Option(help="forward, or both (their mean).", envvar=o.env("strand"), rich_help_panel=o.MODEL),
    ] = "forward",
    length_extension: o.LengthExtension = "none",
    train: Annotated[
        str, _head("train", "full (model and head), head (MLP on the frozen model), or on the frozen model by "
                            "scikit-learn: logistic, ridge, svm.")
    ] = "head",
    pool: Annotated[
        str | None, _head("pool", "mean of what is pooled, or attention over stretches of it; default the task's.")
    ] = None,
    alleles: Annotated[
        str, _head("alleles", "Of variants: both, ALT and REF side by side as in the benchmark; or difference, ALT "
                              "less REF, and its absolute values.")
    ] = "both",
    pool_from: Annotated[int | None, _head("pool-from", "First base that is pooled, from the window's centre.")] = None,
    pool_to: Annotated[int | None, _head("pool-to", "One past the last.")] = None,
    stretch: Annotated[
        int, _head("stretch", "Length of a stretch that attention weighs.", parser=o.length, metavar="LENGTH")
    ] = "32",  # type: ignore[assignment]
    hidden: Annotated[
        str | None, _head("hidden", "Widths of hidden layers, as 256,128; default twice the model's, as the benchmark.")
    ] = None,
    tissue_as: Annotated[
        str | None, _head("tissue-as", "How tissues come in: none, index, onehot, embedding; default the task's.")
    ] = None,
    distance_feature: Annotated[
        bool, _head("distance-feature", "Give the head the distance to the transcription start.")
    ] = False,
    epochs: Annotated[int, _train("epochs", "Passes over the training rows, at most.")] = 20,
    patience: Annotated[int, _train("patience", "Stop after so many epochs without a lower validation loss.")] = 3,
    batch_size: Annotated[int, _train("batch-size", "Rows of an optimizer step.")] = 32,
    lr: Annotated[float, _train("lr", "Highest learning rate of the model's last block.")] = 1e-4,
    head_lr: Annotated[float, _train("head-lr", "Highest learning rate of the head.")] = 1e-3,
    layer_decay: Annotated[
        float, _train("layer-decay", "Factor of the learning rate from each block to the one before.")
    ] = 1.0,
    weight_decay: Annotated[float, _train("weight-decay", "AdamW's, on matrices only.")] = 0.01,
    class_weights: Annotated[str, _train("class-weights", "none, or balanced.")] = "none",
    resume: o.Resume = False,
    no_clobber: o.NoClobber = False,
    dry_run: o.DryRun = False,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of features of frozen models; default OUTPUT/features.", envvar=o.env("cache"),
                     rich_help_panel=o.ADVANCED),
    ] = None,
    gpu: o.Gpu = None,
    device: o.Device = None,
    threads: o.Threads = None,
    precision: o.Precision = "auto",
    chunk: o.Chunk = None,
    max_memory: o.MaxMemory = None,
    store: o.Store = "auto",
    tmpdir: o.Tmpdir = None,
    offline: o.Offline = False,
    seed: o.Seed = 0,
    log_file: o.LogFile = None,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:
    """Fine-tune on labelled variants or intervals, by folds, and test: metrics with intervals beside a baseline.

    Either a TASK of the benchmark with --benchmark, or --table with --label.
    """
    from lrgenome.cli import logs
    from lrgenome.cli.conflicts import refuse_folder, refuse_overwriting

    refuse_overwriting(
        [("--log-file", log_file)], [("--fasta", fasta), ("--table", table), ("--chrom-alias", chrom_alias)], model
    )
    refuse_folder("--output", output, [("--model", model), ("--benchmark", benchmark)])
    logs.set_up(verbose, quiet, log_file)
    from lrgenome.errors import UsageError
    from lrgenome.io.atomic import os_error_as_output_error
    from lrgenome.io.benchmark import READERS
    from lrgenome.io.fasta import Fasta
    from lrgenome.io.lock import folder_held
    from lrgenome.io.user_table import read_table
    from lrgenome.models.checkpoint import load_model
    from lrgenome.tasks.compute import Compute, choose_compute, choose_threads
    from lrgenome.tasks.finetune import Finetuner
    from lrgenome.tasks.finetune_settings import FinetuneSettings
    from lrgenome.tasks.report import check_output, print_report
    from lrgenome.tasks.setup import find_model, ready
    from lrgenome.training.tuning import TuneSettings

    if (task is None) == (table is None):
        raise UsageError("expected either a TASK of the benchmark or --table; got " + ("both" if task else "neither"))
    if task is not None and task not in READERS:
        raise UsageError(f"TASK: got {task!r}, expected one of {', '.join(READERS)}")
    if task is not None and benchmark is None:
        raise UsageError(f"{task}: expected --benchmark with a copy of the benchmark's files")
    if train == "full" and (length_extension != "none" or chunk is not None):
        raise UsageError("--length-extension and --chunk are of frozen models; got one of them with --train full")
    if drop_leaks and allow_leaks:
        raise UsageError("--drop-leaks and --allow-leaks exclude each other; got both")
    try:
        layers = None if hidden is None else tuple(int(width) for width in hidden.split(",") if width)
    except ValueError:
        raise UsageError(f"--hidden: got {hidden!r}, expected widths as 256,128") from None
    settings = FinetuneSettings(
        task=task or "table", train=train, context=context, common=common_rows, max_n=max_n, low=pool_from,
        high=pool_to, pool=pool, alleles=alleles, bin_size=stretch, hidden=layers, tissue=tissue_as,
        distance=distance_feature, strand=strand,
        test=tuple(test or ()), validation=tuple(validation or ()), folds=folds, fold=fold, block=block,
        max_rows=max_rows, leaks="drop" if drop_leaks else "allow" if allow_leaks else "stop", chrom_alias=chrom_alias,
        tune=TuneSettings(
            epochs=epochs, batch_size=batch_size, lr=lr, head_lr=head_lr, layer_decay=layer_decay,
            weight_decay=weight_decay, patience=patience, class_weights=class_weights, seed=seed,
        ),
    )  # fmt: skip
    check_output(output, resume=resume, no_clobber=no_clobber)
    if task is not None and benchmark is not None:
        examples = READERS[task](benchmark)
    else:
        assert table is not None
        examples = read_table(
            table, label or [], tissue=tissue_column, distance=distance_column, group=within, kind=kind
        )
    held = nullcontext() if dry_run else folder_held(output)
    with Fasta(fasta) as genome, held, os_error_as_output_error(output):
        if train == "full":
            compute = choose_compute(gpu=gpu, device=device, threads=threads, precision=precision)
            loaded = load_model(find_model(model, offline=offline))
            tuner = Finetuner(examples, genome, loaded, None, settings, compute, output, cache=None, resume=resume)
            report = None if dry_run else tuner.run()
            if dry_run:
                tuner.plan()
        else:
            loaded, runner = ready(
                model, gpu=gpu, device=device, threads=threads, precision=precision, auto=None, chunk=chunk,
                transfer="exact", store=store, tmpdir=tmpdir, max_memory=max_memory, extension=length_extension,
                offline=offline,
            )  # fmt: skip
            compute = Compute(runner.device, runner.model.compute_dtype, choose_threads(threads))
            with runner:
                tuner = Finetuner(
                    examples, genome, loaded, runner, settings, compute, output, cache=cache or output / "features",
                    resume=resume,
                )  # fmt: skip
                report = None if dry_run else tuner.run()
                if dry_run:
                    tuner.plan()
    if report is not None:
        print_report(report)
