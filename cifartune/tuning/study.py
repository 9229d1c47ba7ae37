"""The search's record and its proposals: an Optuna study, written before anything acts on it."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cifartune.config import Choice, Range, Recipe, SearchSpace
from cifartune.config.recipe import recipe_fields
from cifartune.seeds import derive_seed

# The study's own methods draw parameters one transaction at a time; the storage's do it in one.
optuna.logging.set_verbosity(optuna.logging.WARNING)

FAILURE_CONSTRAINT = "failed"
"""The constraint that a trial breaks whose recipe fails: above 0 means infeasible."""


@dataclass(frozen=True)
class Proposal:
    """A recipe to try: trial `number` of the study."""

    number: int
    recipe: Recipe


class TrialStudy:
    """The trials of one search, in memory for the sampler and in a database for good.

    Every change is written to the database first. The two agree at any time, trial by trial.
    The proposal for trial n depends only on the space, the seed, n and what is recorded by then.

    Args:
        space: The search.
        url: An Optuna storage URL. A study of the space's name in it is carried on.
        name: The name of the study.
    """

    def __init__(self, space: SearchSpace, *, url: str, name: str) -> None:
        self.space = space
        self.name = name
        direction = StudyDirection.MAXIMIZE
        if space.objective.mode == "min":
            direction = StudyDirection.MINIMIZE
        self._database: BaseStorage = RDBStorage(url)
        study = optuna.create_study(
            study_name=name, storage=self._database, direction=direction, load_if_exists=True
        )
        self._memory: BaseStorage = InMemoryStorage()
        self._mirror = optuna.create_study(storage=self._memory, direction=direction)
        self._mirror.add_trials(study.get_trials())
        self._study_ids = {
            self._database: self._database.get_study_id_from_name(study.study_name),
            self._memory: self._memory.get_study_id_from_name(self._mirror.study_name),
        }

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials in the order of their numbers."""
        return self._mirror.get_trials(deepcopy=False)

    def best(self, count: int = 1) -> list[FrozenTrial]:
        """The `count` best trials by the objective, the best first; unfinished budgets last.

        A complete trial is ranked before any that was stopped, and of those one that came nearer
        to its last epoch before the others.
        """
        sign = 1 if self.space.objective.mode == "max" else -1

        def rank(trial: FrozenTrial) -> tuple[bool, float, float]:
            epoch = max(trial.intermediate_values)
            is_complete = trial.state is TrialState.COMPLETE
            share = 1.0 if is_complete else epoch / self.recipe(trial).epochs
            return is_complete, share, sign * trial.intermediate_values[epoch]

        candidates = [t for t in self.trials if t.intermediate_values and is_feasible(t)]
        return sorted(candidates, key=rank, reverse=True)[:count]

    def recipe(self, trial: FrozenTrial) -> Recipe:
        """The complete recipe of a recorded trial."""
        return self.space.base.with_values(
            {**trial.params, "seed": derive_seed(self.space.search.seed, "trial", trial.number)}
        )

    def propose(self) -> Proposal:
        """Samples the next trial and records it as RUNNING, in one transaction."""
        number = len(self.trials)
        self._mirror.sampler = self._sampler(number)
        if number == 0:
            self._mirror.enqueue_trial(self._baseline())
        trial = self._mirror.ask()
        self._suggest(trial)
        sampled = self.trials[number]
        self._database.create_new_trial(self._study_ids[self._database], sampled)
        return Proposal(number, self.recipe(sampled))

    def record(self, number: int, epoch: int, value: float) -> None:
        """Writes the objective's value of trial `number` after `epoch`."""
        for storage, trial_id in self._ids(number):
            storage.set_trial_intermediate_value(trial_id, epoch, value)

    def annotate(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Writes facts about an unfinished trial, as JSON values by name."""
        for storage, trial_id in self._ids(number):
            for key, value in attributes.items():
                storage.set_trial_user_attr(trial_id, key, value)

    def complete(self, number: int) -> None:
        """The trial trained all its epochs: COMPLETE with its last value."""
        self._end(number, TrialState.COMPLETE)

    def prune(self, number: int) -> None:
        """The scheduler stopped the trial: PRUNED with its last value."""
        self._end(number, TrialState.PRUNED)

    def reject(self, number: int, kind: str, message: str) -> None:
        """The recipe itself failed: PRUNED and infeasible, from which the sampler learns."""
        self.annotate(number, {"failure": kind, "message": message})
        for storage, trial_id in self._ids(number):
            storage.set_trial_system_attr(trial_id, f"constraints:{FAILURE_CONSTRAINT}", 1.0)
        self._end(number, TrialState.PRUNED)

    def fail(self, number: int, kind: str, message: str) -> None:
        """The machinery failed, which says nothing about the recipe: FAIL."""
        self.annotate(number, {"failure": kind, "message": message})
        self._end(number, TrialState.FAIL)

    def _end(self, number: int, state: TrialState) -> None:
        values = self.trials[number].intermediate_values
        value = [values[max(values)]] if values and state is not TrialState.FAIL else None
        for storage, trial_id in self._ids(number):
            storage.set_trial_state_values(trial_id, state, value)

    def _ids(self, number: int) -> list[tuple[BaseStorage, int]]:
        return [
            (storage, storage.get_trial_id_from_study_id_trial_number(study_id, number))
            for storage, study_id in self._study_ids.items()
        ]

    def _sampler(self, number: int) -> BaseSampler:
        seed = derive_seed(self.space.search.seed, "proposal", number)
        if self.space.search.sampler == "random":
            return RandomSampler(seed=seed)
        # Random trials before the model: as many as a third of the search, ten at the most.
        startup = max(4, min(10, self.space.search.num_trials // 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(
                seed=seed,
                n_startup_trials=startup,
                multivariate=True,
                group=True,
                constant_liar=True,
            )

    def _baseline(self) -> dict[str, Any]:
        values = self.space.base.flat()
        return {name: values[name] for name in self.space.parameters}

    def _suggest(self, trial: optuna.Trial) -> None:
        values = self.space.base.flat()
        for name, parameter in self.space.ordered_parameters().items():
            if parameter.applies(values):
                values[name] = _suggest(trial, name, parameter)


def _suggest(trial: optuna.Trial, name: str, parameter: Range | Choice) -> Any:
    if isinstance(parameter, Choice):
        return trial.suggest_categorical(name, parameter.values)
    if recipe_fields()[name] is int:
        low, high, step = int(parameter.min), int(parameter.max), int(parameter.step or 1)
        return trial.suggest_int(name, low, high, step=step, log=parameter.log)
    return trial.suggest_float(
        name, parameter.min, parameter.max, step=parameter.step, log=parameter.log
    )


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether the trial's recipe trained without a failure of its own."""
    return all(value <= 0 for value in trial.constraints.values())


def sqlite_url(path: Path) -> str:
    """The storage URL of a SQLite file."""
    return f"sqlite:///{path.resolve()}"
