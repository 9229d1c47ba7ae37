"""A search that is killed and resumed ends as its unbroken twin: all but the slots are real."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
import simulated
from postgres import Server, postgresql_server

from cifartune.check import check_run
from cifartune.runs import RunFolder
from cifartune.tuning.cluster import load_ray
from cifartune.tuning.recorded import recorded_trials

# mlflow's own tables, as SQLAlchemy sees them.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

MOMENTS = 20


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray cluster that stands while drivers come and go."""
    load_ray()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def search(
    folder: Path, address: str, *options: str, kill_at: int = 0, storage: str = ""
) -> "subprocess.CompletedProcess[str]":
    folder.mkdir(exist_ok=True)
    command = [sys.executable, simulated.__file__, str(folder), address, *options]
    command += ["--kill-at", str(kill_at)]
    environment = {**os.environ, "STUDY_STORAGE": storage}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def ended(folder: Path) -> list[Any]:
    """What the study says of each trial in the end."""
    trials = recorded_trials(run_of(folder))
    return [(t.number, t.state, t.params, t.intermediate_values, t.values) for t in trials]


def findings(folder: Path) -> list[str]:
    """What does not fit together in the end."""
    return [str(finding) for finding in check_run(run_of(folder), folder)]


def run_of(folder: Path) -> RunFolder:
    return RunFolder.open(folder / "runs", simulated.SPACE.name)


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
        pytest.param(moment, marks=[] if moment == 11 else pytest.mark.slow)
        for moment in range(1, MOMENTS + 1)
    ],
)
def test_a_killed_search_ends_as_its_twin(
    twin: tuple[Path, dict[str, Any]], address: str, tmp_path: Path, moment: int
) -> None:
    unbroken, told = twin
    kill_at = told["moments"] * moment // (MOMENTS + 1)
    assert search(tmp_path, address, kill_at=kill_at).returncode == -signal.SIGKILL
    result = search(tmp_path, address)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["best"] == told["best"]
    assert (ended(tmp_path), findings(tmp_path)) == (ended(unbroken), [])
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


@pytest.mark.slow
@pytest.mark.parametrize("slots", ["1", "3"])
def test_a_search_extended_equals_one_that_was_longer_from_the_start(
    address: str, tmp_path: Path, slots: str
) -> None:
    """Value by value with one slot; with several, the trials of before stay as they were."""
    for name, trials in (("long", "40"), ("extended", "20")):
        result = search(tmp_path / name, address, "--trials", trials, "--slots", slots)
        assert result.returncode == 0, result.stderr
    before = ended(tmp_path / "extended")
    result = search(tmp_path / "extended", address, "--trials", "40", "--slots", slots)
    assert result.returncode == 0, result.stderr
    after = ended(tmp_path / "extended")
    assert (len(before), len(after), after[:20]) == (20, 40, before)
    assert findings(tmp_path / "extended") == []
    if slots == "1":
        assert after == ended(tmp_path / "long")


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Server]:
    """A private PostgreSQL server."""
    with postgresql_server() as server:
        yield server


@pytest.mark.slow
def test_a_killed_search_in_postgresql_ends_as_its_twin(
    twin: tuple[Path, dict[str, Any]], address: str, postgresql: Server, tmp_path: Path
) -> None:
    unbroken, told = twin
    killed = search(tmp_path, address, kill_at=told["moments"] // 2, storage=postgresql.url)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    result = search(tmp_path, address, storage=postgresql.url)
    assert result.returncode == 0, result.stderr
    assert (ended(tmp_path), findings(tmp_path)) == (ended(unbroken), [])


@pytest.mark.slow
def test_a_search_ends_while_its_database_is_gone_and_then_goes_on(
    twin: tuple[Path, dict[str, Any]], address: str, postgresql: Server, tmp_path: Path
) -> None:
    unbroken, _ = twin
    with ThreadPoolExecutor() as others:
        ended_early = others.submit(search, tmp_path, address, storage=postgresql.url)
        while not (tmp_path / "world.json").exists() or trained(tmp_path) < 10:
            assert not ended_early.done(), ended_early.result().stderr
            time.sleep(0.05)
        postgresql.stop()
        try:
            result = ended_early.result()
        finally:
            postgresql.start()
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert re.search("^gone: .*connection", result.stderr, re.MULTILINE), result.stderr
    result = search(tmp_path, address, storage=postgresql.url)
    assert result.returncode == 0, result.stderr
    assert (ended(tmp_path), findings(tmp_path)) == (ended(unbroken), [])
