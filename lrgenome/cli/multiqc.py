"""`lrgenome multiqc`."""

from pathlib import Path
from typing import Annotated

import typer

from lrgenome.cli import options as o


def command(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="JSON of score-vcf --summary, of a run or of all its shards; and .h5 of "
                       "embed."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PREFIX", help="Writes PREFIX.status_mqc.json, PREFIX.score_mqc.json; "
                     "of .h5 PREFIX.embed_mqc.json.", envvar=o.env("output"), rich_help_panel=o.OUTPUT),
    ],
    sample: Annotated[
        str | None,
        typer.Option(help="Name in the report.", show_default="the last part of PREFIX", envvar=o.env("sample"),
                     rich_help_panel=o.OUTPUT),
    ] = None,
    no_clobber: o.NoClobber = False,
    log_file: o.LogFile = None,
    verbose: o.Verbose = 0,
    quiet: o.Quiet = False,
) -> None:  # fmt: skip
    """Turn what runs counted into custom content of MultiQC.

    A bar graph of the variants by status, and columns of the general statistics. Shards of one run are added up; one
    that is missing, or there twice, is an error.
    """
    from lrgenome.cli import logs
    from lrgenome.cli.conflicts import refuse_overwriting
    from lrgenome.tasks import multiqc as task

    refuse_overwriting([("--log-file", log_file)], [("FILE", path) for path in inputs])
    logs.set_up(verbose, quiet, log_file)
    task.run(inputs, output, sample=sample, no_clobber=no_clobber)
