"""Ctrl-C ends a search after the epoch under way; in a thread, nothing hears of it."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from cifartune.interrupt import ctrl_c


def test_the_first_stops_and_the_second_interrupts() -> None:
    told: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with ctrl_c(told.append) as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5) and len(told) == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_search_in_a_thread_is_not_refused() -> None:
    def begin() -> bool:
        with ctrl_c(print) as stop:
            return stop.is_set()

    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(begin).result() is False
    assert signal.getsignal(signal.SIGINT) is before
