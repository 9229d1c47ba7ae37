"""Times the quick search as a newcomer runs it, and keeps its outcome.

    python benchmarks/quick_search.py [--smoke] [--space FILE] [--out FILE]

Writes what was measured, with hardware, versions, date and commit, to
benchmarks/results/quick_search.json. The data must be fetched; set-up is not timed.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measured import RESULTS, ROOT, commit

EPOCH = re.compile(r"trial +0 +epoch 1/.* ([\d.]+) s ")


def main() -> None:
    """Runs the search once and writes the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="the two-minute version")
    parser.add_argument("--space", type=Path, default=ROOT / "search_spaces" / "quick.yaml")
    parser.add_argument("--out", type=Path, default=RESULTS / "quick_search.json")
    options = parser.parse_args()
    measured = measure(options.space.resolve(), smoke=options.smoke)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(measured, indent=2) + "\n")
    print(f"written to {options.out}")


def measure(space: Path, *, smoke: bool) -> dict[str, Any]:
    """Runs `space` in an empty folder and times what appears on the screen."""
    command = [sys.executable, "-m", "cifartune", "search", str(space), *["--smoke"] * smoke]
    with tempfile.TemporaryDirectory() as folder:
        start, seen = time.monotonic(), {}
        search = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert search.stdout
        for line in search.stdout:
            now = round(time.monotonic() - start, 1)
            print(f"{now:7.1f}  {line}", end="", flush=True)
            if "Ray dashboard" in line:
                seen["ray_is_up"] = now
            if (epoch := EPOCH.match(line)) and "first_result" not in seen:
                seen["first_training_step"] = round(now - float(epoch[1]), 1)
                seen["first_result"] = now
        if search.wait():
            raise SystemExit(f"the search ended with exit code {search.returncode}")
        seen["end"] = round(time.monotonic() - start, 1)
        result = json.loads(next(Path(folder).glob("runs/*/result.json")).read_text())
    del result["mlflow"]
    return {
        "command": f"cifartune search search_spaces/{space.name}" + " --smoke" * smoke,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "seconds_on_the_screen": seen,
        "result": result,
    }


if __name__ == "__main__":
    main()
