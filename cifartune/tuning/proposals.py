"""What to try next: a pure function of the space, its seed, and the trials so far."""

import copy
import heapq
import warnings
from collections.abc import Container, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from cifartune.config import Choice, Range, SearchSpace
from cifartune.config.checks import GRID_LIMIT
from cifartune.config.recipe import recipe_fields
from cifartune.seeds import derive_seed

ATTEMPTS = 10
"""How often a sampler is asked for a point that was not tried before, in a discrete space."""

STARTUP = 5
"""Trials that have ended before a sampler that learns has something to learn from; the proposals
until then are random. How long the search is to be has no part in it: it may be extended."""

SHOWN = 2000
"""Finished trials that TPE is shown, about, of more: of ten thousand, it would take its time."""

BEST = 25
"""Of these, the best: TPE asks for what they have, and the others have not."""

CONSTRAINT = "constraints:"
"""The prefix of Optuna's system attributes for constraints."""


class Proposer:
    """Proposes the trials of a search.

    The first is the baseline, then come the points of the file, then the sampler's.

    Args:
        space: The search.
        warm_start: Trials of other searches, in terms of this space, that the sampler knows.
    """

    def __init__(self, space: SearchSpace, warm_start: Sequence[FrozenTrial] = ()) -> None:
        self.space = space
        self._warm_start = list(warm_start)
        self._ordered = space.ordered_parameters()
        self._distributions = {name: distribution(name, p) for name, p in self._ordered.items()}
        self._record = _Record(self._directions(), self._warm_start, self._distributions)
        grid = space.grid()
        self._grid = None if grid is None else list(islice(grid, GRID_LIMIT + 1))
        if self._grid is not None:
            # Shuffled, so that a search that ends early has not tried one corner alone.
            np.random.default_rng(derive_seed(space.search.seed, "grid")).shuffle(self._grid)

    def propose(self, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """The next trial, RUNNING and with its parameters; None: every point was tried.

        Args:
            trials: All trials so far, in the order of their numbers.
        """
        number = len(trials)
        if number <= len(self.space.points):
            given = self.space.points[number - 1] if number else {}
            return self._ask(trials, self.space.point({**self.space.base.flat(), **given}))
        tried = set()
        if self._grid is not None:
            tried = {_key(t.params) for t in trials if t.state is not TrialState.FAIL}
        if self._grid is not None and len(self._grid) <= GRID_LIMIT:
            unseen = [point for point in self._grid if _key(point) not in tried]
            if not unseen:
                return None
            if self.space.search.sampler == "grid":
                # What a machine failed at is tried again, but not in place of all others.
                failed = {_key(t.params) for t in trials} - tried
                return self._ask(trials, min(unseen, key=lambda point: _key(point) in failed))
        if self.space.search.sampler == "qmc":
            return self._ask(trials, self._sobol_point(number, tried))
        for attempt in range(ATTEMPTS):
            trial = self._ask(trials, attempt=attempt)
            if self._grid is None or _key(trial.params) not in tried:
                return trial
        random = np.random.default_rng(derive_seed(self.space.search.seed, "unseen", number))
        unseen = [point for point in self._grid or () if _key(point) not in tried]
        return self._ask(trials, unseen[random.integers(len(unseen))])

    def _ask(
        self,
        trials: Sequence[FrozenTrial],
        point: Mapping[str, Any] | None = None,
        attempt: int = 0,
    ) -> FrozenTrial:
        """Samples one trial, or takes `point`."""
        number = len(trials)
        if self._learns_from_all:
            study = self._record.of(trials)
        else:
            study = optuna.create_study(storage=InMemoryStorage(), directions=self._directions())
            study.add_trials(self._as_complete(trials))
        if point is not None:
            study.enqueue_trial(dict(point))
            study.sampler = RandomSampler(seed=0)
        else:
            study.sampler = self._sampler(number, attempt)
        trial = study.ask()
        sampled: dict[str, Any] = {}
        for name, parameter in self._ordered.items():
            if parameter.applies(sampled):
                sampled[name] = trial._suggest(name, self._distributions[name])
        return copy.deepcopy(trial.storage.get_trial(trial._trial_id))

    def _directions(self) -> list[StudyDirection]:
        return [
            StudyDirection.MAXIMIZE if t.mode == "max" else StudyDirection.MINIMIZE
            for t in self.space.targets
        ]

    @property
    def _learns_from_all(self) -> bool:
        """Whether the sampler knows what to make of trials that were stopped, or failed."""
        return self.space.search.sampler not in ("gp", "cmaes") and len(self.space.targets) == 1

    def _as_complete(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """The trials as samplers have to see them that learn from complete ones alone.

        One that was stopped counts with what it reached, and one that broke a constraint before it
        had a value, as if it were the worst.
        """
        history = [*self._warm_start, *trials]
        values = np.array([t.values for t in history if t.values])
        signs = np.array([1 if t.mode == "max" else -1 for t in self.space.targets])
        worst = (signs * (signs * values).min(axis=0)).tolist() if len(values) else None
        names = {name for t in history for name in t.constraints}
        knows_constraints = self.space.search.sampler != "cmaes"
        told = []
        for trial in history:
            if trial.state is not TrialState.PRUNED and not names:
                told.append(_as_sampled_from(self._distributions, trial))
            elif trial.values or trial.state is TrialState.RUNNING or worst:
                ended = trial.state in (TrialState.PRUNED, TrialState.COMPLETE)
                reached = trial.values if knows_constraints or not is_infeasible(trial) else None
                told.append(
                    create_trial(
                        state=TrialState.COMPLETE if ended else trial.state,
                        params=trial.params,
                        distributions={n: self._distributions[n] for n in trial.params},
                        values=(reached or worst) if ended else None,
                        # All trials must have the same constraints.
                        system_attrs={CONSTRAINT + name: 0.0 for name in names}
                        | trial.system_attrs,
                    )
                )
        return told

    def _sampler(self, number: int, attempt: int) -> BaseSampler:
        search = self.space.search
        path = ("proposal", number, attempt) if attempt else ("proposal", number)
        seed = derive_seed(search.seed, *path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if search.sampler == "random":
                return RandomSampler(seed=seed)
            if search.sampler == "gp":
                return GPSampler(
                    seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False
                )
            if search.sampler == "cmaes":
                return CmaEsSampler(seed=seed, warn_independent_sampling=False)
            return TPESampler(
                seed=seed,
                n_startup_trials=STARTUP,
                multivariate=True,
                group=True,
                constant_liar=True,
            )

    def _sobol_point(self, number: int, tried: set[Any]) -> dict[str, Any]:
        """The next point of a Sobol sequence with a dimension for each parameter."""
        from scipy.stats.qmc import Sobol

        random = np.random.default_rng(derive_seed(self.space.search.seed, "sobol"))
        sequence = Sobol(max(1, len(self._ordered)), scramble=True, rng=random)
        sequence.fast_forward(number)
        while True:
            shares = sequence.random(1)[0]
            values = {
                name: parameter.at(share, is_int=recipe_fields()[name] is int)
                for (name, parameter), share in zip(self._ordered.items(), shares, strict=False)
            }
            point = self.space.point(values)
            if self._grid is None or _key(point) not in tried:
                return point


class _Shown(InMemoryStorage):
    """The trials of one study in memory, of which samplers are shown some, and what comes later."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: list[int] = []
        self._count = 0

    def show(self, study_id: int, numbers: list[int]) -> None:
        """Hides all trials of now but these; in a storage of one study, numbers are ids."""
        self._shown = numbers
        self._count = len(super().get_all_trials(study_id, deepcopy=False))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = super().get_all_trials(study_id, deepcopy=False)
        trials = [trials[number] for number in self._shown] + trials[self._count :]
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials


class _Record:
    """A study for samplers to read, which is brought up to date and not made anew.

    To copy ten thousand trials takes a second, and a proposal a tenth. What samplers do not look at
    is left out, and of thousands of finished trials all but the best and each second, third, ...

    Args:
        directions: Of the objectives.
        before: Trials that come before all others.
        distributions: Of the parameters, as they are now.
    """

    def __init__(
        self,
        directions: Sequence[StudyDirection],
        before: Sequence[FrozenTrial],
        distributions: Mapping[str, BaseDistribution],
    ) -> None:
        self._directions = directions
        self._distributions = distributions
        self._before = before
        self._known: list[FrozenTrial] = []
        self._ids: list[int] = []
        self._ranks: dict[int, tuple[bool, bool, int, float]] = {}
        self._forget()

    def of(self, trials: Sequence[FrozenTrial]) -> optuna.Study:
        """The study of `trials`, in which one trial may be asked for until the next call."""
        if self._is_another(trials):
            self._forget()
        for here, old, new in zip(self._ids, self._known, trials, strict=False):
            if new is not old and new.state.is_finished() and not old.state.is_finished():
                self._finish(here, new)
        for trial in trials[len(self._known) :]:
            told = _as_sampled_from(self._distributions, trial)
            self._ids.append(self._storage.create_new_trial(self._study._study_id, told))
        self._known = list(trials)
        # What was asked for in an earlier call has become one of the trials, or nothing.
        hidden = self._dispensable()
        recorded = [id_ for number, id_ in enumerate(self._ids) if number not in hidden]
        self._storage.show(self._study._study_id, [*range(len(self._before)), *recorded])
        return self._study

    def _dispensable(self) -> set[int]:
        """The numbers of ended trials that a sampler does without: a function of the trials."""
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        finished = [n for n, trial in enumerate(self._known) if trial.state in ended]
        step = -(-len(finished) // SHOWN)
        if step < 2:
            return set()
        for number in finished:
            if number not in self._ranks:
                self._ranks[number] = self._rank(self._known[number])
        best = set(heapq.nlargest(BEST, finished, key=self._ranks.__getitem__))
        return {n for n in finished if n % step and n not in best}

    def _rank(self, trial: FrozenTrial) -> tuple[bool, bool, int, float]:
        """Higher for what TPE holds to be better."""
        is_complete, steps = trial.state is TrialState.COMPLETE, trial.intermediate_values
        sign = 1 if self._directions[0] == StudyDirection.MAXIMIZE else -1
        last = max(steps, default=0)
        value = trial.values[0] if is_complete else steps.get(last, 0.0)
        return not is_infeasible(trial), is_complete, 0 if is_complete else last, sign * value

    def _is_another(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether these are not the trials of before, later."""
        return len(trials) < len(self._known) or any(
            new is not old and (old.state.is_finished() or new.params != old.params)
            for old, new in zip(self._known, trials, strict=False)
        )

    def _forget(self) -> None:
        self._storage = _Shown()
        self._study = optuna.create_study(storage=self._storage, directions=self._directions)
        self._study.add_trials([_as_sampled_from(self._distributions, t) for t in self._before])
        self._known, self._ids, self._ranks = [], [], {}

    def _finish(self, trial_id: int, trial: FrozenTrial) -> None:
        for epoch, value in trial.intermediate_values.items():
            self._storage.set_trial_intermediate_value(trial_id, epoch, value)
        for key, attribute in trial.system_attrs.items():
            self._storage.set_trial_system_attr(trial_id, key, attribute)
        self._storage.set_trial_state_values(trial_id, trial.state, trial.values)


def distribution(name: str, parameter: Range | Choice) -> BaseDistribution:
    """Optuna's distribution for a parameter of the field `name`."""
    if isinstance(parameter, Choice):
        return CategoricalDistribution(parameter.values)
    if recipe_fields()[name] is int:
        low, high, step = int(parameter.min), int(parameter.max), int(parameter.step or 1)
        return IntDistribution(low, high, log=parameter.log, step=step)
    return FloatDistribution(parameter.min, parameter.max, log=parameter.log, step=parameter.step)


def _as_sampled_from(
    distributions: Mapping[str, BaseDistribution], trial: FrozenTrial
) -> FrozenTrial:
    """A trial as if ranges had always been as wide: samplers keep to the first that they see."""
    wanted = {name: distributions[name] for name in trial.params}
    if trial.distributions == wanted:
        return trial
    told = copy.copy(trial)
    told.distributions = wanted
    return told


def is_infeasible(trial: FrozenTrial) -> bool:
    """Whether the trial broke a constraint, or its recipe failed."""
    return any(value > 0 for value in trial.constraints.values())


def _key(params: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    """Equal for equal points, whatever steps of 0.1 add up to."""
    return frozenset(
        (name, round(value, 12) if isinstance(value, float) else value)
        for name, value in params.items()
    )
