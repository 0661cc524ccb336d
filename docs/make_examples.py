"""Run the examples of README.md and of the pages, and write what they print into them.

An example is a block of bash or Python with a marker behind it: ``<!-- run -->``, it is only run, for what comes later;
``<!-- output -->``, a block of text follows with what it printed; ``<!-- output: log -->``, with its log too. The
examples of a page run in their order, in a folder of their own, with the embedded model on one thread; those in Python
in one session.

``python docs/make_examples.py [PAGE]...`` runs them and writes the pages; ``--check`` compares, and exits with 1 where
a page says something else. Numbers may differ as they do between machines; times and speeds are not compared.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(
    r"^```(?P<language>bash|python)\n(?P<command>(?:(?!```).*\n)*)```\n\n<!-- (?P<marker>run|output|output: log) -->\n"
    r"(?:```text\n(?P<shown>(?:(?!```).*\n)*)```\n)?",
    re.MULTILINE,
)
# Lines of the log that depend on the machine alone: of a first run, and of one that takes more than 30 seconds.
_NOT_SHOWN = re.compile(r" INFO (compiled \d+ CPU kernels|[\w-]+: [\d,]+ \w+ of [\d,]+)")
_TIME = re.compile(r"\d\d:\d\d:\d\d")
_CHUNK = re.compile(r"##chunk=\d+")  # by the cache of the CPU
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
RELATIVE = 0.02
ABSOLUTE = {
    "LLR": 0.005, "PLL_DIFF": 0.02, "ERR_EST": 0.05, "over_composition": 0.02, "over_low": 0.02, "over_high": 0.02,
    "over_carry": 0.005,
}  # fmt: skip
"""How far numbers may be apart: relative, or absolute where that is more, by column."""
FORBIDDEN = ("pip", "pip3", "conda", "mamba", "make", "git", "curl", "wget", "sudo", "apt-get")
UNCOMPARED = {"seconds", "seconds_per_window", "bp_per_s", "host_bytes", "gb", "expected_seconds", "bp/s"}


# Runs a block a line, and answers what it printed; the names of one are there for the next.
_SESSION = """
import contextlib, io, json, sys
names = {}
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(json.loads(line), "example", "exec"), names)
    print(json.dumps(printed.getvalue()), flush=True)
"""


class Example(NamedTuple):
    """A block of bash or Python, and what a page says that it prints."""

    page: Path
    line: int
    language: str
    command: str
    marker: str
    """run, output, or output: log."""
    shown: str | None


def pages() -> list[Path]:
    """Return every page that may hold examples: README.md, and docs/ without the pipelines, which have their own."""
    inner = sorted((ROOT / "docs").rglob("*.md"))
    return [ROOT / "README.md", *(page for page in inner if "pipelines" not in page.relative_to(ROOT).parts)]


def examples(page: Path) -> list[Example]:
    """Return the examples of a page in their order."""
    text = page.read_text(encoding="utf-8")
    return [
        Example(page, text.count("\n", 0, found.start()) + 1, *found.group("language", "command", "marker", "shown"))
        for found in _BLOCK.finditer(text)
    ]


def run(command: str, folder: Path, environment: dict[str, str], *, log: bool = False) -> str:
    """Run a block of bash in a folder and return what it prints; `log` adds standard error."""
    result = subprocess.run(
        ["bash", "-eu", "-c", command], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if log else subprocess.PIPE,
    )  # fmt: skip
    if result.returncode:
        raise RuntimeError(f"exit {result.returncode} of\n{command}{result.stdout}{result.stderr or ''}")
    return tidy(result.stdout)


def tidy(text: str) -> str:
    """Return what was printed without what depends on the machine alone, and without spaces at line ends."""
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines() if not _NOT_SHOWN.search(line))


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a reader: `lrgenome` and `python` on the PATH, none of the options set."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    scripts = {"lrgenome": f'exec {sys.executable} -m lrgenome "$@"', "python": f'exec {sys.executable} "$@"'}
    # Examples only compute: a page that installs something by mistake would change the machine that it is checked on.
    scripts |= dict.fromkeys(FORBIDDEN, 'echo "$0 is not for examples" >&2; exit 1')
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LRGENOME_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path, "LRGENOME_THREADS": "1",
        "LC_ALL": "C",
    }  # fmt: skip


def printed(page: Path) -> Iterator[tuple[Example, str]]:
    """Run the examples of a page, and yield each with what it prints."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, around = Path(temporary) / "work", environment(Path(temporary))
        folder.mkdir()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        python = [sys.executable, "-c", _SESSION]
        session = None
        try:
            for example in examples(page):
                if example.language == "bash":
                    yield example, run(example.command, folder, around, log=example.marker.endswith("log"))
                    continue
                session = session or subprocess.Popen(python, cwd=folder, env=around, text=True, **pipes)
                assert session.stdin is not None and session.stdout is not None
                session.stdin.write(json.dumps(example.command) + "\n")
                session.stdin.flush()
                if not (answer := session.stdout.readline()):
                    raise RuntimeError(f"{page.name}, line {example.line}: ended with an error")
                yield example, tidy(json.loads(answer))
        finally:
            if session is not None:
                session.communicate()


def rewrite(page: Path) -> None:
    """Write what the examples of a page print into it; `RuntimeError` if the page was changed meanwhile."""
    before = page.read_text(encoding="utf-8")
    outputs = iter([text for _, text in printed(page)])
    if page.read_text(encoding="utf-8") != before:
        raise RuntimeError(f"{page} was changed while its examples ran; run them again")

    def with_output(found: re.Match[str]) -> str:
        text = next(outputs)
        head = f"```{found['language']}\n{found['command']}```\n\n<!-- {found['marker']} -->\n"
        return head if found["marker"] == "run" else f"{head}```text\n{text}```\n"

    page.write_text(_BLOCK.sub(with_output, before), encoding="utf-8")


def number(word: str) -> float | None:
    """Return the number that a word is, or None."""
    return float(word.replace(",", "")) if _NUMBER.fullmatch(word) else None


def words(line: str) -> list[str]:
    """Split a line at spaces, and numbers from the brackets and units around them."""
    return re.sub(r"([()\[\],;]|(?<=\d)%)(?=\s|$)|(?<=\s)\(", r" \g<0> ", line).split()


def differences(got: str, shown: str) -> list[str]:
    """Say where what was printed is not what a page shows, but for times and the last digits of numbers."""
    ours, theirs = got.splitlines(), shown.splitlines()
    if len(ours) != len(theirs):
        return [f"printed {len(ours)} lines, the page has {len(theirs)}"]
    found: list[str] = []
    columns: list[str] = []
    for one, other in zip(ours, theirs, strict=True):
        a, b = words(one), words(other)
        if any(word in (*ABSOLUTE, *UNCOMPARED) for word in b) and all(number(word) is None for word in b):
            columns = b
        same = len(a) == len(b)
        for place, (left, right) in enumerate(zip(a, b, strict=False)):
            column = columns[place] if len(columns) == len(b) else b[0]
            same = same and alike(left, right, column)
        if not same:
            found.append(f"printed {one!r}, the page has {other!r}")
    return found


def alike(left: str, right: str, column: str) -> bool:
    """Tell whether two words are the same, but for times and the last digits of numbers."""
    if left == right or all(map(_TIME.fullmatch, (left, right))) or all(map(_CHUNK.fullmatch, (left, right))):
        return True
    x, y = number(left), number(right)
    if x is None or y is None:
        return False
    far = max(RELATIVE * max(abs(x), abs(y)), ABSOLUTE.get(column, 0.0))
    return column in UNCOMPARED or abs(x - y) <= far


def main() -> None:
    """Write or check the pages that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("pages", metavar="PAGE", nargs="*", type=Path)
    arguments = parser.parse_args()
    wrong = 0
    for page in [path.resolve() for path in arguments.pages] or pages():
        if not examples(page):
            continue
        print(page.relative_to(ROOT), file=sys.stderr)
        if not arguments.check:
            rewrite(page)
            continue
        for example, text in printed(page):
            for difference in differences(text, example.shown or "") if example.marker != "run" else ():
                wrong += 1
                print(f"{page.relative_to(ROOT)}, line {example.line}: {difference}")
    if wrong:
        sys.exit("examples have changed; if that is meant: python docs/make_examples.py")


if __name__ == "__main__":
    main()
