"""What the epochs of a run brought, and what follows from it: its rate, its end, its best epoch."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from cifartune.config.recipe import StoppingRecipe

LOWER = 1e-4
"""By which share of itself a training loss must fall to be a new low, as in torch's scheduler."""


@dataclass(frozen=True)
class EpochResult:
    """What one epoch brought.

    Attributes:
        epoch: The epoch's number, from 1.
        train_loss: Mean over the epoch's images, as trained: augmented, smoothed, with dropout.
        train_accuracy: Likewise, in [0, 1].
        val_loss: Mean cross-entropy over the validation images, without label smoothing; not a
            number where there are none.
        val_accuracy: In [0, 1], or not a number; without test-time augmentation.
        lr: The learning rate of the epoch's last step.
        images_per_second: Training images a second, validation not counted.
        seconds: Wall time of the epoch, validation included.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    images_per_second: float
    seconds: float

    @property
    def is_finite(self) -> bool:
        """Whether no loss is infinite, or not a number although there were images."""
        validated = not math.isnan(self.val_accuracy)
        return math.isfinite(self.train_loss) and (math.isfinite(self.val_loss) or not validated)

    def metrics(self) -> dict[str, float]:
        """All values but the epoch, by name; without those that are not numbers."""
        values = asdict(self)
        del values["epoch"]
        return {name: value for name, value in values.items() if not math.isnan(value)}


def listens(recipe: StoppingRecipe) -> bool:
    """Whether validation images decide when a run ends, or what is kept of it."""
    return recipe.keep == "best" or recipe.metric.startswith("val_")


def has_ended(recipe: StoppingRecipe, history: Sequence[EpochResult]) -> bool:
    """Whether a run ends after `history`, before all epochs of its schedule are done."""
    if recipe.epoch and len(history) >= recipe.epoch:
        return True
    if recipe.metric == "none":
        return False
    sign = 1 if recipe.metric.endswith("accuracy") else -1
    best, best_epoch = float("-inf"), 0
    for result in history:
        value = sign * getattr(result, recipe.metric)
        if not best_epoch or value > best + recipe.min_delta:
            best, best_epoch = value, result.epoch
    return len(history) - best_epoch >= recipe.patience


def kept_epoch(recipe: StoppingRecipe, history: Sequence[EpochResult]) -> int:
    """The epoch whose weights and values count; of several best ones the first."""
    if recipe.keep == "last":
        return history[-1].epoch
    return max(history, key=lambda result: result.val_accuracy).epoch


def plateaus(losses: Iterable[float], patience: int) -> int:
    """How often `losses`, one an epoch, went `patience` epochs without a new low."""
    lowest, waited, count = float("inf"), 0, 0
    for loss in losses:
        if loss < lowest * (1 - LOWER):
            lowest, waited = loss, 0
        else:
            waited += 1
        if waited == patience:
            waited, count = 0, count + 1
    return count
