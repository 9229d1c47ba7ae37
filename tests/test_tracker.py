"""MLflow, on a real SQLite store."""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from cifartune.config import Recipe, SearchSpace
from cifartune.config.load import dump_space
from cifartune.errors import UserError
from cifartune.extend import space_to_resume
from cifartune.final_models import FinalModel, export_program
from cifartune.runs import RunFolder
from cifartune.tracking import (
    MlflowTracker,
    check_server,
    default_uri,
    end_abandoned,
    outcome_of,
    send_rest,
    system,
)
from cifartune.tracking import tracker as tracker_module
from cifartune.tracking.outbox import Event, Outbox
from cifartune.tracking.refused import Refused, count_refused
from cifartune.tracking.store import KEY, MlflowStore
from cifartune.training import SplitImages, Trainer
from cifartune.training.classifier import save_classifier
from cifartune.tuning.study import TrialStudy, sqlite_url

pytestmark = [
    # mlflow's own tables, as SQLAlchemy sees them; mlflow's own types, as it sees them itself.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),
]

SPACE = SearchSpace.model_validate(
    {
        "name": "toy",
        "base": {"model": {"name": "speednet_small"}, "epochs": 2},
        "parameters": {"optimizer.lr": {"min": 0.01, "max": 1.0, "log": True}},
    }
)
METRICS = {"val_accuracy": 0.5, "val_loss": 1.5}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without runs, to be copied: MLflow takes a second to make one."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def run(tmp_path: Path, empty_store: Path) -> RunFolder:
    run = RunFolder.create(tmp_path / "runs", SPACE)
    shutil.copy(empty_store, run.runs)
    return run


@pytest.fixture
def study(run: RunFolder) -> TrialStudy:
    return TrialStudy(SPACE, url=sqlite_url(run.study), name=run.name)


def tracker_of(run: RunFolder) -> MlflowTracker:
    return MlflowTracker(default_uri(run.path.parent), run, {"command": "cifartune search"})


def logged(run: RunFolder) -> dict[str, Run]:
    """The store's runs by our keys, a search's by its name; none may be there twice."""
    client = mlflow.MlflowClient(default_uri(run.path.parent))
    experiment = client.get_experiment_by_name("cifartune")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    by_name = {name_of(found): found for found in runs}
    assert len(by_name) == len(runs)
    return by_name


def name_of(found: Run) -> str:
    key = found.data.tags[KEY]
    return str(found.info.run_name if key == "search" else key)


def parent_of(found: dict[str, Run], name: str) -> str:
    ids = {one.info.run_id: key for key, one in found.items()}
    return ids[found[name].data.tags["mlflow.parentRunId"]]


def do_trial(tracker: MlflowTracker, study: TrialStudy, end: str) -> int:
    """A trial of one epoch that ends by the study's method of that name."""
    number, recipe = (proposal := study.propose()).number, proposal.recipe
    tracker.trial_started(number, recipe)
    study.record(number, 1, METRICS["val_accuracy"])
    tracker.epoch_ended(number, 1, METRICS)
    reasons = ("non_finite_loss", "it broke") if end in ("reject", "fail") else ()
    getattr(study, end)(number, *reasons)
    tracker.trial_ended(study.trials[number])
    return number


def test_a_search_is_a_tree_of_runs(run: RunFolder, study: TrialStudy) -> None:
    tracker = tracker_of(run)
    for end in ("complete", "prune", "reject", "fail"):
        do_trial(tracker, study, end)
    recipe = study.recipe(study.trials[0])
    tracker.refit_started(0, recipe)
    facts = {"fold": 1, "weights_sha256": "abc", "params": 5, "threads": 2}
    for part in ("fold-0", "fold-1"):
        tracker.part_epoch_ended(0, part, 1, METRICS)
        tracker.part_ended(0, part, 0.75, facts if part == "fold-1" else {})
    tracker.refit_ended(0, {"cv_accuracy": 0.75})
    tracker.part_epoch_ended(0, "all-images", 1, METRICS)
    why = {"failure": "non_finite_loss", "message": "the loss was not finite in epoch 2"}
    tracker.part_ended(0, "all-images", None, why)
    tracker.close()
    assert tracker.failures == []

    found = logged(run)
    assert found["refit-0-all-images"].data.tags["cifartune.message"] == why["message"]
    assert {name: one.info.status for name, one in found.items()} == {
        "toy": "FINISHED",
        "trial-0": "FINISHED",
        "trial-1": "KILLED",
        "trial-2": "FAILED",
        "trial-3": "FAILED",
        "refit-0": "FINISHED",
        "refit-0-fold-0": "FINISHED",
        "refit-0-fold-1": "FINISHED",
        "refit-0-all-images": "FAILED",
    }
    assert {parent_of(found, f"trial-{n}") for n in range(4)} == {"toy"}
    assert parent_of(found, "refit-0") == "toy"
    assert parent_of(found, "refit-0-fold-1") == "refit-0"
    states = [found[f"trial-{n}"].data.tags["cifartune.state"] for n in range(4)]
    assert states == ["COMPLETE", "PRUNED", "PRUNED", "FAIL"]
    assert found["trial-2"].data.tags["cifartune.failure"] == "non_finite_loss"
    assert found["trial-0"].data.params == {"optimizer.lr": f"{recipe.optimizer.lr:.5g}"}
    shared = found["toy"].data.params
    assert shared.keys() == recipe.flat().keys() - {"optimizer.lr", "seed"}
    assert shared["model.name"] == "speednet_small"
    assert Recipe.model_validate_json(found["trial-0"].data.tags["cifartune.recipe"]) == recipe
    names = {key: str(one.info.run_name) for key, one in found.items()}
    assert names["trial-0"] == "trial 00 · baseline"
    assert re.fullmatch(r"trial 01 · lr \d\.\d+", names["trial-1"])
    assert names["refit-0-fold-1"] == "fold 1" and names["refit-0"] == "refit of trial 0"
    assert found["refit-0"].data.metrics["cv_accuracy"] == 0.75
    assert found["refit-0-fold-0"].data.metrics["held_out_accuracy"] == 0.75
    tags = found["refit-0-fold-1"].data.tags
    known = {name: tags.get(f"cifartune.{name}") for name in ("kind", *facts)}
    # Of the numbers, those that say how it was computed.
    expected = {"kind": "fold", "fold": "1", "weights_sha256": "abc", "threads": "2"}
    assert known == {**expected, "params": None}


def test_how_busy_the_machine_is(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the end of each process that is at the search, and on from there in the next."""
    monkeypatch.setattr(system, "SECONDS", 0.05)
    client, name = mlflow.MlflowClient(default_uri(run.runs)), "system/cpu_utilization_percentage"
    counts = []
    for _ in range(2):
        tracker = tracker_of(run)
        before = tracker._told.steps["search"]
        while tracker._told.steps["search"] < before + 3:
            time.sleep(0.01)
        tracker.close()
        assert json.loads(run.tracking.read_text().splitlines()[-1])["do"] == "end"
        history = client.get_metric_history(logged(run)["toy"].info.run_id, name)
        assert [point.step for point in history] == [*range(1, len(history) + 1)]
        assert all(0 <= point.value <= 100 for point in history)
        counts.append(len(history))
    assert 3 <= counts[0] <= counts[1] - 3
    metrics = logged(run)["toy"].data.metrics
    assert {"system/system_memory_usage_megabytes", name} <= metrics.keys()


def test_every_epoch_is_a_step(run: RunFolder, study: TrialStudy) -> None:
    tracker = tracker_of(run)
    proposal = study.propose()
    tracker.trial_started(proposal.number, proposal.recipe)
    for epoch, value in ((1, 0.25), (2, 0.5), (3, 0.75)):
        tracker.epoch_ended(proposal.number, epoch, {"val_accuracy": value})
    tracker.close()
    client = mlflow.MlflowClient(default_uri(run.path.parent))
    history = client.get_metric_history(logged(run)["trial-0"].info.run_id, "val_accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.25), (2, 0.5), (3, 0.75)]


def test_what_is_interrupted_is_killed_and_then_goes_on(run: RunFolder, study: TrialStudy) -> None:
    proposal = study.propose()
    first = tracker_of(run)
    first.trial_started(proposal.number, proposal.recipe)
    first.close("KILLED")
    assert {one.info.status for one in logged(run).values()} == {"KILLED"}

    again = tracker_of(run)
    assert again.run_id == first.run_id
    assert logged(run)["toy"].info.status == "RUNNING"
    again.trial_started(proposal.number, proposal.recipe)
    study.record(0, 1, 0.5)
    study.complete(0)
    again.trial_ended(study.trials[0])
    again.close()
    assert {one.info.status for one in logged(run).values()} == {"FINISHED"}


def test_a_fold_that_is_interrupted_goes_on(run: RunFolder, study: TrialStudy) -> None:
    recipe = study.propose().recipe
    first = tracker_of(run)
    first.refit_started(0, recipe)
    first.part_epoch_ended(0, "fold-0", 1, METRICS)
    first.close("KILLED")
    again = tracker_of(run)
    again.refit_started(0, recipe)
    again.part_epoch_ended(0, "fold-0", 2, METRICS)
    again.part_ended(0, "fold-0", 0.75, {"weights_sha256": "abc"})
    again.close("KILLED")
    assert logged(run)["refit-0-fold-0"].info.status == "FINISHED"

    third = tracker_of(run)
    third.part_ended(0, "fold-0", 0.75, {})  # found done, and nothing else is known of it
    third.close("KILLED")
    fold = logged(run)["refit-0-fold-0"]
    assert (fold.info.status, fold.data.tags["cifartune.weights_sha256"]) == ("FINISHED", "abc")
    assert fold.data.metrics["held_out_accuracy"] == 0.75


def test_a_write_that_fails_is_told_and_raises_nothing(run: RunFolder, study: TrialStudy) -> None:
    tracker = tracker_of(run)
    tracker.check()
    tracker.epoch_ended(7, 1, METRICS)  # a trial that was never started
    do_trial(tracker, study, "complete")
    tracker.close()
    assert len(tracker.failures) == 1
    assert logged(run)["trial-0"].info.status == "FINISHED"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "PAUSES", (0.01, 0.05))


@pytest.fixture
def gives_up_soon(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a store that is away in the end; any other is to be waited for, on a busy machine too."""
    monkeypatch.setattr(tracker_module, "CLOSE_SECONDS", 0.3)


class Outage:
    """A store that does not answer for a while, and then may not say what it did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_late: bool = False) -> None:
        self.lasts = False
        self._is_late = is_late
        self._open, self._write = MlflowStore.open, MlflowStore._write
        monkeypatch.setattr(MlflowStore, "open", lambda store: self.open(store))
        monkeypatch.setattr(MlflowStore, "_write", lambda store, event: self.write(store, event))

    def open(self, store: MlflowStore) -> None:
        if self.lasts:
            store.is_open = False
            raise ConnectionError("nobody is there")
        self._open(store)

    def write(self, store: MlflowStore, event: Event) -> None:
        if not self.lasts or self._is_late:
            self._write(store, event)
        if self.lasts:
            raise ConnectionError("nobody is there")


@pytest.mark.parametrize("is_late", [False, True])
def test_what_cannot_be_sent_is_sent_later_and_once(
    run: RunFolder,
    study: TrialStudy,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    is_late: bool,
) -> None:
    outage = Outage(monkeypatch, is_late=is_late)
    tracker = tracker_of(run)
    tracker.check()
    outage.lasts = True
    start = time.monotonic()
    for end in ("complete", "prune"):
        do_trial(tracker, study, end)
    assert time.monotonic() - start < 1  # nobody waits
    while not tracker.trouble:
        time.sleep(0.01)
    assert tracker.unsent
    outage.lasts = False
    tracker.close()
    assert (tracker.unsent, tracker.failures, tracker.trouble) == (0, [], "")
    check_both_trials(run)


def check_both_trials(run: RunFolder) -> None:
    found = logged(run)
    states = {name: one.info.status for name, one in found.items()}
    assert states == {"toy": "FINISHED", "trial-0": "FINISHED", "trial-1": "KILLED"}
    client = mlflow.MlflowClient(default_uri(run.path.parent))
    for name in ("trial-0", "trial-1"):
        history = client.get_metric_history(found[name].info.run_id, "val_accuracy")
        assert [point.step for point in history] == [1]
        assert found[name].data.params


def test_what_the_store_cannot_take_holds_up_nothing(
    run: RunFolder, study: TrialStudy, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = MlflowStore._write
    tried: list[str] = []

    def broken(store: MlflowStore, event: Event) -> None:
        if event["do"] == "file":
            raise ModuleNotFoundError("boto3")
        if event["do"] == "tag":
            tried.append(event["key"])
            raise MlflowException("a defect of the server")  # INTERNAL_ERROR
        write(store, event)

    monkeypatch.setattr(MlflowStore, "_write", broken)
    tracker = tracker_of(run)
    tracker.check()
    do_trial(tracker, study, "complete")
    tracker.close()
    assert tracker.unsent == 0 and len(tracker.failures) == 2
    assert tried == ["trial-0"] * tracker_module.TRIES
    assert logged(run)["trial-0"].info.status == "FINISHED"

    assert count_refused(run) == 2
    assert send_rest(tracker.uri, run) == 0  # it refuses them still
    assert count_refused(run) == 2
    with monkeypatch.context() as patch:
        patch.setattr(MlflowStore, "_write", write)
        assert send_rest(tracker.uri, run) == 2
    assert logged(run)["trial-0"].data.tags["cifartune.state"] == "COMPLETE"
    assert count_refused(run) == send_rest(tracker.uri, run) == 0


@contextmanager
def read_only(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowTracker]:
    """A tracker whose store can be read, and not written: it refuses all that is told."""

    def broken(store: MlflowStore, event: Event) -> None:
        raise MlflowException("the database is read-only")  # INTERNAL_ERROR

    tracker = tracker_of(run)
    tracker.check()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowStore, "_write", broken)
        yield tracker
        tracker.close("KILLED")


def test_what_is_sent_late_takes_no_later_ones_place(
    run: RunFolder, study: TrialStudy, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with read_only(run, monkeypatch) as first:
        first._put("tag", "search", tags={"mlflow.note.content": "not finished", "a": "1"})
    again = tracker_of(run)
    again._put("tag", "search", tags={"mlflow.note.content": "the verdict"})
    again.close()
    assert count_refused(run) and send_rest(again.uri, run)
    tags = logged(run)[run.name].data.tags
    assert (tags["mlflow.note.content"], tags["cifartune.a"]) == ("the verdict", "1")


def test_a_server_that_answers_with_errors_for_a_while_loses_no_event(
    run: RunFolder, study: TrialStudy, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with read_only(run, monkeypatch) as first:
        for end in ("complete", "prune"):
            do_trial(first, study, end)
    assert first.unsent == 0 and len(first.failures) == count_refused(run) > 8
    # Meanwhile it is gone on with, and ends.
    again = tracker_of(run)
    again.close()
    assert send_rest(again.uri, run) == len(first.failures)
    check_both_trials(run)  # FINISHED: what was refused is the past
    assert count_refused(run) == send_rest(again.uri, run) == 0


def test_what_cannot_be_set_aside_is_not_given_up(
    run: RunFolder, study: TrialStudy, gives_up_soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(store: MlflowStore, event: Event) -> None:
        raise MlflowException("a defect of the server")

    def full(refused: Refused, event: Event) -> None:
        raise OSError("there is no room")

    tracker = tracker_of(run)
    tracker.check()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowStore, "_write", broken)
        patch.setattr(Refused, "add", full)
        for end in ("complete", "prune"):
            do_trial(tracker, study, end)
        tracker.close()
    assert (tracker.failures, count_refused(run)) == ([], 0)
    assert send_rest(tracker.uri, run) == tracker.unsent > 8
    check_both_trials(run)


def test_a_store_on_a_full_disk_loses_no_event(
    run: RunFolder, study: TrialStudy, gives_up_soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(store: MlflowStore, event: Event) -> None:
        cause = sqlite3.OperationalError("database or disk is full")
        raise MlflowException(str(OperationalError("INSERT ...", None, cause)))

    tracker = tracker_of(run)
    tracker.check()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowStore, "_write", full)
        for end in ("complete", "prune"):
            do_trial(tracker, study, end)
        tracker.close()
    assert tracker.failures == [] and tracker.unsent
    assert send_rest(tracker.uri, run) == tracker.unsent
    check_both_trials(run)


@pytest.mark.parametrize("metrics", [("val_accuracy", "params"), ("params", "val_accuracy")])
def test_a_trial_of_several_objectives_is_told(run: RunFolder, metrics: tuple[str, str]) -> None:
    """Its `objective` is that by which trials are stopped, in whatever order they come."""
    changes = {
        "objectives": [{"metric": metric} for metric in metrics],
        "scheduler": {"metric": "val_accuracy"},
    }
    space = SearchSpace.model_validate({**SPACE.model_dump(exclude={"objective"}), **changes})
    run.space_file.write_text(dump_space(space))
    study = TrialStudy(space, url=sqlite_url(run.study), name=run.name)
    tracker = tracker_of(run)
    do_trial(tracker, study, "complete")
    tracker.close()
    assert tracker.failures == []
    assert logged(run)["trial-0"].data.metrics["objective"] == METRICS["val_accuracy"]


def test_a_search_ends_without_its_store(
    run: RunFolder, study: TrialStudy, gives_up_soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    outage = Outage(monkeypatch)
    tracker = tracker_of(run)
    tracker.check()
    outage.lasts = True
    for end in ("complete", "prune"):
        do_trial(tracker, study, end)
    tracker.close()
    assert tracker.unsent and "nobody is there" in tracker.trouble
    with pytest.raises(UserError, match=f"{tracker.unsent} events of toy are left to send: Conn"):
        send_rest(tracker.uri, run)
    outage.lasts = False
    assert send_rest(tracker.uri, run) == tracker.unsent
    check_both_trials(run)
    assert send_rest(tracker.uri, run) == 0


@contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """A real tracking server, killed in the end."""
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                check_server(uri)
                break
            except UserError:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.5)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_server_may_be_killed_and_started_again(
    run: RunFolder, study: TrialStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_module, "PAUSES", (0.5, 1.0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with server(tmp_path, port) as uri:
        tracker = MlflowTracker(uri, run, {})
        tracker.check()
        do_trial(tracker, study, "complete")
    start = time.monotonic()
    do_trial(tracker, study, "prune")
    assert time.monotonic() - start < 1
    while not tracker.trouble:
        time.sleep(0.1)
    with server(tmp_path, port):
        tracker.close()
        assert (tracker.unsent, tracker.failures) == (0, [])
        client = mlflow.MlflowClient(uri)
        experiment = client.get_experiment_by_name("cifartune")
        assert experiment
        found = {name_of(one): one for one in client.search_runs([experiment.experiment_id])}
        states = {name: one.info.status for name, one in found.items()}
        assert states == {"toy": "FINISHED", "trial-0": "FINISHED", "trial-1": "KILLED"}
        for name in ("trial-0", "trial-1"):
            history = client.get_metric_history(found[name].info.run_id, "val_accuracy")
            assert [point.step for point in history] == [1]


def test_what_a_dead_driver_could_not_tell_is_told(run: RunFolder, study: TrialStudy) -> None:
    tracker = tracker_of(run)
    proposals = [study.propose() for _ in range(4)]
    for proposal in proposals[:3]:
        tracker.trial_started(proposal.number, proposal.recipe)
    for number in range(3):
        study.record(number, 1, 0.25, {**METRICS, "val_accuracy": 0.25})
    tracker.epoch_ended(0, 1, METRICS)
    study.complete(0)
    study.prune(1)
    tracker._stop()  # and so it died: no run is ended, two epochs are not logged

    early = tracker_of(run)
    early.close("FAILED")  # a driver that ended before it could catch up
    again = tracker_of(run)
    again.catch_up(study)
    again.trial_started(2, proposals[2].recipe)
    again.epoch_ended(2, 1, METRICS)  # trained again
    again._stop()
    found = logged(run)
    states = {name: one.info.status for name, one in found.items()}
    expected = {"trial-0": "FINISHED", "trial-1": "KILLED", "trial-2": "RUNNING"}
    assert states == {"toy": "RUNNING", **expected}
    client = mlflow.MlflowClient(default_uri(run.path.parent))
    for number, values in enumerate(([0.5], [0.25], [0.25])):
        run_id = found[f"trial-{number}"].info.run_id
        history = client.get_metric_history(run_id, "val_accuracy")
        assert [point.value for point in history] == values


def test_epochs_that_a_power_cut_took_from_the_file_are_told_again(
    run: RunFolder, study: TrialStudy
) -> None:
    tracker = tracker_of(run)
    proposal = study.propose()
    tracker.trial_started(0, proposal.recipe)
    tracker.epoch_ended(0, 1, METRICS)
    values = {1: 0.5, 2: 0.25, 3: 0.5, 4: 0.75}
    for epoch, value in values.items():
        study.record(0, epoch, value, {"val_accuracy": value, "val_loss": 1.0, "seconds": 8.0})
    tracker._stop()

    again = tracker_of(run)
    again.catch_up(study)
    again.catch_up(study)  # nothing twice
    again._stop()
    client = mlflow.MlflowClient(default_uri(run.path.parent))
    run_id = logged(run)["trial-0"].info.run_id
    history = client.get_metric_history(run_id, "val_accuracy")
    assert {point.step: point.value for point in history} == values and len(history) == 4
    losses = client.get_metric_history(run_id, "val_loss")
    assert [(point.step, point.value) for point in losses] == [(1, 1.5), (4, 1.0)]
    assert "seconds" not in logged(run)["trial-0"].data.metrics


def test_the_end_of_a_trial_is_on_the_disk(
    run: RunFolder, study: TrialStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while nothing can be sent."""
    synced = list[int]()

    def sync(outbox: Outbox) -> None:
        if threading.current_thread() is threading.main_thread():  # not the one that sends
            synced.append(run.tracking.stat().st_size)

    monkeypatch.setattr(Outbox, "sync", sync)
    tracker = tracker_of(run)
    do_trial(tracker, study, "complete")
    assert synced == [run.tracking.stat().st_size]
    tracker._stop()


def test_metrics_of_an_epoch_without_its_value_are_not_those_of_the_one_before(
    run: RunFolder, study: TrialStudy
) -> None:
    """A process may die between the metrics of an epoch and its value."""
    proposal = study.propose()
    study.record(0, 1, 0.5, METRICS)
    for storage, trial_id in study._ids(0):
        storage.set_trial_user_attr(trial_id, "metrics", {"val_accuracy": 0.75, "val_loss": 0.1})
    tracker = tracker_of(run)
    tracker.trial_started(0, proposal.recipe)
    tracker.catch_up(study)
    tracker._stop()
    assert logged(run)["trial-0"].data.metrics == {"val_accuracy": 0.5}


def test_what_a_dead_driver_left_running_is_set_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the next search, whichever it is; what another process is at is left alone."""
    uri = default_uri(tmp_path)
    runs = [RunFolder.create(tmp_path, SPACE, name, tracking_uri=uri) for name in "abcd"]
    trackers = [MlflowTracker(uri, run, {}) for run in runs]
    for tracker, run in zip(trackers, runs, strict=True):
        study = TrialStudy(SPACE, url=run.study_url, name=run.name)
        tracker.trial_started(0, study.propose().recipe)
    trackers[0].close()
    for tracker in trackers[1:]:
        tracker._stop()  # as a driver that died, though all it had said has arrived
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "run.json").write_text("{")  # whatever that is
    assert end_abandoned(tmp_path, uri) == []  # there was a sign of life just now
    for run in runs:
        os.utime(run.tracking, (1, 1))
    with runs[2].locked():
        assert end_abandoned(tmp_path, uri) == ["b", "d"]
        assert end_abandoned(tmp_path, "sqlite:///elsewhere.db") == []
    client = mlflow.MlflowClient(uri)
    statuses: dict[str, list[str]] = {}
    for one in client.search_runs(["1"]):
        statuses.setdefault(one.data.tags["cifartune.search"], []).append(one.info.status)
    expected = ["FINISHED", "KILLED", "RUNNING", "KILLED"]
    assert statuses == {run.id: [status] * 2 for run, status in zip(runs, expected, strict=True)}
    first, *_ = client.search_runs(["1"], f"tags.`cifartune.search` = '{runs[1].id}'")
    last_event = json.loads(runs[1].tracking.read_text().splitlines()[-1])["time"]
    assert first.info.end_time == last_event < time.time() * 1000

    def away(*_: Any) -> None:
        raise ConnectionError("nobody is there")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowStore, "open", away)
        assert end_abandoned(tmp_path, uri) == []
    os.utime(runs[2].tracking, (1, 1))
    assert end_abandoned(tmp_path, uri) == ["c"]  # what could not be sent is sent now
    os.utime(runs[2].tracking, (1, 1))
    assert end_abandoned(tmp_path, uri) == []

    again = MlflowTracker(uri, runs[1], {})
    again.trial_started(0, study.recipe(study.trials[0]))
    again._stop()
    mine = client.search_runs(["1"], f"tags.`cifartune.search` = '{runs[1].id}'")
    assert [one.info.status for one in mine] == ["RUNNING", "RUNNING"]


@pytest.mark.parametrize(
    ("events", "status"), [(0, None), (1, None), (3, None), (4, None), (0, "KILLED"), (4, "KILLED")]
)
def test_an_outcome_that_a_dead_driver_could_not_tell_is_told(
    run: RunFolder,
    study: TrialStudy,
    monkeypatch: pytest.MonkeyPatch,
    events: int,
    status: str | None,
) -> None:
    """It died after so many events of the outcome, or was ended then, as by a Ctrl-C."""
    models = list[str]()
    monkeypatch.setattr(
        MlflowStore, "_model", lambda store, time, key, program: models.append(program)
    )
    result = {
        "validation_accuracy": 0.5,
        "cv_accuracy": {"value": 0.25},
        "test_accuracy": {"value": 0.125},
        "test_set": "CIFAR-10 test",
        "test_looks": 1,
        "test_looks_of_all_searches": 4,
        "seconds": {"total": 8.0},
    }
    run.result.write_text(json.dumps(result))
    run.trials_csv.touch()
    run.program.touch()
    tracker = tracker_of(run)
    tracker.trial_started(0, study.propose().recipe)
    with monkeypatch.context() as patch:
        patch.setattr(tracker, "_put", limited(tracker._put, events))
        tracker.search_ended(*outcome_of(run))
    if status:
        tracker.close(status)
    else:
        tracker._stop()

    assert send_rest(tracker.uri, run) > 0
    assert models == [str(run.program)]
    found = logged(run)
    wanted = {"val_accuracy": 0.5, "cv_accuracy": 0.25, "test_accuracy": 0.125, "seconds": 8.0}
    wanted |= {"test_looks": 1.0, "test_looks_of_all_searches": 4.0}
    assert (found["toy"].data.metrics, found["toy"].info.status) == (wanted, "FINISHED")
    client = mlflow.MlflowClient(tracker.uri)
    files = {file.path for file in client.list_artifacts(found["toy"].info.run_id)}
    assert files >= {"result.json", "trials.csv"}
    assert send_rest(tracker.uri, run) == 0
    os.utime(run.tracking, (1, 1))
    assert end_abandoned(run.runs, tracker.uri) == []
    for file in run.path.glob("tracking*"):
        file.unlink()
    assert send_rest(tracker.uri, run) == 0  # MLflow was never told of it


def limited(function: Callable[..., None], count: int) -> Callable[..., None]:
    """A function that does nothing any more after so many calls."""
    left = iter(range(count))
    return lambda *arguments, **options: (
        None if next(left, None) is None else function(*arguments, **options)
    )


def test_a_search_that_is_tidied_can_be_gone_on_with(
    tmp_path: Path, gives_up_soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that hangs holds the search of a dead driver, and then lets go."""
    uri, told = default_uri(tmp_path), list[str]()
    run = RunFolder.create(tmp_path, SPACE, tracking_uri=uri)
    MlflowTracker(uri, run, {})._stop()
    os.utime(run.tracking, (1, 1))
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(*_: Any) -> None:
        hangs.set()
        goes_on.wait(20)
        raise ConnectionError("nobody is there")

    with ThreadPoolExecutor() as others, monkeypatch.context() as patch:
        patch.setattr(MlflowStore, "open", hang)
        tidying = others.submit(end_abandoned, tmp_path, uri)
        assert hangs.wait(20)
        resuming = others.submit(space_to_resume, run, [], told.append)
        while not told:
            assert not resuming.done()
        goes_on.set()
        assert resuming.result(timeout=20) == SPACE
        assert tidying.result(timeout=20) == []


def test_a_store_that_cannot_be_opened(run: RunFolder) -> None:
    (run.path / "file").write_text("in the way")
    tracker = MlflowTracker(f"sqlite:///{run.path}/file/mlflow.db", run, {})
    with pytest.raises(UserError, match=r"--tracking-uri sqlite.* cannot be opened"):
        tracker.check()
    tracker.close()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "file:///tmp/mlruns", "mlruns"])
def test_a_uri_that_cannot_be_used(uri: str) -> None:
    with pytest.raises(UserError, match=f"--tracking-uri {uri}"):
        check_server(uri)


OPEN = """
import sys
import time
from pathlib import Path
from cifartune.runs import RunFolder
from cifartune.tracking import MlflowTracker, default_uri
run = RunFolder(Path(sys.argv[1]))
tracker = MlflowTracker(default_uri(run.path.parent), run, {})
tracker.check()
tracker.close()
sys.exit(len(tracker.failures))
"""


def test_two_searches_may_make_the_store_at_once(tmp_path: Path) -> None:
    runs = [RunFolder.create(tmp_path, SPACE) for _ in range(2)]
    drivers = [subprocess.Popen([sys.executable, "-c", OPEN, str(run.path)]) for run in runs]
    assert [driver.wait(timeout=120) for driver in drivers] == [0, 0]
    assert set(logged(runs[0])) == {"toy", "toy-2"}


LOAD = """
import sys
sys.modules["cifartune"] = None  # an import would fail
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(f"runs:/{sys.argv[2]}/model")
np.save(sys.argv[4], model.predict(np.load(sys.argv[3])))
"""


def test_the_logged_model_needs_no_cifartune(
    run: RunFolder, tmp_path: Path, split: SplitImages, recipe: Recipe
) -> None:
    weights = []
    for seed in range(2):
        trainer = Trainer(recipe.with_values({"epochs": 1, "seed": seed, "tta": "flip"}), split)
        next(iter(trainer))
        weights.append(tmp_path / f"{seed}.safetensors")
        save_classifier(trainer.classifier, weights[-1])
    model = FinalModel.load(weights)
    export_program(model, run.program)
    tracker = tracker_of(run)
    tracker.search_ended({"val_accuracy": 0.5}, [run.space_file], run.program)
    run_id = tracker.run_id
    tracker.close()
    assert tracker.failures == []

    images = split.images[:3]
    np.save(tmp_path / "images.npy", images.permute(0, 2, 3, 1).numpy())
    uri = default_uri(run.path.parent)
    command = [sys.executable, "-c", LOAD, uri, run_id, "images.npy", "probabilities.npy"]
    loaded = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=clean_environment()
    )
    assert loaded.returncode == 0, loaded.stderr
    assert "Warning" not in loaded.stderr
    probabilities: Any = np.load(tmp_path / "probabilities.npy")
    assert probabilities.dtype == np.float32 and probabilities.shape == (3, 10)
    with torch.inference_mode():
        expected = model.ensemble(images).numpy()
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
