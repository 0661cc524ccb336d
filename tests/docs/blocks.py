"""Blocks of bash of the pages: their statements, and the real command line to parse them with."""

import functools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import make_examples
import typer
from typer.testing import CliRunner

from lrgenome.cli.app import app

ROOT = make_examples.ROOT
_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>(?:(?!```).*\n)*)```$", re.MULTILINE)
_HEREDOC = re.compile(r"<<'?(\w+)'?")
SHELL = re.compile(r"[|<>;&(]")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    text: str


def blocks(language: str) -> Iterator[Block]:
    """Yield the blocks of a language of all pages."""
    for page in make_examples.pages():
        text = page.read_text(encoding="utf-8")
        for found in _FENCE.finditer(text):
            if found["language"] == language:
                yield Block(page.relative_to(ROOT).as_posix(), text.count("\n", 0, found.start()) + 1, found["text"])


def inline_commands() -> Iterator[Block]:
    """Yield the commands with options that stand in a line of text."""
    for page in make_examples.pages():
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            for text in re.findall(r"`(lrgenome [a-z][^`]* -[^`]*)`", line):
                yield Block(page.relative_to(ROOT).as_posix(), number, text)


def statements(text: str) -> list[str]:
    """Split a block into statements: lines joined at backslashes, here-documents whole, without comments."""
    found, lines = [], iter(text.splitlines())
    for line in lines:
        while line.endswith("\\"):
            line = line[:-1] + next(lines).lstrip()
        if document := _HEREDOC.search(line):
            more = [line]
            while more[-1] != document[1]:
                more.append(next(lines))
            line = "\n".join(more)
        if line.strip() and not line.lstrip().startswith("#"):
            found.append(line)
    return found


def words(statement: str) -> list[str]:
    """Split a statement as a shell does."""
    return shlex.split(statement, comments=True)


def _parser(group: typer.Typer) -> typer.Typer:
    """Make a copy of the command line that parses everything, and does nothing."""
    copy = typer.Typer(no_args_is_help=True)
    copy.callback()(lambda: None)
    for info in group.registered_commands:
        assert info.callback is not None
        copy.command(info.name)(_nothing(info.callback))
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        copy.add_typer(_parser(inner.typer_instance), name=inner.name)
    return copy


def _nothing(command: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(command)
    def nothing(*args: Any, **kwargs: Any) -> None: ...

    return nothing


PARSER = _parser(app)


def parse(arguments: list[str]) -> str:
    """Parse the arguments of `lrgenome` with the real options, types and defaults; return what is wrong with them."""
    result = CliRunner().invoke(PARSER, arguments)
    return "" if result.exit_code == 0 else result.output


def options_in(script: Path) -> set[str]:
    """Return the options that a script of the repository takes, by its text and that of what it shares."""
    sources = list(script.glob("*.py")) if script.is_dir() else [script]
    if script.parent.name == "benchmarks":
        sources.append(ROOT / "tests" / "benchmarks" / "common.py")
    return set(re.findall(r"\"(--[a-z][a-z-]*)\"", "".join(path.read_text(encoding="utf-8") for path in sources)))
