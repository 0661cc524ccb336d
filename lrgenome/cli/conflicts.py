"""Outputs that are inputs too, or one another: refused before anything is opened for writing."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from lrgenome.errors import UsageError

Named = tuple[str, str | os.PathLike[str] | None]
"""What a path is called in messages, and the path, if there is one."""


def refuse_overwriting(outputs: Iterable[Named], inputs: Iterable[Named], model: Path | None = None) -> None:
    """See that no output would replace an input, nor another output.

    Parameters
    ----------
    outputs, inputs
        Files, by any path: symbolic and hard links are followed. ``-`` is standard output or input.
    model
        A folder of which every file is an input.

    Raises
    ------
    UsageError
        Naming both, before anything is lost.
    """
    read = [(name, path) for name, path in inputs if path is not None]
    if len(piped := [name for name, path in read if os.fspath(path) == "-"]) > 1:
        raise UsageError(f"{' and '.join(piped)}: got standard input for both, expected it for one of them")
    if model is not None and os.path.isdir(model):
        read += [("--model", file) for file in sorted(Path(model).iterdir())]
    written: list[tuple[str, str | os.PathLike[str]]] = []
    for name, path in outputs:
        if path is None:
            continue
        for other, source in read:
            for target in (path, f"{os.path.realpath(path)}.partial"):
                if _one_file(target, source, output=True):
                    what = "is" if target == path else f"is written as {target} first,"
                    raise UsageError(f"{name}: got {path}, which {what} the input {other} ({source}) and would be lost")
        for other, earlier in written:
            if _one_file(path, earlier):
                raise UsageError(f"{name}: got {path}, which {other} is too; expected two files")
        written.append((name, path))


def refuse_folder(name: str, folder: Path, inputs: Iterable[Named]) -> None:
    """See that the folder of a new model is not that of the model it is made from.

    Raises
    ------
    UsageError
        Naming both.
    """
    for other, source in inputs:
        if source is not None and _one_file(folder, source):
            raise UsageError(f"{name}: got {folder}, which is {other} too and would be replaced; expected another")


def _one_file(one: str | os.PathLike[str], other: str | os.PathLike[str], *, output: bool = False) -> bool:
    """Tell whether two paths lead to one file, there already or not; pipes and devices are none."""
    if os.fspath(one) == "-" and output:
        return _is_standard_output(other)
    if "-" in (os.fspath(one), os.fspath(other)):
        return False
    if os.path.exists(one) and os.path.exists(other):
        return not _is_special(one) and os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def _is_special(path: str | os.PathLike[str]) -> bool:
    return not os.path.isfile(path) and not os.path.isdir(path)


def _is_standard_output(path: str | os.PathLike[str]) -> bool:
    """Tell whether what a shell has appended to (``>> FILE``) is a file that is read."""
    try:
        return os.path.isfile(path) and os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError, AttributeError):
        return False
