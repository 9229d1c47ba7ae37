"""Predictions for images by models that never saw them: what all estimates rest on."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cifartune.data.splits import Splits
from cifartune.files import write_atomically
from cifartune.outputs import LOGITS, PLAIN_LOGITS
from cifartune.statistics import Right

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OutOfFold:
    """What a recipe's fold models say of the images that they did not train on.

    Attributes:
        indices: The training images of the refit, int64 (N,), ascending.
        fold: The fold that held each of them out, int8 (N,).
        logits: float32 (S, N, 10), for each seed and image those of the one model that never saw
            it, with the recipe's test-time augmentation.
        plain: The same without test-time augmentation.
    """

    indices: npt.NDArray[np.int64]
    fold: npt.NDArray[np.int8]
    logits: Logits
    plain: Logits

    @classmethod
    def gather(cls, splits: Splits, folders: Sequence[Sequence[Path]]) -> "OutOfFold":
        """Puts together what the jobs left in `folders[seed][fold]`.

        Of the first folds alone, where there are fewer than in `splits`.

        Raises:
            OSError, ValueError: A file cannot be read, or is of other images.
        """
        folds = range(len(folders[0]))
        indices = np.flatnonzero(np.isin(splits.fold, folds))
        return cls(
            indices,
            splits.fold[indices],
            *(
                np.stack([_of_seed(splits, indices, own, name) for own in folders])
                for name in (LOGITS, PLAIN_LOGITS)
            ),
        )

    def save(self, path: Path) -> None:
        """Writes the arrays to an npz file, whole or not at all."""
        buffer = io.BytesIO()
        np.savez(buffer, **vars(self))
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "OutOfFold":
        """Reads what `save` wrote."""
        with np.load(path) as arrays:
            return cls(**arrays)

    def right(self, labels: npt.NDArray[np.uint8], *, plain: bool = False) -> Right:
        """Which images each seed's models get right, bool (S, N).

        Args:
            labels: Of all training images.
            plain: Without test-time augmentation.
        """
        logits = self.plain if plain else self.logits
        right: Right = logits.argmax(2) == labels[self.indices]
        return right

    def losses(self, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """The cross-entropy of each prediction, float64 (S, N)."""
        from scipy.special import log_softmax  # most of a second to import

        logs = log_softmax(self.logits.astype(np.float64), axis=2)
        known = labels[self.indices].astype(np.int64)
        losses: npt.NDArray[np.float64] = -np.take_along_axis(logs, known[None, :, None], 2)[..., 0]
        return losses


def _of_seed(
    splits: Splits, indices: npt.NDArray[np.int64], folders: Sequence[Path], name: str
) -> Logits:
    logits = np.full((len(splits.fold), 10), np.nan, dtype=np.float32)
    for fold, folder in enumerate(folders):
        path = folder / name
        # Without test-time augmentation there is one file for both.
        logits[splits.held_out(fold)[1]] = np.load(path if path.exists() else folder / LOGITS)
    return logits[indices]
