"""Which images train, validate, and stand in for the test set. Nothing else hands out indices."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    """Stratified, seeded indices into the 50,000 training images; they never touch the test set.

    Attributes:
        train: Training images of every trial.
        validation: Validation images of every trial; disjoint from `train`.
        fold: int8 (N,), the fold in which each image is held out by the refit; -1: not used.
        stand_in: Images that stand in for the test set in a smoke run, disjoint from all others.
    """

    train: Indices
    validation: Indices
    fold: npt.NDArray[np.int8]
    stand_in: Indices

    def held_out(self, fold: int) -> tuple[Indices, Indices]:
        """The training images of `fold`, and the images that it holds out."""
        return (
            np.flatnonzero((self.fold != fold) & (self.fold >= 0)),
            np.flatnonzero(self.fold == fold),
        )

    def save(self, path: Path) -> None:
        """Writes the indices to an npz file."""
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "Splits":
        """Reads what `save` wrote."""
        with np.load(path) as arrays:
            return cls(**arrays)


def make_splits(
    labels: npt.NDArray[np.uint8],
    *,
    validation: int,
    train_subset: int | None,
    folds: int,
    seed: int,
    stand_in: int = 0,
) -> Splits:
    """Draws all splits of a search.

    Args:
        labels: The labels of all training images, (N,).
        validation: The number of validation images.
        train_subset: The number of training images of a trial; None: all that are left.
        folds: The number of folds of the refit.
        seed: Seeds every draw.
        stand_in: The number of images that stand in for the test set. Where it is above 0, the
            refit sees only the images that the search saw; else all of them.
    """
    everything = np.arange(len(labels))
    rest, stand_in_indices = _take(everything, labels, stand_in, seed)
    rest, held_out = _take(rest, labels, validation, seed)
    _, train = _take(rest, labels, train_subset or len(rest), seed)
    pool = np.union1d(train, held_out) if stand_in else everything
    fold = np.full(len(labels), -1, dtype=np.int8)
    fold[pool] = _folds(labels[pool], folds, seed)
    return Splits(train, held_out, fold, stand_in_indices)


def _take(
    indices: Indices, labels: npt.NDArray[np.uint8], count: int, seed: int
) -> tuple[Indices, Indices]:
    """Splits `indices` into the rest and `count` of them, stratified by label; both sorted."""
    from sklearn.model_selection import train_test_split  # a second to import

    if count in (0, len(indices)):
        none = indices[:0]
        return (none, indices) if count else (indices, none)
    rest, taken = train_test_split(
        indices, test_size=count, stratify=labels[indices], random_state=seed
    )
    return np.sort(rest), np.sort(taken)


def _folds(labels: npt.NDArray[np.uint8], folds: int, seed: int) -> npt.NDArray[np.int8]:
    from sklearn.model_selection import StratifiedKFold

    fold = np.empty(len(labels), dtype=np.int8)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(splitter.split(np.zeros(len(labels)), labels)):
        fold[held_out] = number
    return fold
