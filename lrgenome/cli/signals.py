"""SIGINT and SIGTERM as exceptions that cannot get lost.

Python runs a signal's handler wherever it is: what the handler raises may end in a callback of a weak reference
or in a destructor, which nobody catches, or come out of an import as another error. So the signal is noted, and
raised again until its exception is on its way through the command.
"""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN_SECONDS = 0.1
"""Time after which an exception that is under way nowhere is raised again."""


class Terminated(BaseException):
    """SIGTERM arrived."""


STOPS: dict[int, tuple[type[BaseException], str]] = {
    signal.SIGINT: (KeyboardInterrupt, "interrupted"),
    signal.SIGTERM: (Terminated, "terminated"),
}
"""Signals that end a command: what they raise, and the word for it."""


class Stops:
    """What arrived while a command ran."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._raised: BaseException | None = None
        self._timer: threading.Timer | None = None

    def number(self, error: BaseException) -> int | None:
        """Name the signal that `error` comes from, or None."""
        kinds = [number for number, (kind, _) in STOPS.items() if isinstance(error, kind)]
        return self._first if self._first is not None else next(iter(kinds), None)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise the exception of the first signal, unless it is under way already."""
        if self._first is None:
            self._first = number
        self._raise_again_later()
        if not self._under_way():
            self._raised = STOPS[self._first][0]()
            raise self._raised

    def _under_way(self) -> bool:
        error = sys.exc_info()[1]
        while error is not None and error is not self._raised:
            error = error.__context__
        return error is not None

    def _raise_again_later(self) -> None:
        self.forget()
        self._timer = threading.Timer(AGAIN_SECONDS, _thread.interrupt_main, [self._first])
        self._timer.daemon = True
        self._timer.start()

    def forget(self) -> None:
        """Raise nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def unraisable(self, report: Any) -> bool:
        """Tell whether an exception that Python could not raise is ours, which comes again."""
        return self._raised is not None and report.exc_value is self._raised


@contextmanager
def stops() -> Iterator[Stops]:
    """Turn SIGINT and SIGTERM into exceptions; one that the process ignores (a background job) stays ignored."""
    found, hook = Stops(), sys.unraisablehook

    def quiet(report: Any) -> None:
        if not found.unraisable(report):
            hook(report)

    heard = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, found.handle) for number in heard}
    sys.unraisablehook = quiet
    try:
        yield found
    finally:
        found.forget()
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
