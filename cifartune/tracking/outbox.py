"""What is on its way to MLflow: a file that only grows, and how much of it has arrived."""

import errno
import json
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cifartune.files import PRIVATE

Event = dict[str, Any]


def is_sent(path: Path) -> bool:
    """Whether all events in the file of an `Outbox` have arrived."""
    try:
        return int(path.with_suffix(".sent").read_text()) >= path.stat().st_size
    except (FileNotFoundError, ValueError):
        return not path.exists()


def count_unsent(path: Path) -> int:
    """How many events in the file of an `Outbox`, if there is one, have not arrived."""
    if is_sent(path):
        return 0
    try:
        sent = int(path.with_suffix(".sent").read_text())
    except (FileNotFoundError, ValueError):
        sent = 0
    return path.read_bytes()[sent:].count(b"\n")


class Outbox:
    """Events in the order in which they happened, kept in a file until they are sent.

    One process at a time writes it. An event that is put is in the file when `put` returns, so that
    the end of the process does not lose it; before it is sent, and with `sync`, it is on the disk,
    so that a power cut does not lose what MLflow has. What was being written then is cut off.

    Args:
        path: The file, a JSON object a line, which its owner alone may read. Beside it lies how
            far it was sent.
    """

    def __init__(self, path: Path) -> None:
        self._changed = threading.Condition()
        self._closed = False
        path.touch(PRIVATE)
        self._file = path.open("ab", buffering=0)
        weakref.finalize(self, self._file.close)
        mark = path.with_suffix(".sent")
        mark.touch()
        self._mark = mark.open("r+b", buffering=0)
        weakref.finalize(self, self._mark.close)
        sent = 0
        with suppress(ValueError):
            sent = int(self._mark.read())
        self._history = list[Event]()
        self._pending = deque[tuple[Event, int]]()
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                event = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:  # what a power cut left of it
                event = None
            if event is None:
                self._file.truncate(whole)
                break
            whole += len(line)
            self._history.append(event)
            if whole > sent:
                self._pending.append((event, whole))
        self._end = whole
        if sent > whole:  # the disk has lost its end all the same
            self._write_mark(whole)

    def history(self) -> Iterator[Event]:
        """All events of earlier processes, once."""
        while self._history:
            yield from self._history
            self._history.clear()

    def __len__(self) -> int:
        """How many events have not been sent."""
        return len(self._pending)

    def put(self, event: Event) -> None:
        """Adds an event: JSON values by name.

        Raises:
            OSError: It could not be written, and nothing of it is there.
        """
        line = json.dumps(event).encode() + b"\n"
        with self._changed:
            try:
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._file.truncate(self._end)
                raise
            self._end += len(line)
            self._pending.append((event, self._end))
            self._changed.notify_all()

    def first(self) -> Event | None:
        """The first event that was not sent; waits for one. None: closed, and all are sent."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed)
            if not self._pending:
                return None
            event = self._pending[0][0]
        self.sync()
        return event

    def sent(self) -> None:
        """The first event has arrived."""
        with self._changed:
            _, end = self._pending.popleft()
            with suppress(OSError):  # then it will be sent again, which does no harm
                self._write_mark(end)
            self._changed.notify_all()

    def sync(self) -> None:
        """What was put so far is on the disk, if that takes it, and outlives a power cut."""
        with suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """No event will be put any more."""
        self.sync()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _write_mark(self, end: int) -> None:
        os.pwrite(self._mark.fileno(), f"{end:020d}".encode(), 0)
