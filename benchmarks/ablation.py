"""Takes the speed recipe apart: what each of its parts is worth.

    python benchmarks/ablation.py [FILE] [--seeds N] [--epochs N] [--model NAME] [--parts NAME...]
                                  [--length short|full] [--device cpu|cuda]

Trains FILE's baseline as it is, and with each part switched alone, on the file's own training
images, and compares on its validation images. Runs that are done are not done again, if machine,
versions and threads are the same. --parts trains the baseline and these parts alone, into a file of
their own. --length short is one epoch of one seed of the small network.
"""

import argparse
import math
import shlex
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from measured import ROOT, add_length_and_device, keep, kept, result_path, stamp
from scipy.stats import t

from cifartune.config import Recipe, SearchSpace, load_space
from cifartune.data import default_root, load_train
from cifartune.data.splits import splits_of
from cifartune.seeds import derive_seed
from cifartune.training import SplitImages, Trainer
from cifartune.training.memory import run_keeping_memory
from cifartune.tuning.modes import fastest

REFERENCE = "the recipe"

PARTS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "first layer learned, not whitening": {"model.whitening": False},
    "initialised as torch does it, not as the identity": {"model.init": "torch"},
    "initialised by He's scheme, the head as well": {"model.init": "kaiming_normal"},
    "norm statistics that follow four times as fast": {"model.norm_momentum": 0.4},
    "biases at four times the rate": {"optimizer.bias_lr_scale": 4.0},
    "flips by chance, not alternating": {"augment.flip_mode": "random"},
    "SGD, not Muon": {
        "optimizer.name": "sgd",
        "optimizer.lr": 0.5,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 5e-4,  # Muon's would leave nothing of the weights
    },
    "half a cosine, not a triangle": {"schedule.name": "cosine"},
    "no label smoothing": {"label_smoothing": 0.0},
    "small images first": {"data.small_side": 24, "data.small_share": 0.4},
    "a single view": {"tta": "none"},
}
"""Each with the fields that it changes; SGD has the values that were best for it in docs/LOG.md."""

KEYS = ("recipe_id", "name", "seed", "device")
"""What makes a run another one."""


def main(options: argparse.Namespace) -> None:
    """Trains what is missing, seed by seed, and keeps each run as it is done."""
    device = torch.device(options.device)
    space = load_space(options.file)
    path = result_path("ablation_of_parts" if options.parts else "ablation", options)
    parts = [REFERENCE, *options.parts] if options.parts else list(PARTS)
    runs: list[dict[str, Any]] = kept(path, length=options.length).get("runs", [])
    epochs = options.epochs or space.base.epochs
    model = options.model or space.base.model.name
    shared = {"epochs": epochs, "model.name": model}
    asked = []
    for seed, name in product(range(options.seeds), parts):
        values = {"seed": derive_seed(seed, "ablation"), **shared, **PARTS[name]}
        recipe = space.base.with_values(values)
        about = dict(zip(KEYS, (recipe.id, name, seed, device.type), strict=True))
        asked.append((about, recipe))
    for about, recipe in asked:
        if any(about.items() <= run.items() for run in runs):
            continue
        runs.append({**about, **stamp(), **measure(recipe, space, device)})
        print(runs[-1], flush=True)
        wanted = [about for about, _ in asked]
        own = [run for run in runs if {key: run[key] for key in KEYS} in wanted]
        keep(
            path,
            f"python benchmarks/ablation.py {options.file.name} --seeds {options.seeds} "
            f"--epochs {epochs} --model {model}"
            + (f" --parts {shlex.join(options.parts)}" if options.parts else ""),
            about=f"{model} by {options.file.name}, {epochs} epochs on {space.train_images:,} "
            f"images, {space.data.validation:,} to validate on, with test-time augmentation, "
            f"n = {len({run['seed'] for run in own})}; ± is half the 95 % interval. Rates are the "
            "fastest of the seeds'.",
            length=options.length,
            device=device.type,
            threads=torch.get_num_threads(),
            rows=rows(own),
            runs=runs,
        )


def measure(recipe: Recipe, space: SearchSpace, device: torch.device) -> dict[str, Any]:
    """One run: accuracy on the validation images with the recipe's views, and its rate."""
    data = load_train()
    splits = splits_of(space, data.labels)
    split = SplitImages(
        torch.from_numpy(data.images),
        torch.from_numpy(data.labels).long(),
        torch.from_numpy(splits.train),
        torch.from_numpy(splits.validation),
    ).to(device)
    images = recipe.epochs * len(split.train)
    recipe = fastest(recipe, images, device=device, folder=default_root())
    trainer = Trainer(recipe, split, device=device)
    seconds = sum(len(split.train) / result.images_per_second for result in trainer)
    logits = trainer.predict(split.images[split.validation])
    right = logits.argmax(1) == split.labels[split.validation]
    return {"accuracy": right.float().mean().item(), "images_per_second": images / seconds}


def rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a part: mean, and half the 95 % interval by Student's t."""
    found = []
    for name in PARTS:
        own = [run for run in runs if run["name"] == name]
        if not own:
            continue
        values = [run["accuracy"] for run in own]
        count = len(values)
        half = 0.0
        if count > 1:
            half = float(t.ppf(0.975, count - 1)) * stdev(values) / math.sqrt(count)
        found.append(
            {
                "name": name,
                "n": count,
                "mean": round(fmean(values), 5),
                "half_interval": round(half, 5),
                "images_per_second": round(max(run["images_per_second"] for run in own), 1),
            }
        )
    return found


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "file", nargs="?", type=Path, default=ROOT / "search_spaces" / "fast94.yaml"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="default: the file's")
    parser.add_argument("--model", help="default: the file's")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[], metavar="NAME")
    add_length_and_device(parser)
    options = parser.parse_args()
    if options.length == "short":
        options.seeds, options.epochs, options.model = 1, 1, "speednet_small"
    return options


if __name__ == "__main__":
    run_keeping_memory(partial(main, arguments()))
