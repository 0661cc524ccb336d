"""What the settings of all families share."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from lrgenome.errors import UsageError

T = TypeVar("T")


def check_counts(config: Any, *names: str) -> None:
    """Raise `UsageError` unless these settings are positive whole numbers."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"model setting {name}: got {value!r}, expected a positive whole number")


def check_flags(config: Any, *names: str, what: str = "model") -> None:
    """Raise `UsageError` unless these settings are true or false."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise UsageError(f"{what} setting {name}: got {getattr(config, name)!r}, expected true or false")


def check_family(config: Any, family: str) -> None:
    """Raise `UsageError` unless the settings say that they are of `family`."""
    if config.family != family:
        raise UsageError(f"model setting family: got {config.family!r}, expected {family!r}")


def from_object(kind: type[T], values: object, what: str) -> T:
    """Make settings of decoded JSON; `UsageError` names what is missing, unknown or impossible."""
    if not isinstance(values, dict):
        raise UsageError(f"{what} settings: got {type(values).__name__}, expected an object")
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    known = {field.name for field in fields}
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    if unknown := sorted(set(values) - known):
        raise UsageError(f"{what} settings: unknown {', '.join(unknown)}; expected {', '.join(sorted(known))}")
    if missing := sorted(needed - set(values)):
        raise UsageError(f"{what} settings: missing {', '.join(missing)}")
    return kind(**values)
