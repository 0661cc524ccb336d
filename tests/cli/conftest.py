"""What the tests of commands share: running them in this process and in others, and what they run on."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from lrgenome.cli.app import app
from lrgenome.ops.jit import set_threads

HEADER = "##fileformat=VCFv4.2\n"
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def options_from_environment(model: Path) -> dict[str, str]:
    """Return a whole environment: that of the process, but of its options only some for tests."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("LRGENOME_")}
    return others | {"LRGENOME_MODEL": str(model), "LRGENOME_THREADS": "1", "LRGENOME_DEVICE": "cpu"}


@pytest.fixture(autouse=True)
def as_found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the process back its log handlers, threads and signals."""
    monkeypatch.setenv("COLUMNS", "200")
    logger, threads = logging.getLogger("lrgenome"), torch.get_num_threads()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    # Not as found: a fixture of the session may have run a command before.
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    set_threads(threads)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.fixture(scope="session")
def lrgenome(tiny_model: Path) -> Callable[..., Result]:
    """Run a command in this process with the tiny model on one thread.

    An exit code that is not the one expected, and every exception that is no exit, fails the test.
    """

    def run(*args: object, code: int = 0, stdin: bytes | None = None, **env: str) -> Result:
        ours = dict.fromkeys(os.environ) | options_from_environment(tiny_model) | env
        if "--gpu" in args:
            ours["LRGENOME_DEVICE"] = None
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, env=ours)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def spawn(tiny_model: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a command as a process of its own."""
    started = []

    def start(*args: object, **options: object) -> subprocess.Popen[bytes]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        options = {**pipes, "env": options_from_environment(tiny_model), **options}
        started.append(subprocess.Popen([sys.executable, "-m", "lrgenome", *map(str, args)], **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def finish(spawn: Callable[..., subprocess.Popen[bytes]]) -> Callable[..., str]:
    """Run a command as a process of its own; returns what it wrote to stderr."""

    def run(*args: object, code: int = 0, **options: object) -> str:
        process = spawn(*args, **options)
        _, said = process.communicate(timeout=120)
        assert process.returncode == code, said.decode()
        return said.decode()

    return run


@pytest.fixture
def toy_lines(toy_sequences: dict[str, str]) -> list[str]:
    """Records on the toy genome: SNVs, MNVs, indels, several ALTs, and each way not to be scored."""
    rng = np.random.default_rng(8)
    lines = []
    places = [("chr1", range(350, 4900, 130)), ("chr2", range(450, 1100, 90)), ("MT", (7, 20))]
    for chrom, pos in ((chrom, pos) for chrom, positions in places for pos in positions):
        here = toy_sequences[chrom][pos - 1 : pos + 3].upper()
        a, b, c = (base for base in "ACGT" if base != here[0])
        second = "A" if here[1] != "A" else "C"
        kinds = [
            (here[0], a), (here[0], f"{a},{b},{c}"), (here[0], here[0] + "GATC"), (here[:3], here[0]),
            (here[:2], a + second), (here[0], "<DEL>"), (here[0], "*"), (here[0], f"{a},<INS:ME:ALU>"),
            (here[0], "."), (here[0], f"{here[0]}[chr2:100["),
        ]  # fmt: skip
        ref, alt = kinds[rng.integers(len(kinds))]
        lines.append(f"{chrom}\t{pos}\trs{pos}\t{ref}\t{alt}\t.\tPASS\tDP={pos}\n")
    return lines


@pytest.fixture
def toy_vcf(tmp_path: Path, toy_lines: list[str]) -> Path:
    path = tmp_path / "toy.vcf"
    path.write_text(HEADER + COLUMNS + "".join(toy_lines))
    return path


class Place:
    """A folder with a genome of one contig of 60 kbp, SNVs on it, and runs of commands on them."""

    RECORDS = 200
    letters = np.random.default_rng(11).choice(list("ACGT"), 60_000)
    names: ClassVar = {"score-vcf": "o.tsv", "embed": "o.h5"}

    def __init__(self, folder: Path) -> None:
        self.folder, self.fasta, self.vcf = folder, folder / "g.fa", folder / "v.vcf"
        self.fasta.write_text(">one\n" + "".join(self.letters) + "\n")
        lines = []
        for pos in range(300, 300 + 180 * self.RECORDS, 180):
            ref = self.letters[pos - 1]
            lines.append(f"one\t{pos}\t.\t{ref}\t{'CGTA'['ACGT'.index(ref)]}\t.\t.\t.\n")
        self.vcf.write_text(HEADER + COLUMNS + "".join(lines))

    def arguments(
        self, command: str, *more: object, out: str | None = None, fasta: str = "g.fa"
    ) -> list[object]:
        """Return the arguments of a command, of which "-o" is the output's name in the folder."""
        if command == "embed":
            how = ["embed", self.folder / fasta, "--bin-size", "1", "--context", "2kbp"]
        else:
            how = [
                "score-vcf",
                self.vcf,
                "-f",
                self.folder / fasta,
                "--context",
                "200",
                "--strand",
                "forward",
            ]
        return [*how, "--precision", "float32", "-o", self.folder / (out or self.names[command]), *more]

    def outputs(self) -> list[str]:
        """Name everything but the inputs and their indices."""
        return sorted(p.name for p in self.folder.iterdir() if p.name.split(".")[0] not in ("g", "v"))

    def content(self, name: str) -> object:
        """Return what has to be equal: the bytes of a table, digests of the datasets of HDF5.

        Where differing megabytes would be shown, pytest compares them for hours.
        """
        if not name.endswith(".h5"):
            return (self.folder / name).read_bytes()
        with h5py.File(self.folder / name) as file:
            return {
                key: hashlib.sha256(file[key][:].tobytes()).hexdigest()
                for key in ("embeddings", "chrom", "start", "end", "done")
            }


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(
    lrgenome: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    """What each command writes when nothing disturbs it."""
    place = Place(tmp_path_factory.mktemp("undisturbed"))
    for command in place.names:
        lrgenome(*place.arguments(command, "-q"))
    return {command: place.content(name) for command, name in place.names.items()}
