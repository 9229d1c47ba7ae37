"""Recipes after their cross-validation, and what is estimated of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial, TrialState

from cifartune.calibration import Calibration
from cifartune.config import Recipe
from cifartune.data.splits import Splits
from cifartune.outputs import LOGITS, SNAPSHOTS, WEIGHTS
from cifartune.refit.out_of_fold import Logits, OutOfFold
from cifartune.refit.race import Dropped
from cifartune.statistics import Accuracy, Interval, corrected_t, fold_accuracies
from cifartune.training.classifier import trained_epochs
from cifartune.tuning.study import TrialStudy, kept_epoch

Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Candidate:
    """A recipe after its cross-validation. All accuracies are out of fold: each image is judged by
    the one model of a seed that never saw it, with the recipe's test-time augmentation.

    Attributes:
        number: The trial that found it.
        recipe: The recipe as refit; each fold and seed replaces its seed.
        predictions: What all else follows from.
        accuracy: Over all images; the mean over seeds.
        unchosen: Over the images that had no part in choosing it: those outside the validation
            images. None where there are none, as in a smoke search of few images.
        chosen: Over the validation images, without test-time augmentation, as in the search: what
            the trial's validation accuracy promised.
        classes: Of the images of each class.
        fold_accuracies: Of each fold's held-out images, seed by seed.
        folds: The mean of these, with the interval of the corrected resampled t.
        loss: Cross-entropy over all images.
        weights: The fold models' files.
        epochs: Trained in all folds together.
        snapshots: The same with each fold's snapshots; None where its rate was not restarted.
        dropped: Why not all of its folds were trained; None where they were.
    """

    number: int
    recipe: Recipe
    predictions: OutOfFold = field(compare=False, repr=False)
    accuracy: Accuracy
    unchosen: Accuracy | None
    chosen: Accuracy | None
    classes: list[Accuracy]
    fold_accuracies: list[float]
    folds: Interval
    loss: float
    weights: list[Path]
    epochs: int
    snapshots: "SnapshotEnsemble | None" = None
    dropped: Dropped | None = None

    def calibration(self, labels: Labels) -> Calibration:
        """Of a single fold's model, out of fold; of the first seed."""
        known = labels[self.predictions.indices]
        return Calibration.out_of_fold(self.predictions.logits[0], known, self.predictions.fold)

    def metrics(self) -> dict[str, float]:
        """The numbers of it that are compared with those of others, for MLflow."""
        return {
            "cv_accuracy": self.accuracy.value,
            "cv_accuracy_low": self.accuracy.low,
            "cv_accuracy_high": self.accuracy.high,
            "cv_loss": self.loss,
        }

    def as_dict(self) -> dict[str, Any]:
        """What result.json holds of it."""
        return {
            "trial": self.number,
            "cv_accuracy": self.accuracy.as_dict(),
            "cv_accuracy_of_images_that_chose_nothing": _told(self.unchosen),
            "cv_accuracy_of_validation_images": _told(self.chosen),
            "class_accuracies": [accuracy.as_dict() for accuracy in self.classes],
            "fold_accuracies": self.fold_accuracies,
            "cv_accuracy_by_folds": self.folds.as_dict(),
            "cv_loss": self.loss,
            "dropped": self.dropped.as_dict() if self.dropped else None,
        }


@dataclass(frozen=True)
class SnapshotEnsemble:
    """A candidate whose folds are each the ensemble of their snapshots and their last epoch.

    Huang et al., https://arxiv.org/abs/1704.00109.

    Attributes:
        accuracy: Out-of-fold, over all images; of the first seed.
        logits: Log-probabilities of all images, out of fold, float32 (N, 10).
        weights: The files of all folds' snapshots, last epochs included.
    """

    accuracy: Accuracy
    logits: Logits = field(compare=False, repr=False)
    weights: list[Path]


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


def make_candidate(
    number: int,
    recipe: Recipe,
    folders: Sequence[Sequence[Path]],
    *,
    splits: Splits,
    labels: Labels,
    dropped: Dropped | None = None,
) -> Candidate:
    """The candidate of a trial from what the jobs of its folds left in `folders[seed][fold]`."""
    predictions = OutOfFold.gather(splits, folders)
    right, known = predictions.right(labels), labels[predictions.indices]
    plain = predictions.right(labels, plain=True)
    was_validated = np.isin(predictions.indices, splits.validation)
    by_fold = fold_accuracies(right, predictions.fold)
    every = [folder for own in folders for folder in own]
    return Candidate(
        number=number,
        recipe=recipe,
        predictions=predictions,
        accuracy=Accuracy.of_runs(right),
        unchosen=_accuracy(right[:, ~was_validated]),
        chosen=_accuracy(plain[:, was_validated]),
        classes=[Accuracy.of_runs(right[:, known == label]) for label in range(10)],
        fold_accuracies=by_fold,
        folds=corrected_t(by_fold, 1 / splits.folds, seeds=len(right)),
        loss=float(predictions.losses(labels).mean()),
        weights=[folder / WEIGHTS for folder in every],
        epochs=sum(trained_epochs(folder / WEIGHTS) for folder in every),
        snapshots=None if dropped else _snapshots(folders[0], splits, labels),
        dropped=dropped,
    )


def _accuracy(right: npt.NDArray[np.bool_]) -> Accuracy | None:
    return Accuracy.of_runs(right) if right.size else None


def _told(accuracy: Accuracy | None) -> dict[str, float] | None:
    return accuracy.as_dict() if accuracy else None


def _snapshots(folders: Sequence[Path], splits: Splits, labels: Labels) -> SnapshotEnsemble | None:
    from scipy.special import softmax

    # A fold that ended before the others has fewer.
    members = [[*sorted((folder / SNAPSHOTS).glob("*")), folder] for folder in folders]
    if all(len(own) == 1 for own in members):
        return None
    logits = np.full((len(splits.fold), 10), np.nan, dtype=np.float32)
    for fold, own in enumerate(members):
        probabilities = [softmax(np.load(member / LOGITS), axis=1) for member in own]
        tiny = np.finfo(np.float32).tiny  # a probability may be 0 in float32
        logits[splits.held_out(fold)[1]] = np.log(np.mean(probabilities, axis=0) + tiny)
    used = splits.fold >= 0
    right = logits[used].argmax(1) == labels[used]
    return SnapshotEnsemble(
        accuracy=Accuracy.of(int(right.sum()), len(right)),
        logits=logits[used],
        weights=[member / WEIGHTS for own in members for member in own],
    )
