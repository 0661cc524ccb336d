"""Small files of the names that the pages use, and runs of commands among them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import make_examples
import numpy as np
import pysam
import pytest
from benchmark_files import DEMO, Benchmark
from click.testing import Result
from places import as_found, options_from_environment  # noqa: F401
from typer.testing import CliRunner

from lrgenome import config
from lrgenome.cli.app import app
from lrgenome.config import CaduceusConfig, HawkConfig, NucleotideTransformerConfig
from lrgenome.dna import VOCAB_SIZE
from lrgenome.models.checkpoint import save_model
from lrgenome.models.families import build

MINI = HawkConfig(layers=1, width=16, recurrent_width=16, heads=2, mlp_width=16, half_life_max=200.0)
TRANSFORMER = NucleotideTransformerConfig(
    layers=1, width=16, heads=2, mlp_width=16, kmers=False, vocab=VOCAB_SIZE, tied=True, max_tokens=512
)
RECURRENT = ("hawk", "hawk-ring")
ASSEMBLIES = {"GRCh37.fa": "", "hg38.fa": "chr"}


@pytest.fixture
def small_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `--preset` mean a model of one block, whatever its name."""
    for name, settings in config.PRESETS.items():
        if isinstance(settings, HawkConfig):
            monkeypatch.setitem(config.PRESETS, name, MINI)


def invoke(model: Path, *arguments: str, code: int = 0) -> Result:
    """Run a command in this process with a small model on one thread."""
    result = CliRunner().invoke(app, list(arguments), env=dict.fromkeys(os.environ) | options_from_environment(model))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, f"{arguments}: {result.output}"
    return result


@pytest.fixture(scope="session")
def files(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small files of every name that the pages take for granted."""
    folder = tmp_path_factory.mktemp("pages")
    glrb = Benchmark(tmp_path_factory.mktemp("glrb"))
    shutil.copytree(glrb.folder, folder / "glrb")
    whole = pysam.FastaFile(str(DEMO)).fetch("20")
    for name, prefix in ASSEMBLIES.items():
        with open(folder / name, "w", encoding="ascii") as out:
            for contig, sequence in (*glrb.sequences.items(), ("chr20", whole)):
                lines = "\n".join(sequence[i : i + 60] for i in range(0, len(sequence), 60))
                out.write(f">{prefix}{contig.removeprefix('chr')}\n{lines}\n")
    shutil.copy(folder / "GRCh37.fa", folder / "ref.fa")
    shutil.copy(DEMO, folder / "GRCh37.chr20.fa.gz")
    demo = (DEMO.parent / "demo.vcf").read_text().splitlines(keepends=True)
    (folder / "variants.vcf").write_text("".join(demo[:12]))
    pysam.tabix_compress(str(folder / "variants.vcf"), str(folder / "variants.vcf.gz"))
    (folder / "places.bed").write_text("20\t1373500\t1374500\n20\t1600000\t1601000\n")
    _labels(folder, glrb)
    _manifest(folder)
    _models(folder, tiny_model, glrb)
    return folder


def _labels(folder: Path, glrb: Benchmark) -> None:
    """Write variants with labels: labels.tsv as GRCh37 names contigs, my.tsv as hg38 does, with genes."""
    for name, prefix in (("labels.tsv", ""), ("my.tsv", "chr")):
        lines = ["CHROM\tPOS\tREF\tALT\tGENE\tpathogenic"]
        rng = np.random.default_rng(1)
        for place, (contig, at) in enumerate(glrb.variants):
            ref = glrb.sequences[contig][at]
            alt = "ACGT"[("ACGT".index(ref) + 1) % 4]
            contig = "20" if contig == "chr10" and not prefix else contig.removeprefix("chr")
            if contig == "20":
                at = int(rng.integers(1_000_000, 1_900_000))
                ref = pysam.FastaFile(str(DEMO)).fetch("20", at, at + 1).upper()
                alt = "ACGT"[("ACGT".index(ref) + 1) % 4]
            lines.append(f"{prefix}{contig}\t{at + 1}\t{ref}\t{alt}\tG{place % 7}\t{place % 2}")
        (folder / name).write_text("\n".join(lines) + "\n")


def _manifest(folder: Path) -> None:
    """Write a manifest of a genome that is here and a reference that is not, and a list of addresses."""
    (folder / "data").mkdir()
    (folder / "data" / "multi_species.urls.csv").write_text(
        "https://localhost/GCF_000146045.2_R64_genomic.fna.gz\nhttps://localhost/GCF_000001735.4_TAIR10.1_genomic.fna.gz\n"
    )
    small = folder / "data" / "small.fa"
    small.write_text(">1\n" + "".join(np.random.default_rng(2).choice(list("ACGT"), 20_000)) + "\n")
    (folder / "data_manifest.tsv").write_text(
        "name\tkind\tpath\turl\tsha256\tweight\tholdout\tvalidation\n"
        "small\tgenome\tdata/small.fa\t.\t.\t1\t1:1-2000\t1:2001-6000\n"
        "hg38\treference\tdata/hg38.fa.gz\thttps://localhost/hg38.fa.gz\t.\t.\t.\t.\n"
    )
    shutil.copy(folder / "data_manifest.tsv", folder / "human.tsv")


def _models(folder: Path, tiny_model: Path, glrb: Benchmark) -> None:
    for name in RECURRENT:
        shutil.copytree(tiny_model, folder / name)
        settings = json.loads((folder / name / "config.json").read_text())
        settings["training"] = {"settings": {"window": 200}}
        (folder / name / "config.json").write_text(json.dumps(settings))
    save_model(build(TRANSFORMER, seed=0), folder / "transformer")
    save_model(build(CaduceusConfig(layers=1, width=8, equivariant=True), seed=0), folder / "cad-ps")
    for name, task in (("tuned-tissues", "vep-eqtl"), ("tuned-intervals", "promoter")):
        invoke(
            tiny_model, "finetune", task, "--benchmark", str(glrb.folder), "-f", str(folder / "hg38.fa"), "-o",
            str(folder / name), "--epochs", "1", "--folds", "2", "--context", "300", "-q", "--precision", "float32",
        )  # fmt: skip
    shutil.copytree(folder / "tuned-tissues", folder / "tuned")
    for part in ("1", "2"):
        invoke(
            tiny_model, "embed", str(folder / "data" / "small.fa"), "--context", "10kbp", "--shard", f"{part}/2", "-q",
            "-o", str(folder / f"part-{part}.h5"),
        )  # fmt: skip


@pytest.fixture(scope="session")
def reader(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a reader who has the small model: for what a shell has to run."""
    made = make_examples.environment(tmp_path_factory.mktemp("reader"))
    return made | options_from_environment(tiny_model) | {"PATH": made["PATH"], "PYTHONPATH": made["PYTHONPATH"]}


@pytest.fixture(scope="session")
def among(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make a folder for a page, in which the small files lie."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        for path in files.iterdir():
            # Files are only read; folders are written to (caches of manifests, features, a model under the same name).
            if path.is_dir():
                shutil.copytree(path, folder / path.name)
            else:
                (folder / path.name).hardlink_to(path)
        return folder

    return make


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Change into a folder."""
    yield lambda folder: monkeypatch.chdir(folder)


@pytest.fixture(scope="session")
def built_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=make_examples.ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    return folder
