"""The trials of a search, read by others than the one that is at it."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cifartune.config import SearchSpace
from cifartune.runs import RunFolder
from cifartune.tuning.recorded import recorded_trials
from cifartune.tuning.study import TrialStudy, close_storage

SPACE = SearchSpace.model_validate(
    {
        "name": "toy",
        "base": {"model": {"name": "speednet_small"}, "epochs": 2},
        "parameters": {"optimizer.lr": {"min": 0.01, "max": 1.0, "log": True}},
        "search": {"sampler": "random"},
    }
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, SPACE)


def do_trial(study: TrialStudy) -> None:
    number = study.propose().number
    study.record(number, 1, 0.5)
    study.complete(number)


def test_a_running_search_is_read_as_of_one_moment(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it writes between two files, were they copied one by one, would tear the copy."""
    study = TrialStudy(SPACE, url=run.study_url, name=run.study_name)
    for _ in range(30):
        do_trial(study)
    close_storage(study._database)  # now all is in the database
    study = TrialStudy(SPACE, url=run.study_url, name=run.study_name)
    do_trial(study)  # and this in its log
    copy = shutil.copy

    def copy_slowly(*paths: Any) -> None:
        copy(*paths)
        for _ in range(20):
            do_trial(study)

    monkeypatch.setattr(shutil, "copy", copy_slowly)
    trials = recorded_trials(run)
    assert [trial.number for trial in trials] == list(range(31))
    assert {tuple(trial.values) for trial in trials} == {(0.5,)}


DIE = """
import os, signal, sys
from pathlib import Path
from cifartune.runs import RunFolder
from cifartune.config import load_space
from cifartune.tuning.study import TrialStudy
run = RunFolder(Path(sys.argv[1]))
study = TrialStudy(load_space(run.space_file), url=run.study_url, name=run.study_name)
study.propose()
study.record(0, 1, 0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_reading_leaves_nothing_and_needs_no_rights(run: RunFolder) -> None:
    """Of a search that ended, and of one that died with its words in the log."""
    study = TrialStudy(SPACE, url=run.study_url, name=run.study_name)
    close_storage(study._database)
    before = files(run)
    assert recorded_trials(run) == [] and files(run) == before == {"study.db"}

    died = subprocess.run([sys.executable, "-c", DIE, str(run.path)])
    assert died.returncode == -signal.SIGKILL
    [trial] = recorded_trials(run)
    assert trial.intermediate_values == {1: 0.5}
    assert files(run) == {"study.db", "study.db-wal", "study.db-shm"}
    # As a copy of it may be, which is on a disk that cannot be written.
    (run.path / "study.db-shm").unlink()
    run.path.chmod(0o555)
    try:
        if os.geteuid():  # root may do anything
            assert not os.access(run.path, os.W_OK)
        [trial] = recorded_trials(run)
    finally:
        run.path.chmod(0o755)
    assert trial.intermediate_values == {1: 0.5}


def files(run: RunFolder) -> set[str]:
    return {path.name for path in run.path.glob("study.db*")}
