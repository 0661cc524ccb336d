"""`lrgenome concat`."""

from pathlib import Path
from typing import Annotated

import typer

from lrgenome.cli import options as o


def command(
    parts: Annotated[list[Path], typer.Argument(metavar="PART", help="Files of `embed`.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="HDF5, or AnnData by the suffix .h5ad.", envvar=o.env("output"),
                     rich_help_panel=o.OUTPUT),
    ],
    compression: Annotated[
        str, typer.Option(help="gzip, zstd or none.", envvar=o.env("compression"), rich_help_panel=o.OUTPUT)
    ] = "gzip",
    no_clobber: o.NoClobber = False,
    log_file: o.LogFile = None,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:
    """Join parts that `embed` made: the shards of a run, in any order, or runs on other regions each.

    Tables of score-vcf (.tsv.gz) are joined by cat, VCF and BCF by bcftools concat.
    """
    from lrgenome.cli import logs
    from lrgenome.cli.conflicts import refuse_overwriting
    from lrgenome.tasks import concat as task

    refuse_overwriting([("--output", output), ("--log-file", log_file)], [("PART", part) for part in parts])
    logs.set_up(verbose, quiet, log_file)
    task.run(parts, output, compression=compression, no_clobber=no_clobber)
