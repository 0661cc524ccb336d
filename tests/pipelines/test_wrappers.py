"""The Snakemake wrappers: their own test workflows, and the form of snakemake-wrappers."""

import subprocess
import sys

import h5py
import pysam
import pytest
import yaml

from lrgenome import __version__

from .conftest import FASTA, PIPELINES, VCF, text_of

pytest.importorskip("snakemake", reason="needs Snakemake: pip install 'lrgenome[workflows]'")

WRAPPERS = PIPELINES / "snakemake" / "wrappers"
NAMES = ("score-vcf", "embed")


@pytest.fixture
def run(environment, tmp_path):
    """Run targets of a wrapper's test workflow, with the wrapper found as in the collection of wrappers."""
    collection = tmp_path / "master" / "bio"
    collection.mkdir(parents=True)
    (collection / "lrgenome").symlink_to(WRAPPERS)
    (tmp_path / "genome.fa.gz").symlink_to(FASTA)
    (tmp_path / "cohort.vcf").symlink_to(VCF)
    (tmp_path / "regions.bed").write_text("20\t1600000\t1700000\n")
    (tmp_path / "intervals.bed").write_text("20\t1373825\t1373845\tFKBP1A\n20\t1600000\t1600100\tother\n")

    def go(name, *targets):
        command = [sys.executable, "-m", "snakemake", "--snakefile", WRAPPERS / name / "test" / "Snakefile"]
        command += ["--cores", "1", "--wrapper-prefix", f"file://{tmp_path}/", *targets]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, done.stdout
        return tmp_path

    return go


@pytest.mark.long
def test_a_wrapper_scores(run):
    folder = run("score-vcf", "scores/cohort.vcf.gz")
    with pysam.VariantFile(str(folder / "scores" / "cohort.vcf.gz")) as file:
        assert [r.pos for r in file.fetch("20", 1_500_000, 1_800_000)] == [1_600_125]
    assert "INFO   OK " in (folder / "logs" / "cohort.vcf.log").read_text()


@pytest.mark.long
def test_the_test_of_score_vcf(run, whole):
    folder = run("score-vcf")
    # The FASTA has another name here, which the header says.
    ours, theirs = text_of(folder / "scores" / "cohort.tsv.gz"), (whole / "scores.tsv").read_bytes()
    assert ours[ours.index(b"#CHROM") :] == theirs[theirs.index(b"#CHROM") :]
    assert (folder / "scores" / "cohort.1-of-2.json").is_file()


@pytest.mark.long
def test_the_test_of_embed(run, whole):
    folder = run("embed")
    with h5py.File(folder / "embeddings" / "genome.h5") as mine, h5py.File(whole / "e.h5") as theirs:
        assert (mine["embeddings"][:] == theirs["embeddings"][:]).all()
    anndata = pytest.importorskip("anndata")
    assert anndata.read_h5ad(folder / "embeddings" / "intervals.h5ad").obs["name"].tolist() == ["FKBP1A", "other"]


@pytest.mark.parametrize("name", NAMES)
def test_the_form_of_a_wrapper(name):
    folder = WRAPPERS / name
    meta = yaml.safe_load((folder / "meta.yaml").read_text())
    assert meta["name"] == f"lrgenome {name}" and meta["authors"] and meta["description"]
    assert {"input", "output", "params", "notes"} <= set(meta)
    environment = yaml.safe_load((folder / "environment.yaml").read_text())
    assert environment["channels"] == ["conda-forge", "bioconda", "nodefaults"]
    assert environment["dependencies"] == [f"lrgenome ={__version__}"]
    code = (folder / "wrapper.py").read_text()
    assert 'snakemake.params.get("extra", "")' in code and "snakemake.log_fmt_shell(" in code
    named = {next(iter(one)) for part in ("input", "params") for one in meta[part] if isinstance(one, dict)}
    assert all(f'.get("{key}"' in code or f"input.{key}" in code for key in named)
    assert f'"master/bio/lrgenome/{name}"' in (folder / "test" / "Snakefile").read_text()
