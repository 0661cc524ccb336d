"""Whole commands on mutants: exit codes, one line of error, and no output that looks whole."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from . import oracles
from .mutate import BYTES, TEXT
from .mutate_formats import bgzip, change_blocks, change_fai, change_json, change_safetensors
from .targets import Files, Target
from .targets_binary import tiny_hawk
from .targets_genome import fai_of, fasta_texts

CODES = (0, 2, 3, 5, 137)


def _run(folder: Path, arguments: str, final: str) -> Path:
    """Run a command in this process and return its output; a clean failure is an `InputError` with what was said."""
    from typer.testing import CliRunner

    from lrgenome.cli.app import app
    from lrgenome.errors import InputError

    ours = {
        "LRGENOME_THREADS": "1",
        "LRGENOME_DEVICE": "cpu",
        "LRGENOME_PRECISION": "float32",
        "LRGENOME_MODEL": str(folder / "m"),
    }
    env = dict.fromkeys(name for name in os.environ if name.startswith("LRGENOME_")) | ours
    out = folder / final
    words = [str(folder / word[1:]) if word.startswith("@") else word for word in arguments.split()]
    result = CliRunner().invoke(app, [*words, "-o", str(out), "-q"], env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    said = result.stderr
    # Scores that are not finite numbers are weights of another model, and exit 1 says so.
    codes = (*CODES, 1) if "not finite" in said else CODES
    assert result.exit_code in codes, f"exit {result.exit_code}: {said[-500:]}"
    assert "Traceback" not in said, said[-500:]
    if result.exit_code:
        assert "lrgenome: error: " in said or result.exit_code == 2, said[-500:]
        assert not out.exists(), f"exit {result.exit_code} left {final}"
        raise InputError(f"{folder}: exit {result.exit_code}: {said[-300:]}")
    assert out.exists(), "no output"
    return out


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
        out = _run(folder, "score-vcf @v.vcf -f @g.fa --context 200 --strand forward", "o.tsv")
        lines = out.read_bytes().decode("utf-8", "surrogateescape").split("\n")
        return [line.split("\t")[:5] for line in lines if line and line[0] != "#"]

    def expect_scores(files: Files) -> Any:
        found = oracles.vcf(files["v.vcf"])
        return [[c, str(p + 1), i, r, a or "."] for c, p, i, r, alts, _ in found for a in alts or (".",)]

    def rows_of(out: Path) -> list[tuple[str, int, int]]:
        with h5py.File(out) as file:
            return [
                (c.decode(), int(s), int(e))
                for c, s, e in zip(*(file[k][:] for k in ("chrom", "start", "end")), strict=True)
            ]

    def embed(folder: Path) -> Any:
        return rows_of(_run(folder, "embed @g.fa --bed @b.bed --context 1kbp", "o.h5"))

    def expect_rows(files: Files) -> Any:
        found = oracles.bed(files["b.bed"])
        if any(chrom not in ("20", "second") for chrom, *_ in found):
            raise oracles.Unchecked  # it may be another name of one
        return [(chrom, start, end) for chrom, start, end, *_ in found]

    def embed_packed(folder: Path) -> Any:
        return rows_of(_run(folder, "embed @g.fa.gz --regions 20:1-4000 --bin-size 1000 --context 1kbp", "o.h5"))

    def expect_bins(files: Files) -> Any:
        oracles.fasta(files["g.fa.gz"])
        return [("20", start, start + 1000) for start in range(0, 4000, 1000)]

    fresh = ("g.fa.fai",)
    weights = {
        "m/model.safetensors": (*[change_safetensors] * 4, *BYTES),
        "m/config.json": (*[change_json] * 8, *BYTES),
    }
    yield Target(
        "command", "score-vcf", files, {"g.fa.fai": (change_fai,), **weights}, score, expect_scores, fresh=fresh
    )
    yield Target("command", "score-vcf, records", files, {"v.vcf": TEXT}, score, expect_scores, fresh=fresh)
    yield Target("command", "embed", files, {"b.bed": TEXT, "g.fa": TEXT, **weights}, embed, expect_rows, fresh=fresh)
    packed_files, damage = {"g.fa.gz": packed, **model}, {"g.fa.gz": (*BYTES, *[change_blocks] * 6)}
    yield Target("command", "embed BGZF", packed_files, damage, embed_packed, expect_bins)
