"""The table of faults in docs/reliability.md: every row has tests, and they are there."""

import ast
import re
from pathlib import Path

import pytest

from lrgenome.cli.app import EXIT_CODES
from lrgenome.cli.signals import STOPS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


def rows():
    """Rows of all tables whose last column names tests."""
    found, header = [], None
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] if line.startswith("|") else None
        if cells is None:
            header = None
        elif header is None:
            header = cells
        elif header[-1] == "test" and not set(line) <= set("|- "):
            found.append(cells)
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda row: re.sub(r"\W+", "-", row[0])[:60])
def test_every_row_has_its_tests(row):
    fault, behaviour, code, tests = row
    assert fault and behaviour and re.fullmatch(r"(\d+|-)( / (\d+|-))*", code), row
    named = TEST.findall(tests)
    assert named and not TEST.sub("", tests).strip(" ,"), f"{tests!r} is not a list of tests"
    for file, name in named:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        there = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in there, f"tests/{file} has no {name}"


def test_the_table_is_not_empty_and_its_exit_codes_are_known():
    codes = {code for _, _, text, _ in rows() for code in re.findall(r"\d+", text)}
    known = {0, 141} | {code for _, code in EXIT_CODES} | {128 + number for number in STOPS}
    assert len(rows()) > 40 and {int(code) for code in codes} <= known


def test_every_test_of_faults_is_in_the_table():
    named = {name for *_, tests in rows() for _, name in TEST.findall(tests)}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.name == Path(__file__).name:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        missing = [
            node.name for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and node.name not in named
        ]  # fmt: skip
        assert not missing, f"{path.name}: {missing}"
