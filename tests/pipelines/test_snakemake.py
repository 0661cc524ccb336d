"""The workflow of docs/pipelines/snakemake on real data: shards, losses, kills, retries, clusters."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pysam
import pytest
import yaml

from .conftest import BINS, CONTEXT, FASTA, PIPELINES, RECORDS, REGION, VCF, text_of

pytest.importorskip("snakemake", reason="needs Snakemake: pip install 'lrgenome[workflows]'")
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

WORKFLOW = PIPELINES / "snakemake"
SCHEMA = WORKFLOW / "workflow" / "schemas" / "config.schema.yaml"
SHARDS = 4
CONFIG = {
    "fasta": str(FASTA), "variants": {"demo": str(VCF)}, "score": {"context": CONTEXT, "shards": SHARDS},
    "embed": {"shards": 2, "context": BINS, "extra": f"-r {REGION}"}, "report": False, "threads": 1,
}  # fmt: skip


class Run:
    """A folder in which the workflow runs."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment

    def command(self, *args: object, **change: object) -> list[str]:
        """Write the settings and return the command line."""
        (self.folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | change))
        how = [sys.executable, "-m", "snakemake", "--snakefile", WORKFLOW / "workflow" / "Snakefile", "--configfile"]
        return [str(a) for a in (*how, "config.yaml", "--cores", 1, "--rerun-incomplete", *args)]

    def start(self, *args: object, **change: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*args, **change), cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __call__(self, *args: object, code: int = 0, **change: object) -> str:
        """Run it; returns what it said."""
        with self.start(*args, **change) as process:
            said = process.communicate(timeout=300)[0]
        assert process.returncode == code, said
        return said

    def log(self, name: str, attempt: str = "") -> str:
        return (self.folder / "logs" / f"{name}.log{attempt}").read_text()

    def scores(self, name: str = "demo") -> Path:
        return self.folder / "results" / "scores" / f"{name}.tsv.gz"


def jobs(said: str) -> list[str]:
    """Name the rules that ran, in order."""
    return [line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith(("localrule ", "rule "))]


def whole_rows(partial: Path) -> int:
    """Count the rows of a partial table, which begins as a file of no bytes and then a header."""
    return sum(not line.startswith(b"#") for line in partial.read_bytes().split(b"\n")[:-1])


def kill_at_work(snakemake: subprocess.Popen[str], partial: Path, number: int) -> None:
    """Send a signal to the `lrgenome` below a running Snakemake, once some rows are in a partial table."""
    end = time.monotonic() + 120
    while snakemake.poll() is None and time.monotonic() < end:
        if partial.exists() and whole_rows(partial) >= 2:
            for child in psutil.Process(snakemake.pid).children(recursive=True):
                if "lrgenome" in child.cmdline() and "python" in child.name():
                    child.send_signal(number)
                    return
        time.sleep(0.001)
    pytest.fail(f"{partial.name} did not grow: {snakemake.communicate()[0]}")


@pytest.fixture(scope="module")
def finished(environment, tmp_path_factory):
    """A whole run, of which the first shard was killed at work as if memory had run out."""
    run = Run(tmp_path_factory.mktemp("workflow"), environment)
    with run.start() as process:
        partial = run.folder / "results" / "scores" / "shards" / f"demo.1-of-{SHARDS}.tsv.gz.partial"
        kill_at_work(process, partial, signal.SIGKILL)
        run.said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, run.said
    return run


def test_gathered_scores_are_those_of_one_run(finished, whole):
    path = finished.scores()
    assert text_of(path) == (whole / "scores.tsv").read_bytes()
    with pysam.TabixFile(str(path)) as table:
        rows = [row.split("\t") for row in table.fetch("20", 1_600_000, 1_700_000)]
    assert [row[:5] for row in rows] == [["20", "1600125", ".", "GAA", "G"]]


def test_gathered_embeddings_are_those_of_one_run(finished, whole):
    with h5py.File(finished.folder / "results/embeddings/genome.h5") as ours, h5py.File(whole / "e.h5") as theirs:
        for name in ("embeddings", "chrom", "start", "end", "n_frac"):
            assert np.array_equal(ours[name][:], theirs[name][:]), name
        assert ours["embeddings"].shape[0] > 90 and ours.attrs["complete"]


def test_a_killed_job_is_tried_again_and_resumes(finished):
    log, first = finished.log(f"score/demo.1-of-{SHARDS}"), finished.log(f"score/demo.1-of-{SHARDS}", ".1")
    assert "resumed after " in log and "INFO device:" in first and "resumed after " not in first
    assert "Trying to restart job" in finished.said and "mem_mb=8000" in finished.said
    assert jobs(finished.said).count("score") == SHARDS + 1


def test_every_rule_has_a_log_and_a_benchmark(finished):
    rules = {"score": SHARDS, "embed": 2, "gather_scores": 1, "gather_embeddings": 1, "count_scores": 1,
             "count_embeddings": 1}  # fmt: skip
    assert set(jobs(finished.said)) == {*rules, "all"}
    for rule, count in rules.items():
        assert len(list((finished.folder / "logs" / rule).glob("*.log"))) == count
        benchmarks = list((finished.folder / "benchmarks" / rule).iterdir())
        assert len(benchmarks) == count
        assert all(p.read_text().startswith("s\th:m:s\tmax_rss") for p in benchmarks)


def test_counts_of_shards_become_one_sample(finished):
    folder = finished.folder / "results" / "multiqc"
    assert sorted(p.name for p in folder.iterdir()) == [
        "demo.score_mqc.json", "demo.status_mqc.json", "genome.embed_mqc.json"
    ]  # fmt: skip
    bars = json.loads((folder / "demo.status_mqc.json").read_text())["data"]
    assert list(bars) == ["demo"] and bars["demo"]["OK"] == RECORDS


def test_a_lost_shard_alone_is_made_again(finished):
    before = finished.scores().read_bytes()
    (finished.folder / f"results/scores/shards/demo.2-of-{SHARDS}.tsv.gz").unlink()
    finished.scores().unlink()
    said = finished()
    assert sorted(jobs(said)) == ["all", "count_scores", "gather_scores", "score"]
    assert f"results/scores/shards/demo.2-of-{SHARDS}.tsv.gz" in said
    assert finished.scores().read_bytes() == before


@pytest.fixture
def run(environment, tmp_path):
    return Run(tmp_path, environment)


def test_bad_data_is_not_tried_again(run):
    """Variants of another assembly: exit code 3."""
    other = run.folder / "other.vcf"
    swapped = str.maketrans("ACGT", "CATG")
    lines = VCF.read_text().splitlines(keepends=True)
    other.write_text("".join(line if line.startswith("#") else line.translate(swapped) for line in lines))
    target = "results/scores/shards/other.1-of-1.tsv.gz"
    said = run(target, code=1, variants={"other": str(other)}, score={"shards": 1}, retries=2)
    log = run.log("score/other.1-of-1")
    assert "wrong assembly?" in log and log.endswith("exit code 3 is final, attempt 3 was not made\n")
    assert [p.name for p in (run.folder / "logs/score").glob("*.log.[0-9]")] == ["other.1-of-1.log.1"]
    assert (run.folder / "logs/score/other.1-of-1.log.final").read_text() == "3\n"
    assert jobs(said).count("score") == 3 and not (run.folder / target).exists()


@pytest.mark.long
def test_out_of_memory_is_tried_again_with_more(run):
    target = "results/scores/shards/demo.1-of-8.tsv.gz"
    said = run(target, score={"shards": 8, "context": "2kbp"}, mem_mb=300)
    assert "bp needs" in run.log("score/demo.1-of-8", ".1") and "bp needs" not in run.log("score/demo.1-of-8")
    assert "mem_mb=300" in said and "mem_mb=600" in said and (run.folder / target).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": {"shards": 0}}, "0 is less than the minimum of 1"),
        ({"score": {"context": "long"}}, "'long' is not valid"),
        ({"shards": 4}, "'shards' was unexpected"),
        ({"variants": {"a/b": "x.vcf"}}, "'a/b' does not match"),
    ],
)
def test_settings_that_are_wrong(change, message):
    with pytest.raises(WorkflowError, match=message):
        validate({"fasta": "x", **change}, str(SCHEMA))


def test_the_settings_that_are_shown():
    shown = yaml.safe_load((WORKFLOW / "config" / "config.yaml").read_text())
    filled = {"fasta": "x"}
    validate(filled, str(SCHEMA))
    validate(shown, str(SCHEMA))
    # The defaults are those of the page, but for what has no default.
    for name, value in filled.items():
        if isinstance(value, dict) and value:
            assert value == shown[name]
        elif name not in ("fasta", "variants"):
            assert value == shown[name], name


def test_the_workflow_is_lint_free(run):
    assert "Congratulations, your workflow is in a good condition" in run("--lint")


def test_a_dry_run_on_a_cluster(run):
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="needs snakemake-executor-plugin-slurm")
    said = run("-n", "--profile", WORKFLOW / "profiles" / "slurm", mem_mb=6000, report=True)
    assert jobs(said).count("score") == SHARDS and jobs(said).count("embed") == 2 and "report" in jobs(said)
    score = said[said.index("rule score:") :].split("\n\n")[0]
    assert "mem_mb=6000" in score and "runtime=240" in score and "slurm_partition=normal" in score
    assert not (run.folder / "results").exists()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_workflow_goes_on(run, whole, number):
    """The signal goes to Snakemake and what runs below it, as when a login ends."""
    partial = run.folder / "results" / "scores" / "shards" / "demo.1-of-1.tsv.gz.partial"
    one = {"score": {"shards": 1, "context": CONTEXT}, "embed": None}
    settings = {name: value for name, value in one.items() if value}
    target = "results/scores/demo.tsv.gz"
    with run.start(target, "--retries", 0, **settings, retries=0) as process:
        kill_at_work(process, partial, number)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode != 0 and partial.exists() and not run.scores().exists()
    run("--unlock", target, **settings)
    run(target, **settings)
    assert "resumed after " in run.log("score/demo.1-of-1")
    assert text_of(run.scores()) == (whole / "scores.tsv").read_bytes()


@pytest.mark.parametrize("end", ["vcf.gz", "bcf"])
@pytest.mark.long
def test_vcf_and_bcf_are_gathered(run, whole, end):
    run(f"results/scores/demo.{end}", score={"shards": 3, "context": CONTEXT, "format": end})
    path = run.folder / "results" / "scores" / f"demo.{end}"
    with pysam.VariantFile(str(path)) as ours, pysam.VariantFile(str(whole / "scores.vcf")) as theirs:
        assert [str(r) for r in ours] == [str(r) for r in theirs]
        assert sum(1 for _ in ours.fetch("20", 1_600_000, 1_700_000)) == 1


@pytest.mark.long
def test_dense_variants_of_a_population(run, shared_data, lrgenome):
    """Some 500 records of the 1000 Genomes in 5 shards."""
    vcf = run.folder / "some.vcf.gz"
    source = shared_data / "variants" / "1000genomes.chr20_1-2Mb.b37.vcf.gz"
    with pysam.BGZFile(str(source)) as lines, pysam.BGZFile(str(vcf), "w") as out:
        for line in lines:
            row = line.split(b"\t")
            if row[0].startswith(b"#") or int(row[1]) < 1_020_000:
                out.write(line + b"\n")
    fasta = shared_data / "genomes" / "homo_sapiens.GRCh37.chr20.fa.gz"
    how = {"variants": {"kg": str(vcf)}, "fasta": str(fasta), "score": {"shards": 5, "context": "4kbp"}}
    run("results/scores/kg.tsv.gz", "results/multiqc/kg.status_mqc.json", **how)
    lrgenome("score-vcf", vcf, "-f", fasta, "--context", "4kbp", "-q", "-o", run.folder / "whole.tsv")
    text = text_of(run.scores("kg"))
    assert text == (run.folder / "whole.tsv").read_bytes() and text.count(b"\n20\t") > 400
    bars = json.loads((run.folder / "results/multiqc/kg.status_mqc.json").read_text())["data"]["kg"]
    assert sum(bars.values()) >= text.count(b"\n20\t") and bars["OK"] > 400
