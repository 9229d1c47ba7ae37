"""How far the confidence of predictions can be believed, and the temperature that mends it."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 15
"""Of equal width, of confidence: what Guo et al. use."""

TEMPERATURES = (1e-2, 1e2)
"""Between these the best is looked for: where all images are right, there would be none."""

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Calibration:
    """Predictions before and after temperature scaling.

    Attributes:
        temperature: What logits are divided by.
        log_loss: Mean cross-entropy as predicted, in nats.
        error: Calibration error as predicted.
        scaled_log_loss: Mean cross-entropy after scaling.
        scaled_error: Calibration error after scaling.
    """

    temperature: float
    log_loss: float
    error: float
    scaled_log_loss: float
    scaled_error: float

    def as_dict(self) -> dict[str, float]:
        """All of it by name, for JSON."""
        return asdict(self)

    @classmethod
    def at(cls, temperature: float, logits: Floats, labels: Labels) -> "Calibration":
        """Of predictions for images that had no part in finding `temperature`.

        Args:
            temperature: What the logits are divided by.
            logits: (N, C), or the logarithms of probabilities.
            labels: (N,).
        """
        return cls(
            temperature, *_measures(logits, labels), *_measures(logits / temperature, labels)
        )

    @classmethod
    def out_of_fold(
        cls, logits: Floats, labels: Labels, fold: npt.NDArray[np.integer[Any]]
    ) -> "Calibration":
        """Of out-of-fold predictions; those of a fold are scaled as the other folds want it.

        Args:
            logits: (N, C), each image's from the model that never saw it.
            labels: (N,).
            fold: The fold of each image, (N,), of two or more.

        Returns:
            With the temperature of all images together, for models that are to be used.

        Raises:
            ValueError: There is one fold only, or a logit is not finite.
        """
        folds = np.unique(fold)
        if len(folds) < 2:
            raise ValueError("two folds are needed at the least")
        scaled = np.array(logits, dtype=np.float64)
        for one in folds:
            held_out = fold == one
            scaled[held_out] /= fit_temperature(logits[~held_out], labels[~held_out])
        temperature = fit_temperature(logits, labels)
        return cls(temperature, *_measures(logits, labels), *_measures(scaled, labels))


def calibration_error(probabilities: Floats, labels: Labels, bins: int = BINS) -> float:
    """The expected calibration error of Guo et al., 2017, https://arxiv.org/abs/1706.04599.

    Images are put into bins of equal width by the probability of the class that is told; in each,
    the share of right answers is held against the mean of these probabilities, and what they are
    apart is averaged over images. 0 is best, 1 the worst there is.

    Args:
        probabilities: (N, C), rows that sum to 1.
        labels: (N,).
        bins: How many; each has its upper end.

    Raises:
        ValueError: There are no images.
    """
    if not len(probabilities):
        raise ValueError("one image is needed at the least")
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    apart = np.bincount(bins_of(confidence, bins), right - confidence)
    return float(np.abs(apart).sum() / len(confidence))


def bins_of(confidence: Floats, bins: int = BINS) -> npt.NDArray[np.int64]:
    """The bin of equal width of each confidence in [0, 1], from 0, (N,)."""
    return np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """The T for which logits / T have the least mean cross-entropy; no class that is told changes.

    Guo et al., 2017, section 4.2. The cross-entropy is convex in 1/T, so that it has one lowest
    place. T is between 0.01 and 100.

    Args:
        logits: (N, C); computed in float64 whatever they are.
        labels: (N,).

    Raises:
        ValueError: There are no images, or a logit is not finite.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    if not len(logits) or not np.isfinite(logits).all():
        raise ValueError("finite logits of one image are needed at the least")
    # How far each logit is above that of the true class: then the cross-entropy is one sum.
    rest = logits.astype(np.float64)
    rest -= np.take_along_axis(rest, labels[:, None].astype(np.int64), axis=1)

    def loss(log_temperature: float) -> float:
        return float(logsumexp(rest / np.exp(log_temperature), axis=1).mean())

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def _measures(logits: Floats, labels: Labels) -> tuple[float, float]:
    """Mean cross-entropy and calibration error."""
    from scipy.special import log_softmax

    logs = log_softmax(logits.astype(np.float64), axis=1)
    loss = -np.take_along_axis(logs, labels[:, None].astype(np.int64), axis=1).mean()
    return float(loss), calibration_error(np.exp(logs), labels)
