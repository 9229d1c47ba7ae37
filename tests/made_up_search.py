"""A finished search that trained nothing, with values such as real ones have, in MLflow."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
from searches import QUICK

from cifartune.config import Recipe
from cifartune.config.load import load_space
from cifartune.data import LabelledImages
from cifartune.data.splits import splits_of
from cifartune.data.used import used_images
from cifartune.report.note import running_note
from cifartune.runs import RunFolder
from cifartune.tracking import MlflowTracker, default_uri
from cifartune.tuning.study import TrialStudy, sqlite_url


def make_up_search(runs: Path, data_root: Path | None = None) -> RunFolder:
    """The search of quick.yaml: ASHA's trials, and the refit of the best with one fold dropped.

    Args:
        runs: The folder of all runs, which has a SQLite store of MLflow's then.
        data_root: The prepared images, for the datasets of its runs. Default: they have none.
    """
    space = load_space(QUICK)
    uri = default_uri(runs)
    run = RunFolder.create(runs, space, tracking_uri=uri)
    study = TrialStudy(space, url=sqlite_url(run.study), name=run.name)
    tracker = MlflowTracker(uri, run, {"space": space.name})
    if data_root is not None:
        labels = np.load(data_root / "train_labels.npy")
        train = LabelledImages(np.empty((len(labels), 0), np.uint8), labels)
        tracker.uses(used_images(data_root, train, splits_of(space, labels)))
    tracker.describe(running_note(space, run))
    for number in range(space.search.num_trials):
        recipe = study.propose().recipe
        tracker.trial_started(number, recipe)
        last = _last_epoch(recipe, number, space.max_epochs)
        for epoch in range(1, last + 1):
            metrics = _metrics(recipe, epoch, space.max_epochs)
            facts = _facts(recipe) if epoch == space.max_epochs else None
            all_epochs = {**metrics, "seconds": 3.5 * epoch}
            study.record(number, epoch, metrics["val_accuracy"], all_epochs, facts)
            tracker.epoch_ended(number, epoch, metrics)
        if number == 4:
            study.reject(number, "non_finite_loss", "the loss is not finite")
        elif last == space.max_epochs:
            study.complete(number)
        else:
            study.prune(number)
        tracker.trial_ended(study.trials[number])
    best = study.best()[0]
    tracker.refit_started(best.number, study.recipe(best).with_values({"epochs": 3}))
    for part in ("fold-0", "fold-1", "all-images"):
        for epoch in (1, 2, 3):
            metrics = _metrics(study.recipe(best), epoch, 3)
            tracker.part_epoch_ended(best.number, part, epoch, metrics)
        accuracy = None if part == "all-images" else metrics["val_accuracy"]
        tracker.part_ended(best.number, part, accuracy, {})
    tracker.refit_ended(best.number, {"cv_accuracy": metrics["val_accuracy"]})
    tracker.close()
    assert (tracker.unsent, tracker.failures) == (0, [])
    return run


def _last_epoch(recipe: Recipe, number: int, most: int) -> int:
    good = _quality(recipe)
    return most if not number or good > 0.75 else 3 if good > 0.68 else 1


def _quality(recipe: Recipe) -> float:
    """What a recipe comes to in the end: bad where the rate is far from its optimizer's best."""
    optimizer = recipe.optimizer
    best = {"sgd": 0.15, "adamw": 0.008, "muon": 0.03}[optimizer.name]
    off = abs(math.log10(optimizer.lr / best))
    return 0.83 - 0.11 * off - 0.06 * recipe.model.dropout - 0.03 * recipe.augment.strength


def _metrics(recipe: Recipe, epoch: int, epochs: int) -> dict[str, float]:
    noise = random.Random(f"{recipe.id}-{epoch}").uniform(-0.008, 0.008)
    accuracy = _quality(recipe) * (1 - 0.45 * (1 - epoch / epochs) ** 1.3) + noise
    return {
        "train_loss": 2.2 - 1.7 * accuracy,
        "train_accuracy": min(1.0, accuracy + 0.01 * epoch),
        "val_loss": 2.1 - 1.6 * accuracy,
        "val_accuracy": accuracy,
        "lr": recipe.optimizer.lr * (1 - epoch / epochs),
        "images_per_second": 3400 + 20_000 * noise,
        "seconds": 3.5 + 20 * noise,
    }


def _facts(recipe: Recipe) -> dict[str, Any]:
    return {"params": 1_208_266, "threads": 1, "workers": 1, "recipe": recipe.model_dump_json()}
