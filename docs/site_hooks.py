"""Links of the pages to files outside docs/, which GitHub has: mkdocs copies those files into the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("data_manifest.tsv", "LICENSE")
"""Files of the repository that pages may link to; they lie at the top of the site."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the files that lie outside docs/."""
    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave docs/ to the copies."""
    depth = page.file.src_uri.count("/")
    up = re.escape("../" * (depth + 1))
    names = "|".join(map(re.escape, OUTSIDE))
    return re.sub(rf"\]\({up}({names})([)#])", lambda match: f"]({'../' * depth}{match[1]}{match[2]}", markdown)
