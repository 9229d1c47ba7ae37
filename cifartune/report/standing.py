"""Where a search stands: its trials, its rungs, its refit, and about how long it will take."""

import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial

from cifartune.config import SearchSpace
from cifartune.report.event_log import Event, end_of
from cifartune.report.tables import Row

WHOLE = "all-images"
"""The part of a refit that trains on all images; the others are folds."""


@dataclass(frozen=True)
class Rung:
    """An epoch at which trials may be stopped.

    Attributes:
        epoch: Of the rung.
        reached: Trials that came to its end.
        stopped: Of these, trials that were stopped there, before they came to the next one.
    """

    epoch: int
    reached: int
    stopped: int


@dataclass
class Part:
    """A training run of a refit: how far it is, and how good where it holds out images.

    `failure` is why one that is over left no model; else empty.
    """

    epoch: int = 0
    accuracy: float | None = None
    is_over: bool = False
    failure: str = ""


@dataclass
class RefitRow:
    """The refit of a trial: the epochs of each of its runs, and these by name."""

    epochs: int
    parts: dict[str, Part] = field(default_factory=dict)
    dropped: str = ""

    def folds(self) -> list[Part]:
        """Its folds that have begun, in order."""
        return [self.parts[name] for name in sorted(self.parts) if name != WHOLE]


class Standing:
    """A search as far as it is, kept up to date by its events (`event_log`).

    Args:
        space: The search.
        trials: What its study holds so far.
        plan: What plan.json holds; None: it is not there yet.
    """

    def __init__(
        self,
        space: SearchSpace,
        trials: Sequence[FrozenTrial] = (),
        plan: Mapping[str, Any] | None = None,
    ) -> None:
        self.space = space
        self.plan = plan
        self.rows: dict[int, Row] = {}
        self.refits: dict[int, RefitRow] = {}
        self.lock = threading.RLock()
        """Held while an event is noted, and to be held by readers in other threads."""
        self.process: Event = {}
        """The last start of a process at the search, and its slots."""
        self.ended: list[int] = []
        """Trials in the order in which they ended, as far as it is known."""
        for trial in trials:
            epochs = _last_epoch(space, trial.params)
            self.rows[trial.number] = Row(trial.number, dict(trial.params), epochs)
            self._end(end_of(trial, space))
        ends = {trial.number: trial.datetime_complete or datetime.max for trial in trials}
        self.ended.sort(key=ends.__getitem__)

    def note(self, event: Event) -> None:
        """Takes in an event; one that it knows already changes nothing."""
        with self.lock:
            self._note(event)

    def _note(self, event: Event) -> None:
        kind, number = event["event"], event.get("trial", -1)
        if kind == "started":
            self.process = event
            self.refits.clear()  # what is done of them is told again
        elif kind == "slots":
            self.process = {**event, **self.process}  # with the time of its start
        elif kind == "plan":
            self.plan = event["plan"]
        elif kind == "trial_started":
            row = Row(number, event["parameters"], event["epochs"])
            self.rows.setdefault(number, row)
        elif kind == "epoch" and number in self.rows:
            row = self.rows[number]
            if event["epoch"] >= row.epoch and row.state == "running":
                row.epoch, row.value = event["epoch"], event["value"]
        elif kind == "trial_ended" and number in self.rows:  # else it was over before it began
            self._end(event)
        elif kind == "refit_started":
            self.refits.setdefault(number, RefitRow(event["epochs"]))
        elif kind in ("refit_epoch", "refit_part_ended") and number in self.refits:
            part = self.refits[number].parts.setdefault(event["part"], Part())
            if kind == "refit_epoch":
                part.epoch = event["epoch"]
                part.accuracy = event["metrics"].get("val_accuracy")
            else:
                part.is_over, part.accuracy = True, event["accuracy"]
                part.failure = event.get("message", "")  # an earlier version told of none
        elif kind == "refit_ended" and event["dropped"] and number in self.refits:
            self.refits[number].dropped = event["dropped"]

    def _end(self, end: Event) -> None:
        row = self.rows[end["trial"]]
        if row.state == "running" and end["state"] != "running":
            self.ended.append(row.number)
        row.state, row.epoch, row.value = end["state"], end["epoch"], end["value"]
        row.feasible, row.objectives = end["feasible"], end["objectives"]

    @property
    def stage(self) -> str:
        """What is under way: `start`, `search`, `refit` or, when that is done, `evaluate`."""
        if self.refits:
            return "refit" if self.refit_epochs_left or not self.refit_epochs else "evaluate"
        return "search" if self.rows else "start"

    def elapsed(self) -> float | None:
        """Seconds since a process began that is at the search; None where none was."""
        if not self.process:
            return None
        return (datetime.now(UTC) - datetime.fromisoformat(self.process["time"])).total_seconds()

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state, or kind of failure; those that run come first."""
        counts = Counter(row.state for row in self.rows.values())
        order = ["running", "complete", "stopped"]
        return {state: counts[state] for state in [*order, *sorted(counts)] if counts[state]}

    @property
    def ended_count(self) -> int:
        """Trials that are over, of those that the search is to have: none that was refused."""
        return sum(row.state not in ("running", "refused") for row in self.rows.values())

    @property
    def epochs(self) -> int:
        """Epochs of all trials so far."""
        return sum(row.epoch for row in self.rows.values())

    def ranked(self) -> list[Row]:
        """The trials that can win, the best first, by the rule by which the refit takes them.

        `TrialStudy.best` says which that is.
        """
        sign = 1 if self.space.target.mode == "max" else -1
        front = _front(self.space, self.rows.values())

        def rank(row: Row) -> tuple[bool, bool, float, float]:
            is_complete = row.state == "complete"
            share = 1.0 if is_complete else row.epoch / row.epochs
            return row.number in front, is_complete, share, sign * (row.value or 0.0)

        candidates = [row for row in self.rows.values() if row.feasible and row.value is not None]
        return sorted(candidates, key=rank, reverse=True)

    def changes(self, row: Row) -> dict[str, Any]:
        """What a trial has of the searched fields that the baseline has otherwise or not at all."""
        base = self.space.base.flat()
        return {name: value for name, value in row.values.items() if value != base[name]}

    def rungs(self) -> list[Rung]:
        """The epochs at which the scheduler looks at trials, and the last; none without one."""
        epochs = rung_epochs(self.space)
        rows = self.rows.values()
        return [
            Rung(
                epoch,
                sum(row.epoch >= epoch for row in rows),
                sum(row.state == "stopped" and epoch <= row.epoch < after for row in rows),
            )
            for epoch, after in zip(epochs, [*epochs[1:], math.inf], strict=False)  # none of none
        ]

    @property
    def refit_epochs_left(self) -> int:
        """Epochs of the refit that are still to be trained, as if nobody else were dropped."""
        refit, left = self.space.refit, 0
        for row in self.refits.values():
            if not row.dropped:
                left += (refit.folds * refit.seeds - len(row.folds())) * row.epochs
                left += sum(row.epochs - part.epoch for part in row.folds() if not part.is_over)
        if refit.all_images and self.refits:
            whole = [(row, row.parts[WHOLE]) for row in self.refits.values() if WHOLE in row.parts]
            if not whole:
                left += max(row.epochs for row in self.refits.values())
            left += sum(row.epochs - part.epoch for row, part in whole if not part.is_over)
        return left

    @property
    def refit_epochs(self) -> int:
        """Epochs of the refit so far."""
        return sum(
            row.epochs if part.is_over else part.epoch
            for row in self.refits.values()
            for part in row.parts.values()
        )

    def seconds_left(self, spent: Mapping[str, float]) -> float | None:
        """About how many seconds the search will still take; None where there is nothing to go by.

        What was measured counts more than the plan: stages to come take as much longer than
        planned as that of now does.

        Args:
            spent: Seconds by stage so far, as clock.json has them.
        """
        plan, done = self.plan, self.epochs
        if self.stage == "evaluate":
            return plan["evaluate"] if plan else None
        measured = spent.get("search", 0.0)
        pace = 1.0
        if plan and done and measured and plan["search"]:
            pace = (measured / done) / (plan["search"] / plan["epochs"])
        if self.stage == "refit":
            refit_done, left = self.refit_epochs, self.refit_epochs_left
            if refit_done and spent.get("refit"):
                refit = left * spent["refit"] / refit_done
            elif plan:
                refit = plan["refit"] * pace
            else:
                return None
            return refit + (plan["evaluate"] if plan else 0.0)
        if not plan:
            return None
        trials = self.space.search.num_trials
        open_trials = trials - self.ended_count
        left = max(plan["epochs"] - done, open_trials, 0)
        search = left * plan["search"] / plan["epochs"] * pace
        if (budget := self.space.search.time_budget) is not None:
            search = min(search, max(0.0, budget - measured))
        return float(search + plan["refit"] * pace + plan["evaluate"])


def _last_epoch(space: SearchSpace, values: Mapping[str, Any]) -> int:
    """`Recipe.last_epoch` of a point of the space, without the recipe: there may be thousands."""
    epochs = int(values.get("epochs", space.base.epochs))
    return min(epochs, int(values.get("stopping.epoch", space.base.stopping.epoch)) or epochs)


def rung_epochs(space: SearchSpace) -> list[int]:
    """The epochs at which trials may be stopped, and the last one; none where they are not."""
    scheduler, last = space.scheduler, space.max_epochs
    if scheduler.name not in ("asha", "hyperband"):
        return []
    rungs, rung = [], float(scheduler.grace_period)
    while rung < last:
        rungs.append(math.ceil(rung))
        rung *= scheduler.reduction_factor
    return [*dict.fromkeys(rungs), last]


def _front(space: SearchSpace, rows: Iterable[Row]) -> set[int]:
    """The complete trials that no other beats in every objective; none with one objective."""
    if len(space.targets) < 2:
        return set()
    signs = [1 if target.mode == "max" else -1 for target in space.targets]
    points = {
        row.number: [
            sign * row.objectives[target.metric]
            for sign, target in zip(signs, space.targets, strict=True)
        ]
        for row in rows
        if row.state == "complete" and row.feasible
    }

    def beats(one: Sequence[float], other: Sequence[float]) -> bool:
        return one != other and all(a >= b for a, b in zip(one, other, strict=True))

    return {
        number
        for number, point in points.items()
        if not any(beats(other, point) for other in points.values())
    }
