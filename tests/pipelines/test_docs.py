"""The commands of docs/pipelines/README.md, as they stand there."""

import re
import shutil
import subprocess
import sys

import h5py
import pysam
import pytest

from lrgenome.errors import InputError
from lrgenome.io.scores import read_scores

from .conftest import BINS, DEMO, DOCS, FASTA, PIPELINES, RECORDS, REGION, ROOT, SCORE, VCF, text_of
from .pages import blocks

PAGE = PIPELINES / "README.md"
# What SLURM does with an array, one task after the other.
SBATCH = """#!/bin/bash
set -euo pipefail
array=$(grep -oP -- '--array=\\K\\S+' "${@: -1}")
for option; do case $option in --array=*) array=${option#--array=};; esac; done
for SLURM_ARRAY_TASK_ID in $(seq ${array%-*} ${array#*-}); do
  export SLURM_ARRAY_TASK_ID SLURM_CPUS_PER_TASK=1 SLURM_MEM_PER_NODE=8192
  bash "${@: -1}"
done
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the files that the page names, and a `sbatch` that runs the tasks of an array at once."""
    folder = tmp_path_factory.mktemp("page")
    for end in ("", ".fai", ".gzi"):
        (folder / f"ref.fa.gz{end}").symlink_to(f"{FASTA}{end}")
    pysam.tabix_compress(str(VCF), str(folder / "variants.vcf.gz"))
    (folder / "docs").symlink_to(DOCS)
    (folder / "bin").mkdir()
    (folder / "bin" / "sbatch").write_text(SBATCH)
    (folder / "bin" / "sbatch").chmod(0o755)
    (folder / "score.sbatch").write_text(*blocks(PAGE, "sbatch"))
    return folder


@pytest.fixture(scope="module")
def run(shell, environment, place):
    def go(script, **options):
        return shell(script, place, flags="-e -u", PATH=f"{place / 'bin'}:{environment['PATH']}", **options).stdout

    return go


def test_one_task_of_an_array(run, place, whole):
    """The second line of the page's block, that makes one shard."""
    (slurm,) = blocks(PAGE, "bash", "SLURM")
    run(slurm.splitlines()[1])
    rows = [line for line in (whole / "scores.tsv").read_bytes().splitlines(keepends=True) if line[:1] != b"#"]
    shard = text_of(place / "shards/3.tsv.gz")
    assert 10 < shard.count(b"\n") < len(rows) and shard in b"".join(rows)
    assert [path.name for path in sorted((place / "shards").iterdir())] == ["3.json", "3.tsv.gz"]


@pytest.fixture(scope="module")
def ran(run, place, lrgenome):
    """The blocks on SLURM, MultiQC and gathering; shards that the script does not make are made here."""
    (place / "shards").mkdir(exist_ok=True)
    for i in range(1, 5):
        score = (*SCORE[:1], VCF, "-f", place / "ref.fa.gz", *SCORE[4:], "--shard", f"{i}/4", "-q", "-o")
        lrgenome(*score, place / f"shards/{i}.vcf.gz", "--header", "always")
        lrgenome(*score, place / f"shards/{i}.bcf")
        how = ("embed", FASTA, "--context", BINS, "-r", REGION, "--shard", f"{i}-of-4", "-q")
        lrgenome(*how, "-o", place / f"shards/{i}.h5")
    (slurm,) = blocks(PAGE, "bash", "SLURM")
    first, again = slurm.splitlines()
    run(first)
    before = (place / "shards/3.tsv.gz").read_bytes()
    (place / "shards/3.tsv.gz").unlink()
    run(again)
    assert (place / "shards/3.tsv.gz").read_bytes() == before
    (multiqc,) = blocks(PAGE, "bash", "MultiQC")
    run(multiqc)
    (place / "scores.tsv.gz").rename(place / "whole.tsv.gz")
    alone = {name: (place / name).read_text() for name in ("cohort.status_mqc.json", "cohort.score_mqc.json")}
    (gather,) = blocks(PAGE, "bash", "Gathering")
    run(gather)
    assert {name: (place / name).read_text() for name in alone} == alone
    return place


@pytest.mark.long
def test_tables_of_an_array_are_one_table(ran):
    assert text_of(ran / "scores.tsv.gz") == text_of(ran / "whole.tsv.gz")
    parts = [text_of(ran / f"shards/{i}.tsv.gz") for i in range(1, 5)]
    assert b"".join(parts) == text_of(ran / "whole.tsv.gz")
    assert all(part.count(b"\n") > 10 and (b"#CHROM" in part) == (i == 0) for i, part in enumerate(parts))
    with pysam.TabixFile(str(ran / "scores.tsv.gz")) as table:
        assert len(list(table.fetch("20", 1_373_825, 1_373_845))) == 60
    assert len(list(read_scores(ran / "scores.tsv.gz"))) == RECORDS
    with pytest.raises(InputError, match="got '20"):
        list(read_scores(ran / "shards/2.tsv.gz"))


@pytest.mark.long
def test_variants_are_joined(ran, lrgenome):
    lrgenome(*SCORE[:1], VCF, "-f", ran / "ref.fa.gz", *SCORE[4:], "-q", "-o", ran / "whole.vcf.gz")
    assert text_of(ran / "scores.vcf.gz") == text_of(ran / "whole.vcf.gz")
    for name in ("scores.vcf.gz", "scores.bcf"):
        with pysam.VariantFile(str(ran / name)) as ours, pysam.VariantFile(str(ran / "whole.vcf.gz")) as theirs:
            assert [str(r) for r in ours] == [str(r) for r in theirs]
            assert sum(1 for _ in ours.fetch("20", 1_600_000, 1_700_000)) == 1


@pytest.mark.long
def test_embeddings_are_joined(ran, whole):
    with h5py.File(ran / "embeddings.h5") as ours, h5py.File(whole / "e.h5") as theirs:
        assert all((ours[name][:] == theirs[name][:]).all() for name in ("embeddings", "start", "end"))


@pytest.mark.long
def test_the_workflow_is_copied_and_runs(run, place):
    """Planned, and where there is MultiQC run, with the settings that it comes with."""
    pytest.importorskip("snakemake", reason="needs Snakemake: pip install 'lrgenome[workflows]'")
    first, again, cluster = blocks(PAGE, "bash", "Snakemake")
    (place / "bin" / "snakemake").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m snakemake "$@"\n')
    (place / "bin" / "snakemake").chmod(0o755)
    (place / "resources").mkdir()
    (place / "resources" / "GRCh37.fa.gz").symlink_to(FASTA)
    (place / "resources" / "cohort.vcf.gz").symlink_to(place / "variants.vcf.gz")
    for script in (first + again).splitlines(), cluster.splitlines():
        said = run("\n".join(line + (" --dry-run" if "snakemake --cores" in line else "") for line in script))
        assert "rule score:" in said and "rule report:" in said
    if shutil.which("multiqc"):
        run(again)
        assert "Variants by status" in (place / "results" / "multiqc_report.html").read_text()
        assert text_of(place / "results/scores/cohort.tsv.gz").count(b"\n20\t") == RECORDS


def test_the_wrapper_is_where_the_page_says():
    assert (PIPELINES / "snakemake" / "wrappers" / "score-vcf" / "wrapper.py").is_file()
    assert 'wrapper: "file:wrappers/score-vcf"' in PAGE.read_text()


def test_the_snippet_of_nextflow_is_read(tmp_path):
    reftrace = pytest.importorskip("reftrace", reason="needs reftrace: pip install 'lrgenome[workflows]'")
    (code,) = blocks(PAGE, "groovy")
    (tmp_path / "main.nf").write_text(code)
    module = reftrace.Module.from_file(str(tmp_path / "main.nf"))
    assert not isinstance(module, reftrace.ParseError), module
    (include,) = module.to_dict()["includes"]
    assert (PIPELINES / "nf-core" / f"{include['from_module']}.nf").is_file()
    assert "LRGENOME_SHARDS(ch_vcf, ch_fasta, channel.value([[:], []]), 16)" in code


@pytest.mark.parametrize("page", [PAGE, DOCS / "formats.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text(), re.M)
            anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, target


def test_the_snippet_of_the_first_page(shell, tmp_path, whole, environment):
    """The rules in README.md, planned by Snakemake."""
    pytest.importorskip("snakemake", reason="needs Snakemake: pip install 'lrgenome[workflows]'")
    (code,) = [code for code in blocks(ROOT / "README.md", "python") if "rule score" in code]
    (tmp_path / "Snakefile").write_text(code)
    (tmp_path / "variants.vcf.gz").symlink_to(DEMO / "demo.vcf")
    (tmp_path / "ref.fa").touch()
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "-n", "-p", "scores.tsv.gz"]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.count("lrgenome score-vcf") == 4 and "cat scores/1-of-4.tsv.gz scores/2-of-4" in said.stdout
