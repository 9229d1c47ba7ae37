"""Which images train, validate, and stand in for the test set. Nothing else hands out indices."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from cifartune.errors import UserError, first_line
from cifartune.files import write_atomically

if TYPE_CHECKING:
    from cifartune.config import SearchSpace

Indices = npt.NDArray[np.int64]

ALL_IMAGES = -2
"""In place of a fold: every image of the refit trains, and none is held out."""


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

    @property
    def folds(self) -> int:
        """How many folds there are."""
        return int(self.fold.max()) + 1

    def held_out(self, fold: int) -> tuple[Indices, Indices]:
        """The training images of `fold`, and the images that it holds out."""
        return (
            np.flatnonzero((self.fold != fold) & (self.fold >= 0)),
            np.flatnonzero(self.fold == fold),
        )

    def of_run(self, fold: int | None) -> tuple[Indices, Indices]:
        """The training images of a run, and those that it is validated on.

        Of a fold, of the whole refit for `ALL_IMAGES`, of a trial for None.
        """
        if fold is None:
            return self.train, self.validation
        if fold == ALL_IMAGES:
            return np.flatnonzero(self.fold >= 0), np.empty(0, dtype=np.int64)
        return self.held_out(fold)

    def save(self, path: Path) -> None:
        """Writes the indices to an npz file."""
        buffer = io.BytesIO()
        np.savez(buffer, **vars(self))
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Splits":
        """Reads what `save` wrote.

        Raises:
            UserError: It is missing or damaged.
        """
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return cls(**arrays)
        except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
            # What numpy says of a file that is none of its own would mislead.
            why = first_line(error) if isinstance(error, OSError) else "it is damaged"
            raise UserError(
                f"{path}: cannot be read: {why}; remove it, and a search that is resumed draws the "
                "same splits again"
            ) from None


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

    They depend on the arguments alone, not on the version of a library. With the same seed,
    a smaller `train_subset` is a part of a larger one.

    Args:
        labels: The labels of all training images, (N,).
        validation: The number of validation images.
        train_subset: The number of training images of a trial; None: all that are left.
        folds: The number of folds of the refit.
        seed: Seeds every draw.
        stand_in: The number of images that stand in for the test set. Where it is above 0, the
            refit sees only the images that the search saw; else all of them.

    Raises:
        ValueError: There are fewer images than asked for.
    """
    count = len(labels)
    start = stand_in + validation
    end = count if train_subset is None else start + train_subset
    if not start < end <= count:
        raise ValueError(f"{start} and {train_subset} images cannot be taken from {count}")
    order = _stratified_order(labels, np.random.default_rng([seed, 0]))
    used = np.sort(order[stand_in:end]) if stand_in else np.arange(count)
    fold = np.full(count, -1, dtype=np.int8)
    # Dealt out like cards: each fold gets every folds-th image of every class.
    ranks = _ranks_in_class(labels[used], np.random.default_rng([seed, 1]))
    fold[used] = (ranks + labels[used]) % folds
    return Splits(
        train=np.sort(order[start:end]),
        validation=np.sort(order[stand_in:start]),
        fold=fold,
        stand_in=np.sort(order[:stand_in]),
    )


def _stratified_order(labels: npt.NDArray[np.uint8], random: np.random.Generator) -> Indices:
    """All indices in a random order in which every stretch holds the classes in proportion."""
    sizes = np.bincount(labels)
    share = (_ranks_in_class(labels, random) + 0.5) / sizes[labels]
    return np.lexsort([random.random(len(labels)), share])


def _ranks_in_class(labels: npt.NDArray[np.uint8], random: np.random.Generator) -> Indices:
    """The place of each image among those of its class, from 0, in a random order."""
    ranks = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranks[members] = random.permutation(len(members))
    return ranks


def splits_of(space: "SearchSpace", labels: npt.NDArray[np.uint8]) -> Splits:
    """The splits that a search of `space` draws."""
    return make_splits(
        labels,
        validation=space.data.validation,
        train_subset=space.data.train_subset,
        folds=space.refit.folds,
        seed=space.search.seed,
        stand_in=space.stand_in,
    )
