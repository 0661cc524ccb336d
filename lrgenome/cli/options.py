"""Option types that several commands share; nothing heavy is imported here."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lrgenome.glossary import parse_length, parse_size

INPUT, OUTPUT, MODEL, COMPUTE, ADVANCED = "Input", "Output", "Model", "Compute", "Advanced"


def length(text: str) -> int:
    """Parse a length option; the error says what was expected."""
    try:
        return parse_length(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def size(text: str) -> int:
    """Parse an amount of memory; the error says what was expected."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def env(name: str) -> str:
    """Name the environment variable of an option."""
    return "LRGENOME_" + name.upper().replace("-", "_")


def option(name: str, help: str, *, panel: str, **extra: Any) -> Any:
    """Make an option with its environment variable."""
    return typer.Option(f"--{name}", help=help, envvar=env(name), rich_help_panel=panel, **extra)


# --- Input
Fasta = Annotated[
    Path | None,
    typer.Option("--fasta", "-f", help="Reference FASTA, plain or BGZF.", envvar=env("fasta"),
                 rich_help_panel=INPUT),
]  # fmt: skip
Region = Annotated[
    list[str] | None,
    typer.Option("--region", "--regions", "-r", help="Only these, as 20 or 20:1,000,001-2,000,000 (1-based).",
                 envvar=env("regions"), rich_help_panel=INPUT),
]  # fmt: skip
RegionsFile = Annotated[
    Path | None,
    typer.Option("--regions-file", "-R", help="Only what overlaps the intervals of this BED file.",
                 envvar=env("regions_file"), rich_help_panel=INPUT),
]  # fmt: skip
Shard = Annotated[
    str | None,
    typer.Option(help="Only part I of N, as 1/4 or 1-of-4.", envvar=env("shard"), rich_help_panel=INPUT),
]

# --- Output
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue the partial output of an interrupted run.", envvar=env("resume"),
                 rich_help_panel=OUTPUT),
]  # fmt: skip
NoClobber = Annotated[
    bool,
    typer.Option("--no-clobber", help="Refuse to replace output that is there.", envvar=env("no_clobber"),
                 rich_help_panel=OUTPUT),
]  # fmt: skip
NoVersion = Annotated[
    bool,
    typer.Option("--no-version", help="Leave the tool's version out of the output.", envvar=env("no_version"),
                 rich_help_panel=OUTPUT),
]  # fmt: skip
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print counts, sizes and expected time; compute nothing.", envvar=env("dry_run"),
                 rich_help_panel=OUTPUT),
]  # fmt: skip

# --- Model
Model = Annotated[
    Path | None,
    typer.Option("--model", "-m", help="Checkpoint folder, a downloaded snapshot of published weights, or "
                 "hf:ORG/NAME[@REVISION]; default the embedded model.", envvar=env("model"), rich_help_panel=MODEL),
]  # fmt: skip
LengthExtension = Annotated[
    str,
    typer.Option(help="Of transformers, for windows longer than those trained on: none (refuse), plain (positions "
                 "as they are), pi (position interpolation), ntk, yarn or self-extend.",
                 envvar=env("length_extension"), rich_help_panel=MODEL),
]  # fmt: skip

# --- Compute
Gpu = Annotated[
    int | None,
    typer.Option(min=0, help="Index of a GPU within CUDA_VISIBLE_DEVICES.", envvar=env("gpu"),
                 rich_help_panel=COMPUTE),
]  # fmt: skip
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda or cuda:N; default the first GPU, else the CPU.", envvar=env("device"),
                 rich_help_panel=COMPUTE),
]  # fmt: skip
Threads = Annotated[
    int | None,
    typer.Option("--threads", "-t", min=1, help="CPU threads; default all that this process may use.",
                 envvar=env("threads"), rich_help_panel=COMPUTE),
]  # fmt: skip
Precision = Annotated[
    str,
    typer.Option(help="auto, float32 or bfloat16.", envvar=env("precision"), rich_help_panel=COMPUTE),
]
BatchSize = Annotated[
    str,
    typer.Option(help="Windows at a time: auto or a number.", envvar=env("batch_size"), rich_help_panel=COMPUTE),
]
Chunk = Annotated[
    int | None,
    typer.Option(parser=length, metavar="LENGTH", help="Positions at a time in the sweeps; a matter of speed.",
                 envvar=env("chunk"), rich_help_panel=COMPUTE),
]  # fmt: skip
MaxMemory = Annotated[
    int | None,
    typer.Option(parser=size, metavar="SIZE", help="Most memory to hold, as 8GB, on the GPU where there is one; what "
                 "does not fit is computed twice or goes to disk. Default what is free.", envvar=env("max_memory"),
                 rich_help_panel=COMPUTE),
]  # fmt: skip
Store = Annotated[
    str,
    typer.Option(help="Where sweeps keep their state: auto, ram or disk (under --tmpdir).", envvar=env("store"),
                 rich_help_panel=COMPUTE),
]  # fmt: skip
Tmpdir = Annotated[
    Path | None,
    typer.Option(help="Folder for temporary files; default TMPDIR.", envvar=env("tmpdir"), rich_help_panel=COMPUTE),
]
Transfer = Annotated[
    str,
    typer.Option(help="States that cross chunk edges: exact (both directions), forward or none.",
                 envvar=env("transfer"), rich_help_panel=ADVANCED),
]  # fmt: skip

# --- Advanced
Seed = Annotated[
    int, typer.Option(help="Of everything random.", envvar=env("seed"), rich_help_panel=ADVANCED)
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Exit 3 if anything was skipped.", envvar=env("strict"), rich_help_panel=ADVANCED),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", help="Forbid any use of the network.", envvar=env("offline"),
                 rich_help_panel=ADVANCED),
]  # fmt: skip
LogFile = Annotated[
    Path | None,
    typer.Option(help="Write the log here too.", envvar=env("log_file"), rich_help_panel=ADVANCED),
]
Verbose = Annotated[
    int,
    typer.Option("--verbose", "-v", count=True, help="Say more.", envvar=env("verbose"), rich_help_panel=ADVANCED),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Say only warnings and errors.", envvar=env("quiet"),
                 rich_help_panel=ADVANCED),
]  # fmt: skip
