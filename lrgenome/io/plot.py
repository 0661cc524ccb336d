"""Figures, drawn without a display.

matplotlib is imported when a figure is drawn, and through its object API: no window, no global state.
"""

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lrgenome.caches import cache_folder
from lrgenome.errors import InputError
from lrgenome.io.atomic import os_error_as_output_error, partial_path, publish

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

_REQUIRED = ("step", "train_loss")
_OPTIONAL = ("tokens", "lr", "val_loss")
_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d55e00", "#5c6470"
LONG_RUN = 500
"""Losses from which the first few are so few that the scale need not hold them."""


def training_curve(log_tsv: str | os.PathLike[str], out_png: str | os.PathLike[str]) -> None:
    """Draw loss and learning rate against the training step.

    Train loss is drawn raw (faint) and smoothed, validation loss as points, the learning rate below on an
    axis of its own; where the log counts tokens, a second scale on top is in Mbp.

    Parameters
    ----------
    log_tsv
        Tab-separated log with the columns ``step`` and ``train_loss`` (nats per masked base), and, where
        they are there, ``tokens`` (bp), ``lr`` and ``val_loss``. Empty fields are gaps; other columns are
        ignored. A last line cut short by a kill is ignored too.
    out_png
        The figure.

    Raises
    ------
    InputError
        If the log cannot be read, lacks a column or holds something that is not a number.
    OutputError
        If the figure cannot be written.
    """
    log = _read_log(Path(log_tsv))
    publish_png(out_png, lambda figure: _draw(figure, log), size=(7.2, 5.0))


def publish_png(
    out_png: str | os.PathLike[str], draw: Callable[["Figure"], None], *, size: tuple[float, float]
) -> None:
    """Draw a figure of `size` inches and give it its name when it is whole.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    use_writable_cache()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    partial = partial_path(out_png)
    with os_error_as_output_error(partial):
        # Without the version of matplotlib in it, equal data give equal bytes.
        figure.savefig(partial, format="png", metadata={"Software": None})
    publish(partial, out_png)


def _draw(figure: "Figure", log: dict[str, Floats]) -> None:
    step, train = log["step"], log["train_loss"]
    has_rate = bool(np.isfinite(log["lr"]).any())
    if has_rate:
        loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        bottom = rate
    else:
        loss = bottom = figure.subplots()
    seen = np.isfinite(train)
    window = max(1, int(seen.sum()) // 50)
    if window > 1:
        loss.plot(step[seen], train[seen], color=_BLUE, alpha=0.25, linewidth=0.8)
    label = "train" if window == 1 else f"train (running mean of {window} records)"
    alone = {"marker": "o"} if seen.sum() == 1 else {}
    loss.plot(
        step[seen], _running_mean(train[seen], window), color=_BLUE, linewidth=1.8, label=label, **alone
    )
    checked = np.isfinite(log["val_loss"])
    if checked.any():
        loss.plot(
            step[checked],
            log["val_loss"][checked],
            color=_ORANGE,
            linewidth=0.8,
            marker="o",
            markersize=4.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            label="validation",
        )
    _limit_loss(loss, np.concatenate([train[seen], log["val_loss"][checked]]))
    loss.set_ylabel("loss (nats per masked base)")
    loss.legend(frameon=False, loc="upper right")
    if has_rate:
        rated = np.isfinite(log["lr"])
        rate.plot(step[rated], log["lr"][rated], color=_GREY, linewidth=1.4)
        rate.set_ylim(bottom=0)
        rate.set_ylabel("learning rate")
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
        figure.align_ylabels([loss, rate])
    bottom.set_xlabel("step")
    bottom.set_xlim(min(0.0, float(step.min())), max(1.01 * float(step.max()), 1.0))
    style([loss, rate] if has_rate else [loss])
    _add_mbp_scale(loss, step, log["tokens"])


def _limit_loss(axes: "Axes", values: Floats) -> None:
    """Keep a few spikes, and of a long run its first steps, from flattening the curve."""
    if values.size:
        low, high = float(values.min()), float(np.quantile(values, 0.99))
        if values.size < LONG_RUN:
            high = max(high, float(values[0]))
        margin = 0.06 * (high - low) or 0.05
        axes.set_ylim(low - margin, high + margin)


def style(axes: list["Axes"]) -> None:
    """Give axes of losses against steps the look of all of them."""
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="#e3e6ea", linewidth=0.7)
        one.set_axisbelow(True)
        one.yaxis.set_major_locator(_tick_locator())
        one.xaxis.set_major_formatter(_thousands())


def _tick_locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], min_n_ticks=2)


def _thousands() -> Any:
    from matplotlib.ticker import StrMethodFormatter

    return StrMethodFormatter("{x:,.10g}")


def _add_mbp_scale(axes: "Axes", step: Floats, tokens: Floats) -> None:
    known = np.isfinite(tokens)
    steps, mbp = step[known], tokens[known] / 1e6
    # The scale needs a relation that can be inverted.
    if steps.size == 0 or not (np.diff(steps) > 0).all() or not (np.diff(mbp) > 0).all() or mbp[0] <= 0:
        return
    if steps[0] > 0:
        steps, mbp = np.insert(steps, 0, 0.0), np.insert(mbp, 0, 0.0)
    if steps.size < 2:
        return

    def forward(x: Any) -> Any:
        return _interpolate(x, steps, mbp)

    def inverse(x: Any) -> Any:
        return _interpolate(x, mbp, steps)

    top = axes.secondary_xaxis("top", functions=(forward, inverse))
    top.set_xlabel("training sequence (Mbp)")
    top.xaxis.set_major_formatter(_thousands())
    top.set_ticks(_apart(_tick_locator().tick_values(0.0, mbp[-1]), inverse, steps[-1] - steps[0]))


def _apart(values: Floats, place: Callable[[Any], Any], whole: float) -> list[float]:
    """Leave out of rising `values` those whose places are so near to the one before that their labels would overlap."""
    kept: list[float] = []
    for value in values:
        if not kept or place(value) - place(kept[-1]) >= 0.08 * whole:
            kept.append(float(value))
    return kept


def _interpolate(x: npt.ArrayLike, xs: Floats, ys: Floats) -> Floats:
    """Interpolate linearly, going on past both ends with the slope of the whole."""
    x = np.asarray(x, np.float64)
    slope = (ys[-1] - ys[0]) / (xs[-1] - xs[0])
    inside = np.interp(x, xs, ys)
    return np.asarray(inside + slope * (np.minimum(x - xs[0], 0) + np.maximum(x - xs[-1], 0)))


def _running_mean(values: Floats, window: int) -> Floats:
    """Centred mean over `window` values, over fewer at the ends."""
    ones = np.ones(window)
    count = np.convolve(np.ones_like(values), ones, mode="same")
    return np.asarray(np.convolve(values, ones, mode="same") / count) if values.size >= window else values


def _read_log(path: Path) -> dict[str, Floats]:
    try:
        with open(path, newline="", encoding="utf-8") as text:
            lines = list(csv.reader(text, delimiter="\t"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    if not lines:
        raise InputError(f"{path}: empty, expected a training log with a header line")
    header, records = lines[0], [(number, line) for number, line in enumerate(lines[1:], 2) if line]
    for column in _REQUIRED:
        if column not in header:
            raise InputError(f"{path}: got columns {', '.join(header)}, expected {column} among them")
    if records and len(records[-1][1]) < len(header):
        records.pop()
    if not records:
        raise InputError(f"{path}: no records below the header")
    log: dict[str, Floats] = {}
    for column in (*_REQUIRED, *_OPTIONAL):
        log[column] = np.full(len(records), np.nan)
        if column not in header:
            continue
        index = header.index(column)
        for row, (number, line) in enumerate(records):
            try:
                log[column][row] = float(line[index]) if line[index].strip() else np.nan
            except (IndexError, ValueError) as error:
                got = line[index] if index < len(line) else "nothing"
                raise InputError(
                    f"{path} line {number}: got {got!r} for {column}, expected a number"
                ) from error
    if not np.isfinite(log["step"]).all():
        raise InputError(f"{path}: a record has no step")
    return log


def use_writable_cache() -> None:
    """Point matplotlib's cache away from a HOME that cannot be written, where it would warn and be slow."""
    if "MPLCONFIGDIR" in os.environ:
        return
    # "~" where there is no HOME, and the system does not know the user: it is no folder.
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~")
    if not os.access(home, os.W_OK | os.X_OK) and (folder := cache_folder("matplotlib")) is not None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ["MPLCONFIGDIR"] = str(folder)
