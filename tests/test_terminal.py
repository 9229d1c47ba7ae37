"""What a running search shows: live, in a pipe, to scripts and to machines."""

import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_standing import METRICS, begin_refit, run_trials, space_of
from rich.console import Console
from screen import Screen
from searches import QUICK, cifartune

from cifartune.report import terminal
from cifartune.report.event_log import Event, EventLog, EventReader, keep_events, line_of
from cifartune.report.standing import Standing, rung_epochs
from cifartune.report.terminal import JsonLines, Quiet, Terminal, View
from cifartune.runs import RunFolder
from cifartune.tuning.study import TrialStudy

PLAN = {"epochs": 400.0, "search": 800.0, "refit": 500.0, "evaluate": 10.0}


class Watched:
    """A made-up search, its standing and a view of it."""

    def __init__(self, folder: Path, make: Callable[..., View], **changes: Any) -> None:
        self.study = TrialStudy(space_of(**changes))
        self.standing = Standing(self.study.space)
        self.spent: dict[str, float] = {}
        self.view = make(self.standing, lambda: self.spent)
        self.events: list[Event] = []
        self.log = EventLog(self.study.space, RunFolder(folder / "made-up"), self._tell)

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        self.standing.note(event)
        self.view.note(event)

    def start(self) -> None:
        self.log.search_started()
        self.log.slots_started(4, "2 CPU cores", "http://127.0.0.1:8265")
        self.log.planned(PLAN)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 16)])
def test_the_live_view_fits_its_terminal_at_any_moment(
    width: int, height: int, tmp_path: Path
) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, height=height)
    search = Watched(tmp_path, lambda *known: Terminal(*known, console=console))
    with search.view.shown():
        screen = Screen(width, height)

        def look() -> str:
            assert isinstance(search.view, Terminal) and search.view._live
            search.view._live.refresh()
            screen.write(file.getvalue())
            file.seek(0)
            file.truncate()
            assert len(screen.lines) <= height, "it scrolled"
            return "\n".join(screen.shown)

        assert "0 of 100 trials" in look()
        search.log.search_started()
        search.log.planned(PLAN)
        for count in range(100):
            run_trials(search.study, [search.log], count=1, seed=count)
            search.spent["search"] = 2.0 * search.standing.epochs
            told = look()
            assert f"{search.standing.ended_count} of 100 trials" in told
            assert re.search(r"about \d.* left", told)
            if width >= 80:
                running = [r for r in search.standing.rows.values() if r.state == "running"]
                for row in running:
                    assert re.search(rf"^ +{row.number}\*? running", told, re.MULTILINE)
        best, *_ = begin_refit(search.study, [search.log])
        told = look()
    assert "refit, 4 of 11 runs" in told
    if width >= 80:
        assert f"best     trial {best}: val_accuracy" in told and "; baseline" in told
        assert re.search(r"reached +epoch 1: 100 \(\d+ stopped\), 3: \d+ \(\d+\), 9: ", told)
        assert f"trial {best:<4} 2 of 5 folds, 80.50% so far; epoch 5/27" in told
        assert re.search(rf"trial 0\* +dropped: behind trial {best} after 2 folds", told)


def test_in_a_pipe_there_is_a_line_for_each_milestone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    console = Console(file=file, width=80)
    search = Watched(tmp_path, lambda *known: Terminal(*known, console=console))
    search.start()
    with search.view.shown():
        run_trials(search.study, [search.log])
        search.log.noted("others hold it", "note")
        begin_refit(search.study, [search.log])
    lines = file.getvalue().splitlines()
    assert "\x1b" not in file.getvalue()
    assert lines[0] == "made-up: 100 trials of up to 27 epochs on 4 slots of 2 CPU cores"
    assert lines[1].startswith("  Ray dashboard  http://127.0.0.1:8265 (token: ")
    trials = [line for line in lines if re.match(r"trial +\d+  \w", line)]
    assert len(trials) == 100 + 1  # the first epoch of all
    assert re.fullmatch(r"trial +\d+  epoch 1/27  val_accuracy [\d.]+%  8.0 s  .*/s", trials[0])
    assert "trial   7  non finite loss: the loss was not finite in epoch 2" in trials
    assert any(re.search(r"  stopped  epoch 3/27  val_accuracy [\d.]+%$", line) for line in trials)
    assert trials[-1].count("best so far") <= 1 < sum("best so far" in line for line in trials)
    assert "  note           others hold it" in lines
    assert sum(line.startswith("refit of trial") for line in lines) == 3 + 6 + 1
    assert not any(line.endswith("left") for line in lines), "within a minute nothing is repeated"

    monkeypatch.setattr(terminal, "HEARTBEAT_SECONDS", -1.0)
    search.log.part_epoch_ended(0, "fold-2", 1, METRICS)
    last = file.getvalue().splitlines()[-1]
    assert re.fullmatch(r"refit, 4 of 11 runs; about .* left", last)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": {"metric": "val_loss"}},
        {
            "objective": None,
            "objectives": [{"metric": "val_accuracy"}, {"metric": "val_loss"}],
        },
    ],
    ids=["accuracy", "loss", "several"],
)
def test_the_best_so_far_is_whom_the_refit_would_take(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """From events and from the study alike."""
    search = Watched(tmp_path, View, **changes)
    if "objectives" in changes:  # the second objective is a fact of the trial
        record = search.study.record

        def both(number: int, epoch: int, value: float, metrics: Any = None) -> None:
            record(number, epoch, value, metrics | {"val_loss": math.sin(number)})

        search.study.record = both  # type: ignore[assignment, method-assign]
    for count in (3, 30, 60):
        run_trials(search.study, [search.log], count=count, seed=count)
        expected = [trial.number for trial in search.study.best(1000)]
        read = Standing(search.study.space, search.study.trials)
        for standing in (search.standing, read):
            assert [row.number for row in standing.ranked()] == expected
        assert read.counts == search.standing.counts
        assert read.rungs() == search.standing.rungs()
        assert (read.epochs, read.ended_count) == (
            search.standing.epochs,
            search.standing.ended_count,
        )


def test_rungs_say_who_came_there_and_who_was_stopped(tmp_path: Path) -> None:
    search = Watched(tmp_path, View)
    run_trials(search.study, [search.log])
    rungs = search.standing.rungs()
    assert [rung.epoch for rung in rungs] == [1, 3, 9, 27]
    lengths = [len(trial.intermediate_values) for trial in search.study.trials]
    assert [rung.reached for rung in rungs] == [
        sum(length >= rung.epoch for length in lengths) for rung in rungs
    ]
    assert sum(rung.stopped for rung in rungs) == search.standing.counts["stopped"]
    assert Standing(space_of(scheduler={"name": "none"})).rungs() == []
    slow = {"name": "asha", "grace_period": 2, "reduction_factor": 1.5}
    assert rung_epochs(space_of(scheduler=slow)) == [2, 3, 5, 7, 11, 16, 23, 27]


def test_time_left_is_by_what_was_measured(tmp_path: Path) -> None:
    search = Watched(tmp_path, View)
    standing = search.standing
    assert standing.seconds_left({}) is None  # nothing is known
    search.start()
    assert standing.seconds_left({}) == PLAN["search"] + PLAN["refit"] + PLAN["evaluate"]
    run_trials(search.study, [search.log], count=50)
    done = standing.epochs
    twice = 2 * PLAN["search"] / PLAN["epochs"]  # seconds an epoch
    left = standing.seconds_left({"search": done * twice})
    expected = max(PLAN["epochs"] - done, 50) * twice + 2 * PLAN["refit"] + PLAN["evaluate"]
    assert left == pytest.approx(expected)
    run_trials(search.study, [search.log], count=50)
    begin_refit(search.study, [search.log])
    # Two of three candidates are left, with five folds of 27 epochs, and the model of all images.
    planned, trained = 2 * 5 * 27 + 27, 6 * 27 + 5
    assert standing.refit_epochs == trained
    assert standing.refit_epochs_left == planned - 4 * 27 - 5
    left = standing.seconds_left({"search": 1.0, "refit": float(trained)})
    assert left == pytest.approx(standing.refit_epochs_left + PLAN["evaluate"])


def test_a_time_budget_bounds_what_is_left(tmp_path: Path) -> None:
    search = {"num_trials": 100, "sampler": "random", "time_budget": 100.0}
    standing = Standing(space_of(search=search), plan=PLAN)
    assert standing.seconds_left({"search": 40.0}) == 60.0 + PLAN["refit"] + PLAN["evaluate"]


def test_a_search_that_goes_on_tells_its_refit_anew(tmp_path: Path) -> None:
    search = Watched(tmp_path, View)
    run_trials(search.study, [search.log])
    begin_refit(search.study, [search.log])
    assert search.standing.stage == "refit"
    search.log.search_started()
    assert (search.standing.stage, search.standing.refits) == ("search", {})


def test_every_event_is_a_line_of_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    search = Watched(tmp_path, JsonLines)
    search.start()
    run_trials(search.study, [search.log], count=20)
    numbers = begin_refit(search.study, [search.log])
    search.log.part_epoch_ended(numbers[0], "fold-3", 1, {"val_loss": float("nan")})
    lines = capfd.readouterr().out.splitlines()
    events = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert len(events) == len(search.events)
    kinds = list(dict.fromkeys(event["event"] for event in events))
    assert kinds[:5] == ["started", "slots", "plan", "trial_started", "epoch"]
    assert {"trial_ended", "refit_started", "refit_epoch", "refit_part_ended"} <= set(kinds)
    assert events[-1]["metrics"] == {"val_loss": None}
    again = Standing(search.study.space)
    for event in events:
        again.note(event)
    assert again.ranked() == search.standing.ranked()
    assert again.refits.keys() == search.standing.refits.keys()


def test_without_a_reader_events_are_lost_and_nothing_else() -> None:
    code = (
        "import sys; sys.stdin.readline()\n"
        "from cifartune.report.terminal import print_event\n"
        "for _ in range(3): print_event({'event': 'note'})\n"
        "print('goes on', file=sys.stderr)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr.read() == "goes on\n"
    assert process.returncode == 0


def test_quiet_has_one_line_and_notes_go_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], smoke_run: Path
) -> None:
    search = Watched(tmp_path, Quiet)
    search.start()
    run_trials(search.study, [search.log], count=20)
    search.log.noted("is away", "MLflow")
    search.log.concluded(json.loads((smoke_run / "result.json").read_text()))
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path}/made-up\n"
    assert printed.err == "cifartune: MLflow: is away\n"
    finished = search.events[-1]
    assert finished["event"] == "finished"
    assert finished["result"] == f"{tmp_path}/made-up/result.json"
    assert 0 < finished["cv_low"] < finished["cv_accuracy"] < finished["cv_high"] < 1
    assert finished["test_accuracy"] is None  # images stood in


def test_a_line_that_was_torn_costs_no_other(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    reader, keep = EventReader(run), keep_events(run.events)
    assert list(reader.read()) == []
    keep({"event": "note", "number": 1})
    with run.events.open("a") as file:
        file.write(line_of({"event": "note", "number": 2})[:9])
    assert [event["number"] for event in reader.read()] == [1]
    keep({"event": "note", "number": 3})
    keep({"event": "note", "number": 4})
    assert [event["number"] for event in reader.read()] == [3, 4]
    assert list(reader.read()) == []


@pytest.mark.parametrize("command", ["search", "resume"])
def test_what_fails_is_an_event_too(command: str, tmp_path: Path) -> None:
    failed = cifartune(command, "missing.yaml", "--json-lines", cwd=tmp_path)
    [event] = [json.loads(line) for line in failed.stdout.splitlines()]
    assert failed.returncode == event["exit_code"] == 2
    assert (event["event"], event["kind"]) == ("error", "error")
    assert failed.stderr == f"cifartune: {event['message']}\n"
    both = cifartune(command, QUICK, "--json-lines", "--quiet", cwd=tmp_path)
    assert (both.returncode, both.stdout) == (2, "")
    assert both.stderr.startswith("cifartune: --quiet and --json-lines: give one of them")
