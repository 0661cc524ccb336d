"""Signals as exceptions that cannot get lost."""

import os
import signal
import sys
import time
import weakref

import pytest

from lrgenome.cli.signals import AGAIN_SECONDS, STOPS, Terminated, stops

NUMBERS = tuple(STOPS)


class Thing:
    pass


def in_a_callback(number):
    """Receive a signal where Python drops whatever is raised."""
    thing = Thing()
    watch = weakref.ref(thing, lambda _: os.kill(os.getpid(), number))
    del thing
    assert watch() is None


@pytest.mark.parametrize("number", NUMBERS)
def test_what_a_callback_swallows_is_raised_again(number, capsys):
    with pytest.raises(STOPS[number][0]), stops() as found:
        found.arm()
        in_a_callback(number)
        for _ in range(50):
            time.sleep(AGAIN_SECONDS / 5)
        raise AssertionError("the signal was lost")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_under_way_is_not_raised_again(number):
    """Cleaning up may take its time, and may handle exceptions of its own."""
    cleaned = []
    with pytest.raises(STOPS[number][0]), stops() as found:
        found.arm()
        try:
            os.kill(os.getpid(), number)
        finally:
            try:
                raise ValueError
            except ValueError:
                time.sleep(3 * AGAIN_SECONDS)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(3 * AGAIN_SECONDS)
            cleaned.append(True)
    assert cleaned == [True]
    time.sleep(2 * AGAIN_SECONDS)  # and nothing comes after


def test_other_unraisable_errors_are_reported(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)

    class Careless:
        def __del__(self):
            raise ValueError("not ours")

    with stops():
        Careless()
    assert [report.exc_type for report in seen] == [ValueError]
    assert sys.unraisablehook == seen.append


def test_the_number_of_an_error():
    with stops() as found:
        found.arm()
        assert found.number(KeyboardInterrupt()) == signal.SIGINT
        assert found.number(Terminated()) == signal.SIGTERM
        assert found.number(ValueError()) is None
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert found.number(ImportError()) == signal.SIGINT
        found.forget()


@pytest.mark.parametrize("number", NUMBERS)
def test_what_arrives_early_or_late_is_not_raised_outside_the_command(number):
    with stops() as found:
        os.kill(os.getpid(), number)
        time.sleep(2 * AGAIN_SECONDS)
        with pytest.raises(STOPS[number][0]):
            found.arm()
        found.forget()
        os.kill(os.getpid(), number)
        time.sleep(2 * AGAIN_SECONDS)
    assert found.number(ValueError()) == number


def test_signals_in_a_burst_end_in_one_exception():
    for _ in range(20):
        with pytest.raises(KeyboardInterrupt), stops() as found:
            found.arm()
            try:
                for _ in range(100):
                    os.kill(os.getpid(), signal.SIGINT)
            finally:
                for _ in range(100):
                    os.kill(os.getpid(), signal.SIGINT)
