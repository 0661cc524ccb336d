"""The site builds without a warning, its links lead somewhere, and what is made from the code is up to date."""

import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import make_drawings
import make_examples
import make_reference
import pytest
from make_examples import ROOT

pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")


class Page(HTMLParser):
    """Anchors, links and files of a page, and the text of its paragraphs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.paragraphs: list[str] = []
        self.within = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        self.links += [value for name in ("href", "src") if (value := given.get(name))]
        if tag == "p":
            self.within = True
            self.paragraphs.append("")

    def handle_endtag(self, tag):
        if tag == "p":
            self.within = False

    def handle_data(self, data):
        if self.within:
            self.paragraphs[-1] += data


@pytest.fixture(scope="module")
def site(built_site) -> dict[Path, Page]:
    """The pages of the site by path."""
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(built_site.rglob("*.html"))}


def test_the_site_builds_strictly(built_site, site):
    """`built_site` fails on a warning; here, that every page of docs/ is in it, and in its navigation."""
    sources = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    named = {path.parent / "index" if path.name == "README" else path for path in sources}
    built = {path.relative_to(built_site).with_suffix("") for path in site}
    assert named == built - {Path("404")}
    index = site[built_site / "index.html"]
    for name in named:
        assert f"{name}.html" in index.links or "pipelines" in name.parts, f"{name} is not in the navigation"


def test_links_of_the_site(built_site, site):
    for path, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in site[target].anchors, f"{path.name}: {link}"


def test_nothing_comes_from_elsewhere(site):
    """No font, script, style or picture from another host: pages are read where there is no network."""
    for path in site:
        text = path.read_text(encoding="utf-8")
        for asked in re.findall(r"<(?:link|script|img|iframe|source)\b[^>]*?(?:href|src)=[\"']?([^\"' >]+)", text):
            assert not urlsplit(asked).netloc, f"{path.name}: {asked}"


def test_no_markup_is_left_in_the_text(site):
    """What GitHub takes for a list or a table, the site does too."""
    for path, page in site.items():
        for text in page.paragraphs:
            assert not re.search(r"^(?:[*-] |\d+\. |\|.*\|$)", text, re.MULTILINE), f"{path.name}: {text[:200]}"
            assert "```" not in text and "](" not in text, f"{path.name}: {text[:200]}"


def heading_anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchors.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return anchors


def test_links_on_github():
    """Relative links of README.md and the pages lead to files of the repository, and to headings in them."""
    for page in make_examples.pages():
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.exists() and target.is_relative_to(ROOT), f"{page.name}: {link}"
            if parts.fragment and target.suffix == ".md":
                found = heading_anchors(target.read_text(encoding="utf-8"))
                assert parts.fragment in found, f"{page.name}: {link}; {target.name} has {sorted(found)}"


def test_the_reference_is_up_to_date():
    """After a change of an option: python docs/make_reference.py."""
    assert make_reference.PAGE.read_text(encoding="utf-8") == make_reference.page()


def test_the_reference_has_every_option(monkeypatch):
    """As the help of the commands lists them, whose names are found in another way."""
    from typer.testing import CliRunner

    from lrgenome.cli.app import app

    monkeypatch.setenv("COLUMNS", "300")
    sections = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", make_reference.page(), re.MULTILINE))
    assert len(sections) == len(list(make_reference.commands()))
    for name, text in sections.items():
        said = CliRunner().invoke(app, [*name.split(), "--help"], color=False).output
        listed = set(re.findall(r"^[│|*\s]*(--[a-z][a-z-]*)", said, re.MULTILINE)) - {"--help"}
        assert listed and listed <= set(re.findall(r"`(--[a-z-]+)`", text)), name
        shown = set(re.findall(r"LRGENOME_[A-Z_]+", text))
        assert shown == set(re.findall(r"env var: (LRGENOME_[A-Z_]+)", said)), name


@pytest.mark.parametrize("name", ["sweeps.svg", "boundary.svg"])
def test_the_drawings_are_up_to_date(name, monkeypatch, tmp_path):
    """After a change of the script: python docs/make_drawings.py."""
    monkeypatch.setattr(make_drawings, "HERE", tmp_path)
    make_drawings.sweeps()
    make_drawings.boundary()
    drawn = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert drawn == (tmp_path / name).read_text(encoding="utf-8") and "prefers-color-scheme: dark" in drawn


def test_the_project_speaks_of_itself_only():
    """README.md is the page of the package: it is short, and names no path of a machine."""
    for page in make_examples.pages():
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"/(?:work|root|home|tmp)/", text), page.name
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_a_warning_stops_the_build(tmp_path, caplog):
    """The strictness is that of mkdocs.yml: a broken link is a warning, and a warning an error."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# One\n\n[two](two.md) [three](#three)\n")
    config = load_config(
        str(ROOT / "mkdocs.yml"), docs_dir=str(docs), site_dir=str(tmp_path / "site"), strict=True, nav=None, hooks=[],
    )  # fmt: skip
    with caplog.at_level(logging.WARNING), pytest.raises(Abort):
        build(config)
