"""What MLflow answered with errors: kept in a file of its own, to be tried again."""

from collections.abc import Callable
from pathlib import Path

from cifartune.runs import RunFolder
from cifartune.tracking.outbox import Event, Outbox, count_unsent


def count_refused(run: RunFolder) -> int:
    """Events of a search that MLflow refused when they were last sent."""
    return count_unsent(run.refused)


class Refused:
    """Events that held up nothing, and are not lost. There is no file as long as there are none.

    Args:
        path: The file, as an `Outbox` has it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outbox = Outbox(path) if path.exists() else None

    def __len__(self) -> int:
        return len(self._outbox) if self._outbox else 0

    def add(self, event: Event) -> None:
        """Keeps an event behind those that are there.

        Raises:
            OSError: It could not be written.
        """
        self._outbox = self._outbox or Outbox(self._path)
        self._outbox.put(event)
        self._outbox.sync()

    def retry(self, deliver: Callable[[Event], bool]) -> int:
        """Hands each event to `deliver`, in order; those for which that is false stay.

        Returns:
            How many events went.
        """
        count, gone = len(self), 0
        for _ in range(count):
            event = self._outbox.first() if self._outbox else None
            assert self._outbox and event
            if deliver(event):
                gone += 1
            else:
                self.add(event)
            self._outbox.sent()
        return gone
