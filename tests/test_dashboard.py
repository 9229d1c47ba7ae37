"""Optuna's own tools read the study of a search."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.importance import get_param_importances

from cifartune.runs import RunFolder
from cifartune.tuning.study import sqlite_url

START_SECONDS = 60.0


@pytest.fixture
def copy(smoke_run: Path, tmp_path: Path) -> str:
    """The storage URL of a copy of a finished search's study: Optuna's tools may write to it."""
    run = RunFolder(smoke_run)
    for file in run.path.glob(f"{run.study.name}*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return sqlite_url(tmp_path / run.study.name)


def test_optuna_dashboard_opens_the_study(copy: str, smoke_run: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dashboard = Path(sys.executable).with_name("optuna-dashboard")
    with subprocess.Popen(
        [dashboard, copy, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            [listed] = answer(port, "studies")["study_summaries"]
            study = answer(port, f"studies/{listed['study_id']}")
        finally:
            process.terminate()
    assert study["name"] == RunFolder(smoke_run).study_name
    assert study["directions"] == ["maximize"]
    result = json.loads((smoke_run / "result.json").read_text())
    states = [trial["state"] for trial in study["trials"]]
    assert len(states) == result["trials"]["total"]
    assert states.count("Complete") == result["trials"]["complete"]
    for trial in study["trials"]:
        assert [point["step"] for point in trial["intermediate_values"]]
        assert {parameter["name"] for parameter in trial["params"]} >= {"optimizer.lr"}


def answer(port: int, what: str) -> Any:
    """What the dashboard says, once it is up."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            url = f"http://127.0.0.1:{port}/api/{what}"
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.load(response)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def test_optuna_loads_the_study_and_weighs_parameters(copy: str) -> None:
    """Importance is of complete trials, which all have had their epochs."""
    study = optuna.load_study(study_name=None, storage=copy)
    complete = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert study.best_value == max(trial.value or 0.0 for trial in complete)
    assert len({max(trial.intermediate_values) for trial in complete}) == 1
    if len(complete) > 1:  # the second may have been stopped
        assert set(get_param_importances(study)) == set(complete[0].params)
