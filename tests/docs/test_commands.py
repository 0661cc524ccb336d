"""Every block of bash of README.md and of the pages is run on small files, or parsed where it cannot run here."""

import re
import subprocess
from itertools import groupby
from pathlib import Path

import make_examples
import pytest

from .blocks import ROOT, SHELL, Block, blocks, inline_commands, options_in, parse, statements, words
from .conftest import invoke

# What makes a command small: what is replaced in it, and what is added to its end (the last one given counts).
SMALLER = [
    ("1000genomes...", "variants.vcf.gz"), ("-f ...", "-f GRCh37.fa"), ("--context 1Mbp", "--context 12kbp"),
    ("20:1,373,701-1,373,900", "20:1,373,701-1,373,720"), ("20:1-10,000,000", "20:1,000,001-1,200,000"),
    ("20:1-10000000", "20:1,000,001-1,200,000"), ("--region 20 ", "--region 20:1,000,001-1,200,000 "),
    ("-f GRCh37.fa --lengths 2kbp,12kbp,120kbp,1Mbp", "-f GRCh37.fa -r 20:1,000,001-1,200,000 --lengths 2kbp"),
    ("-m tuned --tissue", "-m tuned-tissues --tissue"), ("-m tuned --layer", "-m tuned-intervals --layer"),
    ("demo/GRCh37.chr20.first-2Mbp.fa.gz", "GRCh37.chr20.fa.gz"),
    # A schedule takes the place of --window and --steps, which are added.
    ("--schedule 2kbp:1500,4kbp:400,12kbp:140 ", ""), ("--seed 1 --gpu 0", "--seed 1"),
    ("pretrain human.tsv", "pretrain data_manifest.tsv"), ("--schedule 2kbp:1600,12kbp:200 ", ""),
    ("--seed 2 --gpu 0", "--seed 2"), ("--seed 3 --gpu 0", "--seed 3"), ("-m eighth", "-m hawk-ring"),
    ("-m hawk-ring -m hawk-log --timescale-scale", "-m hawk-ring --timescale-scale"),
    # Windows as short as those that are added have nothing far.
    ("--probe context --near 12kbp ", ""), ("--probe context --near 4kbp ", ""),
    ("--val-lengths 2kbp,128kbp ", ""), ("--val-lengths 128kbp ", ""),
    # README.md has all probes; figures and bootstraps take most of the time, whatever the model.
    ("--positions plain --positions pi --probe all", "--positions plain --positions pi --probe drift"),
    ("-m hawk-ring -m hawk-log -m log-pass -m ring-pass -m cad-ps", "-m hawk-ring -m cad-ps"),
]  # fmt: skip
ADDED = {
    "embed GRCh37.fa": "-r 20:1,000,001-1,010,000 --context 10kbp",
    "pretrain": "--steps 2 --warmup 1 --window 300bp --batch-size 2 --accumulate 1 --val-windows 1",
    "finetune": "--epochs 1 --folds 2 --context 300bp",
    "extrapolate": "--lengths 200bp --sites 2 --target 100bp",
}
# Statements that are parsed and not run, and why.
ONLY_PARSED = {
    r"^lrgenome data fetch": "needs the network",
    r"--table enhancers.tsv": "the demo's chromosome ends before the test region does",
    r"torchrun ": "many processes, many GPUs, and a cluster",
}
CLUSTER = ("#!/bin/bash", "#SBATCH", "export ", "head=$(scontrol", "srun ")
# Pages whose runs take long, for their figures and intervals; all of their commands are parsed in any case.
LONG = ("docs/extrapolation.md",)
RUN_BY_SHELL = ("grep", "head", "column", "cut", "ls", "cat", "printf")


def pages() -> list[object]:
    """Return the blocks of each page that are no examples: those have their own test."""
    own = {(example.page, example.line) for page in make_examples.pages() for example in make_examples.examples(page)}
    ours = [block for block in blocks("bash") if (ROOT / block.page, block.line) not in own]
    return [
        pytest.param(page, list(group), id=page, marks=[pytest.mark.long] if page in LONG else [])
        for page, group in groupby(ours, key=lambda block: block.page)
    ]


def smaller(statement: str) -> str:
    for text, instead in SMALLER:
        statement = statement.replace(text, instead)
    statement = re.sub(r"\s+#.*", "", statement)
    added = [more for start, more in ADDED.items() if statement.startswith(f"lrgenome {start}")]
    return " ".join([statement, *added])


@pytest.mark.parametrize(("page", "own"), pages())
def test_commands_of_a_page(page, own, tiny_model, among, reader, inside, small_presets):
    folder = None
    for block in own:
        for statement in statements(block.text):
            where = f"{page}, block at line {block.line}: {statement}"
            if folder is None and words(statement)[0] in ("lrgenome", *RUN_BY_SHELL):
                folder = among(Path(page).stem)
                inside(folder)
            check(statement, where, block, tiny_model, folder, reader)


def check(
    statement: str, where: str, block: Block, model: Path, folder: Path | None, reader: dict[str, str]
) -> None:
    """Run a statement, or check what can be checked of it."""
    first = words(statement)[0]
    if any(re.search(pattern, statement) for pattern in ONLY_PARSED):
        arguments = words(statement)
        assert not (wrong := parse(arguments[arguments.index("lrgenome") + 1 :])), f"{where}\n{wrong}"
        if first != "lrgenome":
            subprocess.run(["bash", "-n", "-c", block.text], check=True)
    elif statement.startswith(CLUSTER):
        assert "torchrun" in block.text, where
    elif first == "lrgenome" and not SHELL.search(statement.split(" #")[0].replace("<<", "")):
        # As it stands first: values that `smaller` replaces are checked too.
        wrong = parse(words(statement.replace("-f ...", "-f GRCh37.fa"))[1:])
        assert not wrong, f"{where}\n{wrong}"
        invoke(model, *words(smaller(statement))[1:])
    elif first == "make":
        rules = (ROOT / "Makefile").read_text()
        targets = [word for word in words(statement)[1:] if "=" not in word]
        assert all(re.search(rf"^{target}:", rules, re.MULTILINE) for target in targets), where
    elif first == "pip":
        extras = re.findall(r"\[(\w+)\]", statement)
        known = (ROOT / "pyproject.toml").read_text()
        assert all(re.search(rf"^{extra} = \[", known, re.MULTILINE) for extra in extras), where
    elif first == "python" and words(statement)[1].startswith(("tests/", "docs/")):
        script = ROOT / words(statement)[1]
        asked = {word.split("=")[0] for word in words(statement) if word.startswith("--")}
        assert script.exists() and asked <= options_in(script), f"{where}: has {options_in(script)}"
    elif first in ("tabix", "bcftools"):
        # Run by tests/pipelines/test_readers.py, where there are such programs.
        assert block.page == "docs/formats.md", where
    elif first in RUN_BY_SHELL:
        assert folder is not None
        make_examples.run(smaller(statement), folder, reader)
    else:
        pytest.fail(f"no rule covers {where}")


def test_every_command_parses(among, inside):
    """As it stands, with the real options; files that a page makes on the way are not looked for."""
    inside(among("all"))
    found = [(block, line) for block in blocks("bash") for line in statements(block.text) if "lrgenome " in line]
    assert len(found) > 40
    for block, line in found:
        arguments = words(line.replace("-f ...", "-f GRCh37.fa").split("|")[0])
        arguments = arguments[arguments.index("lrgenome") + 1 :]
        wrong = parse([word.replace("demo/manifest.tsv", "data_manifest.tsv") for word in arguments])
        assert not wrong, f"{block.page}, line {block.line}: {line}\n{wrong}"


def test_commands_in_lines_of_text(among, inside):
    inside(among("text"))
    found = list(inline_commands())
    assert found
    for block in found:
        wrong = parse(words(block.text.replace("MANIFEST", "data_manifest.tsv"))[1:])
        assert not wrong, f"{block.page}, line {block.line}: {block.text}\n{wrong}"


@pytest.mark.parametrize("language", ["python", "groovy"])
def test_commands_in_workflows(language, among, inside):
    """Those of rules and processes, with their placeholders as they would be filled in."""
    inside(among(language))
    found = [
        (block, text)
        for block in blocks(language)
        for text in re.findall(r"\"(lrgenome [^\"]*)\"", block.text)
    ]
    assert found or language == "python"
    for block, text in found:
        text = re.sub(r"\{threads\}|\$task.cpus", "1", text)
        text = re.sub(r"\{wildcards.i\}", "1", text)
        text = re.sub(r"\{input[.\w]*\}|\$\w+", "variants.vcf", text)
        assert not (wrong := parse(words(text)[1:])), f"{block.page}, line {block.line}: {text}\n{wrong}"


def test_commands_of_the_makefile(among, inside):
    """What `make demo` runs, as the real command line parses it."""
    made = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = [words(line) for line in statements(made) if "lrgenome score-vcf" in line]
    assert len(found) == 3
    inside(among("makefile"))
    for line in found:
        for path in (word for word in line if word.startswith("lrgenome/assets/")):
            assert (ROOT / path).is_file()
        assert not parse(line[1:])


def test_wrong_commands_are_found(among, inside):
    """The checks above can fail."""
    inside(among("wrong"))
    assert "--nonsense" in parse(["score-vcf", "variants.vcf", "--nonsense"])
    assert "kbpp" in parse(["score-vcf", "variants.vcf", "--context", "12kbpp"])
    assert "OUTPUT" in parse(["embed", "GRCh37.fa"]).upper()
    assert parse(["data", "list", "--manifest", "missing.tsv"]) and parse(["score"])
    assert not parse(["score-vcf", "variants.vcf"])


def test_a_block_ends_at_its_fence():
    """An example is one block: a marker further down does not belong to it."""
    for page in make_examples.pages():
        for example in make_examples.examples(page):
            assert "```" not in example.command
            assert not re.search(r"^\s*(pip|make|git) ", example.command, re.MULTILINE), "examples change nothing"


