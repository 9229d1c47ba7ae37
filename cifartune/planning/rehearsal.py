"""A search rehearsed without training: the real sampler and scheduler on made-up curves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial
from ray.tune.schedulers import TrialScheduler

from cifartune.config import Choice, Range, Recipe, SearchSpace
from cifartune.seeds import derive_seed
from cifartune.tuning.schedulers import Handle, make_scheduler, tune_metric
from cifartune.tuning.study import SpaceExhausted, TrialStudy

MOST_TRIALS = 64
"""Trials that are rehearsed; of a longer search, the rest is taken to go on as they end."""

TRIALS_IN_ALL = 160
"""Trials over all rehearsals, about: more of them where they are short."""


@dataclass(frozen=True)
class Rehearsed:
    """A trial of a rehearsal: its recipe, the epochs that it got, and whether it was refit."""

    recipe: Recipe
    epochs: int
    is_best: bool


def rehearse(
    space: SearchSpace, *, slots: int = 1, warm_start: Sequence[FrozenTrial] = ()
) -> list[list[Rehearsed]]:
    """Runs the search several times over, each time on other made-up learning curves.

    How good a recipe is depends on its place in the space, so that the sampler has something to
    learn and the scheduler something to stop, as in a real search. Each epoch takes as long as
    any other.

    Args:
        space: The search.
        slots: Trials at a time.
        warm_start: As the search has it.

    Returns:
        For each rehearsal, the trials that it trained.
    """
    trials = min(space.search.num_trials, MOST_TRIALS)
    runs = min(10, max(3, TRIALS_IN_ALL // trials))
    # A Gaussian process takes a second a trial; what it learns, TPE learns about as well.
    sampler = "tpe" if space.search.sampler == "gp" else space.search.sampler
    search = space.search.model_copy(update={"num_trials": trials, "sampler": sampler})
    short = space.model_copy(update={"search": search})
    return [_rehearse(short, slots, warm_start, run) for run in range(runs)]


def _rehearse(
    space: SearchSpace, slots: int, warm_start: Sequence[FrozenTrial], run: int
) -> list[Rehearsed]:
    study = TrialStudy(space, warm_start=warm_start)
    scheduler: Any = make_scheduler(study)
    metric, sign = tune_metric(study), 1 if space.target.mode == "max" else -1
    curves = Curves(space, derive_seed(space.search.seed, "rehearsal", run))
    running: list[tuple[int, Handle]] = []
    while True:
        while len(running) < slots and study.trials_left > 0:
            try:
                number = study.propose().number
            except SpaceExhausted:
                break
            handle = Handle(number)
            scheduler.on_trial_add(None, handle)
            running.append((number, handle))
        if not running:
            break
        number, handle = running.pop(0)
        trial = study.trials[number]
        recipe = study.recipe(trial)
        epoch = len(trial.intermediate_values) + 1
        value = sign * curves.value(number, trial.params, epoch / recipe.epochs)
        result = {"epoch": epoch, metric: value}
        metrics: dict[str, float] = {target.metric: value for target in space.targets}
        if epoch == recipe.last_epoch:
            study.record(number, epoch, value, metrics)
            scheduler.on_trial_complete(None, handle, {**result, "facts/kept_epoch": epoch})
            study.complete(number)
            continue
        decision = scheduler.on_trial_result(None, handle, result)
        study.record(number, epoch, value, metrics)
        if decision == TrialScheduler.CONTINUE:
            running.append((number, handle))
        else:
            scheduler.on_trial_complete(None, handle, result)
            study.prune(number)
    best = {trial.number for trial in study.best(space.refit.top_k)}
    return [
        Rehearsed(study.recipe(trial), len(trial.intermediate_values), trial.number in best)
        for trial in study.trials
        if trial.intermediate_values
    ]


class Curves:
    """Made-up learning curves over a space.

    A recipe's quality falls with the distance of each parameter from a best value, by weights of
    which a few are large; early in a run, and a little to its end, chance hides it.
    """

    EARLY, LATE = 0.3, 0.05
    """The deviation of chance at the start and at the end, in deviations of the quality."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._seed = seed
        self._parameters = space.parameters
        random = np.random.default_rng(seed)
        self._weights = {name: random.exponential() for name in self._parameters}
        self._best = {name: random.random() for name in self._parameters}
        self._effects = {
            name: random.random(len(p.values))
            for name, p in self._parameters.items()
            if isinstance(p, Choice)
        }

    def value(self, number: int, point: Mapping[str, Any], progress: float) -> float:
        """The value of trial `number`, at `point`, after the share `progress` of its epochs."""
        quality = -sum(
            self._weights[name] * self._loss(name, value) for name, value in point.items()
        )
        random = np.random.default_rng(derive_seed(self._seed, number))
        lasting, fleeting = random.standard_normal(), random.standard_normal(1000)
        spread = math.sqrt(sum(w**2 for w in self._weights.values()) / 12) or 1.0
        early = self.EARLY * (1 - progress) * lasting
        return float(quality + spread * (early + self.LATE * fleeting[int(progress * 999)]))

    def _loss(self, name: str, value: Any) -> float:
        """From 0, the best, to 1."""
        parameter = self._parameters[name]
        if isinstance(parameter, Choice):
            return float(self._effects[name][parameter.values.index(value)])
        return min(1.0, abs(_share(parameter, value) - self._best[name]) * 2) ** 2


def _share(parameter: Range, value: float) -> float:
    """Where `value` lies between the bounds, from 0 to 1."""
    if parameter.log:
        return math.log(value / parameter.min) / math.log(parameter.max / parameter.min)
    return (value - parameter.min) / (parameter.max - parameter.min)
