"""What a search decides by itself, before Ray is started; whole searches are in test_cli.py."""

import io
import traceback
from pathlib import Path
from typing import Any

import pytest
import ray
from optuna.exceptions import StorageInternalError
from rich.console import Console
from searches import QUICK
from sqlalchemy.exc import OperationalError

from cifartune.config import load_space
from cifartune.errors import UserError
from cifartune.report.event_log import Event, EventLog
from cifartune.runs import RunFolder
from cifartune.stages import Search
from cifartune.tracking import MlflowTracker, default_uri, read_runs
from cifartune.tuning.gone import what_can_be_mended
from cifartune.tuning.study import TrialStudy

AWAY = "http://u:secret@127.0.0.1:9"


def search_of(run: RunFolder) -> Search:
    """A search of a folder without images."""
    console = Console(file=io.StringIO())
    return Search(load_space(run.space_file), run, data_root=run.runs, console=console)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # mlflow's tables
@pytest.mark.parametrize("has_trials", [True, False])
def test_what_fails_before_it_begins_leaves_no_run_open(tmp_path: Path, has_trials: bool) -> None:
    run = RunFolder.create(tmp_path, load_space(QUICK), tracking_uri=default_uri(tmp_path))
    study = TrialStudy(load_space(QUICK), url=run.study_url, name=run.study_name)
    if has_trials:
        study.propose()
    with pytest.raises(UserError, match="not prepared"):
        search_of(run)._run()
    left = {found.key: found.status for found in read_runs(run.tracking_uri, run, "val_accuracy")}
    assert left == ({"search": "FAILED"} if has_trials else {})


def test_what_was_begun_goes_on_without_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = RunFolder.create(tmp_path, load_space(QUICK), tracking_uri=AWAY)
    search, events = search_of(run), list[Event]()
    search._tracker = MlflowTracker(AWAY, run, {})
    search._observers = [EventLog(search.space, run, events.append)]
    try:
        search._has_begun = False
        with pytest.raises(UserError, match="cannot be opened: MlflowException") as refused:
            search._check_tracking()
        assert "http://u:***@127.0.0.1:9" in str(refused.value)
        assert "secret" not in str(refused.value)
        search._has_begun = True
        search._check_tracking()
    finally:
        search._tracker.close()
    [note] = events
    assert (note["event"], note["about"]) == ("note", "MLflow")
    assert note["text"] == (
        "http://u:***@127.0.0.1:9 is away ([Errno 111] Connection refused): events are kept, to be "
        "sent"
    )


def test_a_database_that_is_gone_ends_a_search_with_one_line(tmp_path: Path) -> None:
    """tests/tuning/test_twin.py has it for real."""
    run = RunFolder.create(tmp_path, load_space(QUICK))
    cause = OperationalError("UPDATE trials", {}, Exception("the server closed it\n\tProbably so"))
    wrapped = StorageInternalError("An exception is raised during the commit.")
    wrapped.__cause__ = cause
    for error in (cause, wrapped, RuntimeError(f"Traceback:\n{traceback_of(wrapped)}")):
        told = what_can_be_mended(error, run)
        assert told.startswith("the study's database is gone: the server closed it. What was")
        assert told.endswith(f"go on with: {run.resume_command}")
    own = UserError("--storage: cannot be opened")
    own.__context__ = cause
    for other in (own, ValueError("a defect")):
        assert what_can_be_mended(other, run) == ""


def test_a_machine_without_memory_is_told_with_how_to_go_on(tmp_path: Path) -> None:
    """Ray ends what takes the most; that may be a process that the driver cannot do without."""
    run = RunFolder.create(tmp_path, load_space(QUICK))
    made: Any = ray.exceptions.OutOfMemoryError
    error = made("8 worker(s) were killed\nand a page of advice")
    told = what_can_be_mended(error, run)
    assert told.startswith("the memory is full: 8 worker(s) were killed. What was recorded is kept")
    assert told.endswith(f"go on with: {run.resume_command}")


def traceback_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
