"""Running the real command in tests."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_started: list["subprocess.Popen[str]"] = []

QUICK = Path(__file__).parent.parent / "search_spaces" / "quick.yaml"


def cifartune(
    *arguments: str | Path, cwd: Path, timeout: float = 200, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Runs the command line in a process of its own, on a terminal of 80 columns."""
    return subprocess.run(
        [sys.executable, "-m", "cifartune", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def started(
    *arguments: str | Path, cwd: Path, within: Sequence[str] = (), **environment: str
) -> "subprocess.Popen[str]":
    """Starts the command line in a process group of its own, to be followed line by line.

    `within` is a command that runs another. What still runs when the test ends is killed then.
    """
    search = subprocess.Popen(
        [*within, sys.executable, "-m", "cifartune", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "COLUMNS": "80", "PYTHONUNBUFFERED": "1", **environment},
    )
    _started.append(search)
    return search


def started_count() -> int:
    """How many commands `started` has begun that `kill_what_was_started` has not ended."""
    return len(_started)


def kill_what_was_started(since: int) -> None:
    """Ends the process groups of the commands that nobody waited for, but of the first `since`."""
    while len(_started) > since:
        search = _started.pop()
        if search.poll() is None:
            os.killpg(search.pid, signal.SIGKILL)
            search.communicate()


def logged_states(store: Path) -> list[tuple[str, str]]:
    """The key of each run of a SQLite store of MLflow's, such as trial-3, and its status."""
    with sqlite3.connect(store) as database:
        found: list[tuple[str, str]] = database.execute(
            "SELECT value, status FROM runs JOIN tags USING (run_uuid) WHERE key = 'cifartune.key'"
        ).fetchall()
    return found


def until(search: "subprocess.Popen[str]", event: str, **facts: Any) -> list[dict[str, Any]]:
    """Reads the events of a search with --json-lines up to the first such one, and returns them."""
    assert search.stdout
    seen: list[dict[str, Any]] = []
    for line in search.stdout:
        seen.append(json.loads(line))
        if seen[-1]["event"] == event and all(seen[-1].get(k) == v for k, v in facts.items()):
            return seen
    raise AssertionError(f"no {event} with {facts} among {seen}")
