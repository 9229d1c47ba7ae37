"""When a run ends, which epoch it keeps, and when its rate falls: functions of its results."""

from typing import Any

import pytest

from cifartune.config.recipe import StoppingRecipe
from cifartune.training.history import EpochResult, has_ended, kept_epoch, plateaus


def history(*values: float, of: str = "val_accuracy") -> list[EpochResult]:
    """Results whose metric `of` is `values`, and which get better in all others."""
    results = []
    for epoch, value in enumerate(values, start=1):
        metrics: dict[str, Any] = {
            "train_loss": 9.0 - epoch,
            "val_loss": 9.0 - epoch,
            "train_accuracy": float(epoch),
            "val_accuracy": float(epoch),
            of: value,
        }
        results.append(EpochResult(epoch, lr=0.1, images_per_second=1, seconds=1, **metrics))
    return results


def end(recipe: StoppingRecipe, results: list[EpochResult]) -> int | None:
    """The epoch after which the run ends, as the trainer asks: after each."""
    return next(
        (n for n in range(len(results) + 1) if has_ended(recipe, results[:n])),
        None,
    )


@pytest.mark.parametrize("metric", ["val_accuracy", "train_accuracy"])
def test_a_run_ends_when_an_accuracy_has_not_risen_for_some_epochs(metric: str) -> None:
    recipe = StoppingRecipe.model_validate({"metric": metric, "patience": 2})
    assert end(recipe, history(0.1, 0.3, 0.2, 0.4, 0.4, 0.3, 0.9, of=metric)) == 6
    assert end(recipe, history(0.1, 0.3, 0.2, 0.4, 0.3, 0.5, of=metric)) is None
    other = "val_loss"
    assert end(recipe, history(1.0, 1.0, 1.0, 1.0, of=other)) is None


@pytest.mark.parametrize("metric", ["val_loss", "train_loss"])
def test_a_run_ends_when_a_loss_has_not_fallen_for_some_epochs(metric: str) -> None:
    recipe = StoppingRecipe.model_validate({"metric": metric, "patience": 3})
    assert end(recipe, history(2.0, 1.0, 1.1, 1.0, 1.2, of=metric)) == 5
    assert end(recipe, history(2.0, 1.0, 1.1, 1.0, 0.9, of=metric)) is None


def test_a_rise_that_is_too_small_does_not_count_but_adds_up() -> None:
    recipe = StoppingRecipe(metric="train_accuracy", patience=2, min_delta=0.1)
    assert end(recipe, history(0.50, 0.55, 0.59, of="train_accuracy")) == 3
    assert end(recipe, history(0.50, 0.55, 0.61, 0.65, 0.72, of="train_accuracy")) is None


def test_a_run_ends_after_a_given_epoch() -> None:
    assert end(StoppingRecipe(epoch=3), history(1, 2, 3, 4)) == 3
    assert end(StoppingRecipe(), history(*[0.1] * 50)) is None


def test_the_best_epoch_is_that_of_the_highest_validation_accuracy() -> None:
    results = history(0.1, 0.5, 0.3, 0.5)
    assert kept_epoch(StoppingRecipe(keep="best"), results) == 2
    assert kept_epoch(StoppingRecipe(keep="last"), results) == 4


@pytest.mark.parametrize(
    ("losses", "count"),
    [
        ([], 0),
        ([3, 2, 1], 0),
        ([3, 3], 0),
        ([3, 3, 3], 1),
        ([3, 3, 3, 3], 1),
        ([3, 3, 3, 3, 3], 2),
        ([3, 4, 2, 4, 4, 1], 1),
        ([3, 3 * (1 - 0.5e-4), 3 * (1 - 0.9e-4)], 1),  # too little to be a new low
        ([3, 3 * (1 - 2e-4), 3 * (1 - 4e-4)], 0),
    ],
)
def test_plateaus_are_counted(losses: list[float], count: int) -> None:
    assert plateaus(losses, patience=2) == count
