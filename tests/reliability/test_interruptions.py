"""Runs that are killed or asked to end: what is done is kept, and `--resume` gives what a whole run gives."""

import os
import signal
import subprocess
import sys
import time

import pytest
from file_server import Server

from .conftest import EVERY, some
from .jobs import FOLDERS, moments


def killed_and_resumed(start, run, jobs, model, name, whole, kills):
    """Kill a job `kills` times at moments by chance, then let it end."""
    expected, seconds = whole(name)
    seed = time.time_ns() % 10**9
    for moment in moments(kills, seconds, seed):
        command = start(*jobs.job(name, model), "--resume")
        time.sleep(moment)
        command.send_signal(signal.SIGKILL)
        assert command.wait() in (0, -signal.SIGKILL), command.stderr
    run(*jobs.job(name, model), "--resume")
    assert jobs.outcome(name) == expected, f"seed {seed}"
    assert jobs.left(name) == []


@pytest.mark.parametrize(
    "name", some(EVERY, "score-vcf.tsv.gz", "embed.h5", "pretrain", "finetune-full")
)
def test_killed_at_random_moments(start, run, jobs, tiny_model, whole, name):
    killed_and_resumed(start, run, jobs, tiny_model, name, whole, 2)


@pytest.mark.long
@pytest.mark.parametrize("name", EVERY)
def test_killed_again_and_again(start, run, jobs, tiny_model, whole, name):
    killed_and_resumed(start, run, jobs, tiny_model, name, whole, 12)


KILLS_ITSELF = """
import os, lrgenome.io.download as download
read, download._BLOCK = download._read, 100_000
def deadly(answer):
    if os.path.getsize({partial!r}) >= 400_000:
        os.kill(os.getpid(), 9)
    return read(answer)
download._read = deadly
"""


def test_a_download_that_is_killed_is_gone_on_from(start, run, jobs):
    server = Server()
    try:
        server.files["/a.fa"] = b">a\n" + b"ACGT" * 250_000 + b"\n"
        manifest, target = jobs.folder / "v.sets.tsv", jobs.folder / "o.fa"
        manifest.write_text(f"name\tkind\tpath\turl\na\tgenome\to.fa\t{server.address}/a.fa\n")
        before = KILLS_ITSELF.format(partial=f"{target}.raw.partial")
        assert start("data", "fetch", "--manifest", manifest, before=before).wait() == -signal.SIGKILL
        assert not target.exists() and target.with_name("o.fa.lock").exists()
        run("data", "fetch", "--manifest", manifest)
        assert server.requests[-1][1] == "bytes=400000-" and target.read_bytes() == server.files["/a.fa"]
        assert sorted(path.name for path in jobs.folder.glob("o.*")) == ["o.fa", "o.fa.fai", "o.fa.receipt.json"]
    finally:
        server.close()


def stopped(start, jobs, model, name, number):
    """Send a job a signal once it has written something."""
    command = start(*jobs.job(name, model))
    while command.poll() is None and not jobs.begun(name):
        time.sleep(0.002)
    command.send_signal(number)
    command.wait()
    return command


@pytest.mark.parametrize("name", some(FOLDERS, "pretrain", "finetune-full"))
def test_a_folder_is_gone_on_with_after_sigterm(start, run, jobs, tiny_model, whole, name):
    command = stopped(start, jobs, tiny_model, name, signal.SIGTERM)
    assert command.returncode == 143, command.stderr
    assert "lrgenome: terminated; partial output is kept, and --resume continues it" in command.stderr
    assert "Traceback" not in command.stderr
    run(*jobs.job(name, tiny_model), "--resume")
    assert jobs.outcome(name) == whole(name)[0] and jobs.left(name) == []


@pytest.mark.parametrize(
    ("number", "word"),
    [(signal.SIGHUP, "hung up"), (signal.SIGXCPU, "out of CPU time"), (signal.SIGINT, "interrupted")],
)
def test_what_else_ends_a_run(start, run, jobs, tiny_model, whole, number, word):
    command = stopped(start, jobs, tiny_model, "score-vcf.tsv", number)
    assert command.returncode == 128 + number, command.stderr
    assert command.stderr.splitlines()[-1].startswith(f"lrgenome: {word}; partial output is kept")
    assert not jobs.out("score-vcf.tsv").exists()
    run(*jobs.job("score-vcf.tsv", tiny_model), "--resume")
    assert jobs.outcome("score-vcf.tsv") == whole("score-vcf.tsv")[0]


def test_under_nohup_a_run_goes_on(start, jobs, tiny_model, whole):
    command = start(*jobs.job("score-vcf.tsv", tiny_model), ignored=[signal.SIGHUP])
    while command.poll() is None and not jobs.begun("score-vcf.tsv"):
        time.sleep(0.002)
    command.send_signal(signal.SIGHUP)
    assert command.wait() == 0 and jobs.outcome("score-vcf.tsv") == whole("score-vcf.tsv")[0]


SLOW_ENDING = """
import time
from lrgenome.io.score_journal import ScoreJournal
close = ScoreJournal.close
def slowly(self):
    print("ending", file=__import__("sys").stderr, flush=True)
    time.sleep(0.5)
    close(self)
ScoreJournal.close = slowly
"""


def test_a_second_signal_does_not_disturb_the_ending(start, run, jobs, tiny_model, whole):
    name = "score-vcf.tsv"
    command = start(*jobs.job(name, tiny_model), before=SLOW_ENDING)
    while command.poll() is None and not jobs.begun(name):
        time.sleep(0.002)
    command.send_signal(signal.SIGTERM)
    while command.poll() is None and "ending" not in command.stderr:
        time.sleep(0.002)
    command.send_signal(signal.SIGINT)
    assert command.wait() == 143, command.stderr
    assert "terminated; partial output is kept" in command.stderr and "Traceback" not in command.stderr
    run(*jobs.job(name, tiny_model), "--resume")
    assert jobs.outcome(name) == whole(name)[0]


@pytest.mark.parametrize("args", [["--help"], ["score-vcf", "--help"], ["data", "list", "--manifest", "{}"]])
def test_a_reader_that_leaves_early(start, jobs, args):
    reader, writer = os.pipe()
    os.close(reader)
    name = jobs.folder / "v.many.tsv"
    name.write_text("name\tkind\tpath\n" + "".join(f"set{i}\tgenome\tv.{i}.fa\n" for i in range(20_000)))
    try:
        command = start(*(arg.format(name) for arg in args), stdout=writer)
    finally:
        os.close(writer)
    code = command.wait()
    assert "Traceback" not in command.stderr and "Exception ignored" not in command.stderr
    assert code == (141 if args[0] == "data" else 1), command.stderr


def test_the_shell_sees_the_signal(jobs):
    """As a whole program, not as a fork: a signal before the command has begun ends it as it ends any program."""
    process = subprocess.Popen([sys.executable, "-m", "lrgenome", "--version"], stdout=subprocess.DEVNULL)
    process.send_signal(signal.SIGTERM)
    assert process.wait() in (0, -signal.SIGTERM)
