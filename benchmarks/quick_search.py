"""Times the quick search as a newcomer runs it, and keeps its outcome.

    python benchmarks/quick_search.py [--smoke] [--space FILE] [--out FILE]

Writes what was measured, with hardware, versions, date and commit, to
benchmarks/results/quick_search.json. The data must be fetched; set-up is not timed.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from measured import RESULTS, ROOT, commit


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
    options = ["--json-lines", *["--smoke"] * smoke]
    command = [sys.executable, "-m", "cifartune", "search", str(space), *options]
    trained, folds, slots = 0.0, defaultdict[tuple[int, str], float](float), 0
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
            event = json.loads(line)
            if event["event"] == "slots":
                seen["ray_is_up"], slots = now, event["count"]
            elif event["event"] == "epoch":
                trained += event["metrics"]["seconds"]
                if not event["trial"] and "first_result" not in seen:
                    seen["first_training_step"] = round(now - event["metrics"]["seconds"], 1)
                    seen["first_result"] = now
            elif event["event"] == "refit_epoch":
                folds[event["trial"], event["part"]] += event["metrics"]["seconds"]
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
        "share_of_slot_time_in_the_trainer": {
            "search": round(trained / (slots * result["seconds"]["search"]), 4),
            # Of what the best schedule of the folds would take.
            "refit": round(best_end(list(folds.values()), slots) / result["seconds"]["refit"], 4),
        },
        "result": result,
    }


def best_end(seconds: list[float], slots: int) -> float:
    """When jobs of those lengths could all be done at the earliest, in seconds.

    Tried out; for more than three slots, which are too many, a bound that nothing can be below.
    """
    if slots > 3:
        return max(*seconds, sum(seconds) / slots)
    loads = {(0.0,) * slots}
    for length in seconds:
        loads = {
            tuple(sorted(round(load + length * (at == slot), 1) for at, load in enumerate(before)))
            for before in loads
            for slot in range(slots)
        }
    return min(max(load) for load in loads)


if __name__ == "__main__":
    main()
