"""A search that is killed and resumed ends as its unbroken twin: all but the slots are real."""

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
import simulated

from cifartune.tuning.cluster import load_ray
from cifartune.tuning.study import sqlite_url

MOMENTS = 20


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray cluster that stands while drivers come and go."""
    load_ray()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def search(folder: Path, address: str, kill_at: int = 0) -> "subprocess.CompletedProcess[str]":
    folder.mkdir(exist_ok=True)
    command = [sys.executable, simulated.__file__, str(folder), address, str(kill_at)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def ended(folder: Path) -> list[Any]:
    """What the study says of each trial in the end."""
    path = folder / "runs" / "simulated" / "study.db"
    study = optuna.load_study(study_name="simulated", storage=sqlite_url(path))
    return [
        (trial.number, trial.state, trial.params, trial.intermediate_values, trial.values)
        for trial in study.get_trials()
    ]


def trained(folder: Path) -> int:
    """Epochs that the world let end, those that were lost included."""
    return int(json.loads((folder / "world.json").read_text())[0])


@pytest.fixture(scope="module")
def twin(address: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A search that nothing happens to, and what it says."""
    folder = tmp_path_factory.mktemp("unbroken")
    result = search(folder, address)
    assert result.returncode == 0, result.stderr
    return folder, json.loads(result.stdout.splitlines()[-1])


def test_the_simulated_search_stops_trials(twin: tuple[Path, dict[str, Any]]) -> None:
    trials = ended(twin[0])
    lengths = [len(values) for _, _, _, values, _ in trials]
    assert len(trials) == simulated.TRIALS and trained(twin[0]) == sum(lengths)
    assert min(lengths) == 1 and max(lengths) == 8


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(moment, marks=[] if moment in (4, 11) else pytest.mark.slow)
        for moment in range(1, MOMENTS + 1)
    ],
)
def test_a_killed_search_ends_as_its_twin(
    twin: tuple[Path, dict[str, Any]], address: str, tmp_path: Path, moment: int
) -> None:
    unbroken, told = twin
    kill_at = told["moments"] * moment // (MOMENTS + 1)
    assert search(tmp_path, address, kill_at).returncode == -signal.SIGKILL
    result = search(tmp_path, address)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["best"] == told["best"]
    assert ended(tmp_path) == ended(unbroken)
    assert trained(tmp_path) <= trained(unbroken) + simulated.SLOTS
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        states = store.execute("SELECT status, COUNT(*) FROM runs GROUP BY status").fetchall()
        steps = "SELECT COUNT(*), COUNT(DISTINCT run_uuid || step) FROM metrics WHERE key = ?"
        epochs = store.execute(steps, ["val_accuracy"]).fetchone()
    complete = sum(trial[1] is optuna.trial.TrialState.COMPLETE for trial in ended(unbroken))
    stopped = simulated.TRIALS - complete - 1
    assert states == [("FAILED", 1), ("FINISHED", 1 + complete), ("KILLED", stopped)]
    # Every epoch that the study knows is logged, and none twice.
    values = sum(len(trial[3]) for trial in ended(unbroken))
    assert epochs == (values, values)
