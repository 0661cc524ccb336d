"""The `lrgenome` command: registers the subcommands and turns errors into exit codes."""

import errno
import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from lrgenome.cli import concat, data, embed, extrapolate, finetune, multiqc, pretrain, score_vcf
from lrgenome.cli.environment import check_address_space, open_streams, sleep_while_waiting, sources, warn_of_variables
from lrgenome.cli.signals import STOPS, stops
from lrgenome.errors import (
    DeviceError,
    InputError,
    LrgenomeError,
    MemoryLimitError,
    ModelError,
    NumericalError,
    OutputError,
    UsageError,
)
from lrgenome.io.atomic import os_error_as_output_error
from lrgenome.version import __version__

# First match wins; the classes are siblings but for UsageError's OutputExistsError.
EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (UsageError, 2),
    (InputError, 3),
    (OutputError, 3),
    (DeviceError, 4),
    (ModelError, 5),
    (MemoryLimitError, 137),
    (NumericalError, 1),
    (LrgenomeError, 1),
    (MemoryError, 137),
)

_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "failed to map segment", "bad_alloc")


def guard(command: Callable[..., None]) -> Callable[..., None]:
    """Run a command so that errors become one line on stderr and an exit code."""
    of_command = inspect.signature(command)
    kept = "; partial output is kept, and --resume continues it" if "resume" in of_command.parameters else ""

    @functools.wraps(command)
    def guarded(*args: Any, typer_context: typer.Context | None = None, **kwargs: Any) -> None:
        with stops() as arrived:
            try:
                arrived.arm()
                if typer_context is not None:
                    warn_of_variables(typer_context)
                command(*args, **kwargs)
                with os_error_as_output_error("standard output"):
                    sys.stdout.flush()
                arrived.forget()
            except BaseException as error:
                arrived.forget()
                number = arrived.number(error)
                if number is not None:
                    kind, word = STOPS[number]
                    # What the signal raised may have come out as something else, or stopping may have failed.
                    other = "" if isinstance(error, kind) else f" ({type(error).__name__}: {error})"
                    _fail(f"{word}{kept}{other}", 128 + number)
                _fail_for(error, typer_context)
                raise

    # Typer hands the context to a parameter of its type.
    extra = inspect.Parameter("typer_context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    guarded.__signature__ = of_command.replace(  # type: ignore[attr-defined]
        parameters=[*of_command.parameters.values(), extra]
    )
    guarded.__annotations__ = {**command.__annotations__, "typer_context": typer.Context}
    return guarded


def _fail_for(error: BaseException, context: typer.Context | None) -> None:
    """Exit as `error` asks for; return if it is a defect of ours, which deserves its traceback."""
    if isinstance(error, BrokenPipeError):
        # The reader has seen enough (`| head`).
        _discard_stdout()
        raise typer.Exit(141) from None
    said = str(error)
    if isinstance(error, UsageError) and context is not None:
        said += sources(said, context)
    if isinstance(error, (LrgenomeError, MemoryError)):
        _fail(said or "out of memory", next(code for kind, code in EXIT_CODES if isinstance(error, kind)))
    if _is_of_memory(error):
        _fail(f"out of memory: {said}", 137)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        _fail(f"cannot write: {said}", 3)


def _is_of_memory(error: BaseException) -> bool:
    """Tell errors of memory that have other classes: torch's, the loader's of shared libraries, the system's."""
    said = str(error).lower()
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, (RuntimeError, ImportError, OSError)) and any(words in said for words in _OF_MEMORY)


def _discard_stdout() -> None:
    """Drop what stdout could not take: Python would complain of it again when it closes stdout."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> NoReturn:
    _discard_stdout()
    print(f"lrgenome: error: {message}" if code < 128 or code == 137 else f"lrgenome: {message}", file=sys.stderr)
    raise typer.Exit(code) from None


def _version(value: bool) -> None:
    if value:
        print(f"lrgenome {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="lrgenome",
    help="State-space models of DNA at long range: pre-train, embed genomes, score variants.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every option can be given as an environment variable LRGENOME_<OPTION>. Exit codes: 0 done, 1 internal "
    "error, 2 usage, 3 bad data, 4 no such device, 5 model, 130 and 143 stopped, 137 out of memory. Data to try it on: "
    "lrgenome data demo.",
)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """State-space models of DNA at long range: pre-train, embed genomes, score variants."""


app.command("pretrain")(guard(pretrain.command))
app.command("finetune")(guard(finetune.command))
app.command("extrapolate")(guard(extrapolate.command))
app.command("embed")(guard(embed.command))
app.command("score-vcf")(guard(score_vcf.command))
app.command("concat")(guard(concat.command))
app.command("multiqc")(guard(multiqc.command))
_data = typer.Typer(help="List, fetch and verify the files of a manifest; write the demo data.", no_args_is_help=True)
_data.command("list")(guard(data.list_command))
_data.command("fetch")(guard(data.fetch_command))
_data.command("verify")(guard(data.verify_command))
_data.command("expand")(guard(data.expand_command))
_data.command("demo")(guard(data.demo_command))
app.add_typer(_data, name="data")


def main() -> None:
    """Run the command line; the entry point of `lrgenome`."""
    open_streams()
    sleep_while_waiting()
    try:
        check_address_space()
    except MemoryLimitError as error:
        print(f"lrgenome: error: {error}", file=sys.stderr)
        sys.exit(137)
    app()
