"""What the settings of all families share."""

from __future__ import annotations

from typing import Any

from lrgenome.errors import UsageError


def check_counts(config: Any, *names: str) -> None:
    """Raise `UsageError` unless these settings are positive whole numbers."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"model setting {name}: got {value!r}, expected a positive whole number")


def check_flags(config: Any, *names: str) -> None:
    """Raise `UsageError` unless these settings are true or false."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise UsageError(f"model setting {name}: got {getattr(config, name)!r}, expected true or false")


def check_family(config: Any, family: str) -> None:
    """Raise `UsageError` unless the settings say that they are of `family`."""
    if config.family != family:
        raise UsageError(f"model setting family: got {config.family!r}, expected {family!r}")
