"""A guard against a job that takes all the memory of the machine."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

SHARE = 0.9
"""The share of the memory in use from which on a job is ended.

Ray's own monitor acts at 0.95, and takes several processes at once: the board may be one.
"""

LOOK_SECONDS = 0.1
"""How often the guard looks: a core touches some hundred MB of new memory in that time."""

OWN_SHARE = 0.2
"""A process with less of the machine's memory than this is not what fills it."""

CGROUP = Path("/sys/fs/cgroup")


class MemoryGuard(threading.Thread):
    """Ends this process where memory runs short and it has the most of all slots.

    What asks for more than there is at once fails by itself; this is for what fills it little by
    little. Python cannot break off a step, so the process has to go.

    Args:
        share: The share of the memory in use from which on it acts.
        tell: Called with a line for people before the process ends.
    """

    def __init__(self, tell: Callable[[str], None], share: float = SHARE) -> None:
        super().__init__(name="memory-guard", daemon=True)
        self._tell = tell
        self._share = share
        self._over = threading.Event()

    def run(self) -> None:
        """Looks until `stop`."""
        while not self._over.wait(LOOK_SECONDS):
            share = used_share()
            if share > self._share and is_the_largest():
                own = psutil.Process().memory_info().rss
                try:
                    self._tell(f"{own / 2**30:.1f} GiB, when {share:.0%} of the memory were in use")
                finally:
                    os._exit(1)

    def stop(self) -> None:
        """Ends the guard."""
        self._over.set()


def used_share() -> float:
    """The share of the memory in use: of the machine's, or of what its container may have."""
    machine = psutil.virtual_memory()
    share = 1 - machine.available / machine.total
    with suppress(OSError, ValueError, KeyError):  # no container
        lines = (CGROUP / "memory.stat").read_text().splitlines()
        kept = dict(line.split() for line in lines)
        files = int(kept["inactive_file"]) + int(kept["active_file"])  # may be had back
        used = int((CGROUP / "memory.current").read_text()) - files
        share = max(share, used / memory_limit())
    return share


def memory_limit() -> int:
    """Bytes of memory: the machine's, or what its container may have."""
    limit: int = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # no container, or one without a limit
        limit = min(limit, int((CGROUP / "memory.max").read_text()))
    return limit


def is_the_largest() -> bool:
    """Whether this process has a good share of the memory, and the most of its kind here."""
    this = psutil.Process()
    own, name = this.memory_info().rss, _class_of(this.name())
    if own < OWN_SHARE * memory_limit():
        return False
    others = [0]
    for process in psutil.process_iter(["name", "memory_info"]):
        if process.pid != this.pid and _class_of(process.info["name"]) == name:
            others.append(getattr(process.info["memory_info"], "rss", 0))
    return own >= max(others)


def _class_of(name: str) -> str:
    """Ray names a process by its actor's class and the method that it is at."""
    return name.partition(".")[0]
