"""What a model says of pictures in files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cifartune.data import CLASSES
from cifartune.errors import UserError
from cifartune.named_models import NamedModel
from cifartune.pictures import Picture, read_picture

BATCH = 1000
"""Pictures that are in memory at a time."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of a picture.

    Attributes:
        picture: The picture.
        probabilities: Of each class of `CLASSES`, float64 (10,), which sum to 1.
    """

    picture: Picture
    probabilities: npt.NDArray[np.float64] = field(repr=False, compare=False)

    def best(self, count: int) -> list[tuple[str, float]]:
        """The likeliest classes, each with its probability, the likeliest first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(CLASSES[label], float(self.probabilities[label])) for label in order]

    def as_dict(self, count: int) -> dict[str, Any]:
        """It by name, for JSON, with its likeliest classes."""
        best = self.best(count)
        return {
            "image": str(self.picture.path),
            "width": self.picture.width,
            "height": self.picture.height,
            "class": best[0][0],
            "probability": best[0][1],
            "best": [{"class": name, "probability": share} for name, share in best],
        }


@dataclass(frozen=True)
class Unreadable:
    """A file that is no picture, and why."""

    path: Path
    reason: str


def classify(named: NamedModel, paths: Sequence[Path]) -> Iterator[Prediction | Unreadable]:
    """Predicts the class of each picture, in the order of `paths`, some at a time.

    Where the model's temperature is known, its probabilities are scaled by it. It changes how sure
    a prediction is, and no class.
    """
    for start in range(0, len(paths), BATCH):
        read = [_read(path) for path in paths[start : start + BATCH]]
        pictures = [one for one in read if isinstance(one, Picture)]
        pixels = [picture.pixels for picture in pictures]
        raw = named.model.predict(np.stack(pixels)) if pixels else ()
        for one in read:
            if isinstance(one, Unreadable):
                yield one
        for picture, probabilities in zip(pictures, raw, strict=True):
            yield Prediction(picture, scaled(probabilities, named.temperature))


def scaled(
    probabilities: npt.NDArray[np.floating[Any]], temperature: float | None
) -> npt.NDArray[np.float64]:
    """Probabilities (..., C) whose logarithms are divided by `temperature`; None: as they are."""
    from scipy.special import softmax

    tiny = np.finfo(np.float32).tiny  # where all networks say 0
    logs = np.log(probabilities.astype(np.float64) + tiny)
    found: npt.NDArray[np.float64] = softmax(logs / (temperature or 1.0), axis=-1)
    return found


def _read(path: Path) -> Picture | Unreadable:
    try:
        return read_picture(path)
    except UserError as error:
        return Unreadable(path, str(error))
