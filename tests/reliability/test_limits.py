"""CPUs and memory that a process may not have."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import options_from_environment

from lrgenome.cli.environment import LEAST_ADDRESS_SPACE
from lrgenome.io import resources
from lrgenome.tasks import compute

GB = 10**9


def score(jobs, *more):
    return ["score-vcf", jobs.vcf, "-f", jobs.fasta, "--context", "200", "--strand", "forward", *more]


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5"])
def test_threads_that_cannot_be(lrgenome, jobs, text):
    said = lrgenome(*score(jobs, "--threads", text), code=2).stderr
    assert "--threads" in said and "Traceback" not in said


def test_more_threads_than_cpus(lrgenome, jobs, monkeypatch):
    """More would only wait for one another; a hundred thousand could not even be started."""
    monkeypatch.setattr(compute, "available_cpus", lambda: 1)
    said = lrgenome(*score(jobs, "--dry-run", "--threads", "100000")).stderr
    assert "--threads: got 100000, but this process may use 1 CPUs; 1 threads are used" in said
    assert "threads: 1" in said


def test_affinity_is_kept_to(run, jobs):
    allowed = sorted(os.sched_getaffinity(0))
    said = run(*score(jobs, "--dry-run"), cpus=allowed[:1], env={"LRGENOME_THREADS": None}).stderr
    assert "threads: 1" in said


@pytest.mark.parametrize(
    ("line", "files", "cpus"),
    [
        ("0::/job\n", {"job/cpu.max": "150000 100000\n"}, 2),
        ("0::/job\n", {"job/cpu.max": "max 100000\n", "cpu.max": "50000 100000"}, 1),
        ("0::/job\n", {"job/cpu.max": "max 100000\n"}, 64),
        ("3:cpu,cpuacct:/j\n", {"cpu/j/cpu.cfs_quota_us": "300000\n", "cpu/j/cpu.cfs_period_us": "100000\n"}, 3),
        ("3:cpu,cpuacct:/j\n", {"cpu/j/cpu.cfs_quota_us": "-1\n", "cpu/j/cpu.cfs_period_us": "100000\n"}, 64),
        ("", {}, 64),
    ],
)
def test_the_cpu_time_of_a_container(tmp_path, monkeypatch, line, files, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    (tmp_path / "self").write_text(line)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert resources.available_cpus(cgroup_root=tmp_path, cgroup_of_process=tmp_path / "self") == cpus


@pytest.mark.parametrize("size", [GB // 2, LEAST_ADDRESS_SPACE - 1])
@pytest.mark.parametrize("command", ["score-vcf", "embed", "pretrain", "finetune", "extrapolate", "data"])
def test_an_address_space_too_small_for_the_libraries(run, jobs, tiny_model, command, size):
    """Some would hang in it; so none is loaded."""
    name = {"score-vcf": "score-vcf.tsv", "embed": "embed.h5"}.get(command, command)
    args = ["data", "list", "--manifest", jobs.manifest] if command == "data" else jobs.job(name, tiny_model)
    said = run(*args, code=137, limits={resource.RLIMIT_AS: size}).stderr
    assert f"ulimit -v: got {size / 1e9:.2f} GB of address space, expected at least" in said
    assert not jobs.out(name).exists()


def test_the_least_address_space_is_enough(jobs, tiny_model):
    """As a whole program, in which everything is loaded under the limit."""
    limit = LEAST_ADDRESS_SPACE
    done = subprocess.run(
        [sys.executable, "-m", "lrgenome", *map(str, score(jobs, "-o", jobs.folder / "o.tsv"))], capture_output=True,
        env=options_from_environment(tiny_model), timeout=500,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()


def test_an_address_space_too_small_for_the_work(run, jobs, tiny_model):
    """It is refused beforehand, with what it needs and what is free."""
    limits = {resource.RLIMIT_AS: LEAST_ADDRESS_SPACE}
    large = jobs.folder / "v.large.fa"
    large.write_text(">one\n" + "ACGTTGCA" * 2_500_000 + "\n")
    said = run("embed", large, "--context", "20Mbp", "--store", "ram", "-o", jobs.folder / "o.h5", code=137,
               limits=limits).stderr  # fmt: skip
    assert "a window of 20,000,000 bp needs" in said and "of memory" in said
    jobs.manifest.write_text(f"path\tweight\tname\tholdout\tvalidation\n{large.name}\t1\tone\t.\t.\n")
    job = jobs.job("pretrain", tiny_model)
    job[job.index("--batch-size") + 1], job[job.index("--window") + 1] = "1", "4Mbp"
    said = run(*job, "--recompute", "never", "--no-cache", code=137, limits=limits).stderr
    assert "a pass over 4,000,000 bp needs about" in said.splitlines()[-1] and "free are " in said


@pytest.fixture
def memory_group():
    """A cgroup of memory below this process's own, v2 or v1; its limit is set by the test."""
    if os.geteuid() != 0:
        pytest.skip("only root may make a cgroup")
    for base in resources._cgroups_of("memory", resources.CGROUP_ROOT, resources.CGROUP_OF_PROCESS):
        for limit in ("memory.max", "memory.limit_in_bytes"):
            group = base / "lrgenome-test"
            if not (base / limit).exists() and not (base / "memory.usage_in_bytes").exists():
                continue
            try:
                group.mkdir()
            except OSError:
                continue
            if (group / limit).exists():
                yield group, group / limit
                for _ in range(100):
                    try:
                        group.rmdir()
                        break
                    except OSError:
                        time.sleep(0.05)
                return
            group.rmdir()
    pytest.skip("no cgroup of memory can be made here")


def test_the_limit_of_a_real_cgroup(start, jobs, memory_group):
    """What is planned fits into what the cgroup has left, though the machine has more."""
    group, limit = memory_group
    limit.write_text(str(600 << 20))
    join = f"import os\nopen({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
    large = jobs.folder / "v.large.fa"
    large.write_text(">one\n" + "ACGTTGCA" * 1_250_000 + "\n")
    command = start("embed", large, "--context", "10Mbp", "--store", "ram", "-o", jobs.folder / "o.h5", before=join)
    assert command.wait() == 137, command.stderr
    found = command.stderr.splitlines()[-1]
    free = float(found.partition("free are ")[2].split()[0])
    assert "a window of 10,000,000 bp needs" in found and free <= 0.7 and " GB of memory and" in found


def test_the_kernel_kills_what_takes_too_much(start, run, jobs, tiny_model, whole):
    """As any kill: 137 to the shell, and the partial output is gone on from."""
    command = start(*jobs.job("score-vcf.tsv", tiny_model))
    while command.poll() is None and not jobs.begun("score-vcf.tsv"):
        time.sleep(0.002)
    command.send_signal(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    run(*jobs.job("score-vcf.tsv", tiny_model), "--resume")
    assert jobs.outcome("score-vcf.tsv") == whole("score-vcf.tsv")[0]


@pytest.mark.parametrize(
    "error",
    ["OSError(12, 'Cannot allocate memory')", "ImportError('libx.so: failed to map segment from shared object')",
     "RuntimeError('std::bad_alloc')", "MemoryError()"],
)  # fmt: skip
def test_errors_of_memory_have_one_exit_code(run, jobs, error):
    before = f"import lrgenome.tasks.setup as s\ndef f(*a, **k): raise {error}\ns.ready = f\n"
    assert "out of memory" in run(*score(jobs), code=137, before=before).stderr


def test_no_file_is_left_of_a_run_that_did_not_begin(run, jobs):
    run(*score(jobs, "-o", jobs.folder / "o.tsv"), code=137, limits={resource.RLIMIT_AS: GB})
    assert [path for path in Path(jobs.folder).iterdir() if path.name.startswith("o.")] == []
