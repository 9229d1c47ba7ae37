"""What can be said of the winner against the others, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cifartune.refit.candidates import Candidate, Labels
from cifartune.statistics import ERROR_RATE, Comparison, compare


@dataclass(frozen=True)
class Verdict:
    """The winner against one of the others.

    Attributes:
        rival: The other's trial.
        comparison: What was found; of the winner.
        images: How many images both were judged on: those of the folds that the other has.
        level: What both p-values must be below: the share of the error rate that the pair has.
    """

    rival: int
    comparison: Comparison
    images: int
    level: float

    def as_dict(self) -> dict[str, Any]:
        """What result.json holds of it."""
        told = self.comparison.as_dict()
        about = {"rival": self.rival, "compared_images": self.images, "level": self.level}
        return {**about, **told}


def verdicts(candidates: Sequence[Candidate], labels: Labels) -> list[Verdict]:
    """The winner, the first of `candidates`, against each of the others, by accuracy.

    Also where it was chosen by its loss: it may then be worse.

    The error rate is shared among all pairs: which is the winner's, the same images have decided.
    """
    winner, *others = candidates
    pairs = len(candidates) * len(others) // 2
    right, folds = winner.predictions.right(labels), winner.predictions.fold
    found = []
    for other in others:
        shared = np.isin(winner.predictions.indices, other.predictions.indices)
        comparison = compare(
            right[:, shared],
            other.predictions.right(labels),
            folds[shared],
            comparisons=pairs,
            total_folds=len(np.unique(folds)),
        )
        found.append(Verdict(other.number, comparison, int(shared.sum()), ERROR_RATE / pairs))
    return found
