"""The time that a search took, over its interruptions."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cifartune.clock import Clock
from cifartune.errors import UserError


def test_stages_add_up_over_processes(tmp_path: Path) -> None:
    first = Clock(tmp_path / "clock.json")
    first.add("start", 2.0)
    with first.time("search"):
        pass
    second = Clock(tmp_path / "clock.json")
    second.add("search", 3.0)
    assert second.totals() == {"start": 2.0, "search": 3.0, "total": 5.0}


@pytest.mark.parametrize("content", ["", "[]", '{"search": null}'])
def test_a_damaged_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "clock.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"clock\.json: cannot be read: "):
        Clock(path)


def test_a_killed_process_loses_seconds_alone(tmp_path: Path) -> None:
    path = tmp_path / "clock.json"
    program = (
        "import time; from pathlib import Path; from cifartune import clock\n"
        "clock.KEEP_SECONDS = 0.05\n"
        f"with clock.Clock(Path({str(path)!r})).time('search'):\n"
        "    print(flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        while Clock(path).seconds.get("search", 0.0) < 0.2:
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert 0.2 <= Clock(path).seconds["search"] < 30
