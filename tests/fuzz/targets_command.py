"""Whole commands on mutants: exit codes, one line of error, and no output that looks whole."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import oracles
from .mutate import BYTES, TEXT
from .mutate_formats import bgzip, change_blocks, change_fai, change_json, change_safetensors
from .targets import Files, Target
from .targets_binary import tiny_hawk
from .targets_genome import fai_of, fasta_texts

CODES = (0, 2, 3, 5, 137)


def _run(arguments: list[str], finals: list[Path]) -> tuple[int, str]:
    """Run a command in this process; an output of one that failed is an error here."""
    from typer.testing import CliRunner

    from lrgenome.cli.app import app

    env = {name: None for name in os.environ if name.startswith("LRGENOME_")} | {
        "LRGENOME_THREADS": "1",
        "LRGENOME_DEVICE": "cpu",
    }
    result = CliRunner().invoke(app, arguments, env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    said = result.stderr
    # Scores that are not finite numbers are weights of another model, and exit 1 says so.
    codes = (*CODES, 1) if "not finite" in said else CODES
    assert result.exit_code in codes, f"exit {result.exit_code}: {said[-500:]}"
    assert "Traceback" not in said, said[-500:]
    if result.exit_code:
        assert "lrgenome: error: " in said or result.exit_code == 2, said[-500:]
        left = [path.name for path in finals if path.exists()]
        assert not left, f"exit {result.exit_code} left {left}"
    else:
        assert all(path.exists() for path in finals), "no output"
    return result.exit_code, said


def commands(shared: Path | None) -> Iterator[Target]:
    """score-vcf and embed, of which each input in turn is a mutant."""
    from lrgenome.models.checkpoint import save_model

    text = fasta_texts(None)["demo"]
    bases = oracles.fasta(text)["20"]
    records = [
        f"20\t{p}\t.\t{bases[p - 1]}\t{'CGTA'['ACGT'.index(bases[p - 1])]}\t.\t.\tDP={p}\n"
        for p in range(500, 60_000, 4_000)
        if bases[p - 1] != "N"
    ]
    vcf = ("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + "".join(records)).encode()
    packed = bgzip(text, 6000)
    with tempfile.TemporaryDirectory() as made:
        save_model(tiny_hawk(), made)
        model = {f"m/{p.name}": p.read_bytes() for p in Path(made).iterdir()}
    files: Files = {
        "v.vcf": vcf,
        "g.fa": text,
        "g.fa.fai": fai_of(text),
        "b.bed": b"20\t500\t700\n20\t9000\t9300\tx\n",
        **model,
    }

    def score(folder: Path) -> Any:
        out = folder / "o.tsv"
        code, _ = _run(
            [
                "score-vcf",
                str(folder / "v.vcf"),
                "-f",
                str(folder / "g.fa"),
                "-m",
                str(folder / "m"),
                "--context",
                "200",
                "--strand",
                "forward",
                "--precision",
                "float32",
                "-o",
                str(out),
                "-q",
            ],
            [out],
        )
        return (
            [
                line.split("\t")[:5]
                for line in out.read_text(errors="surrogateescape").split("\n")
                if line and line[0] != "#"
            ]
            if not code
            else code
        )

    def expect(files: Files) -> Any:
        rows = [
            [c, str(p + 1), i, r, a or "."]
            for c, p, i, r, alts, _ in oracles.vcf(files["v.vcf"])
            for a in alts or (".",)
        ]
        raise oracles.Unchecked if rows else oracles.Refused("no records")

    def unchecked(files: Files) -> Any:
        raise oracles.Unchecked

    def embed(folder: Path) -> Any:
        out = folder / "o.h5"
        return _run(
            [
                "embed",
                str(folder / "g.fa"),
                "-m",
                str(folder / "m"),
                "--bed",
                str(folder / "b.bed"),
                "--context",
                "1kbp",
                "--precision",
                "float32",
                "-o",
                str(out),
                "-q",
            ],
            [out],
        )[0]

    def embed_packed(folder: Path) -> Any:
        out = folder / "o.h5"
        return _run(
            [
                "embed",
                str(folder / "g.fa.gz"),
                "-m",
                str(folder / "m"),
                "--regions",
                "20:1-4000",
                "--context",
                "1kbp",
                "--precision",
                "float32",
                "-o",
                str(out),
                "-q",
            ],
            [out],
        )[0]

    fresh = ("g.fa.fai",)
    weights = {
        "m/model.safetensors": (*[change_safetensors] * 4, *BYTES),
        "m/config.json": (*[change_json] * 8, *BYTES),
    }
    yield Target(
        "command",
        "score-vcf",
        files,
        {"v.vcf": TEXT, "g.fa.fai": (change_fai,), **weights},
        score,
        unchecked,
        fresh=fresh,
    )
    yield Target("command", "score-vcf, records", files, {"v.vcf": TEXT}, score, unchecked, fresh=fresh)
    yield Target("command", "embed", files, {"b.bed": TEXT, "g.fa": TEXT, **weights}, embed, unchecked, fresh=fresh)
    yield Target(
        "command",
        "embed BGZF",
        {"g.fa.gz": packed, **model},
        {"g.fa.gz": (*BYTES, *[change_blocks] * 6)},
        embed_packed,
        unchecked,
    )
