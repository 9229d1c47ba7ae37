"""The refit: the best recipes, cross-validated from scratch on all training images."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial, TrialState

from cifartune.config import Recipe
from cifartune.data.splits import Splits
from cifartune.errors import UserError
from cifartune.events import Observer
from cifartune.runs import RunFolder
from cifartune.seeds import derive_seed
from cifartune.statistics import Accuracy
from cifartune.training.classifier import trained_epochs
from cifartune.tuning.jobs import LOGITS, SNAPSHOTS, WEIGHTS
from cifartune.tuning.messages import Failed, Job, Progress
from cifartune.tuning.slots import SlotPool
from cifartune.tuning.study import TrialStudy, kept_epoch


@dataclass(frozen=True)
class Candidate:
    """A recipe after its cross-validation.

    Attributes:
        number: The trial that found it.
        recipe: The recipe as refit; each fold replaces its seed.
        accuracy: Out-of-fold accuracy over all images, each judged by the one fold model that
            never saw it.
        fold_accuracies: The accuracy of each fold's held-out images.
        loss: Out-of-fold cross-entropy.
        weights: The fold models' files.
        epochs: Trained in all folds together.
        snapshots: The same with each fold's snapshots; None where its rate was not restarted.
    """

    number: int
    recipe: Recipe
    accuracy: Accuracy
    fold_accuracies: list[float]
    loss: float
    weights: list[Path]
    epochs: int
    snapshots: "SnapshotEnsemble | None" = None


@dataclass(frozen=True)
class SnapshotEnsemble:
    """A candidate whose folds are each the ensemble of their snapshots and their last epoch.

    Huang et al., https://arxiv.org/abs/1704.00109.

    Attributes:
        accuracy: Out-of-fold, over all images.
        weights: The files of all folds' snapshots, last epochs included.
    """

    accuracy: Accuracy
    weights: list[Path]


def run_refit(
    study: TrialStudy,
    pool: SlotPool,
    *,
    run: RunFolder,
    splits: Splits,
    labels: npt.NDArray[np.uint8],
    data_root: Path,
    observers: Sequence[Observer] = (),
    stop: threading.Event | None = None,
) -> list[Candidate]:
    """Refits the study's best recipes as one pool of jobs; folds that are done are kept.

    Each fold trains from scratch. All candidates have the same folds.

    Returns:
        The candidates of which no fold failed, the best first: by out-of-fold loss where the search
        minimises a loss, else by out-of-fold accuracy.

    Raises:
        Interrupted: `stop` was set.
        UserError: A slot was lost or a defect was met in a fold, or no recipe could be refit.
    """
    space = study.space
    recipes = {}
    for trial in study.best(space.refit.top_k):
        recipes[trial.number] = refit_recipe(study, trial)
        for observer in observers:
            observer.refit_started(trial.number, recipes[trial.number], space.refit.folds)
    jobs, failed = {}, dict[int, str]()
    for number, recipe in recipes.items():
        for fold in range(space.refit.folds):
            folder = run.fold(number, fold)
            if not (folder / LOGITS).exists():
                seed = derive_seed(space.search.seed, "refit", number, fold)
                job = Job(
                    id=f"refit-{number}-fold-{fold}",
                    recipe=recipe.with_values({"seed": seed}),
                    folder=folder,
                    data_root=data_root,
                    splits=run.splits,
                    fold=fold,
                )
                jobs[job.id] = number, fold, job
    for work, message in pool.run([job for _, _, job in jobs.values()], stop=stop):
        number, fold, _ = jobs[work.id]
        if isinstance(message, Failed) and message.blames_recipe:
            # It would fail again: the recipe is no candidate. Its other folds run on, unused.
            failed[number] = f"trial {number}, fold {fold}: {message.message}"
        elif isinstance(message, Failed):
            raise UserError(
                f"the refit of trial {number} failed in fold {fold}: {message.message}; "
                f"go on with: {run.resume_command}"
            )
        elif isinstance(message, Progress):
            for observer in observers:
                observer.fold_epoch_ended(number, fold, message.epoch, message.metrics)
    if len(failed) == len(recipes):
        raise UserError("every refit failed: " + "; ".join(failed.values()))
    candidates = [
        _candidate(run, splits, labels, number, recipe, space.refit.folds)
        for number, recipe in recipes.items()
        if number not in failed
    ]
    for candidate in candidates:
        _tell(observers, candidate)
    if "loss" in space.target.metric:
        return sorted(candidates, key=lambda c: c.loss)
    return sorted(candidates, key=lambda c: -c.accuracy.value)


def refit_recipe(study: TrialStudy, trial: FrozenTrial) -> Recipe:
    """The recipe of a trial, as each fold of its refit trains it.

    A fold's held-out images must not choose when to stop, or they would be no test of its model: a
    trial that listened to its validation images is refit for as many epochs as it kept.
    """
    recipe = study.recipe(trial)
    values: dict[str, Any] = {}
    if epochs := study.space.refit.epochs:
        values |= {"epochs": epochs, "stopping.epoch": 0}
    listened = recipe.stopping.metric.startswith("val_")
    if listened or recipe.stopping.keep == "best":
        values["stopping.keep"] = "last"
        values["stopping.metric"] = "none" if listened else recipe.stopping.metric
        if trial.state is TrialState.COMPLETE and not epochs:
            values["stopping.epoch"] = kept_epoch(trial)
    return recipe.with_values(values)


def out_of_fold_logits(
    run: RunFolder, splits: Splits, number: int, folds: int
) -> npt.NDArray[np.float32]:
    """Logits of all training images, float32 (N, 10), each from the fold that held it out.

    Images that the refit did not use, as in a smoke run, are NaN.
    """
    logits = np.full((len(splits.fold), 10), np.nan, dtype=np.float32)
    for fold in range(folds):
        logits[splits.held_out(fold)[1]] = np.load(run.fold(number, fold) / LOGITS)
    return logits


def _candidate(
    run: RunFolder,
    splits: Splits,
    labels: npt.NDArray[np.uint8],
    number: int,
    recipe: Recipe,
    folds: int,
) -> Candidate:
    from scipy.special import softmax  # a second to import, with scikit-learn
    from sklearn.metrics import log_loss

    folders = [run.fold(number, fold) for fold in range(folds)]
    logits = out_of_fold_logits(run, splits, number, folds)
    used = splits.fold >= 0
    correct = logits.argmax(1) == labels
    probabilities = softmax(logits[used].astype(np.float64), axis=1)
    return Candidate(
        number=number,
        recipe=recipe,
        accuracy=Accuracy.of(int(correct[used].sum()), int(used.sum())),
        fold_accuracies=[float(correct[splits.fold == fold].mean()) for fold in range(folds)],
        loss=float(log_loss(labels[used], probabilities, labels=np.arange(10))),
        weights=[folder / WEIGHTS for folder in folders],
        epochs=sum(trained_epochs(folder / WEIGHTS) for folder in folders),
        snapshots=_snapshots(folders, splits, labels),
    )


def _snapshots(
    folders: Sequence[Path], splits: Splits, labels: npt.NDArray[np.uint8]
) -> SnapshotEnsemble | None:
    from scipy.special import softmax

    # A fold that ended before the others has fewer.
    members = [[*sorted((folder / SNAPSHOTS).glob("*")), folder] for folder in folders]
    if all(len(own) == 1 for own in members):
        return None
    right = 0
    for fold, own in enumerate(members):
        probabilities = [softmax(np.load(member / LOGITS), axis=1) for member in own]
        classes = np.mean(probabilities, axis=0).argmax(1)
        right += int((classes == labels[splits.held_out(fold)[1]]).sum())
    return SnapshotEnsemble(
        accuracy=Accuracy.of(right, int((splits.fold >= 0).sum())),
        weights=[member / WEIGHTS for own in members for member in own],
    )


def _tell(observers: Sequence[Observer], candidate: Candidate) -> None:
    metrics: dict[str, Any] = {
        "cv_accuracy": candidate.accuracy.value,
        "cv_accuracy_low": candidate.accuracy.low,
        "cv_accuracy_high": candidate.accuracy.high,
        "cv_loss": candidate.loss,
    }
    for observer in observers:
        for fold, accuracy in enumerate(candidate.fold_accuracies):
            observer.fold_ended(candidate.number, fold, accuracy)
        observer.refit_ended(candidate.number, metrics)
