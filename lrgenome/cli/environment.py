"""What the environment of a command asks for: options as variables, standard streams, room to run in."""

import difflib
import io
import os
import resource
import sys
from typing import Any

from lrgenome.errors import MemoryLimitError

PREFIX = "LRGENOME_"
SPINS = 10_000
"""Looks at a barrier before a thread sleeps, some tens of microseconds."""
LEAST_ADDRESS_SPACE = 3 << 30
"""Bytes that the libraries (torch, numba's compiler) map before any work; with less they end in many ways, few of them
with a message."""


def open_streams() -> None:
    """Give the process the standard streams that its shell closed (``<&-``, ``>&-``, ``2>&-``).

    Else the first files that are opened would take their numbers, and libraries would write messages into them. What
    should be read is nowhere, and what is written goes nowhere.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one.
            os.open(os.devnull, mode)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files may hold what the locale has no letters for.
        sys.stdout.reconfigure(errors="backslashreplace")


def sleep_while_waiting() -> None:
    """Let threads that wait for others of their team sleep soon, where OpenMP's own variables do not say otherwise.

    By default they spin for milliseconds, which on a busy machine takes the core from the very thread that is awaited.
    To be called before a library brings OpenMP.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def check_address_space() -> None:
    """Refuse to begin where ``ulimit -v`` leaves no room for the libraries; help and version need none.

    Raises
    ------
    MemoryLimitError
        With what there is and what is needed.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if {"-h", "--help", "-V", "--version"} & set(sys.argv):
        return
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise MemoryLimitError(
            f"ulimit -v: got {limit / 1e9:.2f} GB of address space, expected at least {LEAST_ADDRESS_SPACE / 1e9:.2f} "
            "GB, which the libraries map before any work (little of it is used; limit resident memory instead, by the "
            "batch system or --max-memory)"
        )


def variables(command: Any) -> set[str]:
    """Return the environment variables of the options of a command and of those below it."""
    found: set[str] = set()
    for parameter in command.params:
        names = parameter.envvar or ()
        found.update([names] if isinstance(names, str) else names)
    for one in getattr(command, "commands", {}).values():
        found |= variables(one)
    return found


def warn_of_variables(context: Any) -> None:
    """Say on standard error which ``LRGENOME_`` variables no option has: a name that is misspelt has no effect."""
    known = variables(context.find_root().command)
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            print(f"lrgenome: warning: {name} is the variable of no option and has no effect{hint}", file=sys.stderr)


def sources(message: str, context: Any) -> str:
    """Name the variables behind an error: those whose option or value it names, if the value is from them."""
    found = []
    for parameter in context.command.params:
        if getattr(context.get_parameter_source(parameter.name), "name", "") != "ENVIRONMENT":
            continue
        if not isinstance(parameter.envvar, str):
            continue
        values = os.environ.get(parameter.envvar, "").split()
        words = message.replace(":", " ").replace(",", " ").split()
        if any(option in words for option in parameter.opts) or any(repr(value) in message for value in values):
            found.append(parameter.envvar)
    return f" (from the environment: {', '.join(found)})" if found else ""
