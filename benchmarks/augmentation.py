"""Measures what augmentation costs beside training, as a share of the steps of training.

    python benchmarks/augmentation.py [--length short|full] [--device cpu|cuda]

Steps of training and the augmentation of the same batches are timed in turn, so that both meet the
same machine; medians are kept. Networks are computed as in a slot: in the fastest way, in a process
that keeps the memory that it frees. The cost of augmentation is what preparing a batch takes more
than without it. Writes the shares with hardware, versions, date and commit.
"""

import argparse
import time
from functools import partial
from statistics import median
from typing import Any

import torch
from measured import ROOT, add_length_and_device, keep, real_images, result_path

from cifartune.config import Recipe, load_space
from cifartune.data import default_root
from cifartune.training import Trainer
from cifartune.training.memory import run_keeping_memory
from cifartune.tuning.modes import fastest

JOINT = load_space(ROOT / "search_spaces" / "resnet_joint_augmentation.yaml").base.augment
DEFAULT = Recipe().augment
CASES = {
    "speednet, default": ("speednet", DEFAULT, 0.05),
    "resnet18, default": ("resnet18", DEFAULT, 0.05),
    "resnet18, joint group of resnet_joint_augmentation.yaml": ("resnet18", JOINT, 0.30),
}
"""Network, augmentation, and the share of training that it may cost, kept beside what it does."""

STEPS = {"short": 2, "full": 12}
RUN_IMAGES = 45_000 * 30
"""A run of thirty epochs decides whether compiling pays."""


def main(options: argparse.Namespace) -> None:
    """Measures all cases, one after the other."""
    steps = STEPS[options.length]
    device = torch.device(options.device)
    cases = {}
    for name, (network, augment, bar) in CASES.items():
        recipe = Recipe(augment=augment, batch_size=256).with_values({"model.name": network})
        cases[name] = {**measure(recipe, steps, device), "bar": bar}
        print(name, cases[name])
    keep(
        result_path("augmentation", options),
        f"python benchmarks/augmentation.py --length {options.length} --device {options.device}",
        length=options.length,
        device=device.type,
        batch_size=256,
        threads=torch.get_num_threads(),
        cases=cases,
    )


def measure(recipe: Recipe, steps: int, device: torch.device) -> dict[str, Any]:
    """Medians over `steps` batches, in microseconds an image, and the share of a step.

    Evaluation is left out: beside a whole epoch the share is smaller still.
    """
    split = real_images(45_000, 5_000)
    recipe = fastest(recipe, RUN_IMAGES, device=device, folder=default_root())
    trainer = Trainer(recipe, split, device=device)
    plain = Trainer(recipe.with_values({"augment.strength": 0.0}), split, device=device)
    batches = trainer.batches()[: steps + 1]
    times: dict[str, list[float]] = {"step": [], "prepared": [], "plain": []}
    for number, batch in enumerate(batches):
        for key, work in (
            ("step", lambda batch=batch: trainer.train_on([batch])),
            ("prepared", lambda batch=batch: trainer._augmented(batch)),
            ("plain", lambda batch=batch: plain._augmented(batch)),
        ):
            start = time.perf_counter()
            work()
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first allocates
                times[key].append((time.perf_counter() - start) / len(batch) * 1e6)
    step, prepared, without = (median(times[key]) for key in ("step", "prepared", "plain"))
    return {
        "step_microseconds": round(step, 1),
        "data_microseconds": round(without, 1),
        "augmentation_microseconds": round(prepared - without, 1),
        "share_of_training": round(prepared / step, 4),
        "batches": steps,
    }


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_length_and_device(parser)
    return parser.parse_args()


if __name__ == "__main__":
    run_keeping_memory(partial(main, arguments()))
