"""Write docs/reference.md from the commands themselves: every option with its default, environment variable and panel.

``python docs/make_reference.py`` writes the page, ``--check`` says whether it is up to date.
"""

import argparse
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

from lrgenome.cli.app import app

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Command reference

<!-- Made by docs/make_reference.py from the commands themselves; do not edit. -->

Each option of each command, as `lrgenome COMMAND --help` shows it, in the same groups. What is not given on the
command line is taken from the environment variable. Options with `...` may be given again; their environment variables
take several values, separated by spaces, or by colons where they are paths. Lengths are `12kbp`, `1.5Mb`, `131072` or
`1,000` (decimal, in bp), amounts of memory `8GB` or `7.5GiB`.
"""
GENERAL = "General"


def commands(group: typer.Typer = app, prefix: str = "lrgenome") -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield name and function of every command, of groups within too."""
    for info in group.registered_commands:
        assert info.callback is not None
        yield f"{prefix} {info.name}", info.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from commands(inner.typer_instance, f"{prefix} {inner.name}")


def parameters(function: Callable[..., Any]) -> Iterator[tuple[str, Any, ParameterInfo, Any]]:
    """Yield name, type, description and default of each parameter of a command."""
    function = inspect.unwrap(function)
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, *notes = typing.get_args(hints[name])
        (info,) = (note for note in notes if isinstance(note, ParameterInfo))
        yield name, kind, info, parameter.default


def names_of(name: str, info: ParameterInfo) -> str:
    """Write how an option is given on the command line."""
    if isinstance(info, ArgumentInfo):
        return f"`{(info.metavar or name.upper()).strip('[].')}`"
    # Inside Annotated, typer.Option takes the first declaration for a default.
    first = (info.default,) if isinstance(info.default, str) and info.default.startswith("-") else ()
    given = (*first, *(info.param_decls or ())) or (f"--{name.replace('_', '-')}",)
    return " ".join(f"`{part}`" for one in given for part in one.split("/"))


def value_of(kind: Any, info: ParameterInfo) -> str:
    """Write what an option takes: LENGTH, SIZE, NUMBER, TEXT, PATH; nothing for a flag."""
    text, more = str(kind), " ..." if "list[" in str(kind) else ""
    if info.metavar and isinstance(info, OptionInfo):
        return info.metavar + more
    if "bool" in text or getattr(info, "count", False):
        return "flag"
    words = (("Path", "PATH"), ("int", "INTEGER"), ("float", "NUMBER"))
    return next((word for part, word in words if part in text), "TEXT") + more


def default_of(info: ParameterInfo, default: Any) -> str:
    """Write a default as it would be given."""
    if isinstance(info.show_default, str):
        return info.show_default
    if default is inspect.Parameter.empty:
        return "required"
    if default is None or default is False or (getattr(info, "count", False) and not default):
        return ""
    return f"`{default}`"


def cell(text: str) -> str:
    """Make a text fit into a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def section(title: str, function: Callable[..., Any]) -> str:
    """Write the section of a command."""
    panels: dict[str, list[str]] = {}
    for name, kind, info, default in parameters(function):
        row = (
            names_of(name, info), value_of(kind, info), default_of(info, default),
            f"`{info.envvar}`" if info.envvar else "", cell(info.help or ""),
        )  # fmt: skip
        panel = "Arguments" if isinstance(info, ArgumentInfo) else info.rich_help_panel or GENERAL
        panels.setdefault(panel, []).append("| " + " | ".join(row) + " |")
    usage = f"{title} [OPTIONS]" + "".join(
        (" [{}]" if default is not inspect.Parameter.empty else " {}").format(info.metavar or name.upper())
        + ("..." if "list[" in str(kind) else "")
        for name, kind, info, default in parameters(function)
        if isinstance(info, ArgumentInfo)
    )
    said = inspect.getdoc(inspect.unwrap(function))
    parts = [f"## {title.removeprefix('lrgenome ')}", f"```text\n{usage}\n```", said]
    for panel, rows in panels.items():
        heading = "| name | takes | default | environment variable | what |\n|---|---|---|---|---|"
        parts += [f"**{panel}**", "\n".join([heading, *rows])]
    return "\n\n".join(part or "" for part in parts)


def page() -> str:
    """Write the whole page."""
    listed = list(commands())
    return "\n\n".join([HEAD.strip(), *(section(title, function) for title, function in listed)]) + "\n"


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 where the page is not up to date; write nothing")
    if parser.parse_args().check:
        if PAGE.read_text(encoding="utf-8") != page():
            sys.exit(f"{PAGE} is not up to date: python docs/make_reference.py")
        return
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
