"""Readers of FASTA, with indices that are right, damaged or lie."""

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import oracles
from .mutate import BYTES, TEXT, change_field, change_lines
from .mutate_formats import bgzip, blocks_of, by_text, change_blocks, change_fai, change_gzi
from .targets import DEMO, Files, Target


def fasta_texts(shared: Path | None) -> dict[str, bytes]:
    """Real FASTA, shortened: lines of 60 bases, several contigs, gaps and lower case."""
    whole = gzip.decompress((DEMO / "GRCh37.chr20.first-2Mbp.fa.gz").read_bytes())
    lines = [line for line in whole.splitlines()[1:] if line]
    texts = {
        "demo": b">20 first\n" + b"\n".join(lines[900:2400]) + b"\n>second\n" + b"\n".join(lines[5000:5040]) + b"\n"
    }
    if shared is not None:
        texts["mt"] = gzip.decompress((shared / "genomes" / "homo_sapiens.rCRS.fa.gz").read_bytes())
        yeast = gzip.decompress((shared / "genomes" / "saccharomyces_cerevisiae.R64-1-1.fa.gz").read_bytes())
        parts = [b">" + contig[:15_000].rpartition(b"\n")[0] + b"\n" for contig in yeast.split(b">")[1:]]
        texts["yeast"] = b"".join(parts)
        loci = gzip.decompress((shared / "genomes" / "homo_sapiens.GRCh37.loci.fa.gz").read_bytes())
        texts["loci"] = b"".join(
            b">" + contig[:4_000].rpartition(b"\n")[0] + b"\n" for contig in loci.split(b">")[1:40]
        )
    return texts


def _read_fasta(name: str) -> Any:
    from lrgenome.dna import decode
    from lrgenome.io import fasta as module

    def read(folder: Path) -> dict[str, str]:
        # In blocks much smaller than contigs, as blocks of a megabase are, each read at its own place in the file.
        before, module._BLOCK = module._BLOCK, 1000
        try:
            with module.Fasta(folder / name) as fasta:
                return {contig: decode(fasta.fetch(contig, 0, length)) for contig, length in fasta.contigs.items()}
        finally:
            module._BLOCK = before

    return read


def fai_of(text: bytes) -> bytes:
    """Index of FASTA text whose contigs have lines of one length."""
    rows, at = [], 0
    for part in text.split(b">")[1:]:
        head, _, rest = part.partition(b"\n")
        bases = rest.split(b"\n", 1)[0]
        offset = at + 1 + len(head) + 1
        rows.append(
            b"%s\t%d\t%d\t%d\t%d\n"
            % (head.split()[0], len(rest.replace(b"\n", b"")), offset, len(bases), len(bases) + 1)
        )
        at += 1 + len(part)
    return b"".join(rows)


def gzi_of(packed: bytes) -> bytes:
    """Index of the blocks of BGZF but the first and the end marker."""

    pairs, offset, position = [], 0, 0
    for block in blocks_of(packed):
        inside_size = struct.unpack("<I", block[-4:])[0]
        if inside_size and offset:
            pairs.append((offset, position))
        offset, position = offset + len(block), position + inside_size
    return struct.pack("<Q", len(pairs)) + b"".join(struct.pack("<QQ", *pair) for pair in pairs)


def genomes(shared: Path | None) -> Iterator[Target]:
    """FASTA without an index, and with indices that are right, damaged or lie."""
    for what, text in fasta_texts(shared).items():
        packed, fai = bgzip(text, 6000), fai_of(text)

        def cut(data: bytes) -> bytes:
            return bgzip(data, 6000)

        def expect(name: str) -> Any:
            return lambda files: oracles.fasta(files[name])

        plain: Files = {"g.fa": text, "g.fa.fai": fai}
        yield Target("fasta", f"plain {what}", {"g.fa": text}, {"g.fa": TEXT}, _read_fasta("g.fa"), expect("g.fa"))
        yield Target(
            "fasta",
            f"plain, indexed {what}",
            plain,
            {"g.fa": TEXT, "g.fa.fai": (change_field, change_lines, *BYTES)},
            _read_fasta("g.fa"),
            expect("g.fa"),
            fresh=("g.fa.fai",),
        )
        yield Target(
            "fasta index",
            f".fai {what}",
            plain,
            {"g.fa.fai": (*[change_fai] * 5, change_field, change_lines, *BYTES[:2])},
            _read_fasta("g.fa"),
            expect("g.fa"),
            strict=True,
            fresh=("g.fa.fai",),
        )
        bgzf: Files = {"g.fa.gz": packed, "g.fa.gz.fai": fai, "g.fa.gz.gzi": gzi_of(packed)}
        indices = ("g.fa.gz.fai", "g.fa.gz.gzi")
        yield Target(
            "fasta",
            f"BGZF {what}",
            bgzf,
            {"g.fa.gz": (*BYTES, *[change_blocks] * 10, *by_text(TEXT[-6:], cut))},
            _read_fasta("g.fa.gz"),
            expect("g.fa.gz"),
            fresh=indices,
        )
        yield Target(
            "fasta index",
            f".gzi {what}",
            bgzf,
            {"g.fa.gz.gzi": (*[change_gzi] * 6, *BYTES), "g.fa.gz.fai": (change_fai,)},
            _read_fasta("g.fa.gz"),
            expect("g.fa.gz"),
            strict=True,
            fresh=indices,
        )
