"""A search as seen from another process, which leaves it alone."""

import json
import re
import resource
import select
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from made_up_standing import begin_refit, run_trials, space_of
from postgres import postgresql_server
from searches import cifartune, started

from cifartune.errors import UserError
from cifartune.report.event_log import EventLog, keep_events
from cifartune.report.status import find_run, status_json, status_of
from cifartune.runs import RunFolder
from cifartune.tuning.study import TrialStudy, close_storage

PLAN = {"epochs": 400.0, "search": 800.0, "refit": 500.0, "evaluate": 10.0}


def begun(runs: Path, name: str, storage: str = "") -> tuple[RunFolder, TrialStudy, EventLog]:
    """A search of which ten trials have ended, with its study open."""
    space = space_of()
    run = RunFolder.create(runs, space, name, storage=storage, tracking_uri="http://u:secret@h")
    run.plan.write_text(json.dumps(PLAN))
    run.clock.write_text(json.dumps({"start": 20.0, "search": 100.0}))
    study = TrialStudy(space, url=run.study_url, name=run.study_name)
    log = EventLog(space, run, keep_events(run.events))
    log.search_started()
    log.slots_started(4, "2 CPU cores", "http://127.0.0.1:8265")
    run_trials(study, [log], count=10)
    return run, study, log


def test_a_running_search_is_told_and_left_alone(tmp_path: Path) -> None:
    other, *_ = begun(tmp_path / "runs", "other")
    run, study, log = begun(tmp_path / "runs", "mine")
    other.clock.touch()  # it is newer, and does not run
    with run.locked():
        files = sorted(path.name for path in run.path.iterdir())
        assert "study.db-wal" in files  # a writer is at it
        told = cifartune("status", "--json", cwd=tmp_path)
        assert (told.returncode, told.stderr) == (0, "")
        status = json.loads(told.stdout)
        read = cifartune("status", cwd=tmp_path).stdout
        begin_refit(study, [log])  # the writer goes on
        later = json.loads(cifartune("status", "mine", "--json", cwd=tmp_path).stdout)
        assert sorted(path.name for path in run.path.iterdir()) == files
    assert (status["name"], status["state"], status["stage"]) == ("mine", "running", "search")
    started = json.loads(run.events.read_text().splitlines()[0])
    assert (status["pid"], status["host"]) == (started["pid"], started["host"])
    assert status["dashboard"] == "http://127.0.0.1:8265"
    assert status["trials"]["planned"] == 100 and status["trials"]["ended"] == 10
    assert status["trials"]["states"]["running"] == 3
    assert [status["best"]["trial"]] == [trial.number for trial in study.best()] == [0]
    assert status["rungs"][0]["reached"] >= 10
    assert status["seconds"] == {"start": 20.0, "search": 100.0}
    assert status["seconds_left"] > PLAN["evaluate"]
    assert "secret" not in told.stdout + read
    assert re.match(rf"mine runs for .*: process {started['pid']} on ", read)
    for line in (
        "progress    10 of 100 trials, ",
        "dashboard   http://127.0.0.1:8265 (token: ",
        f"messages    {run.log}",
        "best        the baseline: val_accuracy ",  # which comes nearest to its end
        "start 20 s, search 1 min 40 s; about ",
    ):
        assert line in read, read
    assert max(map(len, read[: read.index("MLflow")].splitlines())) <= 80
    assert later["stage"] == "refit"
    assert [(refit["folds_done"], refit["folds"]) for refit in later["refits"]] == [(2, 5)] * 2
    assert [bool(refit["dropped"]) for refit in later["refits"]] == [True, False]

    stopped = status_json(status_of(run))
    assert (stopped["state"], stopped["pid"], stopped["dashboard"]) == ("interrupted", None, "")
    assert stopped["resume"].endswith(f"resume mine --runs {tmp_path}/runs")
    told = cifartune("status", "mine", cwd=tmp_path)
    assert "go on       " in told.stdout and "dashboard" not in told.stdout
    watched = cifartune("watch", "mine", cwd=tmp_path)
    assert (watched.returncode, watched.stdout) == (0, told.stdout)


def test_what_is_watched_is_followed_to_its_end(tmp_path: Path) -> None:
    run, study, log = begun(tmp_path / "runs", "mine")
    with ExitStack() as stack:
        process = stack.enter_context(ExitStack())
        process.enter_context(run.locked())
        watch = stack.enter_context(started("watch", cwd=tmp_path))
        assert watch.stdout
        while not select.select([watch.stdout], [], [], 0.2)[0]:
            run_trials(study, [log], count=1)
        assert re.match(r"trial +\d+  ", watch.stdout.readline())
        process.close()
        rest, errors = watch.communicate(timeout=30)
    assert (watch.returncode, errors) == (0, "")
    assert re.search(r"^mine interrupted$", rest, re.MULTILINE)
    assert re.search(r"^  go on +.*cifartune resume mine$", rest, re.MULTILINE)


def test_a_process_that_is_gone_is_not_taken_for_the_one_at_it(tmp_path: Path) -> None:
    run, *_ = begun(tmp_path / "runs", "mine")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    assert ended.wait() == 0
    told = run.events.read_text()
    run.events.write_text(re.sub(r'"pid": \d+', f'"pid": {ended.pid}', told))
    with run.locked():  # as `check` does
        status = status_of(run)
    assert (status.state, status.standing.process) == ("running", {})


def test_the_one_that_runs_is_meant_or_else_the_newest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no searches; begin one, or say where: --runs"):
        find_run(tmp_path, None)
    first, second = (RunFolder.create(tmp_path, space_of(), name) for name in ("a", "b"))
    second.clock.write_text("{}")
    assert find_run(tmp_path, None).name == "b"
    with first.locked():
        assert find_run(tmp_path, None).name == "a"
    with first.held_to_tidy():
        assert find_run(tmp_path, None).name == "b"
    assert find_run(tmp_path, "a").name == "a"
    with pytest.raises(UserError, match="no run is called c; there are a, b"):
        find_run(tmp_path, "c")


def test_who_only_looks_keeps_nobody_from_a_search(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, space_of())
    assert not run.is_at_work() and not run.lock.exists()
    with run.locked():
        assert RunFolder(run.path).is_at_work()
    assert not run.is_at_work()
    with run.lock.open("rb") as look:
        import fcntl

        fcntl.flock(look, fcntl.LOCK_SH)  # in the middle of a look
        with pytest.raises(UserError, match="another process"), run.locked():
            pytest.fail("it is still looked at")
    with run.locked():
        pass


def test_a_study_in_postgresql_is_read_too(tmp_path: Path) -> None:
    with postgresql_server() as server:
        run, study, _ = begun(tmp_path, "mine", server.url)
        status = status_json(status_of(run))
        assert status["trials"]["ended"] == 10 and status["best"]
        close_storage(study._database)


def test_a_finished_search_says_how_it_ended(smoke_run: Path, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(smoke_run, tmp_path / smoke_run.name))
    told = cifartune("status", "--runs", tmp_path, cwd=tmp_path).stdout
    assert told.startswith(f"{run.name} finished\n")
    assert "2-fold CV" in told and f"outcome     {run.result}" in told
    status = status_json(status_of(run))
    assert (status["stage"], status["seconds_left"]) == ("done", 0.0)
    assert all(refit["folds_done"] == 2 for refit in status["refits"])
    assert sum(refit["all_images_done"] for refit in status["refits"]) == 1
    watched = cifartune("watch", run.name, "--runs", tmp_path, cwd=tmp_path)
    assert (watched.returncode, watched.stdout) == (0, told)


def test_status_is_quick(tmp_path: Path) -> None:
    """By the time of the processor: the machine may be busy."""
    begun(tmp_path / "runs", "mine")
    code = (
        "import sys; sys.argv = ['cifartune', 'status']\n"
        "import cifartune.cli\n"
        "cifartune.cli.app(standalone_mode=False)\n"
        "print([m for m in ('torch', 'timm', 'ray', 'mlflow', 'pandas') if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "[]"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
