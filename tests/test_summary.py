"""The end of a search, as numbers and as text."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from cifartune.config import SearchSpace
from cifartune.config.recipe import Recipe
from cifartune.data.looks import record_look
from cifartune.data.splits import make_splits
from cifartune.outputs import LOGITS, SNAPSHOTS, WEIGHTS
from cifartune.refit import Candidate
from cifartune.refit.candidates import make_candidate
from cifartune.report.answer import accuracy_lines, verdict_lines
from cifartune.report.findings import headlines
from cifartune.report.frames import curves_frame, trials_frame
from cifartune.report.outcome import outcome, to_json
from cifartune.report.searched import Searched
from cifartune.report.summary import print_summary
from cifartune.report.tables import Row, short, show_time, trials_table
from cifartune.runs import RunFolder
from cifartune.statistics import Interval
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

LABELS = (np.arange(1000) % 10).astype(np.uint8)
SPLITS = make_splits(LABELS, validation=100, train_subset=None, folds=5, seed=0)


def candidate(folder: Path, number: int, recipe: Recipe, share: float) -> Candidate:
    """A candidate that gets a share of the images right, the same ones whatever its number."""
    folders = [folder / f"trial-{number}" / f"fold-{fold}" for fold in range(5)]
    luck = np.random.default_rng(0).random(1000)
    for fold, path in enumerate(folders):
        path.mkdir(parents=True)
        held_out = SPLITS.held_out(fold)[1]
        classes = np.where(luck < share, LABELS, (LABELS + 1) % 10)[held_out]
        np.save(path / LOGITS, 3 * np.eye(10, dtype=np.float32)[classes])
        if recipe.schedule.name == "restarts":
            (path / SNAPSHOTS / "1").mkdir(parents=True)
            np.save(path / SNAPSHOTS / "1" / LOGITS, 9 * np.eye(10)[LABELS[held_out]])
        about = {"run": json.dumps({"epochs": recipe.last_epoch})}
        save_file({"weight": np.zeros(1)}, path / WEIGHTS, about)
    return make_candidate(number, recipe, [folders], splits=SPLITS, labels=LABELS)


def model(share: float) -> dict[str, Any]:
    """What evaluation.json says of a final model."""
    accuracy = {"value": share, "low": share - 0.01, "high": share + 0.01}
    calibration = {"temperature": 1.1, "log_loss": 0.3, "error": 0.02}
    return {
        "networks": 5,
        "weights": 1000,
        "accuracy": accuracy,
        "plain_accuracy": accuracy,
        "calibration": calibration | {"scaled_log_loss": 0.29, "scaled_error": 0.01},
        "seconds_per_image": 0.001,
        "device": "cpu",
    }


def outcome_of(
    study: TrialStudy,
    tmp_path: Path,
    candidates: list[Candidate],
    looks: list[dict[str, Any]],
    plan: str | None = None,
) -> dict[str, Any]:
    run = RunFolder.create(tmp_path / "runs", SPACE, "toy")
    run.plan.write_text(plan or json.dumps(PLANNED))
    digests = {"models_sha256": run.models_digest(0)}  # of models without files, whose ever
    run.evaluation.write_text(json.dumps([look | digests for look in looks]))
    return outcome(
        study,
        candidates,
        LABELS,
        run=run,
        data_root=tmp_path,
        seconds={"search": 75.0, "refit": 30.0, "evaluate": 5.0, "total": 110.0},
        mlflow={"uri": "sqlite:///mlflow.db", "run_id": "abc"},
    )


@pytest.fixture
def candidates(study: TrialStudy, tmp_path: Path) -> list[Candidate]:
    """The best trial, and the baseline."""
    recipes = [study.recipe(trial).with_values({"epochs": 4}) for trial in study.trials]
    best, baseline = (
        candidate(tmp_path, 2, recipes[2], 0.9),
        candidate(tmp_path, 0, recipes[0], 0.8),
    )
    return [best, baseline]


@pytest.fixture
def result(study: TrialStudy, candidates: list[Candidate], tmp_path: Path) -> dict[str, Any]:
    models = {"folds": model(0.91), "all_images": model(0.92)}
    for trial in (2, 7):
        record_look(tmp_path, {"trial": trial})
    look = {"trial": 2, "time": "2026-11-27T12:00:00+00:00", "models": models}
    return outcome_of(study, tmp_path, candidates, [look])


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
    assert result["used"]["refit_epochs"] == 2 * 5 * 4
    assert result["used"]["all_images"] == 6 * 45_000 + 40 * 40_000
    assert result["used"]["disk"] > 0
    assert result["winner"]["optimizer"]["lr"] == result["changed"]["optimizer.lr"][1]
    assert result["changed"]["epochs"] == [2, 4]
    assert result["baseline"]["optimizer"]["lr"] == 0.1
    assert result["validation_accuracy"] == pytest.approx(0.52)
    assert result["baseline_validation_accuracy"] == pytest.approx(0.32)
    for key in ("cv_accuracy", "test_accuracy"):
        assert set(result[key]) == {"value", "low", "high"}
    assert {"hardware", "versions", "mlflow", "name", "seconds"} < set(result)
    assert result["test_looks"] == 1 and result["test_looks_of_all_searches"] == 2
    assert [c["trial"] for c in result["candidates"]] == [2, 0]
    [verdict] = result["verdicts"]
    assert (verdict["rival"], verdict["verdict"]) == (0, "better")
    assert verdict["folds"]["value"] == pytest.approx(0.1, abs=0.03)


def test_the_summary_fits_on_a_terminal(result: dict[str, Any], study: TrialStudy) -> None:
    file = io.StringIO()
    print_summary(result, study, Console(file=file, width=80))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    print_summary(result, study, Console(file=(wide := io.StringIO()), width=200))
    recipe = wide.getvalue().split("Its recipe")[1].split("Verdict")[0]
    assert recipe in text  # no value of it is torn from its name
    for told in (
        "0*",
        "Winner: trial 2",
        "52.00%",
        "1,000 images, one view",
        ": these models",
        ": the recipe",
        ": outside validation",
        "one view, by the images that chose it",
        "Better than the baseline: +",
        "images; both must be below 0.05",
        "all images",
        "one look by this search, 2 by all",
        "ms/image",
        "2.0% -> 1.0%",
        "1 min 50 s",
    ):
        assert told in text
    rows = [line.split() for line in text.splitlines()]
    assert ["epochs", "of", "the", "search", "5", "6", "120%"] in rows
    assert ["search", "1", "min", "0", "s", "1", "min", "15", "s", "125%"] in rows
    leaderboard = text[: text.index("5 trials")]
    assert leaderboard.index("52.00%") < leaderboard.index("32.00%") < leaderboard.index("41.00%")
    assert result["cv_accuracy"]["value"] == pytest.approx(0.9, abs=0.03)
    assert "62.00%" not in leaderboard, "an infeasible trial is no candidate"


def told(result: dict[str, Any], study: TrialStudy) -> str:
    file = io.StringIO()
    print_summary(result, study, Console(file=file, width=80))
    assert max(map(len, file.getvalue().splitlines())) <= 80
    return file.getvalue()


def test_the_report_counts_a_failed_recipe_as_failed(
    result: dict[str, Any], study: TrialStudy, tmp_path: Path
) -> None:
    found = headlines(Searched(RunFolder(tmp_path), study, result))
    assert found[-1] == ("trials", "5", "2 complete, 1 stopped, 2 failed")


def test_snapshots_are_told_beside_the_fold_ensemble(study: TrialStudy, tmp_path: Path) -> None:
    values = {"schedule.name": "restarts", "schedule.cycles": 2}
    recipe = study.recipe(study.trials[2]).with_values(values)
    winner = candidate(tmp_path, 2, recipe, 0.9)
    models = {"folds": model(0.91), "snapshots": model(0.93)}
    looks = [{"trial": 0, "models": {}}, {"trial": 2, "models": models}]  # it was extended
    result = outcome_of(study, tmp_path, [winner], looks)
    assert result["snapshot_cv_accuracy"]["value"] == 1
    assert result["test_looks"] == 2
    lines = told(result, study).splitlines()
    assert any("snapshots" in line and "100.00%" in line for line in lines)
    assert any("snapshots" in line and "93.00%" in line for line in lines)


def test_a_search_that_is_sealed_says_how_to_open_the_test_set(
    study: TrialStudy, candidates: list[Candidate], tmp_path: Path
) -> None:
    result = outcome_of(study, tmp_path, candidates, [])
    assert result["test_accuracy"] is None and result["models"] is None
    assert "not looked at; look: cifartune evaluate toy" in told(result, study)


def test_without_a_plan_that_can_be_read_there_is_an_outcome(
    study: TrialStudy, candidates: list[Candidate], tmp_path: Path
) -> None:
    for number, text in enumerate(("{", "[1]")):
        (tmp_path / str(number)).mkdir()
        found = outcome_of(study, tmp_path / str(number), candidates, [], plan=text)
        assert found["planned"] is None


def test_the_verdict_says_when_the_baseline_won_or_was_not_tried(
    study: TrialStudy, candidates: list[Candidate], tmp_path: Path
) -> None:
    best, baseline = candidates
    for part in ("won", "alone", "lost"):
        (tmp_path / part).mkdir()
    won = outcome_of(study, tmp_path / "won", [baseline, best], [])
    assert "The baseline won among the 2 recipes that were refit." in told(won, study)
    alone = outcome_of(study, tmp_path / "alone", [baseline], [])
    assert "The baseline alone was refit: it is held against nothing." in told(alone, study)
    lost = outcome_of(study, tmp_path / "lost", [best], [])
    assert lost["failed_refits"] == [0, 1]
    assert "Not held against the baseline, whose refit failed." in told(lost, study)
    untried = lost | {"failed_refits": []}
    assert "Not held against the baseline, which was not refit." in told(untried, study)


def test_both_intervals_are_told_and_what_each_is_about(result: dict[str, Any]) -> None:
    lines = dict(accuracy_lines(result))
    for label, name, about in (
        ("  images", "cv_accuracy", "these models"),
        ("  folds", "cv_accuracy_by_folds", "the recipe"),
    ):
        assert lines[label] == f"{Interval(**result[name])}: {about}"
    assert result["cv_accuracy_by_folds"]["low"] != result["cv_accuracy"]["low"]


def test_no_accuracy_is_said_to_be_above_one(study: TrialStudy, tmp_path: Path) -> None:
    winner = candidate(tmp_path, 2, study.recipe(study.trials[2]), 0.999)
    assert winner.folds.high > 1
    result = outcome_of(study, tmp_path, [winner], [])
    [only] = result["candidates"]
    assert result["cv_accuracy_by_folds"] == only["cv_accuracy_by_folds"]
    assert only["cv_accuracy_by_folds"]["high"] == 1
    assert only["cv_accuracy_by_folds"]["low"] == winner.folds.low


def test_what_is_averaged_over_views_is_said_row_by_row(
    study: TrialStudy, tmp_path: Path, result: dict[str, Any]
) -> None:
    recipe = study.recipe(study.trials[2]).with_values({"tta": "six_views"})
    models = {"folds": model(0.91)}
    (tmp_path / "other").mkdir()
    looks = [{"trial": 2, "models": models}]
    found = outcome_of(study, tmp_path / "other", [candidate(tmp_path / "o", 2, recipe, 1)], looks)
    texts = [text for _, text in accuracy_lines(found)]
    assert [("one view" in text, "six_views" in text) for text in texts] == [
        (True, False),  # validation
        (True, False),  # the same images out of fold
        (False, True),  # what follows is of the cross-validation
        *[(False, False)] * 4,
        (False, True),  # test
    ]


def test_a_validation_accuracy_of_other_epochs_says_so(
    study: TrialStudy, candidates: list[Candidate], tmp_path: Path, result: dict[str, Any]
) -> None:
    assert "of epoch 2; each fold below had up to 4 epochs" in told(result, study)
    recipe = study.recipe(study.trials[1])
    stopped = candidate(tmp_path / "stopped", 1, recipe, 0.9)
    found = outcome_of(study, tmp_path / "stopped", [stopped], [])
    assert "of epoch 1; each fold below had up to 2 epochs" in told(found, study)
    same = candidate(tmp_path / "same", 2, study.recipe(study.trials[2]), 0.9)
    found = outcome_of(study, tmp_path / "same", [same], [])
    assert "each fold below" not in told(found, study)


def test_a_choice_by_loss_is_not_taken_for_one_by_accuracy(
    study: TrialStudy, candidates: list[Candidate], tmp_path: Path
) -> None:
    best, baseline = candidates
    second = candidate(tmp_path / "second", 3, study.recipe(study.trials[3]), 0.95)
    result = outcome_of(study, tmp_path, [best, second, baseline], [])
    assert "loss" not in "".join(verdict_lines(result))
    result["objective"] = {"metric": "val_loss", "mode": "min"}
    lines = list(verdict_lines(result))
    told_of = "Chosen by out-of-fold loss, {:.4f}; the verdicts are on accuracy."
    assert lines[0] == told_of.format(best.loss)
    assert lines[3] == f"  its loss {baseline.loss:.4f}, on 1,000 images"
    assert lines[4].startswith("Worse than trial 3: -")
    assert lines[5].endswith("1,000 images; both must be below 0.017")
    assert lines[6] == f"  its loss {second.loss:.4f}, on 1,000 images"


def test_what_cannot_be_told_apart_is_said_to_be_so(study: TrialStudy, tmp_path: Path) -> None:
    recipe = study.recipe(study.trials[2])
    alike = [candidate(tmp_path, number, recipe, 0.9 - number / 1e4) for number in (2, 0)]
    result = outcome_of(study, tmp_path, alike, [])
    assert "Cannot be told apart from the baseline" in told(result, study)


def test_frames_have_a_row_a_trial_and_a_row_an_epoch(study: TrialStudy) -> None:
    trials = trials_frame(study)
    assert list(trials["trial"]) == [0, 1, 2, 3, 4]
    assert list(trials["trained_epochs"]) == [2, 1, 2, 1, 0]
    assert set(trials["epochs"]) == {2}
    assert trials.loc[3, "failure"] == "non_finite_loss"
    assert trials.loc[0, "optimizer.lr"] == 0.1
    assert len(curves_frame(study)) == 6


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


def test_no_two_columns_have_one_heading() -> None:
    values = {
        "schedule.patience": 3,
        "stopping.patience": 7,
        "stopping.epoch": 20,
        "optimizer.lr": 0.1,
    }
    rows = [Row(0, values, epochs=30, epoch=7, value=0.5)]
    shown = trials_table("val_accuracy", list(values), rows, width=100)
    headings = [str(column.header) for column in shown.columns]
    assert headings == ["trial", "state", "epoch", "valid", *list(values)[:3], "lr"]
    cells = [list(column.cells) for column in shown.columns]
    assert cells[2:] == [["7/30"], ["50.00%"], ["3"], ["7"], ["20"], ["0.1"]]
    for width in range(20, 100):
        told = str(trials_table("val_accuracy", list(values), rows, width=width).caption)
        assert told.startswith("* baseline")
