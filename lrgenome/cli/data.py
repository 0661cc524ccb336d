"""`lrgenome data`: list, fetch and verify the files of a manifest; write the demo data."""

from pathlib import Path
from typing import Annotated

import typer

from lrgenome.cli import options as o

Names = Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Only these; default all.")]
Manifest = Annotated[
    Path,
    typer.Option("--manifest", help="TSV of data sets.", exists=True, dir_okay=False, envvar=o.env("manifest"),
                 rich_help_panel=o.INPUT),
]  # fmt: skip
Kind = Annotated[
    list[str] | None,
    typer.Option(help="Only of this kind, as genome; may be repeated.", envvar=o.env("kind"), rich_help_panel=o.INPUT),
]
DEFAULT = Path("data_manifest.tsv")


def list_command(
    names: Names = None, manifest: Manifest = DEFAULT, kind: Kind = None, verbose: o.Verbose = 0, quiet: o.Quiet = False
) -> None:
    """List data sets: name, kind, species, assembly, bytes, licence, and whether they are here."""
    from lrgenome.cli import logs
    from lrgenome.tasks import data

    logs.set_up(verbose, quiet, None)
    data.list_data(data.select(manifest, names or (), kind or ()))


def fetch_command(
    names: Names = None, manifest: Manifest = DEFAULT, kind: Kind = None, offline: o.Offline = False,
    log_file: o.LogFile = None, verbose: o.Verbose = 0, quiet: o.Quiet = False,
) -> None:  # fmt: skip
    """Download what is missing, and check it.

    A download that was cut off is gone on from. A FASTA is kept as BGZF with its index beside it. Proxies are those of
    http_proxy and https_proxy.
    """
    from lrgenome.cli import logs
    from lrgenome.cli.conflicts import refuse_overwriting

    refuse_overwriting([("--log-file", log_file)], [("--manifest", manifest)])
    logs.set_up(verbose, quiet, log_file)
    from lrgenome.tasks import data

    data.fetch(data.select(manifest, names or (), kind or ()), offline=offline, named=bool(names))


def expand_command(
    addresses: Annotated[Path, typer.Argument(metavar="LIST", help="Text with an address of a FASTA in each line.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Manifest to write.", envvar=o.env("output"), rich_help_panel=o.OUTPUT),
    ],
    weight: Annotated[float, typer.Option(help="Of each genome in training.", rich_help_panel=o.OUTPUT)] = 1.0,
    verbose: o.Verbose = 0, quiet: o.Quiet = False,
) -> None:  # fmt: skip
    """Make a manifest of a list of addresses, a row for each genome by its assembly accession."""
    from lrgenome.cli import logs
    from lrgenome.cli.conflicts import refuse_overwriting
    from lrgenome.errors import UsageError

    refuse_overwriting([("--output", output)], [("LIST", addresses)])
    logs.set_up(verbose, quiet, None)
    from lrgenome.tasks import data

    if not 0 < weight < float("inf"):
        raise UsageError(f"--weight: got {weight}, expected a positive number")
    print(f"genomes\t{data.expand(addresses, output, weight=weight)}")


def demo_command(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder to write them to.", envvar=o.env("output"),
                     rich_help_panel=o.OUTPUT),
    ] = Path("demo"),
    no_clobber: o.NoClobber = False, verbose: o.Verbose = 0, quiet: o.Quiet = False,
) -> None:  # fmt: skip
    """Write the demo data of the package into a folder, and print the names of the files.

    The first 2 Mbp of human chromosome 20 (GRCh37) with two VCF files, a table of labelled intervals and a manifest.
    """
    from lrgenome.cli import logs
    from lrgenome.tasks import data

    logs.set_up(verbose, quiet, None)
    for path in data.write_demo(output, no_clobber=no_clobber):
        print(path)


def verify_command(
    names: Names = None, manifest: Manifest = DEFAULT, kind: Kind = None, verbose: o.Verbose = 0, quiet: o.Quiet = False
) -> None:
    """Compare files with their sha256: ok, mismatch, unpinned (nothing to compare with) or missing."""
    from lrgenome.cli import logs
    from lrgenome.tasks import data

    logs.set_up(verbose, quiet, None)
    data.verify(data.select(manifest, names or (), kind or ()))
