"""Which candidates of a refit are clearly behind after some folds, and are trained on no more."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cifartune.statistics import ERROR_RATE, Interval, Right, corrected_t, corrected_t_test

FIRST_LOOK = 2
"""Folds after which a candidate may be dropped for the first time: a test needs two values."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Dropped:
    """Why a candidate was dropped.

    Attributes:
        rival: The trial that it is behind, the one of which the test is surest.
        folds: The folds that both had done.
        difference: Its score less the rival's, over folds and seeds, with its 95 % interval.
        p: Of the one-sided test that it is no worse.
        level: What `p` had to be below.
    """

    rival: int
    folds: int
    difference: Interval
    p: float
    level: float

    def as_dict(self) -> dict[str, Any]:
        """All of it by name, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"behind trial {self.rival} after {self.folds} folds (p {self.p:.1g})"


def drop(
    scores: Mapping[int, Right | Floats],
    fold: npt.NDArray[np.integer[Any]],
    *,
    folds: int,
    candidates: int,
) -> dict[int, Dropped]:
    """Finds the candidates that a one-sided corrected resampled t-test says to be behind another.

    The looks after 2, 3, ..., `folds` - 1 folds share the error rate, and so do the rivals
    (Bonferroni): over a whole refit the best candidate is dropped in 5 % of refits at the most,
    however many are as good. The candidate that leads is never dropped.

    The variance of a fold's difference is at the least what the images alone make of it. Else two
    folds with the same difference, by chance, would be proof: of 10,000 images each, one pair of
    equally good candidates in a hundred has them.

    Args:
        scores: Of each candidate that is still in the race, by trial, (S, N): how good the
            prediction for each image is, the higher the better, for each seed. Whether it is right,
            or minus its loss.
        fold: The fold of each image, (N,): the folds that all of them have done.
        folds: How many there will be.
        candidates: How many there were at the start.

    Returns:
        What was found of each that is dropped, by trial.

    Raises:
        ValueError: No look is due after that many folds, or there are more scores than candidates.
    """
    done = np.unique(fold)
    if not FIRST_LOOK <= len(done) < folds:
        raise ValueError(f"nobody is dropped after {len(done)} of {folds} folds")
    if len(scores) > candidates:
        raise ValueError(f"{len(scores)} of {candidates} candidates are still in the race")
    if len(scores) < 2:
        return {}
    level = ERROR_RATE / ((folds - FIRST_LOOK) * (candidates - 1))
    numbers = sorted(scores)
    values = np.stack([np.atleast_2d(scores[number]) for number in numbers]).astype(np.float64)
    means = np.stack([values[:, :, fold == one].mean(2) for one in done], axis=2)
    least = _least_variances(values, means, np.searchsorted(done, fold))
    share, seeds = 1 / folds, values.shape[1]
    overall = means.mean((1, 2))
    found: dict[int, Dropped] = {}
    for own, number in enumerate(numbers):
        behind = []
        for other in np.flatnonzero(overall > overall[own]):
            differences = (means[own] - means[other]).ravel().tolist()
            known = float(least[own, other])
            p = corrected_t_test(differences, share, seeds=seeds, least_variance=known) / 2
            if p < level:
                interval = corrected_t(differences, share, seeds=seeds, least_variance=known)
                behind.append(Dropped(numbers[other], len(done), interval, p, level))
        if behind:
            found[number] = min(behind, key=lambda one: (one.p, one.rival))
    return found


def _least_variances(values: Floats, means: Floats, fold: npt.NDArray[np.int64]) -> Floats:
    """The variance of a fold's difference that follows from that of its images.

    Args:
        values: (C, S, N), of each candidate, seed and image.
        means: (C, S, F), of each fold.
        fold: The place of each image's fold in `means`, (N,).

    Returns:
        For each two candidates, (C, C).
    """
    candidates, seeds, count = values.shape
    folds = means.shape[2]
    rest = (values - means[:, :, fold]).reshape(candidates, -1)
    covariance = rest @ rest.T / (seeds * (count - folds))
    own = covariance.diagonal()
    variances: Floats = (own[:, None] + own - 2 * covariance).clip(min=0) / (count / folds)
    return variances
