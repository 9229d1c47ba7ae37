"""How sure a measured accuracy is, and whether two recipes differ."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
"""Of every interval."""

ERROR_RATE = 1 - CONFIDENCE
"""How often a difference may be told that is none, over all comparisons of an answer together."""

Right = npt.NDArray[np.bool_]
"""Which of some images a model gets right, bool (N,)."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def within(self, least: float, most: float) -> "Interval":
        """The part of the interval in which the value can lie, as an accuracy in [0, 1]."""
        return Interval(self.value, max(least, self.low), min(most, self.high))

    def as_dict(self) -> dict[str, float]:
        """The three numbers by name."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.2%} (95 % interval {self.low:.2%} to {self.high:.2%})"


class Accuracy(Interval):
    """A share of right answers with its 95 % interval, all in [0, 1]."""

    @classmethod
    def of(cls, correct: int, total: int) -> "Accuracy":
        """The accuracy of `correct` among `total` images, with Wilson's interval.

        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
        """
        from scipy.stats import binomtest

        interval = binomtest(correct, total).proportion_ci(CONFIDENCE, method="wilson")
        return cls(correct / total, float(interval.low), float(interval.high))

    @classmethod
    def of_runs(cls, right: Right) -> "Accuracy":
        """The mean accuracy of S training runs on the same images, bool (S, N).

        The interval is as wide as that of one run: more runs are not more images.
        """
        count = right.shape[1]
        one = cls.of(round(float(right.mean()) * count), count)
        return cls(float(right.mean()), one.low, one.high)


def corrected_t(
    values: Sequence[float],
    held_out_share: float,
    *,
    seeds: int = 1,
    least_variance: float = 0.0,
) -> Interval:
    """The mean of accuracies, or of differences, of models that share training images.

    The t interval in which the variance counts (1/n + q/(1-q)) instead of 1/n times, q being the
    share that a fold holds out: folds share training images, so that their results vary less than
    those of training sets drawn anew. Nadeau and Bengio, "Inference for the Generalization Error",
    Machine Learning 52, 2003, equation 9.

    Runs of the same fold with several seeds are of the same images. They add to the n above, but
    the degrees of freedom are those of the folds: with n - 1, ten seeds of five folds would cover
    too little where images decide (simulated, `benchmarks/coverage.py`).

    It is about training again on these images. The luck of having these and no others shows in the
    folds' spread only in part, so that for all training sets the interval is too narrow where that
    luck is as large as that of a run.

    Args:
        values: One a fold, or one a fold and seed.
        held_out_share: The share of all images that each of them was measured on.
        seeds: How many of the values are of each fold.
        least_variance: What the variance of a value cannot be below, where that is known.

    Raises:
        ValueError: They are of fewer than two folds, or of some folds more than of others.
    """
    from scipy.special import stdtrit

    mean, spread = float(np.mean(values)), _deviation(values, held_out_share, seeds, least_variance)
    half = float(stdtrit(len(values) // seeds - 1, (1 + CONFIDENCE) / 2)) * spread
    return Interval(mean, mean - half, mean + half)


def corrected_t_test(
    differences: Sequence[float],
    held_out_share: float,
    *,
    seeds: int = 1,
    least_variance: float = 0.0,
) -> float:
    """The two-sided p-value of the test behind `corrected_t` that the mean difference is 0.

    0 where all differences are the same, as they may be by chance on few images and few folds: then
    `least_variance` or a second test must see to that.
    """
    from scipy.special import stdtr

    spread = _deviation(differences, held_out_share, seeds, least_variance)
    mean = abs(float(np.mean(differences)))
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(len(differences) // seeds - 1, -mean / spread))


def _deviation(
    values: Sequence[float], held_out_share: float, seeds: int, least_variance: float
) -> float:
    """The standard deviation of the mean."""
    count = len(values)
    if count % seeds or count < 2 * seeds:
        raise ValueError(f"{seeds} values of each of two or more folds are needed, got {count}")
    variance = max(float(np.var(values, ddof=1)), least_variance)
    return math.sqrt((1 / count + held_out_share / (1 - held_out_share)) * variance)


@dataclass(frozen=True)
class Paired:
    """Two models on the same images.

    Attributes:
        only_first: Images that only the first gets right.
        only_second: Images that only the second gets right.
        difference: The first's accuracy less the second's, with its interval.
        p: Of McNemar's exact test that both are as good.
    """

    only_first: int
    only_second: int
    difference: Interval
    p: float


def paired(first: Right, second: Right) -> Paired:
    """Compares two models by the images that one of them gets right and the other wrong.

    The test is McNemar's in its exact form (Psychometrika 12, 1947); the interval Bonett and
    Price's adjusted Wald interval (Journal of Educational and Behavioral Statistics 37, 2012).

    Raises:
        ValueError: They are not of the same images, or of none.
    """
    from scipy.special import ndtri
    from scipy.stats import binomtest

    if first.shape != second.shape or not first.size:
        raise ValueError(f"the same images are needed, got {first.shape} and {second.shape}")
    count = first.size
    ahead, behind = int((first & ~second).sum()), int((second & ~first).sum())
    p = float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0
    more, less = (ahead + 1) / (count + 2), (behind + 1) / (count + 2)
    deviation = math.sqrt((more + less - (more - less) ** 2) / (count + 2))
    half = float(ndtri((1 + CONFIDENCE) / 2)) * deviation
    low, high = max(-1.0, more - less - half), min(1.0, more - less + half)
    return Paired(ahead, behind, Interval((ahead - behind) / count, low, high), p)


@dataclass(frozen=True)
class Comparison:
    """What can be said of two recipes.

    Attributes:
        verdict: Of the first: `better`, `worse`, or `cannot be told apart`.
        images: By the images, of the first seed.
        folds: By folds and seeds: the mean difference with its interval; None where the two were
            not trained on the same folds.
        folds_p: The p-value of its test.
    """

    verdict: str
    images: Paired
    folds: Interval | None
    folds_p: float | None

    def as_dict(self) -> dict[str, Any]:
        """All of it by name, for JSON."""
        return asdict(self)


def compare(
    first: Right,
    second: Right,
    folds: npt.NDArray[np.integer[Any]] | None,
    *,
    comparisons: int = 1,
    total_folds: int | None = None,
) -> Comparison:
    """Compares two recipes by the predictions of models that had not seen the images.

    They are told apart only where both tests agree: McNemar's on the images, which knows nothing of
    the luck of a training run, and the corrected resampled t-test on folds and seeds, which does.
    The intervals are each at 95 %, whatever the number of comparisons.

    Args:
        first: bool (S, N): S seeds, or (N,).
        second: The same of the other recipe. Seeds that only one of them has are left out.
        folds: The fold of each image, (N,), where both were trained on these. None: the verdict is
            the images' alone, and one of the models at hand, not of recipes.
        comparisons: How many are made for one answer; each has that share of the error rate. Where
            one was chosen by these images as the best of k, all k(k-1)/2 pairs count.
        total_folds: How many folds there are, where `folds` has only some of them.

    Raises:
        ValueError: They are not of the same images, or of fewer than two folds.
    """
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    seeds = min(len(first), len(second))
    alpha = ERROR_RATE / comparisons
    images = paired(first[0], second[0])
    told, p = None, None
    if folds is not None:
        differences = fold_differences(first[:seeds], second[:seeds], folds)
        share = 1 / (total_folds or len(np.unique(folds)))
        told = corrected_t(differences, share, seeds=seeds)
        p = corrected_t_test(differences, share, seeds=seeds)
    mean = images.difference.value if told is None else told.value
    is_sure = images.p < alpha and (p is None or p < alpha) and mean * images.difference.value > 0
    verdict = ("better" if mean > 0 else "worse") if is_sure else "cannot be told apart"
    return Comparison(verdict, images, told, p)


def fold_differences(
    first: Right, second: Right, folds: npt.NDArray[np.integer[Any]]
) -> list[float]:
    """The differences in accuracy, one for each seed and fold, of two recipes, bool (S, N)."""
    pairs = zip(fold_accuracies(first, folds), fold_accuracies(second, folds), strict=True)
    return [one - other for one, other in pairs]


def fold_accuracies(right: Right, folds: npt.NDArray[np.integer[Any]]) -> list[float]:
    """The accuracies, one for each seed and fold, of a recipe, bool (S, N)."""
    members = [folds == fold for fold in np.unique(folds)]
    return [float(row[own].mean()) for row in np.atleast_2d(right) for own in members]
