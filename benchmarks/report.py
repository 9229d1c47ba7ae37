"""The report of a search of a thousand trials: its size, and how long a browser takes to draw it.

    python benchmarks/report.py [--trials N]

The search is made up: N trials of up to 30 epochs over eight parameters, stopped as ASHA stops
them, with 50,000 made-up predictions for the real images. Timed are the making of the page, and
three times its opening in the system's Chromium, headless and offline, from the request to the end
of drawing of its last figure.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from made_up import made_up_run
from measured import RESULTS, ROOT, keep

from cifartune.config import SearchSpace
from cifartune.data import load_train
from cifartune.report.report import report, save

sys.path.insert(0, str(ROOT / "tests"))
from browser import browser

OPENINGS = 3

SPACE: dict[str, Any] = {
    "name": "thousand",
    "base": {"model": {"name": "wideresnet", "width": 4}, "epochs": 30, "optimizer": {"lr": 0.1}},
    "parameters": {
        "optimizer.name": {"values": ["sgd", "adamw", "muon"]},
        "optimizer.lr": {"min": 1e-3, "max": 1.0, "log": True},
        "optimizer.momentum": {"min": 0.8, "max": 0.98, "when": {"optimizer.name": ["sgd"]}},
        "optimizer.weight_decay": {"min": 1e-6, "max": 1e-2, "log": True},
        "model.width": {"min": 1, "max": 8},
        "model.dropout": {"min": 0.0, "max": 0.5},
        "model.init": {"values": ["default", "xavier_uniform", "kaiming_normal", "orthogonal"]},
        "augment.strength": {"min": 0.0, "max": 1.0},
    },
}


def main(options: argparse.Namespace) -> None:
    """Makes the search and its report, opens that, and keeps what it cost."""
    space = SearchSpace.model_validate(SPACE | {"search": {"num_trials": options.trials}})
    result = json.loads((RESULTS / "quick_search.json").read_text())["result"]
    with tempfile.TemporaryDirectory() as folder:
        run = made_up_run(Path(folder), space, result=result, train=load_train())
        start = time.perf_counter()
        text = report(run)
        seconds = time.perf_counter() - start
        save(text, run.report)
        openings = [opened(run.report) for _ in range(OPENINGS)]
        size = run.report.stat().st_size
    print(f"{size / 1e6:.1f} MB, made in {seconds:.1f} s, opened in {median(openings):.2f} s")
    keep(
        RESULTS / "report.json",
        f"python benchmarks/report.py --trials {options.trials}",
        trials=options.trials,
        epochs=30,
        parameters=len(space.parameters),
        megabytes=round(size / 1e6, 2),
        seconds_to_make=round(seconds, 2),
        seconds_to_open=round(median(openings), 2),
        openings=[round(one, 2) for one in openings],
    )


def opened(path: Path) -> float:
    """Seconds from the request of a page to the end of drawing of its last figure."""
    with browser(is_offline=True) as context:
        page = context.new_page()
        start = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn=all]", state="attached")
        return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    main(parser.parse_args())
