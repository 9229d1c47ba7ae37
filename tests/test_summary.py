"""The end of a search, as numbers and as text."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from cifartune.config import SearchSpace
from cifartune.refit import Candidate, SnapshotEnsemble
from cifartune.report.frames import curves_frame, trials_frame
from cifartune.report.summary import outcome, print_summary, to_json
from cifartune.report.tables import Row, short, show_time, trials_table
from cifartune.report.terminal import Progress
from cifartune.runs import RunFolder
from cifartune.statistics import Accuracy
from cifartune.tuning.study import TrialStudy, sqlite_url

SPACE = SearchSpace.model_validate(
    {
        "name": "toy",
        "base": {"model": {"name": "speednet_small"}, "epochs": 2, "optimizer": {"lr": 0.1}},
        "parameters": {
            "optimizer.name": {"values": ["sgd", "adamw", "muon"]},
            "optimizer.lr": {"min": 0.001, "max": 1.0, "log": True},
            "optimizer.weight_decay": {"min": 1e-6, "max": 0.1, "log": True},
            "model.dropout": {"min": 0.0, "max": 0.5},
            "model.init": {"values": ["default", "kaiming_uniform", "xavier_normal"]},
            "augment.strength": {"min": 0.0, "max": 1.0},
        },
        "search": {"num_trials": 5},
    }
)


@pytest.fixture
def study(tmp_path: Path) -> TrialStudy:
    """Five trials: complete, stopped, complete and best, infeasible, failed."""
    study = TrialStudy(SPACE, url=sqlite_url(tmp_path / "study.db"), name="toy")
    for number, epochs in enumerate((2, 1, 2, 1, 0)):
        study.propose()
        for epoch in range(1, epochs + 1):
            study.record(number, epoch, 0.3 + number / 10 + epoch / 100)
        if epochs:
            study.annotate(number, {"val_accuracy": 0.3 + number / 10 + epochs / 100})
    study.complete(0)
    study.prune(1)
    study.complete(2)
    study.reject(3, "non_finite_loss", "the loss was not finite in epoch 2")
    study.fail(4, "error", "KeyError: 'x'")
    return study


PLANNED = {"epochs": 5.0, "refit_epochs": 20.0, "search": 60.0, "total": 100.0, "disk": 2e6}


@pytest.fixture
def result(study: TrialStudy, tmp_path: Path) -> dict[str, Any]:
    run = RunFolder.create(tmp_path / "runs", SPACE, "toy")
    run.plan.write_text(json.dumps(PLANNED))
    run.evaluation.write_text(json.dumps([{"trial": 2, "accuracies": {}}]))
    recipe = study.recipe(study.trials[2]).with_values({"epochs": 4})
    candidate = Candidate(2, recipe, Accuracy.of(90, 100), [0.9, 0.9], 0.4, [], 20)
    return outcome(
        study,
        [candidate],
        Accuracy.of(91, 100),
        run=run,
        seconds={"search": 75.0, "refit": 30.0, "evaluate": 5.0, "total": 110.0},
        mlflow={"uri": "sqlite:///mlflow.db", "run_id": "abc"},
    )


def test_the_outcome_is_complete_and_plain(result: dict[str, Any]) -> None:
    assert json.loads(to_json(result)) == result
    assert result["trials"] == {
        "total": 5,
        "complete": 2,
        "pruned": 2,
        "failed": 1,
        "infeasible": 1,
        "refused": 0,
    }
    assert result["planned"] == PLANNED
    assert result["used"]["epochs"] == 6
    assert result["used"]["refit_epochs"] == 5 * 4
    assert result["used"]["all_images"] == 6 * 45_000 + 20 * 40_000
    assert result["used"]["disk"] > 0
    assert result["winner"]["optimizer"]["lr"] == result["changed"]["optimizer.lr"][1]
    assert result["changed"]["epochs"] == [2, 4]
    assert result["baseline"]["optimizer"]["lr"] == 0.1
    assert result["validation_accuracy"] == pytest.approx(0.52)
    assert result["baseline_validation_accuracy"] == pytest.approx(0.32)
    for key in ("cv_accuracy", "test_accuracy"):
        assert set(result[key]) == {"value", "low", "high"}
    assert {"hardware", "versions", "mlflow", "name", "seconds"} < set(result)


def test_the_summary_fits_on_a_terminal(result: dict[str, Any], study: TrialStudy) -> None:
    file = io.StringIO()
    print_summary(result, study, Console(file=file, width=80))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for told in (
        "0*",
        "Winner: trial 2",
        "52.00%",
        "90.00% (95 % interval",
        "1 min 50 s",
    ):
        assert told in text
    rows = [line.split() for line in text.splitlines()]
    assert ["epochs", "of", "the", "search", "5", "6", "120%"] in rows
    assert ["search", "1", "min", "0", "s", "1", "min", "15", "s", "125%"] in rows
    leaderboard = text[: text.index("5 trials")]
    assert leaderboard.index("52.00%") < leaderboard.index("32.00%") < leaderboard.index("41.00%")
    assert "62.00%" not in leaderboard, "an infeasible trial is no candidate"


def test_snapshots_are_told_beside_the_fold_ensemble(study: TrialStudy, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs", SPACE, "toy")
    recipe = study.recipe(study.trials[2])
    run.evaluation.write_text(json.dumps([{"trial": 0}, {"trial": 2}]))  # it was extended
    snapshots = SnapshotEnsemble(Accuracy.of(92, 100), [Path("a"), Path("b")])
    candidate = Candidate(2, recipe, Accuracy.of(90, 100), [0.9], 0.4, [Path("a")], 4, snapshots)
    accuracies = Accuracy.of(91, 100), Accuracy.of(93, 100)
    seconds = {"total": 110.0}
    result = outcome(study, [candidate], *accuracies, run=run, seconds=seconds, mlflow={})
    assert result["snapshot_ensemble"]["test_accuracy"]["value"] == 0.93
    assert result["test_looks"] == 2
    assert result["snapshot_ensemble"]["models"] == 2
    file = io.StringIO()
    print_summary(result, study, Console(file=file, width=80))
    lines = [line for line in file.getvalue().splitlines() if "%" in line]
    assert any("snapshots" in line and "92.00%" in line for line in lines)
    assert any("test" in line and "93.00%" in line for line in lines)
    assert max(map(len, file.getvalue().splitlines())) <= 80


def test_frames_have_a_row_a_trial_and_a_row_an_epoch(study: TrialStudy) -> None:
    trials = trials_frame(study)
    assert list(trials["trial"]) == [0, 1, 2, 3, 4]
    assert list(trials["trained_epochs"]) == [2, 1, 2, 1, 0]
    assert set(trials["epochs"]) == {2}
    assert trials.loc[3, "failure"] == "non_finite_loss"
    assert trials.loc[0, "optimizer.lr"] == 0.1
    assert len(curves_frame(study)) == 6


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_table_or_plain_lines(terminal: bool, study: TrialStudy) -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal, color_system=None)
    progress = Progress(SPACE, console)
    with progress.shown():
        for trial in study.trials:
            progress.trial_started(trial.number, study.recipe(trial))
            for epoch, value in trial.intermediate_values.items():
                metrics = {"val_accuracy": value, "seconds": 3.0, "images_per_second": 2000.0}
                progress.epoch_ended(trial.number, epoch, metrics)
            if trial.state is not TrialState.RUNNING:
                progress.trial_ended(trial)
        progress.refit_started(2, SPACE.base, folds=2)
        progress.fold_epoch_ended(2, 0, 1, {"val_accuracy": 0.9, "seconds": 3.0})
    text = file.getvalue()
    assert max(len(line.rsplit("\r")[-1]) for line in text.splitlines()) <= 80
    if terminal:
        assert "5/5 trials (2 complete, 1 stopped, 1 non finite loss, 1 error)" in text
        assert "refit of trial 2, 2 folds: 1/2 90.0%" in text
    else:
        assert "trial   2  epoch 2/2  val_accuracy 52.00%" in text
        assert "trial   3  non finite loss: the loss was not finite in epoch 2" in text
        assert "\x1b" not in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4, "4 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (7260, "2 h 1 min")]
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert show_time(seconds) == text


def test_a_wide_table_names_the_columns_that_it_leaves_out() -> None:
    values = {"batch_size": 1999, "optimizer.lr": 0.012, "schedule.name": "restarts"}
    wide = values | {f"augment.{name}": 0.123 for name in ("strength", "flip", "crop", "cutout")}
    rows = [Row(7, wide, 30, "complete", 30, 0.8123), Row(8, {"batch_size": 100}, 30)]
    for width in (40, 60, 80, 120):
        file = io.StringIO()
        table = trials_table("val_accuracy", list(wide), rows, width=width)
        Console(file=file, width=width).print(table)
        text = file.getvalue()
        assert max(map(len, text.rstrip().splitlines())) <= width
        assert "1999" in text and "81.23%" in text  # numbers are never cut
        heading = text.splitlines()[0]
        told = " ".join(text.split())
        for name in wide:
            assert (short(name) in heading) != (name in told[told.index("* baseline") :])
