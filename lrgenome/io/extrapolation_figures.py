"""Figures of `lrgenome extrapolate`, as PNG and as SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrgenome.glossary import format_length
from lrgenome.io.atomic import os_error_as_output_error, write_at_once
from lrgenome.io.plot import publish_png, use_writable_cache

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
_COLOURS = ("#1f5fa8", "#d55e00", "#2a9d6f", "#8a4fbf", "#5c6470", "#b8860b", "#c2185b", "#17829c")
_MARKS = ("o", "s", "^", "D", "v", "P")
_LINES = ("-", "--", ":", "-.")
_SIZE = (7.2, 3.8)


def save_both(
    folder: Path, name: str, draw: Callable[[Figure], None], *, size: tuple[float, float] = _SIZE
) -> str:
    """Write ``NAME.png`` and ``NAME.svg``; returns the SVG's text.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    publish_png(folder / f"{name}.png", draw, size=size)
    use_writable_cache()
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    text = io.StringIO()
    # The same bytes for the same data; letters as text.
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    with os_error_as_output_error(folder / f"{name}.svg"):
        write_at_once(folder / f"{name}.svg", text.getvalue().encode(), 0o644)
    return text.getvalue()


def _series(rows: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e6ea", linewidth=0.7)
    axes.set_axisbelow(True)


def length_axis(axes: Axes, lengths: Sequence[int], label: str = "window") -> None:
    """Make a logarithmic axis of lengths, with so many ticks as can be read."""
    known = sorted(set(lengths))
    axes.set_xscale("log")
    shown = known[:: max(1, math.ceil(len(known) / 8))]
    axes.set_xticks(shown, [format_length(length) for length in shown], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel(label)


class Looks:
    """How models and strategies are drawn: the same in every figure of a report.

    Parameters
    ----------
    models, strategies
        Names in order.
    """

    def __init__(self, models: Sequence[str], strategies: Sequence[str] = ()) -> None:
        self.models, self.strategies = list(dict.fromkeys(models)), list(dict.fromkeys(strategies))

    def of(self, model: str, strategy: str | None = None) -> dict[str, Any]:
        """Return colour, mark and line."""
        number = self.models.index(model)
        line = self.strategies.index(strategy) if strategy in self.strategies else 0
        return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKS[number % len(_MARKS)],
                "linestyle": _LINES[line % len(_LINES)], "markersize": 4, "linewidth": 1.4}  # fmt: skip

    def label(self, model: str, strategy: str) -> str:
        """Name a line: with its strategy where a model may have several."""
        return f"{model}, {strategy}" if len(self.strategies) > 1 else model


def _bands(
    axes: Axes, own: Sequence[Row], x: str, y: str, low: str, high: str, label: str, look: Mapping[str, Any]
) -> None:
    places = [row[x] for row in own]
    axes.plot(places, [row[y] for row in own], label=label, **look)
    axes.fill_between(places, [row[low] for row in own], [row[high] for row in own], color=look["color"], alpha=0.15,
                      linewidth=0)  # fmt: skip


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)


def metric_figure(rows: Sequence[Row], metric: str, looks: Looks) -> Callable[[Figure], None]:
    """Draw a metric against window length, and how far it is from that at the reference length, paired.

    A line a model and strategy, with training lengths marked.
    """

    def draw(figure: Figure) -> None:
        own = [row for row in rows if row["metric"] == metric and row["status"] == "OK"]
        failed = [row["length"] for row in rows if row["metric"] == metric and row["status"] != "OK"]
        panels = figure.subplots(1, 2)
        for axes, names in zip(
            panels, (("value", "low", "high"), ("over_reference", "over_low", "over_high")), strict=True
        ):
            _plain(axes)
            for (model, strategy), line in _series(own, "model", "strategy").items():
                _bands(axes, line, "length", *names, looks.label(model, strategy), looks.of(model, strategy))
            for trained in sorted({row["trained"] for row in own if row["trained"]}):
                axes.axvline(trained, color="0.55", linewidth=0.9, linestyle="--")
                axes.annotate(
                    " trained", (trained, 1), xycoords=("data", "axes fraction"), va="top", fontsize=7, color="0.4"
                )
            if failed:
                axes.plot(failed, [0.03] * len(failed), "x", transform=axes.get_xaxis_transform(), color="0.3",
                          clip_on=False, label="could not run")  # fmt: skip
            length_axis(axes, [row["length"] for row in rows])
        name = "loss at masked bases, nats/bp" if metric == "LOSS" else metric
        panels[0].set_ylabel(name)
        panels[1].axhline(0, color="0.6", linewidth=0.9)
        panels[1].set_ylabel("less that at the training length" if metric == "LOSS" else "change from training length")
        _legend(panels[0])

    return draw


def cost_figure(rows: Sequence[Row], looks: Looks) -> Callable[[Figure], None]:
    """Draw seconds a window and peak memory against window length."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2)
        own = [row for row in rows if row["status"] == "OK"]
        for axes, y, label in zip(
            panels, ("seconds_per_window", "gb"), ("seconds a window", "peak memory, GB"), strict=True
        ):
            _plain(axes)
            for (model, strategy), line in _series(own, "model", "strategy").items():
                points = [(row["length"], row[y]) for row in line if row[y] is not None]
                if points:
                    name = looks.label(model, strategy)
                    axes.plot(*zip(*points, strict=True), label=name, **looks.of(model, strategy))
            length_axis(axes, [row["length"] for row in rows])
            axes.set_yscale("log")
            axes.set_ylabel(label)
        _legend(panels[0])

    return draw


def gain_figure(rows: Sequence[Row], looks: Looks) -> Callable[[Figure], None]:
    """Draw how much the loss falls for each doubling of the window."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _plain(axes)
        axes.axhline(0, color="0.6", linewidth=0.9)
        for (model, strategy), line in _series(rows, "model", "strategy").items():
            scaled = [
                {**row, **{name: row[name] / max(math.log2(row["to"] / row["from"]), 1e-9) for name in ("low", "high")}}
                for row in line
            ]
            _bands(axes, scaled, "to", "per_doubling", "low", "high", looks.label(model, strategy),
                   looks.of(model, strategy))  # fmt: skip
        length_axis(axes, [row["to"] for row in rows], "window, up to")
        axes.set_ylabel("fall of the loss, nats/bp a doubling")
        _legend(axes)

    return draw


def context_figure(rows: Sequence[Row], looks: Looks) -> Callable[[Figure], None]:
    """Draw how much is lost without far states, and with far bases swapped."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _plain(axes)
        models = list(dict.fromkeys(row["model"] for row in rows))
        for number, state in enumerate(("reset", "swap")):
            own = {row["model"]: row for row in rows if row["state"] == state}
            for place, model in enumerate(models):
                row = own[model]
                at = place + (number - 0.5) * 0.25
                axes.plot([at, at], [row["over_low"], row["over_high"]], color=_COLOURS[number], linewidth=2)
                axes.plot([at], [row["over_carry"]], marker=_MARKS[number], color=_COLOURS[number],
                          label=state if place == 0 else None)  # fmt: skip
        axes.axhline(0, color="0.6", linewidth=0.9)
        axes.set_xticks(range(len(models)), models, fontsize=8)
        axes.set_xlim(-0.6, len(models) - 0.4)
        axes.set_ylabel("loss - loss with far states, nats/bp")
        _legend(axes)

    return draw


def reach_figure(rows: Sequence[Row], looks: Looks) -> Callable[[Figure], None]:
    """Draw the change of predictions against how near the swapped bases begin."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _plain(axes)
        own = [row for row in rows if row["side"] == "both"]
        for (model,), line in _series(own, "model").items():
            _bands(axes, line, "k", "tv", "low", "high", model, looks.of(model))
        length_axis(axes, [row["k"] for row in own], "bases kept on each side")
        if all(row["tv"] > 0 for row in own):
            axes.set_yscale("log")
        axes.set_ylabel("total variation at the centre")
        _legend(axes)

    return draw


def timescale_figure(rows: Sequence[Row], looks: Looks, trained: Mapping[str, int]) -> Callable[[Figure], None]:
    """Draw the distribution of half-lives of each model's states."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _plain(axes)
        for (model,), line in _series(rows, "model").items():
            colour = looks.of(model)["color"]
            values = sorted(max(row["half_life_bp"], 0.1) for row in line)
            share = [1 - i / len(values) for i in range(len(values))]
            axes.step(values, share, where="post", color=colour, linewidth=1.4, label=model)
            if model in trained:
                axes.axvline(trained[model], color=colour, linewidth=0.8, linestyle="--")
        axes.set_xscale("log")
        axes.set_xlabel("median half-life, bp (dashed: training length)")
        axes.set_ylabel("share of states that last longer")
        _legend(axes)

    return draw


def recall_figure(rows: Sequence[Row], looks: Looks) -> Callable[[Figure], None]:
    """Draw what a repeat helps against its distance."""

    def draw(figure: Figure) -> None:
        kinds = list(dict.fromkeys(row["repeat"] for row in rows))
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            _plain(axes)
            axes.axhline(0, color="0.6", linewidth=0.9)
            own = [row for row in rows if row["repeat"] == kind]
            for (model,), line in _series(own, "model").items():
                _bands(axes, line, "distance", "advantage", "low", "high", model, looks.of(model))
            length_axis(axes, [row["distance"] for row in own], "distance")
            axes.set_title(kind, fontsize=9)
            axes.tick_params(axis="x", labelrotation=45)
        panels[0].set_ylabel("fall of the loss, nats/bp")
        _legend(panels[0])

    return draw


def drift_figure(rows: Sequence[Row], looks: Looks) -> Callable[[Figure], None]:
    """Draw norms of states against how many bases they have seen."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _plain(axes)
        for (model,), own in _series(rows, "model").items():
            for place, (_, line) in enumerate(_series(own, "layer", "direction").items()):
                points = sorted((row["bases_seen"], row["over_training"]) for row in line)
                axes.plot(*zip(*points, strict=True), color=looks.of(model)["color"], linewidth=0.8, alpha=0.7,
                          label=model if place == 0 else None)  # fmt: skip
        axes.axhline(2, color="0.6", linewidth=0.9, linestyle=":")
        axes.set_xscale("log")
        axes.set_xlabel("bases that the state has seen")
        axes.set_ylabel("norm / its mean within training length")
        _legend(axes)

    return draw

