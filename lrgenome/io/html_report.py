"""A report of tables and figures in one HTML file that needs nothing else."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2330; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption, .note { color: #566070; font-size: .9rem; }
.scroll { overflow-x: auto; max-height: 32rem; overflow-y: auto; border: 1px solid #e3e6ea; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; width: 100%; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #eef0f3; }
th { position: sticky; top: 0; background: #f5f7fa; } td:first-child, th:first-child { text-align: left; }
"""


class Section(NamedTuple):
    """A part of a report."""

    title: str
    text: str
    """Plain text, under the title."""
    svg: str | None
    rows: Sequence[Mapping[str, Any]]
    """Of a table; all have the same keys."""


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "&ndash;"
    if isinstance(value, float):
        return f"{value:.4g}"
    return html.escape(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))


def _inline(svg: str, number: int) -> str:
    """Take the element out of an SVG file, with ids that no other figure has."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r'id="([^"]+)"', rf'id="f{number}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#f{number}-\1"', body)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#f{number}-\1)", body)


def html_report(title: str, intro: str, sections: Sequence[Section]) -> str:
    """Write a whole HTML document."""
    parts = [
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Nothing is asked of a server, not even an icon.
        '<link rel="icon" href="data:,">', f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1><p>{html.escape(intro)}</p>",
    ]  # fmt: skip
    for number, section in enumerate(sections):
        parts.append(f"<section><h2>{html.escape(section.title)}</h2>")
        if section.text:
            parts.append(f'<p class="note">{html.escape(section.text)}</p>')
        if section.svg:
            parts.append(f"<figure>{_inline(section.svg, number)}</figure>")
        if section.rows:
            columns = list(section.rows[0])
            head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
            body = "".join(
                "<tr>" + "".join(f"<td>{_cell(row[name])}</td>" for name in columns) + "</tr>" for row in section.rows
            )
            table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            parts.append(f'<div class="scroll">{table}</div>')
        parts.append("</section>")
    return "\n".join([*parts, "</body></html>", ""])
