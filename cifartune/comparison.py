"""Recipes of finished searches beside each other: on the same images, pair by pair."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from cifartune.data.splits import Splits
from cifartune.entries import Entry
from cifartune.errors import UserError, first_line
from cifartune.statistics import Accuracy, Comparison, Right
from cifartune.statistics import compare as compare_pair

UNREADABLE = (OSError, ValueError, TypeError, LookupError, EOFError, BadZipFile)
"""What numpy and json raise where a file is damaged."""


NO_VERDICT = "no verdict"
"""What is said of two on images that chose between trials."""


@dataclass(frozen=True)
class Pair:
    """Two of the entries, by their places: what can be said of `entry` against `other`."""

    entry: int
    other: int
    comparison: Comparison


@dataclass(frozen=True)
class Compared:
    """All that was found.

    Attributes:
        entries: The best first.
        accuracies: Of each, on the images.
        pairs: Each entry with each that is better, the best first.
        right: bool (S, N) of each: which of the images its models get right, seed by seed.
        labels: Of the images, (N,).
        comparisons: Among how many the error rate is shared: a search's winner counts once for each
            of the refits that it was chosen from.
        on_validation: Whether the images are validation images, on which trials are chosen. Then
            there are differences and intervals, and no verdicts.
        notes: What must be known to read the result, in sentences.
    """

    entries: list[Entry]
    accuracies: list[Accuracy]
    pairs: list[Pair]
    right: list[Right]
    labels: npt.NDArray[np.uint8]
    comparisons: int
    on_validation: bool
    notes: list[str]


def compare(entries: Sequence[Entry], labels: npt.NDArray[np.uint8]) -> Compared:
    """Compares all pairs on the images that all entries' models had not seen.

    Refits are compared by their out-of-fold predictions, with test-time augmentation as their
    recipes have it. Where a trial that was not refit is among them, all are compared on validation
    images and without it, and none is called better: the best of many equal trials would often be
    called better than the baseline by the images that chose it (`benchmarks/coverage.py`).

    Args:
        entries: Two or more.
        labels: Of all training images.

    Raises:
        UserError: A file cannot be read, or there is no image that all have in common.
    """
    on_validation = not all(entry.was_refit for entry in entries)
    answers = [_answers(entry, labels, plain=on_validation) for entry in entries]
    images = reduce(np.intersect1d, [own.images for own in answers])
    if not len(images):
        names = " and ".join(entry.name for entry in entries)
        raise UserError(
            f"compare: {names} have no images in common; searches with the same search.seed and "
            "data have"
        )
    seeds = min(len(own.right) for own in answers)
    right = [own.on(images, seeds) for own in answers]
    accuracies = [Accuracy.of_runs(own) for own in right]
    order = sorted(range(len(entries)), key=lambda place: -accuracies[place].value)
    comparisons = sum(first.rivals * second.rivals for first, second in combinations(entries, 2))
    compared = []
    for other, entry in combinations(range(len(entries)), 2):
        a, b = order[entry], order[other]
        comparison = compare_pair(
            right[a],
            right[b],
            _common_folds(answers[a], answers[b], images),
            comparisons=comparisons,
            total_folds=answers[a].folds,
        )
        if on_validation:
            comparison = replace(comparison, verdict=NO_VERDICT)
        compared.append(Pair(entry, other, comparison))
    notes = _notes(entries, answers, len(images), seeds, on_validation)
    if not on_validation and any(pair.comparison.folds is None for pair in compared):
        notes.append(
            "Where two were not trained on the same folds, the verdict is by the images alone: it "
            "knows nothing of the luck of a training run."
        )
    return Compared(
        entries=[entries[place] for place in order],
        accuracies=[accuracies[place] for place in order],
        pairs=compared,
        right=[right[place] for place in order],
        labels=labels[images],
        comparisons=comparisons,
        on_validation=on_validation,
        notes=notes,
    )


@dataclass(frozen=True)
class _Answers:
    """What an entry's models answer.

    Attributes:
        images: Which training images, ascending, int64 (N,).
        right: bool (S, N).
        fold: The fold of every training image; None where there are no folds.
    """

    images: npt.NDArray[np.int64]
    right: Right
    fold: npt.NDArray[np.int8] | None

    @property
    def folds(self) -> int | None:
        """How many folds there are."""
        return None if self.fold is None else int(self.fold.max()) + 1

    def on(self, images: npt.NDArray[np.int64], seeds: int) -> Right:
        """Of some of the images, and of the first seeds, bool (seeds, M)."""
        return self.right[:seeds, np.searchsorted(self.images, images)]


def _answers(entry: Entry, labels: npt.NDArray[np.uint8], *, plain: bool) -> _Answers:
    """Of the refit where there is one, else of the trial; plain: no test-time augmentation."""
    run, path = entry.run, entry.logits
    try:
        splits = Splits.load(run.splits)
        if entry.was_refit:
            from cifartune.refit.out_of_fold import OutOfFold

            path = run.out_of_fold(entry.trial)
            predictions = OutOfFold.load(path)
            right = predictions.right(labels, plain=plain)
            return _Answers(predictions.indices, right, splits.fold)
        logits = np.load(path)
        if logits.shape != (len(splits.validation), 10):
            raise ValueError(f"has the shape {logits.shape}, for {len(splits.validation)} images")
        own = logits.argmax(1) == labels[splits.validation]
        return _Answers(splits.validation, own[None], None)
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from None


def _common_folds(
    first: _Answers, second: _Answers, images: npt.NDArray[np.int64]
) -> npt.NDArray[np.int8] | None:
    """The fold of each image, where both were trained on the same ones and two are among them."""
    if first.fold is None or second.fold is None or not np.array_equal(first.fold, second.fold):
        return None
    folds = first.fold[images]
    return folds if len(np.unique(folds)) > 1 else None


def _notes(
    entries: Sequence[Entry],
    answers: Sequence[_Answers],
    count: int,
    seeds: int,
    on_validation: bool,
) -> list[str]:
    notes = []
    if on_validation:
        trials = ", ".join(entry.name for entry in entries if not entry.was_refit)
        notes.append(
            f"Not refit: {trials}. So all are compared on validation images, and there is no "
            "verdict: a trial is a single training run, and these images chose among trials, so "
            "that what was chosen looks better there than it is."
        )
    if on_validation and any(entry.was_refit for entry in entries):
        notes.append(
            "For a refit its fold models answer, which trained on other images than the trial."
        )
    larger = [
        f"{entry.name} has {len(own.images):,}"
        for entry, own in zip(entries, answers, strict=True)
        if len(own.images) > count and not (on_validation and entry.was_refit)
    ]
    if larger:
        told = ", ".join(larger)
        notes.append(f"Only the {count:,} images count that all have in common; {told}.")
    if any(len(own.right) > seeds for own in answers):
        some = "first seed of each counts" if seeds == 1 else f"first {seeds} seeds of each count"
        notes.append(f"Only the {some}, since one has no more.")
    if seeds > 1:
        notes.append(f"By images, the first of {seeds} seeds is compared; by folds, all are.")
    return notes
