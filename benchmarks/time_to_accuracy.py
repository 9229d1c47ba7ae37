"""Trains a fixed recipe with many seeds: how accurate it is, and how long it takes.

    python benchmarks/time_to_accuracy.py FILE [--seeds N] [--length short|full] [--device cpu|cuda]
                                          [--compile WAY] [--against CHECKOUT]

Trains FILE's baseline on all 50,000 training images. Preparing the data, compiling, building the
network, training and testing are timed apart; training is what counts. Before and after each run,
the bare step of the same recipe is timed (`bare_loop.py`). The recipe is fixed: it was chosen on
validation images, and testing chooses nothing. --length short trains two epochs on 5,000 images,
and does not test. --compile always or graphs compiles also where a run is too short to earn it.
--against runs the script that FILE is held against as well, on the same GPU, from a checkout of
https://github.com/KellerJordan/cifar10-airbench (`airbench.py`): it needs a GPU. A run that is
there already is not done again, if machine, versions and threads are the same.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import airbench
import torch
from bare_loop import BareLoop, crop_and_flip
from measured import add_length_and_device, keep, kept, result_path, stamp

from cifartune.config import Recipe, load_space
from cifartune.data import default_root, load_train
from cifartune.data.test_set import look_at_test
from cifartune.seeds import derive_seed
from cifartune.training import SplitImages, Trainer
from cifartune.training.memory import run_keeping_memory
from cifartune.tuning.modes import fastest

BARE_STEPS = 10


def main(options: argparse.Namespace) -> None:
    """Trains what is missing, and keeps each run as it is done."""
    device = torch.device(options.device)
    path = result_path(f"time_to_accuracy_{options.file.stem}", options)
    known = kept(path, length=options.length, device=device.type)
    runs: list[dict[str, Any]] = known.get("runs", [])
    against = known.get("against")
    recipes = [recipe_of(seed, options) for seed in range(options.seeds)]
    asked = {recipe.id for recipe in recipes}

    def write() -> None:
        keep(
            path,
            f"python benchmarks/time_to_accuracy.py {options.file} --seeds {options.seeds} "
            f"--length {options.length} --device {device.type}"
            + f" --compile {options.compile}" * bool(options.compile)
            + " --against CHECKOUT" * bool(against),
            file=options.file.name,
            length=options.length,
            device=device.type,
            threads=torch.get_num_threads(),
            **summary([run for run in runs if run["recipe_id"] in asked]),
            against=against,
            runs=runs,
        )

    for seed, recipe in enumerate(recipes):
        if recipe.id in {run["recipe_id"] for run in runs}:
            continue
        about = {"recipe_id": recipe.id, "seed": seed, **stamp()}
        runs.append({**about, **measure(recipe, options, device)})
        print(runs[-1], flush=True)
        write()
    if options.against:
        script = options.against / airbench.SCRIPTS[options.file.stem]
        against = {**stamp(), **airbench.run(script, options.seeds)}
        write()


def recipe_of(seed: int, options: argparse.Namespace) -> Recipe:
    """The file's recipe with the run's own seed."""
    values: dict[str, Any] = {"seed": derive_seed(seed, "time to accuracy")}
    if options.compile:
        values["compile"] = options.compile
    if options.length == "short":
        values["epochs"] = 2
    return load_space(options.file).base.with_values(values)


def measure(recipe: Recipe, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One run."""
    is_short = options.length == "short"
    clock = Clock(device)
    data = load_train()
    count = min(5000, len(data.labels)) if is_short else len(data.labels)
    split = SplitImages(
        torch.from_numpy(data.images),
        torch.from_numpy(data.labels).long(),
        torch.arange(count),
        torch.arange(count - 100, count),  # nothing is held out: the trainer's own few seconds
    ).to(device)
    prepared = clock.lap()
    images = count * recipe.epochs
    recipe = fastest(recipe, images, device=device, folder=default_root())
    chosen = clock.lap()
    before = bare_rate(recipe, split, device)
    if recipe.compile != "never":
        torch._dynamo.reset()  # else the bare step would have paid for compiling
    clock.lap()
    if recipe.compile != "never":
        rehearsal = Trainer(recipe, split, device=device)
        rehearsal.train_on(rehearsal.batches()[:2])
    compiled = clock.lap()
    trainer = Trainer(recipe, split, device=device)
    built = clock.lap()
    for result in trainer:
        print(f"epoch {result.epoch}/{recipe.epochs} {result.train_accuracy:.2%}", flush=True)
    trained = clock.lap()
    accuracy = tested = None
    if not is_short:
        test = look_at_test(name=f"benchmark of {recipe.id}")
        pixels, labels = torch.from_numpy(test.images), torch.from_numpy(test.labels).long()
        clock.lap()
        right = trainer.predict(pixels.to(device)).argmax(1).cpu() == labels
        accuracy, tested = right.float().mean().item(), clock.lap()
    rates = before, bare_rate(recipe, split, device)
    bare = fmean(rates)
    return {
        "test_accuracy": accuracy,
        "build_seconds": round(built, 2),
        "prepare_seconds": round(prepared, 2),
        "compile_seconds": round(compiled, 2),
        "choose_mode_seconds": round(chosen, 2),
        "train_seconds": round(trained, 2),
        "test_seconds": tested and round(tested, 2),
        "bare_images_per_second": round(bare, 1),
        "bare_before_and_after": [round(rate, 1) for rate in rates],
        "by_bare_step": round(trained * bare / images, 3),
        "precision": recipe.precision,
        "memory_format": recipe.memory_format,
        "compile": recipe.compile,
    }


def bare_rate(recipe: Recipe, split: SplitImages, device: torch.device) -> float:
    """Images a second of bare steps at full size, data already there and augmented once."""
    loop = BareLoop(recipe, split, device)
    loop.network.train()
    indices = split.train[: recipe.batch_size]
    images = crop_and_flip(split.images[indices], recipe.augment.crop)
    clock, rates = Clock(device), []
    for step in range(BARE_STEPS + 2):
        loop.step(images, split.labels[indices])
        seconds = clock.lap()
        if step >= 2:
            rates.append(len(indices) / seconds)
    return fmean(rates)


class Clock:
    """Seconds between laps, with all that the device was given done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        last, self._last = self._last, time.perf_counter()
        return self._last - last


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means, and the deviation of the accuracy, over the runs."""
    accuracies = [run["test_accuracy"] for run in runs if run["test_accuracy"] is not None]
    return {
        "n": len(runs),
        "mean_accuracy": round(fmean(accuracies), 5) if accuracies else None,
        "deviation": round(stdev(accuracies), 5) if len(accuracies) > 1 else None,
        "mean_train_seconds": round(fmean(run["train_seconds"] for run in runs), 2),
        "mean_by_bare_step": round(fmean(run["by_bare_step"] for run in runs), 3),
    }


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--compile", choices=["never", "always", "graphs"], help="default: measured"
    )
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    add_length_and_device(parser)
    options = parser.parse_args()
    if options.against:
        script = airbench.SCRIPTS.get(options.file.stem)
        if script is None:
            parser.error(f"--against needs FILE to be one of {', '.join(airbench.SCRIPTS)}.yaml")
        if options.device != "cuda":
            parser.error(f"--against needs a GPU, for {script} runs on no other device")
        if not (options.against / script).is_file():
            parser.error(f"--against needs a checkout of cifar10-airbench, with {script} in it")
    return options


if __name__ == "__main__":
    run_keeping_memory(partial(main, arguments()))
