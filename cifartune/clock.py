"""Where the time of a search went, over all its interruptions."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cifartune.files import write_atomically


class Clock:
    """Adds up wall time by stage, and keeps the sums in a file.

    Args:
        path: The file; what it holds is carried on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Adds the time of the `with` block to `stage`, however it ends."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(stage, time.monotonic() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Adds `seconds` to `stage`."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        write_atomically(self._path, json.dumps(self.seconds))

    def totals(self) -> dict[str, float]:
        """Seconds by stage, to a tenth, and their `total`."""
        rounded = {stage: round(seconds, 1) for stage, seconds in self.seconds.items()}
        return rounded | {"total": round(sum(self.seconds.values()), 1)}
