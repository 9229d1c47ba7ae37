"""Measures what augmentation costs beside training, as a share of an epoch.

    python benchmarks/augmentation.py [--steps N] [--out FILE]

Steps of training and the augmentation of the same batches are timed in turn, so that both meet the
same machine; medians are kept. The cost of augmentation is what preparing a batch takes more than
without it. Writes the shares with hardware, versions, date and commit.
"""

import argparse
import datetime
import json
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cifartune.config import Recipe, load_space
from cifartune.data import load_train
from cifartune.report.machine import hardware, versions
from cifartune.training import SplitImages, Trainer

ROOT = Path(__file__).parent.parent
JOINT = load_space(ROOT / "search_spaces" / "resnet_joint_augmentation.yaml").base.augment
DEFAULT = Recipe().augment
CASES = {
    "speednet, default": ("speednet", DEFAULT, 0.05),
    "resnet18, default": ("resnet18", DEFAULT, 0.05),
    "resnet18, joint group of resnet_joint_augmentation.yaml": ("resnet18", JOINT, 0.30),
}
"""Network, augmentation, and the share of an epoch that it may cost."""


def main() -> None:
    """Measures all cases, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/augmentation.json")
    options = parser.parse_args()
    cases = {}
    for name, (network, augment, bar) in CASES.items():
        recipe = Recipe(augment=augment, batch_size=256).with_values({"model.name": network})
        cases[name] = {**measure(recipe, options.steps), "bar": bar}
        print(name, cases[name])
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    measured = {
        "command": f"python benchmarks/augmentation.py --steps {options.steps}",
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "batch_size": 256,
        "threads": torch.get_num_threads(),
        "cases": cases,
        "hardware": hardware(),
        "versions": versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(measured, indent=2) + "\n")
    print(f"written to {options.out}")


def measure(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Medians over `steps` batches, in microseconds an image, and the share of a step."""
    data = load_train()
    split = SplitImages(
        torch.from_numpy(data.images),
        torch.from_numpy(data.labels).long(),
        torch.arange(45_000),
        torch.arange(45_000, 50_000),
    )
    trainer = Trainer(recipe, split)
    plain = Trainer(recipe.with_values({"augment.strength": 0.0}), split)
    batches = trainer.batches()[: steps + 1]
    times: dict[str, list[float]] = {"step": [], "prepared": [], "plain": []}
    for number, batch in enumerate(batches):
        for key, work in (
            ("step", lambda batch=batch: trainer.train_on([batch])),
            ("prepared", lambda batch=batch: trainer._augmented(batch)),
            ("plain", lambda batch=batch: plain._augmented(batch)),
        ):
            start = time.perf_counter()
            work()  # type: ignore[no-untyped-call]
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first allocates
                times[key].append((time.perf_counter() - start) / len(batch) * 1e6)
    step, prepared, without = (median(times[key]) for key in ("step", "prepared", "plain"))
    return {
        "step_microseconds": round(step, 1),
        "augmentation_microseconds": round(prepared - without, 1),
        "share_of_training": round((prepared - without) / step, 4),
        "batches": steps,
    }


if __name__ == "__main__":
    main()
