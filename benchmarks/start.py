"""Times a search from the command to the first training step of all its slots.

    python benchmarks/start.py [FILE] [--runs N]

FILE's search is started N times with nothing measured before, and N times with what that left
beside the images: the probe of the space and the modes of its networks; both with the slots that
the file has and with slots of one core. Each is ended by Ctrl-C when all slots have told their
first epoch. What passes until then is divided by what the command prints: Ray is up, the plan is
made, the first steps are taken.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median

from measured import RESULTS, ROOT, keep

from cifartune.data import default_root

MEASURED = ("modes", "probes")
SHAPES = {"slots of the file": (), "slots of one core": ("--set", "resources.cpus=1")}


def main(options: argparse.Namespace) -> None:
    """Starts the search again and again."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        shape: {"uncached": [], "cached": []} for shape in SHAPES
    }
    for run, shape in product(range(options.runs), SHAPES):
        with tempfile.TemporaryDirectory() as temporary:
            data = Path(temporary)
            for path in default_root().iterdir():
                if path.name not in MEASURED:
                    (data / path.name).symlink_to(path)
            for kind, starts in found[shape].items():
                starts.append(start(options.file.resolve(), SHAPES[shape], data))
                print(f"{run + 1}/{options.runs} {shape}, {kind}: {starts[-1]}", flush=True)
    keep(
        RESULTS / "start.json",
        f"python benchmarks/start.py search_spaces/{options.file.name} --runs {options.runs}",
        file=options.file.name,
        seconds_to_the_first_step_of_all_slots={
            shape: {
                kind: round(median(one["first_steps"] for one in starts), 1)
                for kind, starts in kinds.items()
            }
            for shape, kinds in found.items()
        },
        starts=found,
    )


def start(file: Path, options: Sequence[str], data: Path) -> dict[str, float]:
    """The slots, and the seconds from the command to what it prints and to the first steps."""
    with tempfile.TemporaryDirectory() as folder:
        begun, seen, slots = time.monotonic(), dict[str, float](), 0
        steps = dict[int, float]()
        search = subprocess.Popen(
            [sys.executable, "-m", "cifartune", "search", str(file), "--json-lines", *options],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "CIFARTUNE_DATA": str(data)},
        )
        assert search.stdout
        for line in search.stdout:  # to its end where the search fails
            now = time.monotonic() - begun
            event = json.loads(line)
            if event["event"] == "slots":
                seen["ray_is_up"] = round(now, 1)
                slots = seen["slots"] = event["count"]
            elif event["event"] == "plan":
                seen["plan_is_made"] = round(now, 1)
            elif event["event"] == "epoch" and event["epoch"] == 1:
                steps[event["trial"]] = now - event["metrics"]["seconds"]
            if slots and len(steps) == slots:
                break
        if len(steps) < max(slots, 1):
            raise SystemExit(f"the search ended with exit code {search.wait()}")
        seen["first_steps"] = round(max(steps.values()), 1)
        for _ in range(2):
            search.send_signal(signal.SIGINT)
            time.sleep(1)
        search.communicate(timeout=60)
    return seen


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    quick = ROOT / "search_spaces" / "quick.yaml"
    parser.add_argument("file", nargs="?", type=Path, default=quick)
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
