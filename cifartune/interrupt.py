"""Ctrl-C: once to stop after the epoch under way, twice to stop at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def ctrl_c(tell: Callable[[str], Any]) -> Iterator[threading.Event]:
    """Turns the first Ctrl-C in the `with` block into an event; the second is as ever.

    In another thread than the main one, which alone hears of it, nothing is changed.

    Args:
        tell: Called with a line for the user at the first Ctrl-C.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def heard(*_: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)
        tell("Stopping after the epoch under way, which is kept. Ctrl-C again: at once.")

    before = signal.signal(signal.SIGINT, heard)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
