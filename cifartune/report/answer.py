"""The answer of a search in lines: what is estimated of the winner, and what is sure."""

from collections.abc import Iterator
from typing import Any

from cifartune.statistics import Interval

MODELS = {"folds": "fold ensemble", "all_images": "all images", "snapshots": "snapshots"}
"""What the final models are called."""

SMALLEST_P = 0.0001
"""A p value below it is not told apart from smaller ones."""


def verdict_lines(result: dict[str, Any]) -> Iterator[str]:
    """The winner against the baseline and the next best, in words.

    Args:
        result: What result.json holds.
    """
    winner, verdicts = result["winner_trial"], result["verdicts"]
    refits = len(result["candidates"])
    if not winner and refits == 1:
        yield "The baseline alone was refit: it is held against nothing."
    elif not winner:
        yield f"The baseline won among the {refits} recipes that were refit."
    elif 0 in result["failed_refits"]:
        yield "Not held against the baseline, whose refit failed."
    elif all(verdict["rival"] for verdict in verdicts):
        yield "Not held against the baseline, which was not refit."
    of_baseline = [verdict for verdict in verdicts if winner and not verdict["rival"]]
    others = [verdict for verdict in verdicts if verdict not in of_baseline]
    losses = {one["trial"]: one["cv_loss"] for one in result["candidates"]}
    is_by_loss = "loss" in result["objective"]["metric"]
    if is_by_loss:
        yield f"Chosen by out-of-fold loss, {losses[winner]:.4f}; the verdicts are on accuracy."
    for verdict in [*of_baseline, *others[:1]]:
        rival = verdict["rival"]
        name = f"trial {rival}" if rival else "the baseline"
        told = {"better": "Better than", "worse": "Worse than"}
        words = told.get(verdict["verdict"], "Cannot be told apart from")
        by = verdict["folds"]
        yield (
            f"{words} {name}: {_points(by['value'])} points "
            f"({_points(by['low'])} to {_points(by['high'])})"
        )
        yield (
            f"  p {_p(verdict['folds_p'])} on folds, {_p(verdict['images']['p'])} on "
            f"{verdict['compared_images']:,} images; both must be below {verdict['level']:.2g}"
        )
        if is_by_loss:
            yield f"  its loss {losses[rival]:.4f}, on {verdict['compared_images']:,} images"


def accuracy_lines(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was estimated of the winner, from the most hopeful to the most honest: label, text.

    Args:
        result: What result.json holds.
    """
    told = f"{percent(result['validation_accuracy'])}, one view, by the images that chose it"
    yield "validation", f"{told}; baseline {percent(result['baseline_validation_accuracy'])}"
    kept, refit = result["validation_epoch"], result["refit_epoch"]
    if kept != refit:
        yield "", f"of epoch {kept}; each fold below had up to {refit} epochs"
    if chosen := result["cv_accuracy_of_validation_images"]:
        yield "", f"{percent(chosen['value'])}, one view, the same images out of fold"
    yield f"{result['folds']}-fold CV", f"{result['images']:,} images, {views(result)}"
    yield "  images", f"{_interval(result['cv_accuracy'])}: these models"
    yield "  folds", f"{_interval(result['cv_accuracy_by_folds'])}: the recipe"
    if unchosen := result["cv_accuracy_of_images_that_chose_nothing"]:
        yield "  others", f"{_interval(unchosen)}: outside validation"
    if result["snapshot_cv_accuracy"]:
        yield "  snapshots", f"{_interval(result['snapshot_cv_accuracy'])}: all cycles' ends"
    if not result["test_accuracy"]:
        yield "test", f"not looked at; look: cifartune evaluate {result['name']}"
        return
    label = "test" if result["test_set"] == "CIFAR-10 test" else "stand-in"
    yield label, f"{_interval(result['test_accuracy'])}: fold ensemble,"
    yield "", views(result)


def views(result: dict[str, Any]) -> str:
    """Whether the views of an image are averaged for its prediction, and which."""
    tta = result["test_time_augmentation"]
    return "one view" if tta == "none" else f"test-time augmentation: {tta}"


def percent(value: float | None) -> str:
    """A share for people."""
    return "unknown" if value is None else f"{value:.2%}"


def _interval(accuracy: dict[str, float]) -> str:
    return str(Interval(**accuracy))


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def _p(value: float) -> str:
    """A p value; of thousands of images it may be too small for a number of the machine."""
    return f"{value:.2g}" if value >= SMALLEST_P else f"below {SMALLEST_P}"
