"""Measures how many images a second the trainer trains, network by network.

    python benchmarks/throughput.py [MODEL ...] [--images N] [--out FILE]

Each network trains three short epochs on real images, crop and flip included; the rates of the last
two are kept. Writes them with hardware, versions, date and commit.
"""

import argparse
import datetime
import json
import subprocess
from pathlib import Path
from typing import Any

import torch

from cifartune.config import Recipe
from cifartune.data import load_train
from cifartune.report.machine import hardware, versions
from cifartune.training import SplitImages, Trainer

ROOT = Path(__file__).parent.parent
MODELS = ["speednet_small", "speednet", "resnet18"]


def main() -> None:
    """Measures all networks, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/throughput.json")
    options = parser.parse_args()
    rates = {name: measure(name, options.images) for name in options.models}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    measured = {
        "command": f"python benchmarks/throughput.py --images {options.images}",
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "images_per_second": rates,
        "threads": torch.get_num_threads(),
        "hardware": hardware(),
        "versions": versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(measured, indent=2) + "\n")
    print(f"written to {options.out}")


def measure(name: str, count: int) -> dict[str, Any]:
    """The rates of two epochs of `count` images, after one to warm up."""
    train = load_train()
    split = SplitImages(
        images=torch.from_numpy(train.images),
        labels=torch.from_numpy(train.labels).long(),
        train=torch.arange(count),
        validation=torch.arange(count, count + 512),
    )
    recipe = Recipe().with_values({"model.name": name, "epochs": 3, "batch_size": 256})
    trainer = Trainer(recipe, split)
    rates = [round(result.images_per_second, 1) for result in trainer]
    print(name, trainer.precision, rates)
    return {"precision": trainer.precision, "batch_size": 256, "epochs_2_and_3": rates[1:]}


if __name__ == "__main__":
    main()
