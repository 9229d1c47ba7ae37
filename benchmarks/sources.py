"""Trains the systems of the five write-ups, and sets their figures beside ours in docs/SOURCES.md.

    python benchmarks/sources.py NAME ... [--seeds N] [--epochs N] [--images N] [--threads N]
    python benchmarks/sources.py --table

Every recipe of search_spaces/NAME.yaml is trained with several seeds on the file's own training
images. The one with the best mean validation accuracy is chosen, and only that one is tested, once.
What is done is kept in benchmarks/results/sources/NAME.json and not done again. --epochs and
--images shorten the runs: those are kept in NAME-short.json, are not tested, and stand in the table
where there are no whole ones.
"""

import argparse
import datetime
import json
import math
from collections.abc import Iterator
from statistics import fmean, stdev
from typing import Any

import torch
from measured import RESULTS as ALL_RESULTS
from measured import ROOT, keep
from scipy.stats import t
from source_rows import HEAD, ROWS, Row

from cifartune.config import Recipe, SearchSpace, load_space
from cifartune.data import load_train
from cifartune.data.splits import splits_of
from cifartune.data.test_set import look_at_test
from cifartune.evaluate import judge
from cifartune.seeds import derive_seed
from cifartune.training import SplitImages, Trainer
from cifartune.training.classifier import load_classifier, save_classifier
from cifartune.training.device import choose_device, resolve
from cifartune.training.memory import run_keeping_memory
from cifartune.tuning.study import SpaceExhausted, TrialStudy

RESULTS = ALL_RESULTS / "sources"
MODELS = ROOT / "runs" / "sources"
"""Where weights wait for the choice; a folder that git ignores."""

Run = dict[str, Any]


def main() -> None:
    """Trains what is asked for, or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of each run, at the most")
    parser.add_argument("--images", type=int, help="training images, at the most")
    parser.add_argument("--threads", type=int, help="of each run on the CPU")
    parser.add_argument("--table", action="store_true", help="write docs/SOURCES.md")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.names:
        train_all(name, options.seeds, options.epochs, options.images)
    if options.table:
        (ROOT / "docs" / "SOURCES.md").write_text(table())


def train_all(name: str, seeds: int, epochs: int | None, images: int | None) -> None:
    """Trains and keeps what is missing of one file, then tests the recipe that is chosen."""
    space = load_space(ROOT / "search_spaces" / f"{name}.yaml")
    count = min(images or space.train_images, space.train_images)
    is_short = count < space.train_images or bool(epochs and epochs < space.max_epochs)
    kept = f"{name}-short" if is_short else name
    runs = load(kept)
    # By label: the ids of recipes change with the fields that a recipe can have.
    done = {(run["label"], run["seed"], run["images"]) for run in runs}
    for seed in range(seeds):
        for label, whole in recipes(space):
            length = min(epochs or whole.epochs, whole.epochs)
            recipe = whole.with_values({"seed": derive_seed(seed, "source"), "epochs": length})
            if (label, seed, count) not in done:
                run = trained_before(recipe, count) or train(name, space, recipe, count)
                about = {"label": label, "seed": seed, "is_short": is_short}
                runs.append({**run, **about, "test_accuracy": None})
                keep(RESULTS / f"{kept}.json", f"python benchmarks/sources.py {name}", runs=runs)
    if is_short or any(run["test_accuracy"] is not None for run in runs):
        return  # one look
    best = chosen(runs)
    for run in runs:
        if run["label"] == best:
            model = {"best": [MODELS / f"{run['recipe_id']}.safetensors"]}
            tested, _ = judge(model, {"best": 1.0}, look_at_test(name=f"benchmark of {name}"))
            run["test_accuracy"] = tested["best"].accuracy.value
    keep(RESULTS / f"{kept}.json", f"python benchmarks/sources.py {name}", runs=runs)


def recipes(space: SearchSpace) -> Iterator[tuple[str, Recipe]]:
    """The recipes of a comparison, as a search would try them, each with what sets it apart."""
    study = TrialStudy(space)
    while study.trials_left > 0:
        try:
            number = study.propose().number
        except SpaceExhausted:
            return
        trial = study.trials[number]
        label = ", ".join(
            value if isinstance(value, str) else f"{name.split('.')[-1]} {value}"
            for name, value in trial.params.items()
        )
        yield label or "the recipe", study.recipe(trial)


def train(name: str, space: SearchSpace, recipe: Recipe, count: int) -> Run:
    """One training run, without a look at the test images."""
    data = load_train()
    splits = splits_of(space, data.labels)
    split = SplitImages(
        torch.from_numpy(data.images),
        torch.from_numpy(data.labels).long(),
        torch.from_numpy(splits.train[:: max(1, len(splits.train) // count)][:count]),
        torch.from_numpy(splits.validation),
    )
    trainer = Trainer(recipe, split)
    for result in trainer:
        print(f"{name} {recipe.id} epoch {result.epoch}/{recipe.epochs}", end=" ")
        print(f"{result.train_accuracy:.2%} {result.val_accuracy:.2%} {result.seconds:.0f} s")
    MODELS.mkdir(parents=True, exist_ok=True)
    save_classifier(trainer.classifier, MODELS / f"{recipe.id}.safetensors")
    kept = trainer.history[trainer.kept_epoch - 1]
    return {
        "recipe_id": recipe.id,
        "images": count,
        "epochs": len(trainer.history),
        "validation_images": len(splits.validation),
        "val_accuracy": kept.val_accuracy,
        "train_accuracy": kept.train_accuracy,
        "kept_epoch": kept.epoch,
        "curve": [round(result.val_accuracy, 4) for result in trainer.history],
        "seconds": round(sum(result.seconds for result in trainer.history), 1),
        "threads": torch.get_num_threads(),
        "device": trainer.device.type,
        "precision": trainer.recipe.precision,
        "date": datetime.date.today().isoformat(),
        "test_accuracy": None,
    }


def chosen(runs: list[Run]) -> str:
    """The label with the best mean validation accuracy."""
    labels: dict[str, None] = dict.fromkeys(run["label"] for run in runs)
    return max(labels, key=lambda label: fmean(values(runs, label)))


def values(runs: list[Run], label: str) -> list[float]:
    """The validation accuracies of one recipe's runs."""
    return [run["val_accuracy"] for run in runs if run["label"] == label]


def trained_before(recipe: Recipe, count: int) -> Run | None:
    """The same run, as another file's, if its weights are here: they say what was trained.

    The ids of recipes will not do, since they change with the fields that a recipe can have.
    """
    same = (recipe, resolve(recipe, choose_device()))
    for path in RESULTS.glob("*.json"):
        for run in load(path.stem):
            weights = MODELS / f"{run['recipe_id']}.safetensors"
            is_here = run["images"] == count and weights.exists()
            if is_here and load_classifier(weights).recipe in same:
                return run
    return None


def load(name: str) -> list[Run]:
    """The runs of a file that are done."""
    path = RESULTS / f"{name}.json"
    runs: list[Run] = json.loads(path.read_text())["runs"] if path.exists() else []
    return runs


def table() -> str:
    """The text of docs/SOURCES.md."""
    sections = [
        line for row in ROWS for line in section(row, load(row.name) or load(f"{row.name}-short"))
    ]
    return "\n".join([HEAD, *sections, ""])


def section(row: Row, runs: list[Run]) -> Iterator[str]:
    """One row of the sources: what it is, both figures, and why they differ."""
    yield f"\n## {row.id}: {row.title}\n"
    yield f"`{row.command}`\n"
    labels = dict.fromkeys([run["label"] for run in runs] or row.reported)
    if labels:
        yield "| | reported | ours, validation | ours, test |"
        yield "|---|---|---|---|"
    for label in labels:
        tests = [run["test_accuracy"] for run in runs if run["label"] == label]
        test = "" if None in tests else show(tests)
        yield f"| {label} | {row.reported.get(label, '')} | {show(values(runs, label))} | {test} |"
    yield "\n" + " ".join(filter(None, [how_it_ran(runs), row.remark]))


def how_it_ran(runs: list[Run]) -> str:
    """How long the runs were, how many, and on what."""
    if not runs:
        return ""
    first = runs[0]
    seeds = sorted({len(values(runs, run["label"])) for run in runs})
    times = [run["seconds"] / 60 for run in runs if run["seconds"]]  # None: it was interrupted
    took = f", {fmean(times):.1f} minutes a run beside other work" if times else ""
    return (
        f"{'**Shortened**' if first['is_short'] else 'In full'}: {first['images']:,} training and "
        f"{first['validation_images']:,} validation images, up to "
        f"{max(run['epochs'] for run in runs)} epochs, n = {' to '.join(map(str, seeds))}, on "
        f"{first['threads']} {first['device'].upper()} thread{'s'[: first['threads'] - 1]}{took}."
    )


def show(accuracies: list[float]) -> str:
    """The mean over seeds, with half the 95 % interval of Student's t where there are several."""
    if not accuracies:
        return ""
    text, count = f"{fmean(accuracies):.2%}", len(accuracies)
    if count > 1:
        half = float(t.ppf(0.975, count - 1)) * stdev(accuracies) / math.sqrt(count)
        text += f" ± {half * 100:.2f}"
    return text


if __name__ == "__main__":
    run_keeping_memory(main)
