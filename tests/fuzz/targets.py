"""What is fuzzed: for each reader, real files, what is done to them, how they are read, and what must come out."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lrgenome

from .mutate import Mutation, mutated
from .oracles import Refused, Unchecked

Files = dict[str, bytes]
DEMO = Path(lrgenome.__file__).parent / "assets" / "demo"


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes
    ----------
    family, name
        Row of the table, and which reader of it.
    files
        Real files by name.
    mutations
        What may be done to which of them.
    read
        Reads them in a folder and returns what they say, in plain values.
    expected
        What they say, by a reader of its own; `Refused` if they must not be read, `Unchecked` if that cannot be told.
    strict
        Whether files that `expected` can read must be read.
    raises
        Errors that are clean beside those of the package.
    """

    family: str
    name: str
    files: Files
    mutations: Mapping[str, tuple[Mutation, ...]]
    read: Callable[[Path], Any]
    expected: Callable[[Files], Any]
    strict: bool = False
    raises: tuple[type[BaseException], ...] = ()
    fresh: tuple[str, ...] = field(default=())
    """Files whose times are set after those of the others: indices."""

    def mutant(self, rng: random.Random) -> Files:
        """Return the files with one of them changed, now and then more."""
        files = dict(self.files)
        for name in rng.sample(sorted(self.mutations), 2 if len(self.mutations) > 1 and rng.random() < 0.1 else 1):
            files[name] = mutated(rng, files[name], self.mutations[name])
        return files

    def judge(self, folder: Path, files: Files, given: Any, error: BaseException | None) -> tuple[str, str]:
        """Return the outcome (right, clean, unchecked, or what is wrong) and its detail."""
        from lrgenome.errors import LrgenomeError

        try:
            expected, why = self.expected(files), ""
        except Refused as refusal:
            expected, why = None, f"must be refused ({refusal})"
        except Unchecked:
            expected, why = None, "unchecked"
        if error is not None:
            if isinstance(error, self.raises):
                return "clean", f"{type(error).__name__}: {error}"
            if not isinstance(error, LrgenomeError):
                return "other exception", f"{type(error).__name__}: {error}"
            said = str(error)
            if not any(name in said for name in (*files, str(folder))):
                return "message without a file", f"{type(error).__name__}: {said[:300]}"
            if len(said) > 2000:
                return "message without an end", f"{type(error).__name__} of {len(said)} characters: {said[:200]}"
            # Of an index that promises more than there is, a genome that was cut is the likelier reason.
            if self.strict and not why and "is cut short" not in said:
                return "good file refused", f"{type(error).__name__}: {said[:300]}"
            return "clean", f"{type(error).__name__}: {said[:300]}"
        if why == "unchecked":
            return "unchecked", ""
        if why:
            return "bad file accepted", why
        if given != expected:
            return "wrong answer", difference(given, expected)
        return "right", ""


def difference(given: Any, expected: Any) -> str:
    """Show where two values part."""
    if isinstance(given, dict) and isinstance(expected, dict):
        if given.keys() != expected.keys():
            return f"got keys {sorted(map(str, given))[:5]}, expected {sorted(map(str, expected))[:5]}"
        key = next(key for key in given if given[key] != expected[key])
        return f"{str(key)[:40]}: {difference(given[key], expected[key])}"
    if isinstance(given, list | tuple | str | bytes) and type(given) is type(expected):
        at = next(
            (i for i, (a, b) in enumerate(zip(given, expected, strict=False)) if a != b), min(len(given), len(expected))
        )
        if isinstance(given, str | bytes):
            here, there = given[at : at + 30], expected[at : at + 30]
            return f"at {at} of {len(given)} and {len(expected)}: {here!r}, expected {there!r}"
        pair = [repr(side[at])[:200] if at < len(side) else "nothing" for side in (given, expected)]
        return f"entry {at} of {len(given)} and {len(expected)}: got {pair[0]}, expected {pair[1]}"
    return f"got {repr(given)[:200]}, expected {repr(expected)[:200]}"
