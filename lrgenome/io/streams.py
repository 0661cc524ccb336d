"""Standard input as bytes, where there is one to read."""

import sys
from typing import BinaryIO

from lrgenome.errors import UsageError


def standard_input(expected: str) -> BinaryIO:
    """Return standard input.

    Parameters
    ----------
    expected
        What should come in, for messages.

    Raises
    ------
    UsageError
        If it is closed, or a terminal, at which the command would seem to hang.
    """
    if sys.stdin is None:
        raise UsageError(f"standard input: is closed, expected {expected}")
    if sys.stdin.buffer.isatty():
        raise UsageError(f"standard input: got a terminal, expected {expected} from a pipe or a file")
    return sys.stdin.buffer
