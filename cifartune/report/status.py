"""A search as another process sees it: from its study and its files, which stay as they are."""

import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from cifartune.clock import Clock
from cifartune.config import load_space
from cifartune.errors import UserError
from cifartune.passwords import without_password
from cifartune.programs import program
from cifartune.report.answer import accuracy_lines, verdict_lines
from cifartune.report.event_log import Event, EventReader
from cifartune.report.standing import WHOLE, Part, Standing
from cifartune.report.tables import show_time
from cifartune.report.terminal import Terminal
from cifartune.report.view import Times, facts, left_text, progress_text, refit_lines
from cifartune.runs import RunFolder
from cifartune.tuning.recorded import recorded_trials

LOOK_SECONDS = 0.5
"""How often `watch` looks for new events."""

LABEL = 11


@dataclass(frozen=True)
class Status:
    """A search at one moment.

    Attributes:
        run: Its folder.
        state: `running`, `interrupted` or `finished`.
        standing: Its trials and its refit.
        spent: Seconds by stage.
        result: What result.json holds, once it is finished.
        events: Reads what comes after this moment.
    """

    run: RunFolder
    state: str
    standing: Standing
    spent: Mapping[str, float]
    result: dict[str, Any] | None
    events: EventReader

    @property
    def seconds_left(self) -> float | None:
        """About how long the search will still take; None where there is nothing to go by."""
        return 0.0 if self.result else self.standing.seconds_left(self.spent)


def find_run(runs: Path, name: str | None) -> RunFolder:
    """The search of that name; without one, the newest of those that run, or else of all.

    Raises:
        UserError: There is none.
    """
    if name:
        return RunFolder.open(runs, name)
    found = [RunFolder(path.parent) for path in runs.glob("*/space.yaml")]
    if not found:
        raise UserError(f"{runs}: there are no searches; begin one, or say where: --runs")

    def rank(run: RunFolder) -> tuple[bool, float]:
        signs = [path for path in (run.space_file, run.clock, run.result) if path.exists()]
        return run.is_at_work(), max(path.stat().st_mtime for path in signs)

    return max(found, key=rank)


def status_of(run: RunFolder) -> Status:
    """Reads where a search stands.

    Raises:
        UserError: A file of it, or its study, cannot be read.
    """
    events = EventReader(run)
    known = list(events.read())  # before the study: what comes between is in both
    is_at_work, space = run.is_at_work(), load_space(run.space_file)
    try:
        trials = recorded_trials(run)
    except KeyError:
        trials = []
    standing = Standing(space, trials, run.read_plan())
    for event in known:
        if event["event"] in ("started", "slots") or event["event"].startswith("refit_"):
            standing.note(event)
    if _is_gone(standing.process):  # another has just begun, or checks what is there
        standing.process = {}
    result = run.outcome if run.result.exists() else None
    state = "finished" if result else "running" if is_at_work else "interrupted"
    return Status(run, state, standing, Clock(run.clock).seconds, result, events)


def print_status(status: Status, console: Console) -> None:
    """Prints a status for people."""
    run = status.run
    console.print(f"[bold]{run.name}[/] {_state(status)}", highlight=False, soft_wrap=True)
    for label, text in status_lines(status, console.width):
        console.print(f"  {label:{LABEL}} {text}", highlight=False, markup=False, soft_wrap=True)


def status_lines(status: Status, width: int) -> Iterator[tuple[str, str]]:
    """What is to be said of a search: label and text."""
    run, standing, result = status.run, status.standing, status.result
    if not result:
        yield "progress", progress_text(standing)
    yield from facts(standing, width - 5)
    if result:
        yield from (("verdict", line) for line in verdict_lines(result))
        yield from accuracy_lines(result)
    else:
        yield from refit_lines(standing)
    spent = sum(status.spent.values())
    parts = ", ".join(f"{stage} {show_time(seconds)}" for stage, seconds in status.spent.items())
    left = "" if result else "; " + left_text(standing, Times(None, status.spent))
    yield "time", (f"{show_time(spent)}: {parts}" if parts else "none spent") + left
    yield "MLflow", without_password(run.tracking_uri)
    if dashboard := _dashboard(status):
        yield "dashboard", f"{dashboard} (token: {program('ray')} get-auth-token)"
    yield "messages", str(run.log)
    if result:
        yield "outcome", str(run.result)
    elif status.state == "interrupted":
        yield "go on", run.resume_command


def status_json(status: Status) -> dict[str, Any]:
    """The same for machines, as docs/WATCHING.md lists it: JSON values by name."""
    run, standing = status.run, status.standing
    is_running = status.state == "running"
    best = next(iter(standing.ranked()), None)
    return {
        "name": run.name,
        "folder": str(run.path),
        "state": status.state,
        "stage": "done" if status.result else standing.stage,
        "pid": standing.process.get("pid") if is_running else None,
        "host": standing.process.get("host") if is_running else None,
        "since": standing.process.get("time") if is_running else None,
        "dashboard": _dashboard(status),
        "trials": {
            "planned": standing.space.search.num_trials,
            "ended": standing.ended_count,
            "states": standing.counts,
        },
        "epochs": standing.epochs,
        "planned_epochs": standing.plan and standing.plan["epochs"],
        "best": best
        and {
            "trial": best.number,
            "value": best.value,
            "epoch": best.epoch,
            "state": best.state,
            "changed": standing.changes(best),
        },
        "rungs": [vars(rung) for rung in standing.rungs()],
        "refits": [
            {
                "trial": number,
                "epochs": row.epochs,
                "folds_done": sum(part.is_over for part in row.folds()),
                "folds": standing.space.refit.folds * standing.space.refit.seeds,
                "all_images_done": whole.is_over and not whole.failure,
                "all_images_failure": whole.failure,
                "dropped": row.dropped,
            }
            for number, row in standing.refits.items()
            for whole in [row.parts.get(WHOLE, Part())]
        ],
        "seconds": dict(status.spent),
        "seconds_left": status.seconds_left,
        "tracking_uri": without_password(run.tracking_uri),
        "log": str(run.log),
        "result": str(run.result) if status.result else None,
        "resume": run.resume_command if status.state == "interrupted" else None,
    }


def watch(status: Status, console: Console) -> None:
    """Shows a search until no process is at it any more, then says how it ended."""
    run, standing = status.run, status.standing
    if status.state == "running":
        view = Terminal(standing, lambda: Clock(run.clock).seconds, console=console)
        with view.shown():
            while run.is_at_work():
                _follow(status.events, standing, view)
                time.sleep(LOOK_SECONDS)
            _follow(status.events, standing, view)
        status = status_of(run)
    print_status(status, console)


def _follow(events: EventReader, standing: Standing, view: Terminal) -> None:
    for event in events.read():
        standing.note(event)
        view.note(event)


def _state(status: Status) -> str:
    process: Event = status.standing.process
    if status.state != "running":
        return status.state
    if not process:
        return "is held by a process that has not begun to train"
    since = status.standing.elapsed() or 0.0
    return f"runs for {show_time(since)}: process {process['pid']} on {process['host']}"


def _is_gone(process: Event) -> bool:
    """Whether a search's process has ended, as far as this machine can tell."""
    is_here = process.get("host") == socket.gethostname()
    return is_here and not psutil.pid_exists(process["pid"])


def _dashboard(status: Status) -> str:
    """The address of Ray's dashboard, while it is there."""
    return status.standing.process.get("dashboard", "") if status.state == "running" else ""
