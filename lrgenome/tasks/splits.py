"""Which rows are trained on, validated on and tested, fold by fold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lrgenome.errors import UsageError
from lrgenome.tasks.selection import Regions
from lrgenome.training.labelled import LabelledWindows

Rows = npt.NDArray[np.int64]


class Fold(NamedTuple):
    """One division of the rows that are not tested."""

    train: Rows
    validation: Rows
    number: int = 0
    """0-based, among all folds, run or not."""


class Splits(NamedTuple):
    """The rows by use."""

    folds: list[Fold]
    test: Rows


def split_rows(
    windows: LabelledWindows, rows: Rows, *, test: Regions | None, validation: Regions | None, folds: int,
    only: int | None, block: int | None, whole_contigs: bool, seed: int,
) -> Splits:  # fmt: skip
    """Divide rows that have windows.

    Test rows are those that overlap `test`, else those that the table calls so. Validation rows are those that overlap
    `validation`, else the table's; where there are none, each of `folds` holds out other contigs.

    Parameters
    ----------
    only
        One fold of them, 1-based.
    block
        Contigs are cut into blocks of this many bp, which are held out in place of whole ones.
    whole_contigs
        Each fold holds out one contig drawn by chance, as the benchmark does, rather than its share of the rows.

    Raises
    ------
    UsageError
        If nothing is left to train on, validate on or test.
    """
    examples = windows.examples
    within = [
        np.array([region.overlaps(str(windows.contigs[row]), int(examples.start[row]), int(examples.end[row]))
                  for row in rows], dtype=bool) if region is not None else None
        for region in (test, validation)
    ]  # fmt: skip
    word = examples.split[rows]
    testing = word == "test" if within[0] is None else within[0]
    validating = word == "validation" if within[1] is None else within[1]
    validating = validating & ~testing
    rest = rows[~testing & ~validating]
    if not testing.any():
        raise UsageError("no rows to test: expected a column split with test, or --test with contigs or regions")
    if not len(rest):
        raise UsageError(f"no rows to train on: all {len(rows)} are for testing or validation")
    if validating.any():
        if only not in (None, 1):
            raise UsageError(f"--fold: got {only}, but there are validation rows, so only one fold")
        return Splits([Fold(rest, rows[validating])], rows[testing])
    parts = _held_out(windows, rest, folds, block, whole_contigs, seed)
    if only is not None and not 1 <= only <= len(parts):
        raise UsageError(f"--fold: got {only}, expected 1 to {len(parts)}")
    found = [Fold(rest[~held], rest[held], number) for number, held in enumerate(parts)]
    return Splits(found if only is None else [found[only - 1]], rows[testing])


def _held_out(
    windows: LabelledWindows, rest: Rows, folds: int, block: int | None, whole: bool, seed: int
) -> list[npt.NDArray[np.bool_]]:
    """Return masks of the validation rows of each fold."""
    if folds < 1:
        raise UsageError(f"--folds: got {folds}, expected at least 1")
    starts = windows.examples.start
    names = [f"{windows.contigs[row]}:{int(starts[row]) // block if block else 0}" for row in rest]
    groups, group, sizes = np.unique(names, return_inverse=True, return_counts=True)
    parts = max(2, folds)
    if len(groups) < parts:
        raise UsageError(
            f"--folds: got {folds}, but only {len(groups)} contigs or blocks to hold out; --block LENGTH cuts contigs, "
            "--validation names what is held out"
        )
    rng = np.random.default_rng(seed)
    if whole:
        return [group == chosen for chosen in rng.permutation(len(groups))[:folds]]
    # The largest group first, each to the part that has the fewest rows.
    filled, part_of = np.zeros(parts, dtype=np.int64), np.zeros(len(groups), dtype=np.int64)
    for number in np.lexsort((rng.random(len(groups)), -sizes)):
        part_of[number] = int(np.argmin(filled))
        filled[part_of[number]] += sizes[number]
    return [part_of[group] == part for part in range(folds)]
