"""Where the time of a search went, over all its interruptions."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cifartune.errors import UserError, first_line
from cifartune.files import write_atomically

KEEP_SECONDS = 5.0
"""What the end of the process may cost of the time that was spent."""


class Clock:
    """Adds up wall time by stage, and keeps the sums in a file.

    Args:
        path: The file; what it holds is carried on.

    Raises:
        UserError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = {}
        if not path.exists():
            return
        try:
            kept = json.loads(path.read_text())
            self.seconds = {stage: float(seconds) for stage, seconds in kept.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: cannot be read: {first_line(error)}; without it, no time is known to "
                "have been spent"
            ) from None

    @contextmanager
    def time(self, stage: str, start: float | None = None) -> Iterator[None]:
        """Adds the time of the `with` block to `stage`, however it ends.

        Most of it, if the process is killed: the sum is kept every few seconds.

        Args:
            stage: Of the search.
            start: When the stage began, on the clock of `time.monotonic`. Default: now.
        """
        start, over = start or time.monotonic(), threading.Event()
        before = self.seconds.get(stage, 0.0)

        def keep() -> None:
            while not over.wait(KEEP_SECONDS):
                with suppress(OSError):  # no reason to end: the disk may have room again
                    self._set(stage, before + time.monotonic() - start)

        keeper = threading.Thread(target=keep, name=f"clock of {stage}", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            over.set()
            keeper.join()
            self._set(stage, before + time.monotonic() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Adds `seconds` to `stage`."""
        self._set(stage, self.seconds.get(stage, 0.0) + seconds)

    def _set(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = seconds
        write_atomically(self._path, json.dumps(self.seconds))

    def totals(self) -> dict[str, float]:
        """Seconds by stage, to a tenth, and their `total`."""
        rounded = {stage: round(seconds, 1) for stage, seconds in self.seconds.items()}
        return rounded | {"total": round(sum(self.seconds.values()), 1)}
