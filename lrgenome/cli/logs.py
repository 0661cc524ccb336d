"""Where log lines go."""

import contextlib
import logging
import sys
from pathlib import Path

from lrgenome.errors import OutputError


class _LogFile(logging.FileHandler):
    """A log file that a run outlives: when it cannot be written, that is said once on stderr, where the log is too."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Stop writing the file."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logging.getLogger("lrgenome").removeHandler(self)
        with contextlib.suppress(OSError):
            self.close()
        logging.getLogger(__name__).warning(
            "--log-file %s: %s; the run goes on, the log on stderr alone", self.baseFilename, error.strerror
        )


def set_up(verbose: int, quiet: bool, log_file: Path | None) -> None:
    """Send the package's log to stderr, and to `log_file` if given."""
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file is not None:
        try:
            handlers.append(_LogFile(log_file, encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            raise OutputError(f"--log-file {log_file}: {error.strerror}") from error
    root = logging.getLogger("lrgenome")
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(level)
    root.propagate = False
