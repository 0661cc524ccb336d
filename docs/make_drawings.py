"""Draw docs/sweeps.svg and docs/boundary.svg, the figures of docs/streaming.md: ``python docs/make_drawings.py``.

They have a ground of their own, so that they can be read on a light page and on a dark one, whichever is asked for.
"""

from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
WIDTH, LEFT, RIGHT = 640, 20, 620
STYLE = """
.ground { fill: #fbfbf9; stroke: #d0d0c8 }
text { font: 14px system-ui, "DejaVu Sans", sans-serif; fill: #22282e }
.small { font-size: 12.5px } .bold { font-weight: 600 } .mid { text-anchor: middle } .end { text-anchor: end }
.chunk { fill: #d7ebe8; stroke: #2b7a70 } .store { fill: #f3ead2; stroke: #a5802b; stroke-dasharray: 4 3 }
.region { fill: #fff; stroke: #2b7a70; stroke-width: 1.6 } .core { fill: #b9dcd7; stroke: #2b7a70 }
.edit { stroke: #c2452d; stroke-width: 3 } .edited { fill: #c2452d; font-weight: 600 }
.forward { stroke: #1f5fa8; fill: none; stroke-width: 2.2 } .reverse { stroke: #a3408c; fill: none; stroke-width: 2.2 }
.f { fill: #1f5fa8 } .r { fill: #a3408c } .thin { stroke: #8a8f94; fill: none } .lens { fill: #2b7a70; opacity: .12 }
@media (prefers-color-scheme: dark) {
  .ground { fill: #1d2228; stroke: #3c444d } text { fill: #e4e7ea }
  .chunk { fill: #1f4a45; stroke: #6cc3b7 } .store { fill: #443918; stroke: #d8b458 }
  .region { fill: #262d35; stroke: #6cc3b7 } .core { fill: #2d6a62; stroke: #6cc3b7 }
  .edit { stroke: #ff8067 } .edited { fill: #ff8067 }
  .forward { stroke: #7fb4f5 } .reverse { stroke: #e292d0 } .f { fill: #7fb4f5 } .r { fill: #e292d0 }
}
"""


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Write words, their baseline at y."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """Draw a rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" class="{kind}"/>'


def arrow(x: float, to: float, y: float, kind: str) -> str:
    """Draw a level arrow, in the colour of a direction."""
    head = 7 if to > x else -7
    path = f"M{x:g} {y:g}H{to:g}M{to - head:g} {y - 4:g}L{to:g} {y:g}L{to - head:g} {y + 4:g}"
    return f'<path d="{path}" class="{kind}"/>'


def down(x: float, y: float, to: float) -> str:
    """Draw a thin arrow downwards."""
    return f'<path d="M{x:g} {y:g}V{to:g}M{x - 4:g} {to - 6:g}L{x:g} {to:g}L{x + 4:g} {to - 6:g}" class="thin"/>'


def svg(name: str, height: int, title: str, parts: Sequence[str]) -> None:
    """Write a drawing."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{title}">'
    )
    ground = f'<rect x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="6" class="ground"/>'
    lines = [head, f"<title>{title}</title>", f"<style>{STYLE}</style>", ground, *parts, "</svg>"]
    (HERE / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def sweeps() -> None:
    """Draw the sweeps of a model of two blocks over five chunks."""
    chunks, gap = 5, 26
    width = (RIGHT - LEFT - gap * (chunks - 1)) / chunks
    rows = [
        ("sweep 0", "embed; first scan of block 1", True),
        ("sweep 1", "second scan of block 1, combine; first scan of block 2", False),
        ("sweep 2", "second scan of block 2, combine; final norm", True),
    ]
    parts = [text(LEFT, 30, "Two blocks, five chunks: three sweeps", "bold")]
    y = 62
    for number, (name, what, right) in enumerate(rows):
        kind, sign = ("forward", "→") if right else ("reverse", "←")
        parts.append(text(LEFT, y, f'<tspan class="bold {kind[0]}">{name} {sign}</tspan>  {what}'))
        for place in range(chunks):
            x = LEFT + place * (width + gap)
            order = place + 1 if right else chunks - place
            parts += [box(x, y + 12, width, 34, "chunk"), text(x + width / 2, y + 34, f"{order}", "mid")]
            if place < chunks - 1:
                ends = (x + width + 3, x + width + gap - 3)
                parts.append(arrow(*(ends if right else ends[::-1]), y + 29, kind))
        y += 46
        if number < len(rows) - 1:
            parts += [down(x, y + 2, y + 20) for x in (LEFT + 60, RIGHT - 60)]
            parts += [
                box(LEFT, y + 22, RIGHT - LEFT, 30, "store"),
                text(WIDTH / 2, y + 42, "store, in RAM or on disk: residual stream and first scan of every base",
                     "mid small"),
            ]  # fmt: skip
            parts += [down(x, y + 54, y + 68) for x in (LEFT + 60, RIGHT - 60)]
            y += 88
        else:
            parts += [down(x, y + 2, y + 20) for x in (LEFT + 60, RIGHT - 60)]
            parts.append(text(WIDTH / 2, y + 22, "output, left to right", "mid small"))
    y += 50
    parts += [
        text(LEFT, y, "Numbers: order of the chunks.", "small"),
        arrow(LEFT + 200, LEFT + 224, y - 4, "forward"), arrow(LEFT + 254, LEFT + 230, y - 4, "reverse"),
        text(LEFT + 264, y, "state handed to the next chunk: a few kilobytes", "small"),
    ]  # fmt: skip
    svg("sweeps.svg", y + 16, "Sweeps over chunks in alternating directions, with a store between them", parts)


def boundary() -> None:
    """Draw a tile with the states that are kept, and a region that is run from them."""
    half = (RIGHT - LEFT) / 4
    a, b = 322, 352  # the region in the tile
    parts = [
        text(LEFT, 30, "1. Once a tile and strand: a pass that keeps states at the regions' edges", "bold"),
        box(LEFT, 66, RIGHT - LEFT, 34, "chunk"), box(LEFT + half, 66, 2 * half, 34, "core"),
        text(LEFT + half / 2, 88, "½ context", "mid small"), text(RIGHT - half / 2, 88, "½ context", "mid small"),
        text(LEFT + half + 66, 88, "core: --context", "mid small"),
        arrow(LEFT, RIGHT, 56, "forward"), arrow(RIGHT, LEFT, 110, "reverse"),
        f'<path d="M{a} 50V116M{b} 50V116" class="thin"/>', f'<path d="M{(a + b) / 2} 68V98" class="edit"/>',
        f'<path d="M{a} 118L{LEFT + 40} 196H{RIGHT - 40}L{b} 118Z" class="lens"/>',
        text(LEFT, 150, "2. Each allele: its region alone,", "bold"), text(LEFT, 170, "from those states", "bold"),
        box(LEFT + 40, 196, RIGHT - LEFT - 80, 60, "region"), f'<path d="M{WIDTH / 2} 198V254" class="edit"/>',
        text(WIDTH / 2 + 10, 231, "allele", "edited"),
        arrow(LEFT + 46, RIGHT - 46, 210, "forward"), arrow(RIGHT - 46, LEFT + 46, 243, "reverse"),
        f'<circle cx="{LEFT + 40}" cy="210" r="7" class="f"/>', f'<circle cx="{RIGHT - 40}" cy="243" r="7" class="r"/>',
        text(LEFT, 280, "state of the left-to-right scan", "small f"),
        text(RIGHT, 280, "state of the right-to-left scan", "small r end"),
        text(WIDTH / 2, 306, "1,792 bp once for all scores but LLR; half of that twice, masked, for LLR", "mid small"),
        text(WIDTH / 2, 326, "Left out: what the edit changes beyond the region and comes back. ERR_EST estimates it.",
             "mid small"),
    ]  # fmt: skip
    svg("boundary.svg", 344, "A tile is run once and keeps states; the region of each allele is run from them", parts)


if __name__ == "__main__":
    sweeps()
    boundary()
