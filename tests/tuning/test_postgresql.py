"""A study in PostgreSQL, for real."""

import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from postgres import Server, postgresql_server
from sqlalchemy.exc import SQLAlchemyError

from cifartune.config import SearchSpace
from cifartune.errors import UserError
from cifartune.runs import RunFolder
from cifartune.tuning.gone import database_gone
from cifartune.tuning.recorded import recorded_trials
from cifartune.tuning.study import TrialStudy, check_storage, close_storage

SPACE = SearchSpace.model_validate(
    {
        "name": "toy",
        "base": {"model": {"name": "speednet_small"}, "epochs": 4},
        "parameters": {"optimizer.lr": {"min": 0.01, "max": 1.0, "log": True}},
        "search": {"num_trials": 9},
    }
)

DIE = """
import os, signal, sys
from pathlib import Path
from cifartune.config import load_space
from cifartune.runs import RunFolder
from cifartune.tuning.study import TrialStudy
run = RunFolder(Path(sys.argv[1]))
study = TrialStudy(load_space(run.space_file), url=run.study_url, name=run.study_name)
for number in range(2):
    study.propose()
    study.record(number, 1, 0.25, {"val_accuracy": 0.25, "seconds": 1.0})
    study.record(number, 2, 0.5, {"val_accuracy": 0.5, "seconds": 2.0})
study.complete(0)
os.kill(os.getpid(), signal.SIGKILL)
"""


@contextmanager
def study_of(run: RunFolder) -> Iterator[TrialStudy]:
    study = TrialStudy(SPACE, url=run.study_url, name=run.study_name)
    try:
        yield study
    finally:
        close_storage(study._database)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql_server() as server:
        yield server


def test_what_was_recorded_survives_the_process(server: Server, tmp_path: Path) -> None:
    check_storage(server.url)
    runs = [RunFolder.create(tmp_path, SPACE, storage=server.url) for _ in range(2)]
    for run in runs:  # which share the database
        assert not run.has_trials()
        died = subprocess.run([sys.executable, "-c", DIE, str(run.path)])
        assert died.returncode == -signal.SIGKILL
        assert run.has_trials() and not run.study.exists()
    with study_of(runs[0]) as study:
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]
        assert [trial.intermediate_values for trial in study.trials] == [{1: 0.25, 2: 0.5}] * 2
        assert study.trials[0].values == [0.5]
        study.record(1, 3, 0.75)
        study.complete(1)
        assert study.propose().number == 2
    found = [[trial.values for trial in recorded_trials(run)] for run in runs]
    assert found == [[[0.5], [0.75], None], [[0.5], None]]


def test_a_server_that_goes_away_is_told_in_a_line(server: Server, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, SPACE, storage=server.url)
    with study_of(run) as study:
        study.propose()
        server.stop()
        try:
            with pytest.raises((SQLAlchemyError, StorageInternalError)) as raised:
                study.record(0, 1, 0.5)
            with pytest.raises(UserError, match="cannot be opened"):
                run.has_trials()
        finally:
            server.start()
    told = database_gone(raised.value)
    assert told and len(told.splitlines()) == 1
    assert database_gone(RuntimeError(traceback_of(raised.value))) == told  # as Ray Tune has it
    with study_of(run) as study:
        study.record(0, 1, 0.5)
        assert study.trials[0].intermediate_values == {1: 0.5}


def traceback_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
