"""Holds the trainer's generator against the same recipe in a loop written by hand.

    python benchmarks/generator.py [FILE] [--pairs N] [--images N]
                                   [--length short|full] [--device cpu|cuda]

Epochs of both alternate; the figure is the trainer's time by the loop's, the median of all pairs.
--length short is three pairs of 1,024 images.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from bare_loop import BareLoop
from measured import ROOT, add_length_and_device, keep, real_images, result_path

from cifartune.config import load_space
from cifartune.data import default_root
from cifartune.training import Trainer
from cifartune.training.memory import run_keeping_memory
from cifartune.tuning.modes import fastest


def main(options: argparse.Namespace) -> None:
    """Times the pairs."""
    device = torch.device(options.device)
    space = load_space(options.file)
    values = {
        "epochs": options.pairs + 1,
        "augment.flip_mode": "random",
        "data.small_side": 0,
        "tta": "none",
    }
    recipe = space.base.with_values(values)
    recipe = fastest(recipe, 10**6, device=device, folder=default_root())
    split = real_images(options.images, 2)
    trainer = Trainer(recipe, split, device=device)
    loop = BareLoop(recipe, split, device)
    results = iter(trainer)
    next(results), loop.epoch()  # both allocate, and compile
    ratios = []
    for pair in range(options.pairs):
        times = {}
        for name in ("ours", "bare") if pair % 2 else ("bare", "ours"):
            start = time.perf_counter()
            next(results) if name == "ours" else loop.epoch()
            times[name] = time.perf_counter() - start
        ratios.append(times["ours"] / times["bare"])
        print(f"{pair + 1}/{options.pairs}: {times['ours']:.2f} s, {times['bare']:.2f} s")
    keep(
        result_path("generator", options),
        f"python benchmarks/generator.py {options.file.name} --pairs {options.pairs} "
        f"--images {options.images}",
        file=options.file.name,
        images=options.images,
        batch_size=recipe.batch_size,
        device=device.type,
        threads=torch.get_num_threads(),
        ratios=[round(ratio, 4) for ratio in ratios],
        median=round(median(ratios), 4),
    )


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "file", nargs="?", type=Path, default=ROOT / "search_spaces" / "fast94.yaml"
    )
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--images", type=int, default=8192)
    add_length_and_device(parser)
    options = parser.parse_args()
    if options.length == "short":
        options.pairs, options.images = 3, 1024
    return options


if __name__ == "__main__":
    run_keeping_memory(partial(main, arguments()))
