"""Figures of saturation mutagenesis: what is drawn, from the objects of the figure."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from lrgenome.errors import OutputError, UsageError
from lrgenome.io.heatmap import (
    Effects,
    check_figure_suffix,
    draw_saturation,
    mapped,
    saturation_figure,
    score_of_deletions,
)


def effects(length, start=1_000_000, deletions=False, unknown=()):
    """Scores that say where they are from."""
    rng = np.random.default_rng(3)
    bases = list("".join(rng.choice(list("ACGT"), length)))
    cells = rng.normal(-0.5, 1, (5 if deletions else 4, length))
    for i, base in enumerate(bases):
        if i in unknown:
            bases[i], cells[:, i] = "N", np.nan
        else:
            cells["ACGT".index(base), i] = np.nan
    known = np.isfinite(cells[:4])
    mean = np.where(known.any(0), np.where(known, cells[:4], 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)
    return Effects("20", start, "".join(bases), mean, cells)


def axes_of(figure, label):
    return [axes for axes in figure.axes if axes.get_label() == label]


def cells_of(figure):
    return [mesh.get_array() for axes in axes_of(figure, "cells") for mesh in axes.collections]


def inches(figure, axes):
    box = axes.get_position()
    return box.width * figure.get_figwidth(), box.height * figure.get_figheight()


def test_every_score_is_in_its_cell():
    region = effects(30, unknown=(4,))
    figure = saturation_figure([region], "LLR", "hawk-mini, context 12kbp")
    (axes,) = axes_of(figure, "cells")
    (mesh,) = axes.collections
    np.testing.assert_array_equal(mesh.get_array().filled(np.nan), region.cells)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A", "C", "G", "T"]
    assert axes.yaxis_inverted() and axes.get_xlim() == (1_000_000.5, 1_000_030.5)
    # A cell's own middle is its 1-based position.
    assert mesh.get_coordinates()[0, :2, 0].tolist() == [1_000_000.5, 1_000_001.5]
    assert -mesh.norm.vmin == mesh.norm.vmax == np.quantile(np.abs(region.cells[np.isfinite(region.cells)]), 0.99)
    assert [text.get_text() for text in figure.texts] == ["hawk-mini, context 12kbp"]


def test_the_reference_base_is_marked():
    region = effects(30, unknown=(4,))
    (axes,) = axes_of(saturation_figure([region], "LLR", ""), "cells")
    assert "".join(text.get_text() for text in axes.texts) == region.bases
    for offset, text in enumerate(axes.texts):
        x, row = text.get_position()
        assert x == 1_000_001 + offset
        assert region.bases[offset] == "N" or "ACGT"[int(row)] == region.bases[offset]


@pytest.mark.parametrize(("score", "sign"), [("LLR", -1), ("PLL_DIFF", -1), ("DIST_L2", 1), ("DIST_COS", 1)])
def test_letters_are_as_high_as_the_mean(score, sign):
    region = effects(30, unknown=(4,))
    (axes,) = axes_of(saturation_figure([region], score, ""), "letters")
    expected = [(i, sign * value) for i, value in enumerate(region.mean.tolist()) if np.isfinite(value)]
    assert len(axes.patches) == len(expected) == 29
    assert {value > 0 for _, value in expected} == {True, False}
    for patch, (offset, value) in zip(axes.patches, expected, strict=True):
        box = patch.get_path().get_extents()
        assert (box.y0, box.y1) == pytest.approx((min(0, value), max(0, value)), abs=1e-9)
        assert (box.x0 + box.x1) / 2 == pytest.approx(1_000_001 + offset) and box.width == pytest.approx(0.92)
        low, high = axes.get_ylim()
        assert low <= box.y0 and box.y1 <= high
    assert axes.get_ylabel() == f"{'−' if sign < 0 else ''}mean {score}"


def test_letters_of_all_panels_have_one_scale():
    figure = saturation_figure([effects(190), effects(40, start=5_000)], "LLR", "")
    letters = axes_of(figure, "letters")
    assert len(letters) == 3 and len({axes.get_ylim() for axes in letters}) == 1


@pytest.mark.parametrize(
    ("length", "panels", "letters"), [(125, 1, 1), (126, 2, 2), (200, 2, 2), (201, 2, 0), (2000, 16, 0)]
)
def test_long_regions_are_wrapped(length, panels, letters):
    region = effects(length)
    figure = saturation_figure([region], "LLR", "")
    maps = axes_of(figure, "cells")
    assert (len(maps), len(axes_of(figure, "letters"))) == (panels, letters)
    np.testing.assert_array_equal(np.ma.hstack(cells_of(figure)).filled(np.nan), region.cells)
    assert [axes.get_xlim()[0] for axes in maps[1:]] == [axes.get_xlim()[1] for axes in maps[:-1]]
    widths = [inches(figure, axes)[0] / np.diff(axes.get_xlim())[0] for axes in maps]
    assert widths == pytest.approx([widths[0]] * panels)
    assert [axes.get_title(loc="left") for axes in [*figure.axes][:1]] == [f"20:1,000,001-{1_000_000 + length:,}"]
    boxes = sorted((axes.get_position() for axes in figure.axes), key=lambda box: -box.y0)
    assert all(below.y1 < above.y0 for above, below in pairwise(boxes))
    assert boxes[0].y1 < 1 and boxes[-1].y0 > 0


def test_position_labels_do_not_touch():
    figure = saturation_figure([effects(200, start=200_000_000), effects(13)], "LLR", "")
    for axes in axes_of(figure, "cells"):
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks and all(tick == int(tick) for tick in ticks)
        assert np.diff(ticks).min(initial=9e9) * inches(figure, axes)[0] / (high - low) > 0.8


def test_deletions_without_llr_have_their_own_scale():
    region = effects(30, deletions=True)
    region.cells[4] *= 10
    figure = saturation_figure([region], "LLR", "")
    snvs, deletions = axes_of(figure, "cells")[0].collections
    np.testing.assert_array_equal(snvs.get_array().filled(np.nan), region.cells[:4])
    np.testing.assert_array_equal(deletions.get_array().filled(np.nan), region.cells[4:])
    assert deletions.norm.vmax > 5 * snvs.norm.vmax
    labels = [axes.get_xlabel() for axes in axes_of(figure, "colours")]
    assert labels == ["LLR, log p(ALT) - log p(REF) (nats)", "deletion: PLL_DIFF (nats)"]
    assert axes_of(figure, "cells")[0].get_yticklabels()[4].get_text() == "del"
    figure = saturation_figure([region], "DIST_L2", "")
    snvs, deletions = axes_of(figure, "cells")[0].collections
    assert (deletions.norm.vmin, deletions.norm.vmax) == (snvs.norm.vmin, snvs.norm.vmax) == (0, snvs.norm.vmax)
    assert len(axes_of(figure, "colours")) == 1


def test_which_score_a_deletion_has():
    assert [score_of_deletions(s) for s in ("LLR", "DIST_L2", "PLL_DIFF")] == ["PLL_DIFF", "DIST_L2", "PLL_DIFF"]


@pytest.mark.parametrize("length", [2_001, 5_432])
def test_a_long_region_is_a_line(length):
    rng = np.random.default_rng(4)
    mean = rng.normal(size=length)
    mean[:17] = np.nan
    figure = saturation_figure([Effects("20", 100, "", mean, None)], "LLR", "")
    (axes,) = figure.axes
    size = -(-length // 1_000)
    (line,) = [line for line in axes.lines if len(line.get_xdata()) > 2]
    for number in (10, 500, len(line.get_ydata()) - 1):
        inside = mean[number * size : (number + 1) * size]
        assert line.get_ydata()[number] == pytest.approx(inside.mean())
        assert line.get_xdata()[number] == pytest.approx(101 + number * size + (len(inside) - 1) / 2)
    assert np.isnan(line.get_ydata()[0])
    assert axes.get_title(loc="left") == f"20:101-{100 + length:,}"
    assert f"means of {size} bp" in axes.get_title(loc="right")


def test_which_regions_are_maps():
    assert mapped([200, 2_000, 2_001, 5]) == [True, True, False, True]
    assert mapped([2_000] * 6) == [True] * 4 + [False] * 2


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_files(tmp_path, suffix):
    for name in ("a", "b"):
        draw_saturation(tmp_path / f"{name}.{suffix}", [effects(40), effects(30, start=7)], "LLR", "tiny")
    data = (tmp_path / f"a.{suffix}").read_bytes()
    assert data == (tmp_path / f"b.{suffix}").read_bytes()
    assert data.startswith({"png": b"\x89PNG", "svg": b"<?xml"}[suffix]) and len(data) > 10_000
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [f"a.{suffix}", f"b.{suffix}"]


@pytest.mark.parametrize("score", ["LLR", "DIST_L2"])
def test_a_region_without_scores(tmp_path, score):
    length = 20
    nothing = Effects("20", 0, "N" * length, np.full(length, np.nan), np.full((4, length), np.nan))
    line = Effects("20", 500, "", np.full(3_000, np.nan), None)
    draw_saturation(tmp_path / "a.png", [nothing, line], score, "tiny")
    assert (tmp_path / "a.png").exists()


def test_what_cannot_be_drawn(tmp_path):
    for path in ("a.pdf", "-", "png"):
        with pytest.raises(UsageError, match=r"--plot: got '.*', expected a name ending in \.png or \.svg"):
            check_figure_suffix(path)
    with pytest.raises(OutputError, match="cannot write"):
        draw_saturation(tmp_path / "absent" / "a.png", [effects(10)], "LLR", "")


def test_matplotlib_is_imported_only_to_draw():
    program = "import sys, lrgenome.io.heatmap; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
