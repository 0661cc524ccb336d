"""Figures of saturation mutagenesis: heat maps of every change with letters of its mean, or a line of the mean.

Positions are 1-based in figures. matplotlib is imported when a figure is drawn, through its object API.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lrgenome.dna import BASES
from lrgenome.errors import UsageError
from lrgenome.io.atomic import whole_file
from lrgenome.io.plot import use_writable_cache

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Outline

Floats = npt.NDArray[np.float64]

SUFFIXES = (".png", ".svg")
"""The formats of a figure; upper case is the same."""

REGION_LIMIT = 24
"""Most regions in a figure."""

_MAP_LIMIT = 2_000
_FIGURE_LIMIT = 8_000
_LETTER_LIMIT = 200
_PANEL = 125
_BINS = 1_000

# Lengths are in inches.
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.75, 0.35, 0.3, 1.0
_CELL_HEIGHT, _LETTERS_HEIGHT, _LINE_HEIGHT = 0.17, 0.75, 1.5
_FULL_WIDTH, _LEAST_WIDTH = 10.0, 6.2
_TITLE_GAP, _TICKS_GAP, _SMALL_GAP = 0.36, 0.34, 0.06
_BAR_WIDTH, _BAR_HEIGHT = 2.6, 0.11

_DELETION_GAP = 0.25
"""Between the substitutions and the deletion, in rows."""

_COLOURS = {"A": "#2b9348", "C": "#1f5fa8", "G": "#e08e00", "T": "#c8102e"}
_INK, _GREY, _BACKGROUND, _LINE = "#30343a", "#7a828e", "#e4e7eb", "#1f5fa8"
_SIGNED = ("LLR", "PLL_DIFF")
_MEANING = {
    "LLR": "LLR, log p(ALT) - log p(REF) (nats)",
    "PLL_DIFF": "PLL_DIFF (nats)",
    "DIST_L2": "DIST_L2",
    "DIST_COS": "DIST_COS",
}


class Effects(NamedTuple):
    """Scores of the changes of each base of a region.

    Attributes
    ----------
    contig
        Its name.
    start
        0-based position of the first base.
    bases
        t letters of the reference, ``ACGTN``; empty where `cells` is None.
    mean
        (t,) mean score of the SNVs of each base; NaN where there is none.
    cells
        (4, t) or (5, t) scores by ALT, rows ``ACGT`` and the deletion; NaN where there is none. None for a region that
        is drawn as a line.
    """

    contig: str
    start: int
    bases: str
    mean: Floats
    cells: Floats | None


class _Band(NamedTuple):
    """One axes of a figure, which is a column of them: what draws it, and its size and the gap above it, in inches."""

    draw: Callable[["Axes"], None]
    width: float
    height: float
    gap: float


class _Scale(NamedTuple):
    """How scores become colours: symmetric around 0, or from 0, to a limit that a hundredth of them exceed."""

    score: str
    limit: float
    exceeded: tuple[bool, bool]

    @property
    def signed(self) -> bool:
        return self.score in _SIGNED

    def mappable(self) -> Any:
        """Return the colour map and its limits as matplotlib has them."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        low = -self.limit if self.signed else 0.0
        return ScalarMappable(Normalize(low, self.limit), "RdBu" if self.signed else "YlOrRd")


def check_figure_suffix(path: str | os.PathLike[str]) -> str:
    """Give the format of a figure, one of `SUFFIXES`.

    Raises
    ------
    UsageError
        If the suffix is none of them.
    """
    name = os.fspath(path).lower()
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
    if suffix is None:
        raise UsageError(f"--plot: got {os.fspath(path)!r}, expected a name ending in {' or '.join(SUFFIXES)}")
    return suffix


def mapped(lengths: Sequence[int]) -> list[bool]:
    """Say which regions of a figure are drawn as heat maps; the others are lines.

    Parameters
    ----------
    lengths
        Of the regions, in bp.
    """
    left, chosen = _FIGURE_LIMIT, []
    for length in lengths:
        chosen.append(length <= min(_MAP_LIMIT, left))
        left -= length if chosen[-1] else 0
    return chosen


def score_of_deletions(score: str) -> str:
    """Name the score that is drawn for a deletion, which has no LLR."""
    return "PLL_DIFF" if score == "LLR" else score


def draw_saturation(
    path: str | os.PathLike[str], regions: Sequence[Effects], score: str, caption: str
) -> None:
    """Draw the effects of every change of some regions.

    Parameters
    ----------
    path
        The figure, PNG or SVG by suffix; it appears when it is whole.
    regions
        In the order in which they are drawn.
    score
        Column of the score table that the effects are.
    caption
        What made the scores.

    Raises
    ------
    UsageError
        If the suffix is unknown.
    OutputError
        If the figure cannot be written.
    """
    suffix = check_figure_suffix(path)
    use_writable_cache()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # Without a random salt, the date and the version of matplotlib, equal scores give equal bytes.
    with rc_context({"svg.hashsalt": "lrgenome", "svg.fonttype": "path"}), whole_file(path) as staged:
        figure = saturation_figure(regions, score, caption)
        FigureCanvasAgg(figure)
        metadata = {"Software": None} if suffix == ".png" else {"Date": None, "Creator": None}
        figure.savefig(staged, format=suffix[1:], metadata=metadata)


def saturation_figure(regions: Sequence[Effects], score: str, caption: str) -> "Figure":
    """Make the figure that `draw_saturation` writes; the parameters are the same.

    Its axes, from the top, are labelled ``letters``, ``cells``, ``line`` and ``colours``.
    """
    from matplotlib.figure import Figure

    scales = _scales(regions, score)
    bands = [band for region in regions for band in _bands(region, _cell_width(regions), score, scales)]
    bands[0] = bands[0]._replace(gap=_TITLE_GAP)
    width = max([_LEAST_WIDTH, *(band.width for band in bands)]) + _LEFT + _RIGHT
    height = _TOP + sum(band.gap + band.height for band in bands) + (_BOTTOM if scales else _BOTTOM / 2)
    figure = Figure(figsize=(width, height), dpi=150)

    def place(left: float, bottom: float, wide: float, high: float) -> "Axes":
        return figure.add_axes((left / width, bottom / height, wide / width, high / height))

    figure.text(_LEFT / width, 1 - 0.2 / height, caption, fontsize=8, color=_GREY, va="center")
    top = height - _TOP
    letters = []
    for band in bands:
        top -= band.gap + band.height
        axes = place(_LEFT, top, band.width, band.height)
        band.draw(axes)
        if axes.get_label() == "letters":
            letters.append(axes)
    # One scale for all letters, so that their heights can be compared.
    limits = np.array([axes.get_ylim() for axes in letters] or [(0, 1)])
    for axes in letters:
        axes.set_ylim(float(limits[:, 0].min()), float(limits[:, 1].max()))
    for number, scale in enumerate(scales):
        axes = place(_LEFT + number * (_BAR_WIDTH + 0.7), 0.45, _BAR_WIDTH, _BAR_HEIGHT)
        _draw_colours(figure, axes, scale, "deletion: " if number else "")
    return figure


def _bands(region: Effects, cell: float, score: str, scales: Sequence[_Scale]) -> Iterator[_Band]:
    length = len(region.mean)
    name = f"{region.contig}:{region.start + 1:,}-{region.start + length:,}"
    if region.cells is None:
        yield _Band(partial(_draw_line, region=region, score=score, name=name), _FULL_WIDTH, _LINE_HEIGHT, _TITLE_GAP)
        return
    rows = 4 if len(region.cells) == 4 else 5 + _DELETION_GAP
    step = math.ceil(length / math.ceil(length / _PANEL))
    for low in range(0, length, step):
        high = min(low + step, length)
        width, gap = (high - low) * cell, _TICKS_GAP + (_TITLE_GAP if low == 0 else 0.0)
        title = "" if low else name
        if length <= _LETTER_LIMIT:
            draw = partial(_draw_letters, region=region, low=low, high=high, score=score, title=title)
            yield _Band(draw, width, _LETTERS_HEIGHT, gap)
            gap, title = _SMALL_GAP, ""
        cells = partial(_draw_cells, region=region, low=low, high=high, scales=scales, title=title, cell=cell)
        yield _Band(cells, width, rows * _CELL_HEIGHT, gap)


def _cell_width(regions: Sequence[Effects]) -> float:
    """Choose the width of a base, the same in the whole figure."""
    lengths = [len(region.mean) for region in regions if region.cells is not None]
    widest = max((math.ceil(length / math.ceil(length / _PANEL)) for length in lengths), default=_PANEL)
    return min(0.3, _FULL_WIDTH / widest)


def _scales(regions: Sequence[Effects], score: str) -> list[_Scale]:
    """Make the colour scale of the substitutions, and that of deletions where they have another score."""
    maps = [region.cells for region in regions if region.cells is not None]
    if not maps:
        return []
    deletions = [cells[4:] for cells in maps if len(cells) == 5]
    if not deletions or score_of_deletions(score) == score:
        return [_scale(score, maps)]
    return [_scale(score, [cells[:4] for cells in maps]), _scale(score_of_deletions(score), deletions)]


def _scale(score: str, maps: Sequence[Floats]) -> _Scale:
    values = np.concatenate([cells[np.isfinite(cells)] for cells in maps])
    limit = float(np.quantile(np.abs(values), 0.99)) if values.size else 0.0
    limit = limit or 1.0
    return _Scale(score, limit, (bool((values < -limit).any()), bool((values > limit).any())))


def _draw_cells(
    axes: "Axes", region: Effects, low: int, high: int, scales: Sequence[_Scale], title: str, cell: float
) -> None:
    assert region.cells is not None
    axes.set_label("cells")
    first = region.start + low + 1
    edges = first - 0.5 + np.arange(high - low + 1)
    deletions = len(region.cells) == 5
    parts = [(region.cells[:4, low:high], 0.0, scales[0])]
    if deletions:
        parts.append((region.cells[4:, low:high], 4 + _DELETION_GAP, scales[-1]))
    axes.set_facecolor("none")
    for cells, top, scale in parts:
        axes.axhspan(top, top + len(cells), color=_BACKGROUND, linewidth=0, zorder=0)
        mappable = scale.mappable()
        axes.pcolormesh(
            edges, top + np.arange(len(cells) + 1), np.ma.masked_invalid(cells), norm=mappable.norm,
            cmap=mappable.cmap, edgecolors="white", linewidth=0.35,
        )  # fmt: skip
    # 72 points an inch; a capital is about 0.7 of its size wide.
    size = min(8.0, 72 * cell * 0.95)
    for offset, base in enumerate(region.bases[low:high]):
        row = BASES.find(base) + 0.5 if base in BASES else 2.0
        axes.text(first + offset, row, base, fontsize=size, color=_INK, ha="center", va="center_baseline")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(5 + _DELETION_GAP if deletions else 4, 0)
    names = [*BASES, "del"] if deletions else list(BASES)
    axes.set_yticks([0.5, 1.5, 2.5, 3.5, 4.5 + _DELETION_GAP][: len(names)], names)
    _style(axes, title, _tick_step(cell))
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)


def _draw_letters(axes: "Axes", region: Effects, low: int, high: int, score: str, title: str) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.ticker import MaxNLocator

    axes.set_label("letters")
    sign = -1 if score in _SIGNED else 1
    heights = sign * region.mean + 0.0
    axes.axhline(0, color=_GREY, linewidth=0.6, zorder=0)
    for offset in range(low, high):
        height = heights[offset]
        if np.isfinite(height) and height:
            outline = _letter(region.bases[offset], region.start + offset + 1, float(height))
            # What a change would make likelier hangs below the line, faint.
            colour, alpha = _COLOURS[region.bases[offset]], 1.0 if height > 0 else 0.55
            axes.add_patch(PathPatch(outline, facecolor=colour, linewidth=0, alpha=alpha))
    known = heights[np.isfinite(heights)]
    bottom, top = min(0.0, float(known.min(initial=0))), max(0.0, float(known.max(initial=0)))
    margin = 0.04 * (top - bottom) or 1.0
    axes.set_xlim(region.start + low + 0.5, region.start + high + 0.5)
    axes.set_ylim(bottom - (margin if bottom else 0.0), top + margin)
    axes.set_ylabel(f"{'−' if sign < 0 else ''}mean {score}", fontsize=7)
    _style(axes, title, None)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _letter(base: str, position: int, height: float) -> "Outline":
    """Give the outline of a letter that stands (or, where `height` is negative, hangs) at a position and fills it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    outline = TextPath((0, 0), base, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    box = outline.get_extents()
    fit = Affine2D().translate(-box.x0, -box.y0).scale(0.92 / box.width, abs(height) / box.height)
    return outline.transformed(fit.translate(position - 0.46, min(0.0, height)))


def _draw_line(axes: "Axes", region: Effects, score: str, name: str) -> None:
    axes.set_label("line")
    size = math.ceil(len(region.mean) / _BINS)
    centres, means, low, high = _binned(region.mean, size)
    centres += region.start + 1
    axes.axhline(0, color=_GREY, linewidth=0.6)
    what = ""
    if size > 1:
        axes.fill_between(centres, low, high, color=_LINE, alpha=0.2, linewidth=0)
        what = f"means of {size:,} bp; band: the middle 80 % of the bases"
    axes.plot(centres, means, color=_LINE, linewidth=0.9)
    axes.set_xlim(region.start + 0.5, region.start + len(region.mean) + 0.5)
    axes.set_ylabel(f"mean {score}", fontsize=7)
    _style(axes, name, None)
    axes.set_title(what, loc="right", fontsize=7, color=_GREY)
    axes.xaxis.set_visible(True)
    axes.spines[["top", "right"]].set_visible(False)


def _binned(values: Floats, size: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Give centre (offset, bp), mean, first and last decile of each bin of `size` values; NaN where it has none."""
    starts = np.arange(0, len(values), size)
    ends = np.minimum(starts + size, len(values))
    summary = np.full((3, len(starts)), np.nan)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        known = values[start:end]
        known = known[np.isfinite(known)]
        if known.size:
            summary[:, i] = known.mean(), *np.quantile(known, (0.1, 0.9))
    return (starts + ends - 1) / 2, summary[0], summary[1], summary[2]


def _draw_colours(figure: "Figure", axes: "Axes", scale: _Scale, prefix: str) -> None:
    axes.set_label("colours")
    below, above = scale.exceeded
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    bar = figure.colorbar(scale.mappable(), cax=axes, orientation="horizontal", extend=extend)
    bar.outline.set_visible(False)
    axes.tick_params(labelsize=6.5, length=2, color=_GREY)
    axes.set_xlabel(prefix + _MEANING.get(scale.score, scale.score), fontsize=7)


def _tick_step(cell: float) -> int:
    """Give the distance of position labels, in bp, so that they do not touch: they are up to 0.75 inches wide."""
    return next(step for step in (1, 2, 5, 10, 20, 50) if step * cell >= 0.85)


def _style(axes: "Axes", title: str, step: int | None) -> None:
    from matplotlib.ticker import MaxNLocator, MultipleLocator, StrMethodFormatter

    if title:
        axes.set_title(title, loc="left", fontsize=9, fontweight="bold", color=_INK)
    axes.tick_params(labelsize=6.5, length=2, color=_GREY)
    axes.xaxis.set_visible(step is not None)
    axes.xaxis.set_major_locator(MultipleLocator(step) if step else MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for spine in axes.spines.values():
        spine.set_color(_GREY)
        spine.set_linewidth(0.6)
