"""`cifartune check`, on a finished search of the real command, and on damaged copies of it."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from searches import cifartune

from cifartune.check import check_run
from cifartune.config import SearchSpace
from cifartune.errors import UserError
from cifartune.runs import RunFolder
from cifartune.tracking import default_uri
from cifartune.tuning.checkpoints import Checkpoints
from cifartune.tuning.study import TrialStudy

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture
def run(smoke_run: Path, tmp_path: Path) -> RunFolder:
    """A copy of a finished search and of its tracking store."""
    copy = shutil.copytree(smoke_run, tmp_path / "runs" / smoke_run.name)
    store = shutil.copy(smoke_run.parent / "mlflow.db", tmp_path / "runs" / "mlflow.db")
    identity = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(identity | {"tracking_uri": f"sqlite:///{store}"}))
    return RunFolder(copy)


def test_a_finished_search_fits_together(run: RunFolder, data_root: Path) -> None:
    before = contents(run)
    result = cifartune("check", run.name, cwd=run.path.parents[1], CIFARTUNE_DATA=str(data_root))
    assert (result.stderr, result.returncode) == ("", 0)
    assert result.stdout == f"{run.name}: study, files and MLflow fit together\n"
    assert contents(run) == before  # it only looks


def contents(run: RunFolder) -> dict[Path, bytes]:
    """All files of the runs' folder, but for the lock."""
    files = [path for path in run.runs.rglob("*") if path.is_file() and path != run.lock]
    return {path: path.read_bytes() for path in files}


def sql(run: RunFolder, statement: str) -> None:
    with sqlite3.connect(run.runs / "mlflow.db") as store:
        assert store.execute(statement).rowcount > 0


def study_sql(run: RunFolder, statement: str) -> None:
    with sqlite3.connect(run.study) as study:
        assert study.execute(statement).rowcount > 0


def damage_fold(run: RunFolder) -> None:
    weights = run.fold(winner(run), 1) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


def change_fold(run: RunFolder) -> None:
    path = run.fold(winner(run), 0) / "logits.npy"
    np.save(path, -np.load(path))


def winner(run: RunFolder) -> int:
    return int(json.loads(run.result.read_text())["winner_trial"])


def change_total(run: RunFolder) -> None:
    result = json.loads(run.result.read_text())
    result["trials"]["total"] += 1
    run.result.write_text(json.dumps(result))


def cut_logits(run: RunFolder) -> None:
    path = run.fold(winner(run), 0) / "logits.npy"
    path.write_bytes(path.read_bytes()[:-10])


def lose_store(run: RunFolder) -> None:
    (run.runs / "mlflow.db").unlink()


def edit_space(run: RunFolder) -> None:
    run.space_file.write_text(run.space_file.read_text() + "# a note\n")


def rename_refit(run: RunFolder, part: str) -> None:
    key = f"refit-{winner(run)}{part}"
    sql(run, f"UPDATE tags SET value = 'other' WHERE key = 'cifartune.key' AND value = '{key}'")


def put_checkpoint(run: RunFolder) -> None:
    Checkpoints(run.trials / "0").save(1, {})


def damage_checkpoint(run: RunFolder) -> None:
    path = Checkpoints(run.trials / "0").save(1, {})
    path.write_bytes(path.read_bytes()[:-1])


CHANGES: list[tuple[Callable[[RunFolder], object], str]] = [
    (damage_fold, "fold-1/weights.safetensors: cannot be read"),
    (change_fold, "result.json: has 0"),
    (change_total, "result.json: tells of"),
    (put_checkpoint, "trials/0: has checkpoints, and the search is finished"),
    (damage_checkpoint, "trials/0/epoch-1.checkpoint: is damaged"),
    (lambda run: (run.trials / "99").mkdir(), "trials/99: belongs to no trial"),
    (lambda run: shutil.rmtree(run.fold(winner(run), 0)), "fold-0/weights.safetensors: cannot be"),
    (lambda run: (run.fold(winner(run), 0) / "logits.npy").unlink(), "logits cannot be read"),
    (cut_logits, "logits cannot be read: "),
    (lambda run: run.splits.unlink(), "splits.npz"),
    (lambda run: run.result.write_text("{"), "result.json: cannot be read"),
    (lambda run: run.result.write_text("{}"), "result.json: cannot be read"),
    (lose_store, "mlflow.db: there is no such store"),
    (lambda run: rename_refit(run, ""), "MLflow: refit-{winner}: is missing"),
    (lambda run: rename_refit(run, "-fold-1"), "MLflow: refit-{winner}-fold-1: is missing"),
    (
        lambda run: sql(run, "UPDATE runs SET status = 'KILLED' WHERE name = 'fold 0'"),
        "MLflow: refit-{winner}-fold-0: is KILLED, and the search is finished",
    ),
    (
        lambda run: run.refused.write_text("{}\n{}\n"),
        "MLflow: refused 2 events of this search; try them again with: ",
    ),
    (edit_space, "space.yaml: was edited by hand since the search began"),
    (lambda run: (run.path / ("." + 32 * "a")).touch(), "was left half-written"),
    (
        lambda run: study_sql(run, "UPDATE trials SET state = 'RUNNING' WHERE number = 0"),
        "trial 0: is RUNNING, and the search is finished",
    ),
    (
        lambda run: study_sql(run, "UPDATE trial_values SET value = 2 WHERE trial_id = 1"),
        "trial 0: has the value 2.0",
    ),
    (
        lambda run: study_sql(
            run, "UPDATE trial_intermediate_values SET step = 7 WHERE trial_id = 1 AND step = 1"
        ),
        "trial 0: has values of the epochs",
    ),
    (
        lambda run: sql(run, "UPDATE runs SET status = 'RUNNING' WHERE name LIKE 'trial 00 %'"),
        "trial-0: is RUNNING, and no process is at it",
    ),
    (
        lambda run: sql(run, "UPDATE runs SET status = 'FAILED' WHERE name LIKE 'trial 00 %'"),
        "trial-0: is FAILED, and the trial is COMPLETE",
    ),
    (
        lambda run: sql(run, "UPDATE runs SET status = 'KILLED' WHERE name LIKE 'refit of %'"),
        "is KILLED, and the search is finished",
    ),
    (
        lambda run: sql(
            run,
            "UPDATE tags SET value = 'trial-0' WHERE key = 'cifartune.key' AND value = 'trial-1'",
        ),
        "MLflow: trial-0: is there 2 times",
    ),
    (
        lambda run: sql(
            run,
            "UPDATE tags SET value = 'trial-9' WHERE key = 'cifartune.key' AND value = 'trial-1'",
        ),
        "MLflow: trial-1: is missing",
    ),
    (
        lambda run: sql(
            run,
            "UPDATE metrics SET value = 2 WHERE key = 'val_accuracy' AND step = 1 AND run_uuid = "
            "(SELECT run_uuid FROM runs WHERE name LIKE 'trial 00 %')",
        ),
        "MLflow: trial-0: has 2.0 at epoch 1, and the study",
    ),
    (
        lambda run: sql(
            run,
            "DELETE FROM metrics WHERE key = 'val_accuracy' AND step = 1 AND run_uuid = "
            "(SELECT run_uuid FROM runs WHERE name LIKE 'trial 00 %')",
        ),
        "MLflow: trial-0: lacks the epochs [1]",
    ),
    (
        lambda run: run.tracking.with_suffix(".sent").write_text("10"),
        "send them with: ",
    ),
]


@pytest.mark.parametrize(("change", "told"), CHANGES, ids=[told for _, told in CHANGES])
def test_what_does_not_fit_is_found(
    run: RunFolder, data_root: Path, change: Callable[[RunFolder], object], told: str
) -> None:
    change(run)
    told = told.format(winner=winner(run)) if "{winner}" in told else told
    assert told in "\n".join(map(str, check_run(run, data_root)))


def test_findings_end_with_1_and_a_run_without_trials_with_2(
    run: RunFolder, data_root: Path
) -> None:
    put_checkpoint(run)
    result = cifartune("check", run.name, cwd=run.path.parents[1], CIFARTUNE_DATA=str(data_root))
    assert result.stdout == "trials/0: has checkpoints, and the search is finished\n"
    assert (result.stderr, result.returncode) == ("", 1)
    run.study.write_text("no database")
    with pytest.raises(UserError, match=r"study.db: cannot be read: file is not a database$"):
        check_run(run, data_root)
    run.study.unlink()
    files = contents(run)
    result = cifartune("check", run.name, cwd=run.path.parents[1], CIFARTUNE_DATA=str(data_root))
    message = f"cifartune: {run.path}: there is no trial to check\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", message)
    assert contents(run) == files


def test_what_resume_mends_is_no_finding(run: RunFolder, data_root: Path) -> None:
    """A search that was killed before its end, in the middle of telling MLflow."""
    run.result.unlink()
    put_checkpoint(run)
    (run.path / ("." + 32 * "a")).touch()
    sql(run, "UPDATE runs SET status = 'KILLED'")
    sql(run, "DELETE FROM metrics WHERE key = 'val_accuracy' AND step = 1")
    assert check_run(run, data_root) == []


@pytest.mark.parametrize("first", ["params", "val_accuracy"])
def test_objectives_may_come_in_any_order(tmp_path: Path, first: str) -> None:
    objectives = [{"metric": "params", "mode": "min"}, {"metric": "val_accuracy"}]
    space = SearchSpace.model_validate(
        {
            "name": "two",
            "objectives": objectives if first == "params" else objectives[::-1],
            "base": {"model": {"name": "speednet_small"}, "epochs": 2},
            "parameters": {"optimizer.lr": {"min": 0.01, "max": 1.0}},
            "search": {"sampler": "random"},
            "scheduler": {"metric": "val_accuracy"},
        }
    )
    run = RunFolder.create(tmp_path, space, tracking_uri=default_uri(tmp_path))
    study = TrialStudy(space, url=run.study_url, name=run.study_name)
    number = study.propose().number
    study.record(number, 1, 0.5)
    study.record(number, 2, 0.7)
    study.complete(number)
    assert (study.trials[0].values or []).index(0.7) == (first == "params")
    assert [f for f in check_run(run, tmp_path) if f.where == "trial 0"] == []


def test_a_trial_without_a_reason_is_found(run: RunFolder, data_root: Path) -> None:
    study_sql(run, "UPDATE trials SET state = 'FAIL' WHERE number = 0")
    told = "\n".join(map(str, check_run(run, data_root)))
    assert "trial 0: failed, and the kind of the failure is not recorded" in told


@pytest.mark.parametrize("command", ["check", "sync", "resume"])
def test_a_search_that_is_held_is_left_alone(run: RunFolder, data_root: Path, command: str) -> None:
    with run.locked():
        result = cifartune(command, run.name, cwd=run.runs.parent, CIFARTUNE_DATA=str(data_root))
    message = f"cifartune: {run.path}: another process is running this search\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", message)
