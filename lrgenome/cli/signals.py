"""Signals that ask a command to end, as exceptions that cannot get lost.

Python runs a signal's handler wherever it is: what the handler raises may end in a callback of a weak reference
or in a destructor, which nobody catches, or come out of an import as another error. So the signal is noted, and
raised again until its exception is on its way through the command.
"""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN_SECONDS = 0.1
"""Time after which an exception that is under way nowhere is raised again."""


class Terminated(BaseException):
    """SIGTERM arrived."""


class HungUp(BaseException):
    """SIGHUP arrived: the terminal or the connection is gone."""


class OutOfTime(BaseException):
    """SIGXCPU arrived: the CPU time that ``ulimit -t`` or a batch system grants is used up."""


STOPS: dict[int, tuple[type[BaseException], str]] = {
    signal.SIGINT: (KeyboardInterrupt, "interrupted"),
    signal.SIGTERM: (Terminated, "terminated"),
    signal.SIGHUP: (HungUp, "hung up"),
    signal.SIGXCPU: (OutOfTime, "out of CPU time"),
}
"""Signals that end a command: what they raise, and the word for it."""


class Stops:
    """What arrived while a command ran.

    A handler may run in the middle of anything, a lock's own methods among them, so it only assigns attributes.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        self._raised: BaseException | None = None
        self._armed = False
        self._over = False

    def arm(self) -> None:
        """Raise from now on; what arrived before is raised at once."""
        self._armed = True
        if self._first is not None:
            self.handle(self._first, None)

    def forget(self) -> None:
        """Raise nothing more."""
        self._armed = False

    def number(self, error: BaseException) -> int | None:
        """Name the signal that `error` comes from, or None."""
        kinds = [number for number, (kind, _) in STOPS.items() if isinstance(error, kind)]
        return self._first if self._first is not None else next(iter(kinds), None)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal, and raise its exception unless it is under way already."""
        if self._first is None:
            self._first = number
        if self._armed and not self._under_way():
            self._raised = STOPS[self._first][0]()
            raise self._raised

    def _under_way(self) -> bool:
        error = sys.exc_info()[1]
        while error is not None and error is not self._raised:
            error = error.__context__
        return error is not None

    def watch(self) -> None:
        """Have the exception raised again and again, until the command is over; runs in a thread of its own."""
        while not self._over:
            time.sleep(AGAIN_SECONDS)
            if self._armed and self._first is not None:
                _thread.interrupt_main(signal.Signals(self._first))

    def end(self) -> None:
        """Let the thread end."""
        self._armed, self._over = False, True

    def unraisable(self, report: Any) -> bool:
        """Tell whether an exception that Python could not raise is ours, which comes again."""
        return self._raised is not None and report.exc_value is self._raised


@contextmanager
def stops() -> Iterator[Stops]:
    """Turn the signals of `STOPS` into exceptions once `Stops.arm` is called.

    A signal that the process ignores (SIGINT in a background job of a shell, SIGHUP under nohup) stays ignored.
    """
    found, hook, before = Stops(), sys.unraisablehook, {}

    def quiet(report: Any) -> None:
        if not found.unraisable(report):
            hook(report)

    try:
        for number in STOPS:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, found.handle)
        sys.unraisablehook = quiet
        threading.Thread(target=found.watch, name="signals", daemon=True).start()
        yield found
    finally:
        found.end()
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
