"""What every benchmark keeps beside its figures."""

import argparse
import datetime
import json
import subprocess
from pathlib import Path
from typing import Any

import torch

from cifartune.data import load_train
from cifartune.files import write_atomically
from cifartune.report.machine import hardware, versions
from cifartune.training import SplitImages
from cifartune.training.device import choose_device

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def result_path(name: str, options: argparse.Namespace) -> Path:
    """Where a benchmark with `--length` and `--device` keeps its figures."""
    return RESULTS / f"{name}{'-short' * (options.length == 'short')}_{options.device}.json"


def add_length_and_device(parser: argparse.ArgumentParser) -> None:
    """What benchmarks of the trainer have in common."""
    parser.add_argument("--length", choices=["short", "full"], default="full")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=choose_device().type)


def keep(path: Path, command: str, **figures: Any) -> None:
    """Writes `figures` to a JSON file with command, date, commit, hardware and versions."""
    measured = {
        "command": command,
        **stamp(),
        **figures,
        "hardware": hardware(),
        "versions": versions(),
    }
    write_atomically(path, json.dumps(measured, indent=2) + "\n")
    print(f"written to {path}")


def kept(path: Path, **same: Any) -> dict[str, Any]:
    """What `path` holds, if it was measured as it would be now; else nothing.

    Args:
        path: What `keep` wrote.
        same: Figures that have to be the same now, beside hardware, versions and threads.
    """
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    now = {
        "hardware": hardware(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        **same,
    }
    other = [name for name, value in now.items() if found.get(name) != value]
    if other:
        print(f"{path.name} is measured anew: its {', '.join(other)} are not those of now")
    return {} if other else found


def stamp() -> dict[str, str]:
    """Date and commit, for figures that are kept beside older ones."""
    return {"date": datetime.date.today().isoformat(), "commit": commit()}


def commit() -> str:
    """The commit of this checkout, with a plus where files differ from it."""
    return _git("rev-parse", "--short", "HEAD") + "+" * bool(_git("status", "--porcelain", "-uno"))


def real_images(train: int, validation: int) -> SplitImages:
    """The first training images, and as many to validate on as are asked for behind them."""
    data = load_train()
    return SplitImages(
        images=torch.from_numpy(data.images),
        labels=torch.from_numpy(data.labels).long(),
        train=torch.arange(train),
        validation=torch.arange(train, train + validation),
    )


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return result.stdout.strip()
