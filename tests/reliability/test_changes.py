"""What changes while a run reads it: files, and the clock."""

import logging
import os
import time

import pytest

from lrgenome.io.fasta import Fasta
from lrgenome.tasks import progress as progress_module
from lrgenome.tasks import scoring, tiles
from lrgenome.tasks.progress import Progress

from .conftest import EVERY, some

DAY = 86_400.0


def score(jobs, *more):
    return ["score-vcf", jobs.vcf, "-f", jobs.fasta, "--context", "200", "--strand", "forward", *more]


def when_it_runs(monkeypatch, kind, method, act):
    """Do something once, when some method is called."""
    work, calls = getattr(kind, method), []

    def wrapped(*args, **options):
        calls.append(1)
        if len(calls) == 1:
            act()
        return work(*args, **options)

    monkeypatch.setattr(kind, method, wrapped)


@pytest.mark.parametrize("kind", ["edited", "truncated", "replaced", "gone"])
def test_variants_that_change(lrgenome, jobs, monkeypatch, kind):
    def act():
        if kind == "edited":
            jobs.vcf.write_text(jobs.vcf.read_text().replace("\tA\t", "\tC\t"))
            os.utime(jobs.vcf, ns=(1, 1))
        elif kind == "truncated":
            os.truncate(jobs.vcf, jobs.vcf.stat().st_size // 2)
        elif kind == "replaced":
            (jobs.folder / "v.other").write_text(jobs.vcf.read_text())
            os.replace(jobs.folder / "v.other", jobs.vcf)
        else:
            jobs.vcf.unlink()

    when_it_runs(monkeypatch, scoring.WindowScorer, "score", act)
    # Its lines are read again when the output is made of them.
    said = lrgenome(*score(jobs, "-o", jobs.folder / "o.vcf"), code=3).stderr
    assert f"lrgenome: error: {jobs.vcf}" in said
    assert ("no such file" in said.lower() if kind == "gone" else "was changed while it was read" in said), said
    assert jobs.outputs() == ["o.vcf.partial"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_genome_that_is_written_to(tmp_path, packed):
    import pysam

    path = tmp_path / "g.fa"
    path.write_text(">a\n" + "ACGT" * 600_000 + "\n")
    if packed:
        pysam.tabix_compress(str(path), f"{path}.gz")
        path = tmp_path / "g.fa.gz"
    with Fasta(path) as fasta:
        assert len(fasta.fetch("a", 0, 100)) == 100
        before = path.stat()
        with open(path, "r+b") as handle:
            handle.seek(before.st_size - 10)
            handle.write(b"T")
        with pytest.raises(ValueError, match="was changed while it was read; run again once nothing writes it"):
            fasta.fetch("a", 2_000_000, 2_000_100)


def test_a_genome_that_is_removed_or_replaced_is_read_to_its_end(tmp_path):
    """Who has it open has all of it still."""
    path = tmp_path / "g.fa"
    path.write_text(">a\n" + "ACGT" * 600_000 + "\n")
    with Fasta(path) as fasta:
        path.unlink()
        assert len(fasta.fetch("a", 0, 100)) == 100
        path.write_text("something else")
        assert len(fasta.fetch("a", 2_000_000, 2_000_100)) == 100


@pytest.mark.parametrize("step", [-400 * DAY, 400 * DAY])
def test_a_clock_that_jumps(lrgenome, jobs, tiny_model, whole, monkeypatch, step):
    """In the middle of a run, and before it; no time of day is in any output."""
    real, offset = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])

    def jump():
        offset[0] = step

    when_it_runs(monkeypatch, tiles.TileScorer, "score", jump)
    lrgenome(*jobs.job("score-vcf.tsv", tiny_model))
    assert offset == [step]
    assert jobs.outcome("score-vcf.tsv") == whole("score-vcf.tsv")[0]


@pytest.mark.parametrize("name", some(EVERY, "score-vcf.tsv.gz", "pretrain"))
def test_no_time_of_day_in_outputs(run, jobs, tiny_model, whole, name):
    """Runs of other years write the same bytes, figures and indices among them."""
    shift = "import time\nreal = time.time\ntime.time = lambda: real() + 1e9\n"
    run(*jobs.job(name, tiny_model), before=shift)
    assert jobs.outcome(name) == whole(name)[0]
    year = time.gmtime(time.time() + 1e9).tm_year
    out = jobs.out(name)
    for path in [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]:
        text = path.read_bytes()
        assert f"{year}-".encode() not in text and f"{time.gmtime().tm_year}-".encode() not in text, path


@pytest.mark.parametrize("offset", [-30 * DAY, 30 * DAY])
def test_a_genome_from_the_future_or_the_past(lrgenome, jobs, offset):
    """An index that is made later is never taken for stale because of the clock that wrote the genome."""
    when = time.time() + offset
    os.utime(jobs.fasta, (when, when))
    lrgenome(*score(jobs, "--dry-run"))
    index = jobs.folder / "g.fa.fai"
    made = index.stat().st_mtime_ns
    assert made >= jobs.fasta.stat().st_mtime_ns
    lrgenome(*score(jobs, "--dry-run"))
    assert index.stat().st_mtime_ns == made, "it was made again"


def test_progress_takes_no_notice_of_the_clock(monkeypatch, caplog):
    monkeypatch.setattr(progress_module, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with caplog.at_level(logging.INFO), Progress("work", 100, "steps") as progress:
        for step in range(5):
            monkeypatch.setattr(time, "time", lambda at=step: 1e9 * (-1) ** at)
            progress.update(10)
    assert "work: 50 steps of 100" in caplog.text and "-" not in caplog.text.partition("about")[2].partition("min")[0]
