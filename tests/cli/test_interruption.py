"""Interruptions: whatever ends a run, what is done is kept, and `--resume` gives what a whole run gives."""

import signal
import time

import numpy as np
import pytest

from lrgenome.tasks import scoring
from lrgenome.tasks.embed import Embedder

COMMANDS = ("score-vcf", "embed")


def wait_for_work(process, partial, growth):
    """Wait until the partial file has grown by some bytes."""
    first = None
    while process.poll() is None:
        if partial.exists():
            size = partial.stat().st_size
            first = size if first is None else first
            if size > first + growth:
                return
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_keeps_the_partial_output(lrgenome, spawn, undisturbed, place, command, number, code):
    expected, name = undisturbed[command], place.names[command]
    process = spawn(*place.arguments(command))
    # A block of rows at least.
    wait_for_work(process, place.folder / f"{name}.partial", 1_000 if command == "score-vcf" else 1_100_000)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == code
    assert place.outputs() == [f"{name}.partial"]
    assert b"Traceback" not in said
    assert (b"partial output is kept, and --resume continues it" in said) == (code > 0)
    result = lrgenome(*place.arguments(command, "--resume"))
    assert "resumed after" in result.stderr
    assert place.outputs() == [name] and place.content(name) == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_signals_at_any_moment(lrgenome, spawn, undisturbed, place, command):
    expected, name = undisturbed[command], place.names[command]
    moments = np.random.default_rng(int(time.time())).uniform(0.05, 3.0, 3)
    for moment, number in zip(moments, (signal.SIGINT, signal.SIGTERM, signal.SIGKILL), strict=True):
        # An earlier run may have come to its end before its signal.
        ended = name in place.outputs()
        process = spawn(*place.arguments(command, "--resume"))
        time.sleep(moment)
        process.send_signal(number)
        _, said = process.communicate()
        # Before and after the command's own time the signal ends the process, as shells do with 128 + number; while
        # Python itself starts, it is a fatal error of Python's.
        starting = process.returncode == 1 and b"init_import_site" in said
        assert starting or process.returncode in (0, 128 + number, -number), (moment, said.decode())
        if process.returncode == 128 + number:
            assert ended == (name in place.outputs())
        assert not ended or place.content(name) == expected
    lrgenome(*place.arguments(command, "--resume"))
    assert place.content(name) == expected, moments


def stop_after(monkeypatch, command, calls):
    """Interrupt a command in this process after some calls of what does the work."""
    kind, method = (Embedder, "embed") if command == "embed" else (scoring.WindowScorer, "score")
    work, done = getattr(kind, method), []

    def stopping(*args, **options):
        done.append(1)
        if len(done) > calls:
            raise KeyboardInterrupt
        return work(*args, **options)

    monkeypatch.setattr(kind, method, stopping)


@pytest.fixture
def interrupted(lrgenome, place, monkeypatch):
    """Leave a partial output behind; returns its path."""

    def go(command, *more, calls=None):
        with monkeypatch.context() as patch:
            stop_after(patch, command, calls or {"score-vcf": 2, "embed": 20}[command])
            lrgenome(*place.arguments(command, *more), code=130)
        (partial,) = place.outputs()
        return place.folder / partial

    return go


@pytest.mark.parametrize("command", COMMANDS)
def test_without_resume_a_partial_output_is_replaced(lrgenome, undisturbed, interrupted, place, command):
    partial = interrupted(command)
    result = lrgenome(*place.arguments(command))
    assert "resumed" not in result.stderr
    (name,) = place.outputs()
    assert f"{name}.partial" == partial.name and place.content(name) == undisturbed[command]


@pytest.mark.parametrize(
    ("command", "change", "message"),
    [
        ("score-vcf", ("--context", "300"), "was made with other settings: got '##context=200', expected"),
        ("score-vcf", ("--strand", "both"), "was made with other settings: got '##strand=forward'"),
        ("score-vcf", ("--chunk", "100"), "was made with other settings: got '##chunk="),
        ("score-vcf", ("--chrom-alias", "none"), "was made with other settings: got '##chrom_alias=auto'"),
        ("score-vcf", ("-r", "one:1,000-60,000"), "was it made from another input?"),
        ("embed", ("--context", "4kbp"), "cannot be resumed: its context is 2000, expected 4000"),
        ("embed", ("--layer", "1"), "cannot be resumed: its layer is 2, expected 1"),
        ("embed", ("--dtype", "float16"), "cannot be resumed:"),
    ],
)
def test_other_settings_do_not_resume(lrgenome, interrupted, place, command, change, message):
    partial = interrupted(command)
    before = partial.read_bytes()[:1_000]
    result = lrgenome(*place.arguments(command, "--resume", *change), code=3)
    assert message in result.stderr
    assert place.outputs() == [partial.name] and partial.read_bytes()[:1_000] == before
    lrgenome(*place.arguments(command, "--resume"))


def test_a_table_is_resumed_from_any_byte(lrgenome, undisturbed, interrupted, place):
    partial = interrupted("score-vcf")
    written = partial.read_bytes()
    for cut in (0, 10, 400, -1, -30):
        partial.write_bytes(written[:cut])
        lrgenome(*place.arguments("score-vcf", "--resume", "--summary", place.folder / "v.json"))
        assert place.content("o.tsv") == undisturbed["score-vcf"], cut
        assert f'"OK": {place.RECORDS}' in (place.folder / "v.json").read_text()


def test_other_rows_do_not_resume(lrgenome, interrupted, place):
    """Shards and intervals of the same number of rows look alike but for where they lie."""
    interrupted("embed", "--shard", "1/2", calls=10)
    result = lrgenome(*place.arguments("embed", "--resume", "--shard", "2/2"), code=3)
    assert "cannot be resumed: its rows is '0-30000 of 60000:" in result.stderr
    result = lrgenome(*place.arguments("embed", "--resume", "-r", "one:101-30,100"), code=3)
    assert "cannot be resumed: its rows is '0-30000 of 60000:" in result.stderr
    lrgenome(*place.arguments("embed", "--resume", "--shard", "1/2"))


@pytest.mark.parametrize("suffix", ["tsv.gz", "vcf.gz", "bcf"])
def test_every_format_is_resumed(lrgenome, place, monkeypatch, suffix):
    out, copy = f"o.{suffix}", place.folder / f"v.{suffix}"
    lrgenome(*place.arguments("score-vcf", out=out))
    (place.folder / out).rename(copy)
    with monkeypatch.context() as patch:
        stop_after(patch, "score-vcf", 2)
        lrgenome(*place.arguments("score-vcf", out=out), code=130)
    assert place.outputs() == [f"{out}.partial"]
    lrgenome(*place.arguments("score-vcf", "--resume", "-W", out=out))
    assert (place.folder / out).read_bytes() == copy.read_bytes()


def test_an_annotated_genome_is_resumed(lrgenome, place, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, "embed", 20)
        lrgenome(*place.arguments("embed", out="o.h5ad"), code=130)
    assert "resumed after 32768 of" in lrgenome(*place.arguments("embed", "--resume", out="o.h5ad")).stderr
    assert place.outputs() == ["o.h5ad"]


def test_what_has_no_whole_block_begins_anew_and_says_so(lrgenome, place, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, "embed", 1)
        lrgenome(*place.arguments("embed"), code=130)
    said = "nothing to resume: of the partial file no block of "
    assert said in lrgenome(*place.arguments("embed", "--resume")).stderr
    assert place.outputs() == ["o.h5"] and said not in lrgenome(*place.arguments("embed", "--resume")).stderr


def test_a_partial_that_is_no_hdf5(lrgenome, place):
    (place.folder / "o.h5.partial").write_text("nonsense")
    result = lrgenome(*place.arguments("embed", "--resume"), code=3)
    assert "o.h5.partial is damaged" in result.stderr
    assert "run without --resume to start anew" in result.stderr
    lrgenome(*place.arguments("embed"))


@pytest.mark.parametrize("command", COMMANDS)
def test_resume_without_a_partial_is_a_first_run(lrgenome, undisturbed, place, command):
    lrgenome(*place.arguments(command, "--resume"))
    (name,) = place.outputs()
    assert place.content(name) == undisturbed[command]
