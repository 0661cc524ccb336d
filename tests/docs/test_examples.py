"""Examples of the pages: what they print has the shape that the pages show, and, as `make test-long`, the values."""

import re
import subprocess
import sys
from pathlib import Path

import make_examples
import pytest
from make_examples import ROOT, alike, differences

from .blocks import SHELL, statements, words
from .conftest import invoke

LANGUAGES = {
    page: {example.language for example in make_examples.examples(page)} for page in make_examples.pages()
}
PAGES = [page for page, languages in LANGUAGES.items() if "bash" in languages]
IN_PYTHON = [page for page, languages in LANGUAGES.items() if languages == {"python"}]
LONG = "--context 1Mbp"
_MODEL = re.compile(r"\b(?:hawk-mini|tiny|[0-9a-f]{64})\b")
_BASES = re.compile(r"[ACGT]+")


def kind(word: str) -> str:
    """Say what a word is, where another model would give another one; else the word."""
    if make_examples.number(word) is not None or word == ".":
        return "number"
    for name, pattern in (("time", make_examples._TIME), ("chunk", make_examples._CHUNK)):
        if pattern.fullmatch(word):
            return name
    return "bases" if _BASES.fullmatch(word) else word


def shape(text: str) -> list[list[str]]:
    """Return the lines and columns of an output, with all words that are no values."""
    return [[kind(word) for word in make_examples.words(_MODEL.sub("MODEL", line))] for line in text.splitlines()]


def printed_by(example: make_examples.Example, model: Path, folder: Path, reader: dict[str, str]) -> str:
    """Run an example with a small model; commands in this process, as starting torch takes most of their time."""
    text = ""
    for statement in statements(example.command):
        if statement.startswith("lrgenome ") and not SHELL.search(statement):
            result = invoke(model, *words(statement)[1:])
            text += result.output if example.marker.endswith("log") else result.stdout
        else:
            text += make_examples.run(statement, folder, reader)
    return make_examples.tidy(text)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_examples_have_their_shape(page, tmp_path, tiny_model, reader, monkeypatch, small_presets):
    """With a small model: number of lines, columns and every word but values are as the page shows them."""
    monkeypatch.chdir(tmp_path)
    for example in make_examples.examples(page):
        if LONG in example.command:
            continue
        text = printed_by(example, tiny_model, tmp_path, reader)
        if example.marker != "run":
            assert example.shown, f"{page.name}, line {example.line}: no output; python docs/make_examples.py"
            assert shape(text) == shape(example.shown), f"{page.name}, line {example.line}"


def test_values_of_the_first_example(tmp_path):
    """With the embedded model: six of the rows of README.md, which depend on nothing but themselves."""
    demo, example = make_examples.examples(ROOT / "README.md")
    around = make_examples.environment(tmp_path / "reader")
    command = demo.command + example.command.replace("--context", "-r 20:1373826-1373827 --context")
    (tmp_path / "work").mkdir()
    printed = make_examples.run(command, tmp_path / "work", around).splitlines()[-7:]
    assert example.shown is not None
    shown = [line for line in example.shown.splitlines() if re.match(r"#CHROM|20 +137382[67] ", line)]
    assert len(printed) == len(shown) == 7 and not differences("\n".join(printed), "\n".join(shown))


@pytest.mark.parametrize("page", IN_PYTHON, ids=[page.stem for page in IN_PYTHON])
def test_values_of_examples_in_python(page):
    """With the embedded model: in one session, as a reader types them."""
    pytest.importorskip("tangermeme")
    for example, text in make_examples.printed(page):
        assert not differences(text, example.shown or ""), f"{page.name}, line {example.line}"


def test_the_page_of_the_api_is_in_python():
    assert [page.stem for page in IN_PYTHON] == ["api"]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_values_of_all_examples():
    script = [sys.executable, ROOT / "docs" / "make_examples.py", "--check"]
    result = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_differences_are_found():
    table = "#CHROM  POS  LLR   DIST_COS  STATUS\n20      100  -1.0  4.1e-07   OK\n"
    assert not differences(table, table)
    assert not differences(table, table.replace("-1.0", "-1.004").replace("4.1e-07", "4.12e-07"))
    for old, new in (("-1.0", "-1.1"), ("4.1e-07", "4.3e-07"), ("100", "107"), ("OK", "EDGE"), ("-1.0", "1.0")):
        assert len(differences(table, table.replace(old, new))) == 1
    assert "lines" in differences(table, table + "20 1\n")[0]
    assert alike("10:00:01", "23:59:59", "") and not alike("10:00:01", "soon", "")
    assert alike("##chunk=4096", "##chunk=8192", "") and not alike("##chunk=4096", "##strand=both", "")
    assert not differences("expected_seconds\t84\n", "expected_seconds\t12\n")
    assert differences("alleles\t84\n", "alleles\t12\n")
