"""Figure of validation loss against training step, one line a window length."""

import csv
import os
from typing import TYPE_CHECKING

import numpy as np

from lrgenome.errors import InputError
from lrgenome.glossary import format_length
from lrgenome.io.plot import publish_png, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("step", "length", "genome", "loss")


def read_losses(path: str | os.PathLike[str]) -> dict[int, dict[int, float]]:
    """Read a table of validation losses as {length: {step: mean loss over genomes}}, in nats per masked base.

    Parameters
    ----------
    path
        Tab-separated, with the columns ``step length genome loss``, length in bp.

    Raises
    ------
    InputError
        If the table cannot be read, lacks a column, holds something that is not a number, or holds nothing.
    """
    losses: dict[int, dict[int, list[float]]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            for number, row in enumerate(csv.DictReader(handle, delimiter="\t"), 2):
                try:
                    step, length, loss = int(row["step"]), int(row["length"]), float(row["loss"])
                except (KeyError, TypeError, ValueError) as error:
                    raise InputError(
                        f"{path} line {number}: got {dict(row)}, expected numbers for step, length and loss"
                    ) from error
                losses.setdefault(length, {}).setdefault(step, []).append(loss)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    if not losses:
        raise InputError(f"{path}: no losses, expected rows of {' '.join(COLUMNS)}")
    return {
        length: {step: float(np.mean(found)) for step, found in sorted(of.items())}
        for length, of in sorted(losses.items())
    }


def length_curves(table: str | os.PathLike[str], out_png: str | os.PathLike[str]) -> None:
    """Draw a table of validation losses, as `read_losses` reads it: loss against step, and at the last step by length.

    Raises
    ------
    InputError
        As `read_losses` does.
    OutputError
        If the figure cannot be written.
    """
    losses = read_losses(table)

    def draw(figure: "Figure") -> None:
        from matplotlib import colormaps

        by_step, by_length = figure.subplots(1, 2, width_ratios=(3, 2))
        # From light to dark as windows grow; the lightest quarter of the map would be lost on white.
        shades = colormaps["viridis_r"](np.linspace(0.15, 1.0, len(losses)))
        for shade, (length, of) in zip(shades, losses.items(), strict=True):
            by_step.plot(list(of), list(of.values()), color=shade, marker="o", markersize=3, linewidth=1.2,
                         label=format_length(length))  # fmt: skip
        last = max(step for of in losses.values() for step in of)
        final = {length: of[last] for length, of in losses.items() if last in of}
        by_length.plot(list(final), list(final.values()), color="#5c6470", linewidth=0.8, zorder=1)
        colours = [shade for shade, length in zip(shades, losses, strict=True) if length in final]
        by_length.scatter(list(final), list(final.values()), c=colours, zorder=2)
        by_length.set_xscale("log", base=2)
        by_length.set_xticks(list(final), [format_length(length) for length in final], rotation=45)
        by_length.minorticks_off()
        style([by_step])
        by_length.spines[["top", "right"]].set_visible(False)
        by_length.grid(axis="y", color="#e3e6ea", linewidth=0.7)
        by_step.set_xlabel("training step")
        by_step.set_ylabel("validation loss (nats per masked base)")
        by_length.set_xlabel(f"window, at step {last:,}")
        by_step.legend(frameon=False, title="window", ncols=2)

    publish_png(out_png, draw, size=(9.0, 4.2))
