"""Cross-validations that only pretend to train, to see how often our statistics err.

Images are easy, and then all get them right, or hard, and then it is a matter of chance: for each
recipe and image a chance of its own. Models differ by the luck of their training, and by that of
their training images, of which two folds share most.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cifartune.refit.race import FIRST_LOOK, drop
from cifartune.statistics import (
    Accuracy,
    Right,
    compare,
    corrected_t,
    fold_accuracies,
    fold_differences,
)

Folds = npt.NDArray[np.int8]

FOLDS = 5
"""What a refit has if nothing else is asked for."""


@dataclass(frozen=True)
class World:
    """How cross-validations come out.

    Attributes:
        accuracies: The true one of each recipe: over all images, training sets and runs.
        training: Standard deviation of accuracy from run to run of a recipe.
        data: Standard deviation of accuracy over training sets, of which two folds share three
            quarters.
        leaning: How far a recipe's chance to get a hard image right is from that of others: 0, if
            recipes differ by luck alone.
        images: In all folds together.
        seeds: Runs of each fold.
    """

    accuracies: Sequence[float]
    training: float = 0.003
    data: float = 0.001
    leaning: float = 0.2
    images: int = 50_000
    seeds: int = 1

    def draws(self, count: int, seed: int) -> Iterator[tuple[Right, Folds]]:
        """Which images are right, bool (C, S, N), and the fold of each, (N,), `count` times."""
        for number in range(count):
            yield self._draw(np.random.default_rng([seed, number]))

    def _draw(self, random: np.random.Generator) -> tuple[Right, Folds]:
        accuracies = np.array(self.accuracies)[:, None, None]
        shape = (len(self.accuracies), self.seeds, FOLDS)
        is_hard = 2 * (1 - float(accuracies.mean()))
        luck = self._luck_of_images(random) + self.training * random.standard_normal(shape)
        chance = 1 - (1 - accuracies - luck) / is_hard

        fold = (np.arange(self.images) * FOLDS // self.images).astype(np.int8)
        hard = np.flatnonzero(random.random(self.images) < is_hard)
        leaning = self.leaning * random.choice([-1, 1], (len(self.accuracies), 1, len(hard)))
        right = np.ones((*shape[:2], self.images), dtype=np.bool_)
        drawn = random.random((*shape[:2], len(hard)), dtype=np.float32)
        right[:, :, hard] = drawn < chance[:, :, fold[hard]] + leaning
        return right, fold

    def given_images(self, count: int, seed: int) -> Iterator[npt.NDArray[np.float64]]:
        """For each of the draws, the accuracies (C,) over training runs on its training images."""
        for number in range(count):
            luck = self._luck_of_images(np.random.default_rng([seed, number]))
            yield np.array(self.accuracies) + luck.mean((1, 2))

    def _luck_of_images(self, random: np.random.Generator) -> npt.NDArray[np.float64]:
        """What the training images of each fold do to its accuracy, (C, 1, F)."""
        # What the images of a fold are worth for training: its model goes without them.
        worth = random.standard_normal((len(self.accuracies), 1, FOLDS))
        rest = (worth.sum(2, keepdims=True) - worth) / np.sqrt(FOLDS - 1)
        luck: npt.NDArray[np.float64] = self.data * rest
        return luck


def wilson_coverage(accuracy: float, images: int) -> float:
    """How often `Accuracy.of` holds the truth: not drawn, but summed over all counts."""
    from scipy.stats import binom

    low, high = binom.ppf([1e-9, 1 - 1e-9], images, accuracy).astype(int)
    counts = np.arange(low, high + 1)
    found = [Accuracy.of(int(count), images) for count in counts]
    covers = np.array([one.low <= accuracy <= one.high for one in found])
    return float(binom.pmf(counts, images, accuracy) @ covers)


def accuracy_coverage(world: World, count: int, seed: int = 0) -> dict[str, float]:
    """How often the intervals of the first recipe's accuracy hold its true one.

    Returns:
        `folds`: of the corrected resampled t, the accuracy over all training sets; `folds, these
        images`: that over training runs on these images; `pooled`: of Wilson's, which knows of
        images alone, the accuracy over all training sets.
    """
    truth = world.accuracies[0]
    covers: dict[str, list[bool]] = {"folds": [], "folds, these images": [], "pooled": []}
    draws = zip(world.draws(count, seed), world.given_images(count, seed), strict=True)
    for (right, fold), given in draws:
        values = fold_accuracies(right[0], fold)
        by_folds = corrected_t(values, 1 / FOLDS, seeds=world.seeds)
        pooled = Accuracy.of_runs(right[0])
        covers["folds"].append(by_folds.low <= truth <= by_folds.high)
        covers["folds, these images"].append(by_folds.low <= given[0] <= by_folds.high)
        covers["pooled"].append(pooled.low <= truth <= pooled.high)
    return {name: float(np.mean(found)) for name, found in covers.items()}


def difference_coverage(world: World, count: int, seed: int = 0) -> dict[str, float]:
    """How often the corrected resampled t interval holds the true difference of two recipes.

    Returns:
        `folds`: with the degrees of freedom of the folds, as `compare` does it; `folds and seeds`:
        with those of all runs, as it must not be done.
    """
    truth = world.accuracies[0] - world.accuracies[1]
    covers: dict[str, list[bool]] = {"folds": [], "folds and seeds": []}
    for right, fold in world.draws(count, seed):
        values = fold_differences(right[0], right[1], fold)
        for name, seeds in (("folds", world.seeds), ("folds and seeds", 1)):
            found = corrected_t(values, 1 / FOLDS, seeds=seeds)
            covers[name].append(found.low <= truth <= found.high)
    return {name: float(np.mean(found)) for name, found in covers.items()}


def verdicts(world: World, count: int, seed: int = 0) -> dict[str, float]:
    """How often the first of two recipes is called `better`, `worse`, or neither."""
    found = [compare(right[0], right[1], fold).verdict for right, fold in world.draws(count, seed)]
    return {verdict: found.count(verdict) / count for verdict in sorted(set(found))}


def winners(world: World, count: int, comparisons: int, seed: int = 0) -> dict[str, float]:
    """How often the best recipe is called better than the first, the baseline, and than the next.

    Args:
        world: Its recipes are as good, so that each such verdict is an error.
        count: How many cross-validations.
        comparisons: What `compare` is told of their number.
        seed: Of the draws.

    Returns:
        `any`: how often it is called better than at least one of the two.
    """
    better: dict[str, list[bool]] = {"baseline": [], "runner-up": [], "any": []}
    for right, fold in world.draws(count, seed):
        best, second = np.argsort(-right.mean((1, 2)), kind="stable")[:2]
        told = {}
        for name, other in (("baseline", 0), ("runner-up", second)):
            found = compare(right[best], right[other], fold, comparisons=comparisons)
            told[name] = found.verdict == "better"
        for name, is_better in {**told, "any": any(told.values())}.items():
            better[name].append(is_better)
    return {name: float(np.mean(found)) for name, found in better.items()}


def race_outcomes(world: World, count: int, of: int, seed: int = 0) -> dict[str, float]:
    """How often a candidate is dropped, and how often after three folds at the latest.

    Args:
        world: Its recipes are the candidates.
        count: How many refits.
        of: Which candidate.
        seed: Of the draws.
    """
    folds = [out.get(of, FOLDS) for out in races(world, count, seed)]
    return {
        "dropped": sum(done < FOLDS for done in folds) / count,
        "dropped_by_fold_3": sum(done <= 3 for done in folds) / count,
    }


def races(world: World, count: int, seed: int = 0) -> list[dict[int, int]]:
    """Refits whose candidates are dropped as `refit` does it.

    Returns:
        Of each, who was dropped, and after how many folds.
    """
    return [race(right, fold) for right, fold in world.draws(count, seed)]


def race(right: Right, fold: Folds) -> dict[int, int]:
    """One of them; of bool (C, S, N)."""
    out: dict[int, int] = {}
    for done in range(FIRST_LOOK, FOLDS):
        seen = fold < done
        scores: dict[int, Any] = {
            number: own[:, seen] for number, own in enumerate(right) if number not in out
        }
        found = drop(scores, fold[seen], folds=FOLDS, candidates=len(right))
        out |= dict.fromkeys(found, done)
    return out


def refits(world: World, count: int, seed: int = 0) -> dict[str, float]:
    """How often a winner is called better, where race and verdicts follow each other.

    Args:
        world: Its recipes are the candidates; the first is the baseline.
        count: How many refits.
        seed: Of the draws.

    Returns:
        `baseline`: how often the winner is called better than the baseline, where that is not the
        winner; `any`: than one of the others; `dropped`: how often somebody was dropped. Where all
        are as good, the first two are errors.
    """
    found: dict[str, list[bool]] = {"baseline": [], "any": [], "dropped": []}
    for right, fold in world.draws(count, seed):
        out, pairs = race(right, fold), len(right) * (len(right) - 1) // 2
        left = [number for number in range(len(right)) if number not in out]
        best = max(left, key=lambda number: right[number].mean())
        told = {}
        for other in range(len(right)):
            if other == best:
                continue
            seen = fold < out.get(other, FOLDS)
            own, others = right[best][:, seen], right[other][:, seen]
            compared = compare(own, others, fold[seen], comparisons=pairs, total_folds=FOLDS)
            told[other] = compared.verdict == "better"
        found["baseline"].append(told.get(0, False))
        found["any"].append(any(told.values()))
        found["dropped"].append(bool(out))
    return {name: float(np.mean(each)) for name, each in found.items()}


def chosen_trials(world: World, count: int, seed: int = 0) -> dict[str, float]:
    """How often the best of many trials would be called better than the first, by images alone.

    By McNemar's test on the images that chose it, of single runs: what `compare` does not do.
    """
    better = []
    for right, _ in world.draws(count, seed):
        best = int(right.mean((1, 2)).argmax())
        better.append(compare(right[best], right[0], None).verdict == "better")
    return {"better": float(np.mean(better))}
