"""Blocks of code of our pages."""

import re
from pathlib import Path

_BLOCK = re.compile(r"(?P<before>[^\n]*)\n```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.M | re.S)


def blocks(page: Path, kind: str, section: str = "") -> list[str]:
    """Return the blocks of one language, of a section or of the whole page, but for those marked as not run."""
    text = page.read_text()
    if section:
        _, _, text = text.partition(f"\n## {section}\n")
        assert text, f"{page.name} has no section {section}"
        text = text.split("\n## ")[0]
    found = (m for m in _BLOCK.finditer(text) if m["kind"] == kind)
    return [m["code"] for m in found if not m["before"].startswith("<!-- not run")]
