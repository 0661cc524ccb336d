"""Readers of VCF, BCF, BED, tables and manifests."""

import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lrgenome
from lrgenome.config.head import KINDS

from . import oracles
from .mutate import BYTES, TEXT, Mutation, change_field, change_lines
from .mutate_formats import bgzip, by_text, change_blocks, change_json
from .targets import DEMO, Files, Target
from .targets_genome import fasta_texts


def text_in(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def _first(data: bytes, records: int) -> bytes:
    """Keep the header and some records of a VCF."""
    lines = data.splitlines(keepends=True)
    head = [line for line in lines if line.startswith(b"#")]
    return b"".join(head + [line for line in lines if not line.startswith(b"#")][:records])


def vcf_texts(shared: Path | None) -> dict[str, bytes]:
    """Real VCF files, shortened."""
    texts = {"demo": text_in(DEMO / "demo.vcf"), "promoter": _first(text_in(DEMO / "promoter.vcf"), 60)}
    if shared is not None:
        names = ("1000genomes.chr20_1-2Mb.b37", "clinvar.b37", "vt_indels.chr20.b37")
        texts |= {name.split(".")[0]: _first(text_in(shared / "variants" / f"{name}.vcf.gz"), 200) for name in names}
    return texts


def _read_vcf(name: str) -> Any:
    from lrgenome.io.vcf import open_variants, to_bytes

    def read(folder: Path) -> list[tuple[Any, ...]]:
        is_bcf = name.endswith("bcf")
        with open_variants(folder / name) as source:
            found = [
                (r.chrom, r.pos, r.id, r.ref, r.alts, None if is_bcf else to_bytes(r.line)) for r in source.records()
            ]
            assert [r.number for r in source.records()] == list(range(len(found)))
        return found

    return read


def _bcf_of(text: bytes) -> bytes:
    import pysam.bcftools

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.vcf").write_bytes(text)
        pysam.bcftools.view("--no-version", "-Ob", "-o", f"{folder}/a.bcf", f"{folder}/a.vcf", catch_stdout=False)
        return (Path(folder) / "a.bcf").read_bytes()


def variants(shared: Path | None) -> Iterator[Target]:
    """VCF and BCF in each of their wrappings."""
    for what, text in vcf_texts(shared).items():
        small = 4096 if len(text) > 8192 else 600
        packed, raw = bgzip(text, small), gzip.decompress(_bcf_of(text))

        def cut(data: bytes, size: int = small) -> bytes:
            return bgzip(data, size)

        name = "v.vcf"
        wrappings: tuple[tuple[str, bytes, tuple[Mutation, ...]], ...] = (
            (name, text, TEXT),
            ("v.vcf.gz", gzip.compress(text, mtime=0), BYTES),
            ("v.bgz", packed, (*BYTES, *[change_blocks] * 10, *by_text((change_field, change_lines), cut))),
            ("v.bcf", bgzip(raw, small), (change_blocks, *by_text(BYTES, cut))),
            ("v.raw.bcf", raw, BYTES),
        )
        for name, data, mutations in wrappings:
            oracle = oracles.bcf if name.endswith("bcf") else oracles.vcf
            yield Target(
                "bcf" if name.endswith("bcf") else "vcf",
                f"{name} {what}",
                {name: data},
                {name: mutations},
                _read_vcf(name),
                lambda files, name=name, oracle=oracle: oracle(files[name]),
                strict=not name.endswith("bcf"),
            )


def intervals(shared: Path | None) -> Iterator[Target]:
    """BED, plain and packed."""
    from lrgenome.io.bed import read_bed

    rows = [line.split(b"\t") for line in text_in(DEMO / "promoter.vcf").splitlines() if not line.startswith(b"#")]
    texts = {
        "demo": b"track name=x\n"
        + b"".join(
            b"20\t%d\t%d\tsnv%d\t0\t%c\n" % (int(r[1]) - 1, int(r[1]), i, b"+-."[i % 3])
            for i, r in enumerate(rows[:60])
        )
    }
    if shared is not None:
        lines = text_in(shared / "labels" / "regulatory_intervals.chr20.b37.tsv.gz").splitlines()[1:150]
        texts["regulatory"] = b"".join(b"\t".join(line.split(b"\t")[3:6]) + b"\n" for line in lines)
    for what, text in texts.items():
        for name, data, mutations in (("b.bed", text, TEXT), ("b.bed.gz", gzip.compress(text, mtime=0), BYTES)):
            yield Target(
                "bed",
                f"{name} {what}",
                {name: data},
                {name: mutations},
                lambda folder, name=name: [tuple(one) for one in read_bed(folder / name)],
                lambda files, name=name: oracles.bed(files[name]),
                strict=True,
            )


def _table_of(text: bytes, rows: int) -> bytes:
    made = [b"CHROM\tPOS\tREF\tALT\tLABEL"]
    for i, line in enumerate(line for line in text.splitlines() if not line.startswith(b"#")):
        chrom, pos, _, ref, alt = line.split(b"\t")[:5]
        made.append(b"\t".join((chrom, pos, ref, alt.split(b",")[0], (b"1", b"0", b"NA")[i % 3])))
    return b"\n".join(made[:rows]) + b"\n"


def _rows_of(examples: Any) -> list[tuple[Any, ...]]:
    """What a table says, in plain values; a missing label is a NaN, which equals nothing."""
    alts = examples.alt if examples.alt is not None else [""] * len(examples)
    refs = examples.ref if examples.ref is not None else [""] * len(examples)
    columns = (examples.contig, examples.start, examples.end, refs, alts)
    labels = [repr(float(v)) for v in examples.labels.reshape(len(examples), -1)[:, 0]] if len(examples) else []
    return [
        (str(c), int(s), int(e), str(r), str(a), v)
        for (c, s, e, r, a), v in zip(zip(*columns, strict=True), labels, strict=True)
    ]


def _expected_table(data: bytes) -> list[tuple[Any, ...]]:
    import numpy as np

    rows = oracles.variant_table(data)
    if not rows:
        raise oracles.Refused("no rows")
    values = [float(np.float32(row[-1])) if abs(row[-1]) < 3e38 or row[-1] != row[-1] else row[-1] for row in rows]
    if any(abs(value) == float("inf") for value in values):
        raise oracles.Refused("infinite")
    return [(*row[:-1], repr(value)) for row, value in zip(rows, values, strict=True)]


def tables(shared: Path | None) -> Iterator[Target]:
    """Labelled tables, those of the benchmark, score tables and aliases."""
    from benchmark_files import Benchmark

    from lrgenome.io.benchmark import READERS
    from lrgenome.io.fasta import read_alias_table
    from lrgenome.io.user_table import read_table

    def nothing(files: Files) -> Any:
        raise oracles.Unchecked

    text = _table_of(vcf_texts(shared)["clinvar" if shared is not None else "promoter"], 80)
    for name, data, mutations in (("t.tsv", text, TEXT), ("t.tsv.gz", gzip.compress(text, mtime=0), BYTES)):
        yield Target(
            "tables",
            name,
            {name: data},
            {name: mutations},
            lambda folder, name=name: _rows_of(read_table(folder / name, ["LABEL"])),
            lambda files, name=name: _expected_table(files[name]),
        )
    if shared is not None:
        mpra = b"\n".join(text_in(shared / "labels" / "mpra_saturation.b37.tsv").splitlines()[:80]) + b"\n"
        head = mpra.split(b"\n", 1)[0].decode().split("\t")
        label = next(name for name in head if name.lower() == "coefficient")
        yield Target(
            "tables",
            "mpra",
            {"m.tsv": mpra},
            {"m.tsv": TEXT},
            lambda folder: _rows_of(read_table(folder / "m.tsv", [label], kind=KINDS[-1])),
            nothing,
        )
    with tempfile.TemporaryDirectory() as made:
        benchmark = Benchmark(Path(made))
        for task, reader in READERS.items():
            files = {
                str(p.relative_to(benchmark.folder)): p.read_bytes()
                for p in sorted(benchmark.folder.rglob("*"))
                if p.is_file()
            }
            wanted = {
                "vep-eqtl": "causal_eqtl",
                "vep-clinvar": "coding",
                "omim": "pathogenic",
                "bulk-rna": "bulk_rna",
                "histone": "chromatin",
                "dnase": "chromatin",
                "promoter": "promoter",
                "enhancer": "enhancer",
                "cage": "cage",
            }[task]
            own = {name: data for name, data in files.items() if wanted in name}
            yield Target(
                "tables",
                task,
                own,
                {name: BYTES if name.endswith("npz") else TEXT for name in own},
                lambda folder, reader=reader: _rows_of(reader(folder)),
                nothing,
            )
    aliases = b"# alias\tname\nNC_000020.10\t20\nchr20\t20\nNC_012920.1\tMT\n"
    yield Target(
        "tables",
        "aliases",
        {"a.tsv": aliases},
        {"a.tsv": TEXT},
        lambda folder: read_alias_table(folder / "a.tsv"),
        nothing,
    )
    parquet = _parquet_of(text)
    yield Target(
        "tables",
        "parquet",
        {"t.parquet": parquet},
        {"t.parquet": BYTES},
        lambda folder: _rows_of(read_table(folder / "t.parquet", ["LABEL"])),
        nothing,
    )


def _parquet_of(text: bytes) -> bytes:
    import io

    import pyarrow
    from pyarrow import parquet

    names, *rows = (line.split("\t") for line in text.decode().splitlines())
    out = io.BytesIO()
    parquet.write_table(pyarrow.table({name: [row[i] for row in rows] for i, name in enumerate(names)}), out)
    return out.getvalue()


def manifests(shared: Path | None) -> Iterator[Target]:
    """Manifests, and the cache of encoded genomes."""
    from lrgenome.dna import decode
    from lrgenome.io.encoded import encode, open_genome
    from lrgenome.io.fasta import Fasta
    from lrgenome.io.manifest import read_data_sets, read_manifest, split_intervals

    def nothing(files: Files) -> Any:
        raise oracles.Unchecked

    text = (Path(lrgenome.__file__).parents[1] / "data_manifest.tsv").read_bytes()

    def read(folder: Path) -> Any:
        entries = read_manifest(folder / "m.tsv", check_files=False)
        for entry in entries:
            split_intervals(entry, {"20": 63_025_520, "1": 30_427_671, "IV": 1_531_933, "VII": 1_090_940})
        return [entry.name for entry in entries]

    yield Target("manifest", "train", {"m.tsv": text}, {"m.tsv": TEXT}, read, nothing)
    yield Target(
        "manifest",
        "data sets",
        {"m.tsv": text},
        {"m.tsv": TEXT},
        lambda folder: len(read_data_sets(folder / "m.tsv")),
        nothing,
    )
    fasta = fasta_texts(None)["demo"]
    expected = oracles.fasta(fasta)
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "g.fa").write_bytes(fasta)
        with Fasta(Path(made) / "g.fa") as genome:
            encode(genome, Path(made) / "index.json")
        index, bases = ((Path(made) / f"index.{kind}").read_bytes() for kind in ("json", "bases"))

    def read_cache(folder: Path) -> dict[str, str]:
        import hashlib
        import os

        # The cache's name follows from the FASTA's path and time, which no mutant changes.
        path = folder / "g.fa"
        stat = path.stat()
        key = hashlib.sha256(f"{os.path.realpath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:16]
        for kind in ("json", "bases"):
            (folder / f"c.{kind}").rename(folder / f"g.fa.{key}.{kind}")
        with open_genome(path, folder) as genome:
            return {name: decode(genome.fetch(name, 0, length)) for name, length in genome.contigs.items()}

    def expect_cache(files: Files) -> dict[str, str]:
        # Bases have no checksum: other bases of the same number cannot be told from these.
        if files["c.bases"] != bases and len(files["c.bases"]) == len(bases):
            raise oracles.Unchecked
        return expected

    yield Target(
        "manifest",
        "encoded genome",
        {"g.fa": fasta, "c.json": index, "c.bases": bases},
        {"c.json": (*[change_json] * 12, *BYTES), "c.bases": BYTES},
        read_cache,
        expect_cache,
        strict=False,
    )
