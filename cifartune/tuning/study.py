"""The search's record and its proposals: an Optuna study, written before anything acts on it."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from cifartune.config import Recipe, SearchSpace
from cifartune.errors import UserError, first_line
from cifartune.passwords import without_password
from cifartune.seeds import derive_seed
from cifartune.tuning.constraints import check_given, facts_of, refusal
from cifartune.tuning.proposals import CONSTRAINT, Proposer, is_infeasible

# The study's own methods draw parameters one transaction at a time; the storage's do it in one.
optuna.logging.set_verbosity(optuna.logging.WARNING)

FAILURE_CONSTRAINT = "failed"
"""The constraint that a trial breaks whose recipe fails: above 0 means infeasible."""

METRICS, FACTS = "metrics", "facts"
"""The trial's attributes in the study: two, since each takes a transaction to write."""

EPOCH = "epoch"
"""Among the metrics, the epoch that they are of."""

REFUSED = "refused"
"""The kind of failure of a recipe that breaks a constraint of the space; it is never trained."""

PATIENCE = 200
"""After so many refused recipes in a row, the constraints leave nothing to find."""


@dataclass(frozen=True)
class Proposal:
    """A recipe to try: trial `number` of the study."""

    number: int
    recipe: Recipe


class SpaceExhausted(Exception):
    """Every point of a discrete space was tried."""


class TrialStudy:
    """The trials of one search, in memory for the sampler and in a database for good.

    Every change is written to the database first. The two agree at any time, trial by trial.
    The proposal for trial n depends only on the space, the seed, n and what is recorded by then.

    Args:
        space: The search.
        url: An Optuna storage URL. A study of that name in it is carried on. None: the trials are
            in memory alone.
        name: The name of the study.
        warm_start: Trials of other searches, in terms of `space`, for the sampler. They are kept
            beside the study; one that is carried on has its own already.
        recorded: The trials of a study that is kept elsewhere, for one in memory.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        url: str | None = None,
        name: str = "study",
        warm_start: Sequence[FrozenTrial] = (),
        recorded: Sequence[FrozenTrial] = (),
    ) -> None:
        self.space = space
        self.name = name
        directions = [
            StudyDirection.MAXIMIZE if target.mode == "max" else StudyDirection.MINIMIZE
            for target in space.targets
        ]
        self._database = open_storage(url) if url else InMemoryStorage()
        existing = [study.study_name for study in self._database.get_all_studies()]
        if warm_start and name not in existing:
            if _warm_start_of(name) in existing:  # a process died before it made the study
                optuna.delete_study(study_name=_warm_start_of(name), storage=self._database)
            others = optuna.create_study(
                study_name=_warm_start_of(name), storage=self._database, directions=directions
            )
            others.add_trials(warm_start)
        study = optuna.create_study(
            study_name=name, storage=self._database, directions=directions, load_if_exists=True
        )
        study.add_trials(recorded)
        self._proposer = Proposer(space, self._kept_warm_start())
        self._memory: BaseStorage = InMemoryStorage()
        self._mirror = optuna.create_study(storage=self._memory, directions=directions)
        self._mirror.add_trials(study.get_trials())
        self._study_ids = {
            self._database: self._database.get_study_id_from_name(study.study_name),
            self._memory: self._memory.get_study_id_from_name(self._mirror.study_name),
        }
        self._refused: int = sum(attributes(t).get("failure") == REFUSED for t in self.trials)
        self._end_what_failed()

    @classmethod
    def of(cls, space: SearchSpace, trials: Sequence[FrozenTrial]) -> "TrialStudy":
        """A study in memory with trials that are recorded elsewhere, for those who only read."""
        study = cls(space)
        study._mirror.add_trials(trials)
        return study

    def _end_what_failed(self) -> None:
        """Ends trials that a process was about to end as failures when it died itself."""
        for trial in self.trials:
            if trial.state is TrialState.RUNNING and is_infeasible(trial):
                self._end(trial.number, TrialState.PRUNED)
            elif trial.state is TrialState.RUNNING and "failure" in attributes(trial):
                self._end(trial.number, TrialState.FAIL)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials in the order of their numbers."""
        return self._mirror.get_trials(deepcopy=False)

    @property
    def trials_left(self) -> int:
        """Trials that the search may still begin; what was refused does not count."""
        return self.space.search.num_trials - (len(self.trials) - self._refused)

    @property
    def front(self) -> list[FrozenTrial]:
        """The complete trials that no other beats in every objective, the Pareto front."""
        return list(self._mirror.best_trials)

    def best(self, count: int = 1) -> list[FrozenTrial]:
        """The `count` best trials by the objective, the best first; unfinished budgets last.

        A complete trial is ranked before any that was stopped, and of those one that came nearer
        to its last epoch before the others. With several objectives, those of the Pareto front
        come first, ranked by the one that stops trials.
        """
        sign = 1 if self.space.target.mode == "max" else -1
        front = {t.number for t in self.front} if len(self.space.targets) > 1 else set()

        def rank(trial: FrozenTrial) -> tuple[bool, bool, float, float]:
            is_complete = trial.state is TrialState.COMPLETE
            share = max(trial.intermediate_values) / self.recipe(trial).last_epoch
            value = sign * trial.intermediate_values[kept_epoch(trial)]
            return trial.number in front, is_complete, 1.0 if is_complete else share, value

        candidates = [t for t in self.trials if t.intermediate_values and is_feasible(t)]
        return sorted(candidates, key=rank, reverse=True)[:count]

    def recipe(self, trial: FrozenTrial) -> Recipe:
        """The complete recipe of a recorded trial."""
        return self.space.base.with_values(
            {**trial.params, "seed": derive_seed(self.space.search.seed, "trial", trial.number)}
        )

    def propose(self) -> Proposal:
        """Samples the next trial and records it as RUNNING, in one transaction.

        A recipe that breaks a constraint of the space is recorded as infeasible, untrained, and
        the next is sampled.

        Raises:
            SpaceExhausted: Every point of the space was tried.
            UserError: No recipe that keeps the constraints is found.
        """
        for _ in range(PATIENCE):
            number = len(self.trials)
            sampled = self._proposer.propose(self.trials)
            if sampled is None:
                raise SpaceExhausted
            sampled.number = number
            recipe = self.recipe(sampled)
            facts = facts_of(self.space, recipe)
            excess = {
                metric: bound.excess(facts[metric])
                for metric, bound in self.space.constraints.items()
            }
            sampled.system_attrs |= {CONSTRAINT + metric: value for metric, value in excess.items()}
            broken = [metric for metric, value in excess.items() if value > 0]
            if broken:  # said in the same transaction, or a killed search would count it as trained
                told = refusal(self.space, broken[0], facts)
                facts |= {"failure": REFUSED, "message": told}
            sampled.user_attrs = {FACTS: facts} if facts else {}
            for storage, study_id in self._study_ids.items():
                storage.create_new_trial(study_id, sampled)
            if not broken:
                return Proposal(number, recipe)
            self._refused += 1
            self._end(number, TrialState.PRUNED)
        raise UserError(
            f"constraints: {PATIENCE} recipes in a row were refused, the last because "
            f"{told}; widen the constraint, or search smaller networks"
        )

    def check(self) -> None:
        """Looks at the baseline and the points of the file before anything is sampled.

        Raises:
            UserError: One of them breaks a constraint, or its network cannot be built.
        """
        check_given(self.space)

    def _kept_warm_start(self) -> list[FrozenTrial]:
        try:
            study = optuna.load_study(study_name=_warm_start_of(self.name), storage=self._database)
        except KeyError:
            return []
        return study.get_trials()

    def record(
        self,
        number: int,
        epoch: int,
        value: float,
        metrics: Mapping[str, float] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes the objective's value of trial `number` after `epoch`.

        Args:
            number: The trial.
            epoch: Counted from 1.
            value: The objective's, or of several the one's that stops trials.
            metrics: What else was measured; those of the last epoch are kept.
            facts: With the last epoch, what is known of the trial by then; see `annotate`.
        """
        for storage, trial_id in self._ids(number):
            if metrics is not None:
                known: dict[str, Any] = {**metrics, EPOCH: epoch}
                if facts:
                    known[FACTS] = dict(facts)
                storage.set_trial_user_attr(trial_id, METRICS, known)
            storage.set_trial_intermediate_value(trial_id, epoch, value)

    def annotate(self, number: int, facts: Mapping[str, Any]) -> None:
        """Writes facts about an unfinished trial, JSON values by name, beside those of before."""
        facts = {**self.trials[number].user_attrs.get(FACTS, {}), **facts}
        for storage, trial_id in self._ids(number):
            storage.set_trial_user_attr(trial_id, FACTS, facts)

    def complete(self, number: int) -> None:
        """The trial came to its end: COMPLETE with the value of the epoch that it keeps."""
        self._end(number, TrialState.COMPLETE)

    def prune(self, number: int) -> None:
        """The scheduler stopped the trial: PRUNED with its last value."""
        self._end(number, TrialState.PRUNED)

    def reject(self, number: int, kind: str, message: str) -> None:
        """The recipe itself failed: PRUNED and infeasible, from which the sampler learns."""
        for storage, trial_id in self._ids(number):
            storage.set_trial_system_attr(trial_id, f"constraints:{FAILURE_CONSTRAINT}", 1.0)
        self.annotate(number, {"failure": kind, "message": message})
        self._end(number, TrialState.PRUNED)

    def fail(self, number: int, kind: str, message: str) -> None:
        """The machinery failed, which says nothing about the recipe: FAIL."""
        self.annotate(number, {"failure": kind, "message": message})
        self._end(number, TrialState.FAIL)

    def _end(self, number: int, state: TrialState) -> None:
        """Ends the trial for good: after this, its checkpoint may go."""
        trial = self.trials[number]
        has_values = trial.intermediate_values and state is not TrialState.FAIL
        values = [self._last(trial, t.metric) for t in self.space.targets] if has_values else None
        for storage, trial_id in self._ids(number):
            storage.set_trial_state_values(trial_id, state, values)
        if isinstance(self._database, RDBStorage) and self._database.engine.name == "sqlite":
            with self._database.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint")

    def _last(self, trial: FrozenTrial, metric: str) -> float:
        """The objective's value at the epoch that counts, or of the network."""
        if metric == self.space.target.metric:
            return trial.intermediate_values[kept_epoch(trial)]
        return float(attributes(trial)[metric])

    def _ids(self, number: int) -> list[tuple[BaseStorage, int]]:
        return [
            (storage, storage.get_trial_id_from_study_id_trial_number(study_id, number))
            for storage, study_id in self._study_ids.items()
        ]


def kept_epoch(trial: FrozenTrial) -> int:
    """The epoch of a trial with values that counts: the last, if its recipe keeps no other.

    A process that died between the facts and the value of a last epoch left the first alone.
    """
    kept = attributes(trial).get("kept_epoch")
    return kept if kept in trial.intermediate_values else max(trial.intermediate_values)


def attributes(trial: FrozenTrial) -> dict[str, Any]:
    """What is known of a trial by name: the metrics of its last epoch, and facts, which go first.

    Of a trial that came to its end the facts hold the metrics of the epoch that it keeps.
    """
    with_last = trial.user_attrs.get(METRICS, {}).get(FACTS, {})
    return {**last_metrics(trial), **with_last, **trial.user_attrs.get(FACTS, {})}


def last_metrics(trial: FrozenTrial) -> dict[str, float]:
    """The metrics of the trial's last epoch, whichever it keeps; `seconds` of all its epochs."""
    known = trial.user_attrs.get(METRICS, {})
    return {name: value for name, value in known.items() if name not in (FACTS, EPOCH)}


def measured_epoch(trial: FrozenTrial) -> int:
    """The epoch that the trial's metrics are of, 0 where it has none.

    A process that died between the metrics and the value of an epoch left the first alone.
    """
    known = trial.user_attrs.get(METRICS, {})
    return int(known.get(EPOCH, max(trial.intermediate_values, default=0)))


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether the trial's recipe kept the constraints and trained without a failure of its own."""
    return not is_infeasible(trial)


def _warm_start_of(name: str) -> str:
    """The name of the study that keeps what a study was warm-started with."""
    return f"{name} (warm start)"


class _WriteAhead(sqlite3.Connection):
    """Writes that do not wait for the disk, some milliseconds each.

    They survive the process at once, and a power cut from the next end of a trial on; the file is
    whole at any time (https://www.sqlite.org/wal.html).
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=NORMAL")


def open_storage(url: str) -> BaseStorage:
    """The storage at an Optuna URL.

    Raises:
        UserError: It cannot be reached, or its driver is not installed.
    """
    options = {"connect_args": {"factory": _WriteAhead}} if url.startswith("sqlite:") else {}
    try:
        return RDBStorage(url, engine_kwargs=options)
    except ImportError as error:
        raise UserError(
            f"--storage {without_password(url)}: {first_line(error).rstrip('.')}; for PostgreSQL: "
            "pip install 'cifartune[postgresql]'"
        ) from None
    except (SQLAlchemyError, ValueError) as error:
        raise UserError(
            f"--storage {without_password(url)}: cannot be opened: {first_line(error)}"
        ) from None


def close_storage(storage: BaseStorage) -> None:
    """Closes the connections to a database."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def check_storage(url: str) -> None:
    """Makes sure that a study can be kept at an Optuna storage URL.

    Raises:
        UserError: It cannot.
    """
    close_storage(open_storage(url))


def count_trials(url: str, name: str) -> int:
    """The trials of a study at an Optuna storage URL, finished or not; 0 if it is not there."""
    database = open_storage(url)
    try:
        return len(optuna.load_study(study_name=name, storage=database).get_trials())
    except KeyError:
        return 0
    finally:
        close_storage(database)


def sqlite_url(path: Path) -> str:
    """The storage URL of a SQLite file."""
    return f"sqlite:///{path.resolve()}"
