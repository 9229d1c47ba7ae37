"""A real search that is killed and resumed, beside one that is not: the same, bit for bit."""

import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from searches import cifartune, started, until

from cifartune.runs import RunFolder
from cifartune.tuning.recorded import recorded_trials

SPACE = """
name: small
base:
  model: {name: speednet_small, resolution: 16}
  epochs: 4
  batch_size: 100
  precision: fp32
  memory_format: channels_last
  compile: never
parameters:
  optimizer.lr: {min: 0.01, max: 1, log: true}
  optimizer.momentum: {min: 0.5, max: 0.95}
data: {validation: 500, train_subset: 2000}
search: {num_trials: 5, max_concurrent: 1}
scheduler: {name: asha, grace_period: 1, reduction_factor: 2}
resources: {cpus: 1}
refit: {top_k: 1, folds: 2, epochs: 3}
stand_in: 500
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [[{"event": "epoch", "trial": 2, "epoch": 1}, {"event": "refit_epoch", "epoch": 2}]],
)
def test_a_killed_search_ends_as_its_twin_bit_for_bit(
    moments: list[dict[str, Any]], tmp_path: Path, data_root: Path
) -> None:
    """One slot, one thread: nothing is left to chance."""
    folders = [tmp_path / name for name in ("unbroken", "killed")]
    for folder in folders:
        folder.mkdir()
        (folder / "small.yaml").write_text(SPACE)
    data = str(data_root)
    whole = cifartune("search", "small.yaml", cwd=folders[0], CIFARTUNE_DATA=data)
    assert whole.returncode == 0, whole.stderr

    command = ["search", "small.yaml"]
    for moment in moments:
        with started(*command, "--json-lines", cwd=folders[1], CIFARTUNE_DATA=data) as search:
            until(search, **moment)
            os.kill(search.pid, signal.SIGKILL)  # the driver alone, as the system does
        command = ["resume", "small"]
    last = cifartune(*command, cwd=folders[1], CIFARTUNE_DATA=data)
    assert last.returncode == 0, last.stderr
    assert outcome(folders[1]) == outcome(folders[0])
    checked = cifartune("check", "small", cwd=folders[1], CIFARTUNE_DATA=data)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
def test_a_killed_search_on_two_slots_keeps_what_was_recorded(
    tmp_path: Path, data_root: Path
) -> None:
    space = SPACE.replace("max_concurrent: 1", "max_concurrent: 2").replace(
        "num_trials: 5", "num_trials: 8"
    )
    (tmp_path / "small.yaml").write_text(space)
    environment = {"CIFARTUNE_DATA": str(data_root)}
    with started("search", "small.yaml", "--json-lines", cwd=tmp_path, **environment) as search:
        until(search, "epoch", trial=3)
        os.kill(search.pid, signal.SIGKILL)
    before = recorded(tmp_path)
    half_written = tmp_path / "runs" / "small" / ("." + 32 * "a")
    half_written.touch()
    last = cifartune("resume", "small", cwd=tmp_path, timeout=200, **environment)
    assert last.returncode == 0, last.stderr
    assert not half_written.exists()
    after = recorded(tmp_path)
    assert len(after) == 8 and {state for state, _ in before.values()} >= {"RUNNING"}
    for number, (state, values) in before.items():
        assert after[number][1].items() >= values.items()
        assert after[number] == (state, values) or state == "RUNNING"
    checked = cifartune("check", "small", cwd=tmp_path, timeout=100, **environment)
    assert checked.returncode == 0, checked.stdout


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of that size in `folder`."""
    try:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_search_pauses_while_the_disk_is_full(tmp_path: Path, data_root: Path) -> None:
    (tmp_path / "small.yaml").write_text(SPACE)
    environment = {"CIFARTUNE_DATA": str(data_root)}
    runs, filler = tmp_path / "runs", tmp_path / "runs" / "filler"
    runs.mkdir()
    with small_disk(runs, "60m"):
        with started("search", "small.yaml", "--json-lines", cwd=tmp_path, **environment) as search:
            until(search, "epoch", trial=1)
            fill(filler)
            _, errors = search.communicate(timeout=200)
        assert search.returncode == 2, errors
        told = errors.rstrip("\n")
        assert "\n" not in told, told
        assert re.match(r"cifartune: the disk of .*/runs/small is full: .*No space left", told)
        assert told.endswith("cifartune resume small")
        before = recorded(tmp_path)
        filler.unlink()

        last = cifartune("resume", "small", cwd=tmp_path, timeout=200, **environment)
        assert last.returncode == 0, last.stderr
        after = recorded(tmp_path)
        for number, (state, values) in before.items():
            assert after[number] == (state, values) or state == "RUNNING"
            assert after[number][1].items() >= values.items()
        assert len(after) == 5 and "FAIL" not in {state for state, _ in after.values()}
        checked = cifartune("check", "small", cwd=tmp_path, timeout=100, **environment)
        assert checked.returncode == 0, checked.stdout


def fill(path: Path) -> None:
    """Writes to a file until nothing more can be written anywhere."""
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 2**10, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def recorded(folder: Path) -> dict[int, tuple[str, dict[int, float]]]:
    """State and values of each trial by its number."""
    run = RunFolder(folder / "runs" / "small")
    return {t.number: (t.state.name, t.intermediate_values) for t in recorded_trials(run)}


def outcome(folder: Path) -> dict[str, Any]:
    """All that a search decided and trained."""
    run = folder / "runs" / "small"
    with sqlite3.connect(run / "study.db") as study:
        values = study.execute(
            "SELECT number, state, step, intermediate_value FROM trials "
            "LEFT JOIN trial_intermediate_values USING (trial_id) ORDER BY number, step"
        ).fetchall()
        params = study.execute(
            "SELECT number, param_name, param_value FROM trials JOIN trial_params "
            "USING (trial_id) ORDER BY number, param_name"
        ).fetchall()
    result = json.loads((run / "result.json").read_text())
    named = ("winner_trial", "winner", "fold_accuracies", "test_accuracy", "cv_accuracy")
    return {
        "values": values,
        "params": params,
        "weights": {
            str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in run.rglob("*.safetensors")
        },
        **{name: result[name] for name in named},
    }
