"""Progress on a terminal with tqdm; elsewhere a log line every 30 seconds."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

log = logging.getLogger(__name__)

LOG_SECONDS = 30.0


class Progress:
    """Counts units of work; a context manager."""

    def __init__(self, label: str, total: int | None, unit: str, *, done: int = 0, scale: bool = False) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = done
        self._note = ""
        self._logged = time.monotonic()
        # Speed counts from the first update on, since what comes before it is done once.
        self._first: tuple[float, int] | None = None
        quiet = not log.isEnabledFor(logging.INFO)
        self._bar = (
            tqdm(total=total, initial=done, unit=unit, desc=label, unit_scale=scale, file=sys.stderr, leave=False)
            if sys.stderr.isatty() and not quiet
            else None
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def set_postfix_str(self, note: str) -> None:
        """Say something after the count."""
        self._note = note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)

    def update(self, count: int) -> None:
        """Add finished units."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        began, before = self._first = self._first or (now, self._done)
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            left = f" of {self._total:,}" if self._total else ""
            if self._total and self._done > before and now > began:
                seconds = (self._total - self._done) * (now - began) / (self._done - before)
                left += f", about {seconds / 60:.0f} min left"
            log.info("%s: %s %s%s%s", self._label, f"{self._done:,}", self._unit, left,
                     f"; {self._note}" if self._note else "")  # fmt: skip
