"""Measures how many images a second the trainer trains, network by network.

    python benchmarks/throughput.py [MODEL ...] [--images N] [--out FILE]

Each network trains three short epochs on real images, crop and flip included; the rates of the last
two are kept. Writes them with hardware, versions, date and commit.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from measured import RESULTS, keep, real_images

from cifartune.config import Recipe
from cifartune.training import Trainer
from cifartune.training.memory import run_keeping_memory

MODELS = ["speednet_small", "speednet", "resnet18"]


def main() -> None:
    """Measures all networks, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput.json")
    options = parser.parse_args()
    rates = {name: measure(name, options.images) for name in options.models}
    keep(
        options.out,
        f"python benchmarks/throughput.py --images {options.images}",
        images_per_second=rates,
        threads=torch.get_num_threads(),
    )


def measure(name: str, count: int) -> dict[str, Any]:
    """The rates of two epochs of `count` images, after one to warm up."""
    recipe = Recipe().with_values({"model.name": name, "epochs": 3, "batch_size": 256})
    trainer = Trainer(recipe, real_images(count, 512))
    rates = [round(result.images_per_second, 1) for result in trainer]
    print(name, trainer.recipe.precision, rates)
    return {"precision": trainer.recipe.precision, "batch_size": 256, "epochs_2_and_3": rates[1:]}


if __name__ == "__main__":
    run_keeping_memory(main)
