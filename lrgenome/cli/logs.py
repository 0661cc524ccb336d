"""Where log lines go."""

import logging
import sys
from pathlib import Path

from lrgenome.errors import OutputError


def set_up(verbose: int, quiet: bool, log_file: Path | None) -> None:
    """Send the package's log to stderr, and to `log_file` if given."""
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file is not None:
        try:
            handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
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
