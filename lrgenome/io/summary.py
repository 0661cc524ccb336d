"""What `score-vcf --summary` counts: a JSON file, ``lrgenome-summary`` version 1, of a run or of a shard."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrgenome.errors import InputError
from lrgenome.io.alleles import STATUSES
from lrgenome.io.atomic import atomic_output

FORMAT = "lrgenome-summary"
FORMAT_VERSION = 1
_COUNTS = ("records", "alleles", "skipped")


@dataclass(frozen=True)
class Summary:
    """Counts of a run, or of one of its shards."""

    shard: tuple[int, int]
    """(I, N); (1, 1) of a whole run."""
    records: int
    alleles: int
    skipped: int
    """Alleles without a score."""
    statuses: Mapping[str, int]
    """Alleles by status; an allele may have several."""
    settings: Mapping[str, Any]
    """What the scores depend on, as in the header of the table."""

    def write(self, path: Path) -> None:
        """Write the file."""
        what = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "command": "score-vcf",
            "shard": "{}/{}".format(*self.shard), **{name: getattr(self, name) for name in _COUNTS},
            "statuses": {name: self.statuses[name] for name in STATUSES if name in self.statuses},
            "settings": dict(self.settings),
        }  # fmt: skip
        with atomic_output(path, "w") as handle:
            json.dump(what, handle, indent=2)
            handle.write("\n")

    @classmethod
    def read(cls, path: Path) -> Summary:
        """Read such a file.

        Raises
        ------
        InputError
            If it is none.
        """
        try:
            with open(path, encoding="utf-8") as handle:
                what = json.load(handle)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"{path}: not JSON: {error}") from error
        if not isinstance(what, dict) or what.get("format") != FORMAT:
            raise InputError(f"{path}: expected the JSON that score-vcf --summary writes ({FORMAT!r})")
        if what.get("format_version") != FORMAT_VERSION:
            raise InputError(f"{path}: got {FORMAT} version {what.get('format_version')!r}, expected {FORMAT_VERSION}")
        try:
            part, parts = (int(number) for number in what["shard"].split("/"))
            counts = {name: _count(what[name]) for name in _COUNTS}
            statuses = {name: _count(count) for name, count in what["statuses"].items()}
            settings = dict(what["settings"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: damaged {FORMAT} ({type(error).__name__}: {error})") from error
        if not 1 <= part <= parts:
            raise InputError(f"{path}: damaged {FORMAT}: got shard {part}/{parts}")
        if unknown := set(statuses) - set(STATUSES):
            raise InputError(f"{path}: got status {sorted(unknown)[0]!r}, expected one of {', '.join(STATUSES)}")
        return cls((part, parts), **counts, statuses=statuses, settings=settings)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"got {value!r} for a count")
    return value


def read_summaries(paths: Sequence[Path]) -> Summary:
    """Read the summaries of all shards of a run, in any order, as that of the whole run.

    Raises
    ------
    InputError
        If one cannot be read, is of other settings than the first, or they are not each shard once.
    """
    found = [Summary.read(path) for path in paths]
    first = found[0]
    for path, other in zip(paths[1:], found[1:], strict=True):
        if differing := [n for n in {**first.settings, **other.settings}
                         if first.settings.get(n) != other.settings.get(n)]:  # fmt: skip
            name = differing[0]
            raise InputError(
                f"{path}: {name} is {other.settings.get(name)!r}, not {first.settings.get(name)!r}, as in {paths[0]}"
            )
        if other.shard[1] != first.shard[1]:
            raise InputError(f"{path}: got a shard of {other.shard[1]}, expected one of {first.shard[1]}: {paths[0]}")
    seen: dict[int, Path] = {}
    for path, one in zip(paths, found, strict=True):
        if one.shard[0] in seen:
            raise InputError(f"{path}: got shard {one.shard[0]} of {one.shard[1]}, as in {seen[one.shard[0]]}")
        seen[one.shard[0]] = path
    if missing := [part for part in range(1, first.shard[1] + 1) if part not in seen]:
        raise InputError(
            f"got shards {', '.join(map(str, sorted(seen)))} of {first.shard[1]}, expected all of them; "
            f"missing: {', '.join(map(str, missing))}"
        )
    statuses: Counter[str] = Counter()
    for one in found:
        statuses.update(one.statuses)
    return Summary(
        (1, 1), sum(s.records for s in found), sum(s.alleles for s in found), sum(s.skipped for s in found),
        dict(statuses), first.settings,
    )  # fmt: skip
