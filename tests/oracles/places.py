"""What commands are run on in tests: a genome, its variants, a manifest, labels; and with which environment."""

import hashlib
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pytest

HEADER = "##fileformat=VCFv4.2\n"
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def options_from_environment(model: Path) -> dict[str, str]:
    """Return a whole environment: that of the process, but of its options only some for tests."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("LRGENOME_")}
    return others | {"LRGENOME_MODEL": str(model), "LRGENOME_THREADS": "1", "LRGENOME_DEVICE": "cpu"}


class Place:
    """A folder with a genome of one contig of 60 kbp, SNVs on it, and runs of commands on them."""

    RECORDS = 200
    letters = np.random.default_rng(11).choice(list("ACGT"), 60_000)
    names: ClassVar = {"score-vcf": "o.tsv", "embed": "o.h5"}

    def __init__(self, folder: Path, records: int = RECORDS) -> None:
        self.folder, self.fasta, self.vcf = folder, folder / "g.fa", folder / "v.vcf"
        self.fasta.write_text(">one\n" + "".join(self.letters) + "\n")
        lines = []
        for pos in range(300, 300 + 180 * records, 180):
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


@pytest.fixture(autouse=True)
def as_found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the process back its log handlers, threads and signals."""
    import torch

    from lrgenome.ops.jit import set_threads

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
