"""A search's events as JSON, one object a line: on the screen for machines, and in its folder."""

import json
import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from cifartune.config import Recipe, SearchSpace
from cifartune.events import Observer
from cifartune.report.headline import headline
from cifartune.runs import RunFolder
from cifartune.tuning.study import attributes, is_feasible, kept_epoch

Event = dict[str, Any]

ENDS = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "running"}
"""What people call the states of a trial; one that failed is called by the kind of its failure."""


class EventLog(Observer):
    """Turns what happens into events: JSON values by name, as docs/WATCHING.md lists them.

    Args:
        space: The search.
        run: Its folder.
        tell: Called with each event.
    """

    def __init__(self, space: SearchSpace, run: RunFolder, tell: Callable[[Event], Any]) -> None:
        self._space = space
        self._run = run
        self._epochs: dict[int, int] = {}
        self._refits: dict[int, int] = {}
        self._pass_on = tell

    def _tell(self, event: str, **facts: Any) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._pass_on({"event": event, "time": time, **facts})

    def search_started(self) -> None:
        space, run = self._space, self._run
        self._tell(
            "started",
            name=run.name,
            folder=str(run.path),
            log=str(run.log),
            trials=space.search.num_trials,
            max_epochs=space.max_epochs,
            **space.target.model_dump(),
            pid=os.getpid(),
            host=socket.gethostname(),
        )

    def slots_started(self, count: int, slot: str, dashboard: str) -> None:
        self._tell("slots", count=count, slot=slot, dashboard=dashboard)

    def planned(self, plan: dict[str, Any]) -> None:
        self._tell("plan", plan=plan)

    def noted(self, text: str, label: str = "note") -> None:
        self._tell("note", about=label, text=text)

    def trial_started(self, number: int, recipe: Recipe) -> None:
        self._epochs[number] = recipe.last_epoch
        parameters = self._space.point(recipe.flat())
        self._tell("trial_started", trial=number, epochs=recipe.last_epoch, parameters=parameters)

    def epoch_ended(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        value, epochs = metrics[self._space.target.metric], self._epochs[number]
        self._tell("epoch", trial=number, epoch=epoch, epochs=epochs, value=value, metrics=metrics)

    def trial_ended(self, trial: FrozenTrial) -> None:
        self._tell("trial_ended", **end_of(trial, self._space))

    def refit_started(self, number: int, recipe: Recipe) -> None:
        self._refits[number] = recipe.last_epoch
        self._tell("refit_started", trial=number, epochs=recipe.last_epoch)

    def part_epoch_ended(
        self, number: int, part: str, epoch: int, metrics: dict[str, float]
    ) -> None:
        epochs = self._refits[number]
        self._tell(
            "refit_epoch", trial=number, part=part, epoch=epoch, epochs=epochs, metrics=metrics
        )

    def part_ended(
        self, number: int, part: str, accuracy: float | None, facts: dict[str, Any]
    ) -> None:
        about = {"accuracy": accuracy, "message": facts.get("message", "")}
        self._tell("refit_part_ended", trial=number, part=part, **about)

    def refit_ended(self, number: int, metrics: dict[str, float], dropped: str = "") -> None:
        self._tell("refit_ended", trial=number, **metrics, dropped=dropped)

    def concluded(self, result: dict[str, Any]) -> None:
        self._tell("finished", result=str(self._run.result), **headline(result))


def end_of(trial: FrozenTrial, space: SearchSpace) -> Event:
    """How a recorded trial ended, or how far it is: what its `trial_ended` says.

    `value` is the objective at the epoch that counts, and `objectives` are all of them.
    """
    known, values = attributes(trial), trial.intermediate_values
    metrics = [target.metric for target in space.targets]
    failure = str(known.get("failure", ""))
    return {
        "trial": trial.number,
        "state": failure.replace("_", " ") or ENDS[trial.state.name],
        "epoch": max(values, default=0),
        "value": values[kept_epoch(trial)] if values else None,
        "objectives": dict(zip(metrics, trial.values, strict=True)) if trial.values else {},
        "feasible": is_feasible(trial),
        "message": str(known.get("message", "")),
    }


def line_of(event: Event) -> str:
    """An event as a line of JSON: what is no number there, such as NaN, is null."""
    return json.dumps(finite(event), allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """A value for JSON: what is no number there, such as NaN, is None."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def keep_events(path: Path) -> Callable[[Event], None]:
    """What adds events to a file, for whoever looks on. That its disk is full is told elsewhere."""

    def keep(event: Event) -> None:
        with suppress(OSError), path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # the end of a process has torn the last line
                    file.write(b"\n")
            file.write(line_of(event).encode())

    return keep


class EventReader:
    """Reads the events in a run's folder as they are added.

    Args:
        run: The search's folder; there may be no events in it yet.
    """

    def __init__(self, run: RunFolder) -> None:
        self._path = run.events
        self._at = 0

    def read(self) -> Iterator[Event]:
        """The events since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                lines = file.read().splitlines(keepends=True)
        except OSError:
            return
        for line in lines:
            if not line.endswith(b"\n"):  # it is being written
                break
            self._at += len(line)
            try:
                event = json.loads(line)
            except ValueError:  # empty, or torn
                continue
            if isinstance(event, dict) and "event" in event:
                yield event
