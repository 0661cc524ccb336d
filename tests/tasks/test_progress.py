import io
import logging

import pytest

from lrgenome.tasks import progress
from lrgenome.tasks.progress import LOG_SECONDS, Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests turn."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def stderr(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", stream)
    return stream


@pytest.fixture
def log(caplog, monkeypatch, stderr):
    monkeypatch.setattr(logging.getLogger("lrgenome"), "propagate", True)
    caplog.set_level(logging.INFO, "lrgenome")
    return caplog


def test_one_line_every_thirty_seconds_where_there_is_no_terminal(log, clock, stderr):
    with Progress("score-vcf", 4_000, "records") as bar:
        for _ in range(20):
            clock.now += LOG_SECONDS / 10
            bar.update(100)
    assert log.messages == [
        "score-vcf: 1,000 records of 4,000, about 2 min left",
        "score-vcf: 2,000 records of 4,000, about 1 min left",
    ]
    assert stderr.getvalue() == ""


def test_short_work_says_nothing(log, clock):
    with Progress("embed", 10, "bp") as bar:
        clock.now += LOG_SECONDS - 1
        bar.update(10)
    assert log.messages == []


def test_what_was_done_before_does_not_count_as_speed(log, clock):
    with Progress("score-vcf", 4_000, "records", done=3_000) as bar:
        bar.update(0)
        clock.now += 60
        bar.update(500)
    assert log.messages == ["score-vcf: 3,500 records of 4,000, about 1 min left"]


def test_what_comes_before_the_first_update_does_not_count_as_speed(log, clock):
    with Progress("score-vcf", 1_000, "records") as bar:
        clock.now += 600
        bar.update(100)
        clock.now += 60
        bar.update(100)
    assert log.messages == [
        "score-vcf: 100 records of 1,000",
        "score-vcf: 200 records of 1,000, about 8 min left",
    ]


def test_without_a_total_there_is_no_estimate_and_a_note_is_added(log, clock):
    with Progress("pretrain", None, "steps") as bar:
        bar.set_postfix_str("loss 1.2")
        clock.now += LOG_SECONDS
        bar.update(7)
    assert log.messages == ["pretrain: 7 steps; loss 1.2"]


def test_a_bar_on_a_terminal(log, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    with Progress("embed", 10, "bp") as bar:
        bar.set_postfix_str("chr1")
        bar.update(10)
    assert "embed:   0%" in terminal.getvalue() and "0/10" in terminal.getvalue()
    assert terminal.getvalue().rstrip(" ").endswith("\r")
    assert log.messages == []


def test_quiet_means_no_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    logger = logging.getLogger("lrgenome")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with Progress("embed", 10, "bp") as bar:
            bar.update(10)
    finally:
        logger.setLevel(before)
    assert terminal.getvalue() == ""
