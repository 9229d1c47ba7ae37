"""What every benchmark keeps beside its figures."""

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

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def keep(path: Path, command: str, **figures: Any) -> None:
    """Writes `figures` to a JSON file with command, date, commit, hardware and versions."""
    measured = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        **figures,
        "hardware": hardware(),
        "versions": versions(),
    }
    write_atomically(path, json.dumps(measured, indent=2) + "\n")
    print(f"written to {path}")


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
