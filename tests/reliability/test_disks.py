"""Disks that are full, read-only or limited: for outputs, temporary files and the log."""

import os

import pytest
from file_server import Server

from .conftest import mounted, no_larger

MEGABYTE = 1 << 20


def fill(disk, left):
    """Leave so many bytes of a small disk."""
    filler, stat = disk / "filler", os.statvfs(disk)
    filler.write_bytes(bytes(max(0, stat.f_bavail * stat.f_frsize - left)))
    return filler


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("pretrain", 60_000), pytest.param("finetune-full", 60_000, marks=pytest.mark.long),
        pytest.param("extrapolate", 4_096, marks=pytest.mark.long),
    ],
)
def test_a_full_disk_for_a_folder(run, jobs, tiny_model, whole, small_disk, name, left):
    filler = fill(small_disk, left)
    out = small_disk / "out"
    said = run(*jobs.job(name, tiny_model, out), code=3).stderr
    assert "No space left on device" in said.splitlines()[-1], said
    filler.unlink()
    run(*jobs.job(name, tiny_model, out), "--resume")
    out.rename(small_disk / "done")
    jobs.out(name).symlink_to(small_disk / "done")
    assert jobs.outcome(name) == whole(name)[0]


@pytest.mark.parametrize("name", ["score-vcf.tsv.gz", "score-vcf.bcf"])
def test_a_full_disk_at_the_end(run, jobs, tiny_model, whole, small_disk, name):
    """The rows fit, the output that is made of them does not."""
    out = small_disk / jobs.out(name).name
    rows = len(whole("score-vcf.tsv")[0])
    filler = fill(small_disk, -(-rows // 4_096) * 4_096)
    command = run(*jobs.job(name, tiny_model, out), code=3)
    assert not out.exists() and out.with_name(f"{out.name}.partial").exists()
    assert "cannot write" in command.stderr.splitlines()[-1] or "cannot be written" in command.stderr.splitlines()[-1]
    filler.unlink()
    run(*jobs.job(name, tiny_model, out), "--resume")
    jobs.out(name).symlink_to(out)
    assert jobs.content(jobs.out(name).name) == whole(name)[0]


def test_a_full_disk_for_the_store(run, jobs, small_disk):
    """Too small from the start it is known beforehand; filled while it is used, it is an error with its name."""
    args = ["embed", jobs.fasta, "--context", "40kbp", "--bin-size", "1024", "--store", "disk", "--precision",
            "float32", "--tmpdir", small_disk, "-o", jobs.folder / "o.h5"]  # fmt: skip
    filler = fill(small_disk, MEGABYTE)
    assert " of disk" in run(*args, code=137).stderr
    filler.unlink()
    late = "import lrgenome.tasks.setup as setup; setup.free_disk = lambda folder: 1 << 40"
    fill(small_disk, MEGABYTE)
    said = run(*args, code=3, before=late).stderr
    assert f"temporary store in {small_disk}: No space left on device" in said and "--tmpdir" in said


def test_a_full_disk_for_spooled_input(run, jobs, small_disk):
    large = jobs.folder / "v.large.vcf"
    text = jobs.vcf.read_text()
    large.write_text(text + text[text.index("one\t") :] * 5_000)
    fill(small_disk, MEGABYTE)
    with open(large, "rb") as stdin:
        command = run("score-vcf", "-", "-f", jobs.fasta, "--tmpdir", small_disk, code=3, stdin=stdin.fileno())
    assert f"cannot write {small_disk}" in command.stderr and "No space left" in command.stderr
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_full_disk_for_the_log_file(run, jobs, tiny_model, whole, small_disk):
    """A log is no reason to lose the run: it is said once, on stderr, and the output is whole."""
    fill(small_disk, 0)
    log = small_disk / "run.log"
    said = run(*jobs.job("score-vcf.tsv", tiny_model), "-v", "--log-file", log).stderr
    assert said.count(f"--log-file {log}: No space left on device; the run goes on, the log on stderr alone") == 1
    assert "Logging error" not in said and jobs.outcome("score-vcf.tsv") == whole("score-vcf.tsv")[0]


@pytest.mark.parametrize(
    ("name", "size"),
    [("score-vcf.vcf", 3_000), ("pretrain", 30_000), pytest.param("finetune", 8_000, marks=pytest.mark.long)],
)
def test_a_limit_on_the_size_of_files(run, jobs, tiny_model, whole, name, size):
    """As with a quota, it is in the middle of a write that it fails."""
    said = run(*jobs.job(name, tiny_model), code=3, limits=no_larger(size)).stderr
    assert "File too large" in said.splitlines()[-1] or "cannot write" in said.splitlines()[-1], said
    run(*jobs.job(name, tiny_model), "--resume")
    assert jobs.outcome(name) == whole(name)[0] and jobs.left(name) == []


@pytest.mark.parametrize("name", ["score-vcf.tsv", "embed.h5", "pretrain", "finetune", "extrapolate"])
def test_a_read_only_file_system(lrgenome, jobs, tiny_model, tmp_path, name):
    folder = tmp_path / "v.read-only"
    folder.mkdir()
    for disk in mounted(folder, "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs"):
        said = lrgenome(*jobs.job(name, tiny_model, disk / "o.tsv"), code=3).stderr
        assert "Read-only file system" in said.splitlines()[-1] or "no permission to create files" in said, said


def test_fetching_to_a_full_disk(run, jobs, small_disk):
    server = Server()
    try:
        server.files["/a.fa"] = b">a\n" + b"ACGT" * 500_000 + b"\n"
        manifest = jobs.folder / "v.sets.tsv"
        manifest.write_text(f"name\tkind\tpath\turl\na\tgenome\t{small_disk}/a.fa\t{server.address}/a.fa\n")
        filler = fill(small_disk, MEGABYTE)
        said = run("data", "fetch", "--manifest", manifest, code=3).stderr
        assert "cannot write" in said and "No space left on device" in said
        assert sorted(p.name for p in small_disk.iterdir()) == ["a.fa.raw.download", "a.fa.raw.partial", "filler"]
        filler.unlink()
        run("data", "fetch", "--manifest", manifest)
        assert server.requests[-1][1] is not None, "it was downloaded anew"
        assert (small_disk / "a.fa").read_bytes() == server.files["/a.fa"]
    finally:
        server.close()


def test_a_disk_that_no_longer_answers(lrgenome, jobs, tiny_model, monkeypatch):
    """An error of input and output in the middle of a write, as from a network file system."""

    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    said = lrgenome(*jobs.job("score-vcf.tsv", tiny_model), code=3).stderr
    assert "Input/output error (EIO)" in said.splitlines()[-1]
    assert not jobs.out("score-vcf.tsv").exists()
