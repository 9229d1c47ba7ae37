"""The notebooks: kept without outputs, and run from top to bottom on finished searches."""

import json
import math
import random
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import yaml
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from searches import QUICK

from cifartune.config import Recipe, SearchSpace, load_space
from cifartune.data import load_train
from cifartune.errors import UserError
from cifartune.refit.out_of_fold import OutOfFold
from cifartune.report.frames import trials_frame
from cifartune.report.notebook import finished_run
from cifartune.runs import RunFolder
from cifartune.tracking import MlflowTracker, default_uri
from cifartune.tuning.study import TrialStudy, sqlite_url

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

# What quick.yaml has not: a loss for objective, and a parameter that only some trials have.
MANY_TRIALS = {
    "name": "many",
    "objective": {"metric": "val_loss"},
    "parameters": {
        "optimizer.name": {"values": ["sgd", "adamw", "muon"]},
        "optimizer.momentum": {"min": 0.5, "max": 0.99, "when": {"optimizer.name": ["sgd"]}},
        "optimizer.lr": {"min": 1e-3, "max": 0.3, "log": True},
        "model.init": {"values": ["default", "xavier_uniform", "orthogonal"]},
    },
    "search": {"num_trials": 24},
}
NO_PARAMETERS = {
    "name": "none",
    "objective": {"metric": "val_loss"},
    "parameters": {},
    "search": {"num_trials": 1},
}


def read(path: Path) -> NotebookNode:
    """A notebook, checked against the format."""
    notebook: NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    return notebook


@dataclass
class Outcome:
    """What a notebook told: its text, and how many pictures it drew."""

    text: str = ""
    pictures: int = 0


def execute(*names: str, cwd: Path) -> list[Outcome]:
    """Runs notebooks from top to bottom in `cwd`, and in one kernel: to start it takes seconds.

    Each begins without the names of those before.
    """
    together = new_notebook()  # type: ignore[no-untyped-call]
    place = {}
    for number, name in enumerate(names):
        reset = new_code_cell("%reset -f")  # type: ignore[no-untyped-call]
        for cell in [reset, *read(FOLDER / f"{name}.ipynb").cells]:
            place[len(together.cells)] = number
            together.cells.append(cell)
    NotebookClient(together, timeout=120, resources={"metadata": {"path": str(cwd)}}).execute()
    told = [Outcome() for _ in names]
    for index, cell in enumerate(together.cells):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            told[place[index]].text += output.get("text", "") + data.get("text/html", "")
            told[place[index]].pictures += "image/png" in data
    return told


def make_up(runs: Path, changes: dict[str, Any], result: dict[str, Any]) -> None:
    """A finished search as `cifartune search` leaves it, without any training.

    Every other trial is stopped after one of three epochs. The recipe of trial 3 fails at once,
    and trial 4 breaks down after two epochs.

    Args:
        runs: The folder of all runs.
        changes: The sections that differ from quick.yaml.
        result: Another search's result.json, for all that does not depend on the trials.
    """
    space = SearchSpace.model_validate(yaml.safe_load(QUICK.read_text()) | changes)
    run = RunFolder.create(runs, space, tracking_uri=default_uri(runs))
    study = TrialStudy(space, url=sqlite_url(run.study), name=run.name)
    tracker = MlflowTracker(run.tracking_uri, run, {})
    for number in range(space.search.num_trials):
        proposal = study.propose()
        tracker.trial_started(number, proposal.recipe)
        epochs = {3: 0, 4: 2}.get(number, 1 if number % 2 else 3)
        for epoch in range(1, epochs + 1):
            value = made_up_value(proposal.recipe, number, epoch)
            study.record(number, epoch, value)
            tracker.epoch_ended(number, epoch, {space.target.metric: value})
        if number == 3:
            study.reject(number, "diverged", "the loss is not finite")
        elif number == 4:
            study.fail(number, "crashed", "the process died")
        elif epochs == 3:
            study.complete(number)
        else:
            study.prune(number)
        tracker.trial_ended(study.trials[number])
    tracker.close()
    assert not tracker.failures
    trials_frame(study).to_csv(run.trials_csv, index=False)
    winner = study.best()[0].number
    refit = sorted({0, winner})
    for trial in refit:
        make_up_predictions(run, trial, folds=5 if trial == winner else 3)
    told = {"verdict": "cannot be told apart", "rival": 0}
    result = result | {
        "name": run.name,
        "objective": space.target.model_dump(),
        "winner_trial": winner,
        "folds": 5,
        "candidates": [{"trial": n, "cv_accuracy": {"value": 0.7 + 0.1 * n}} for n in refit],
        "verdicts": [told] if winner else [],
        "changed": {"optimizer.lr": [0.1, 0.0312], "optimizer.name": ["sgd", "muon"]},
        "mlflow": {"uri": tracker.uri, "run_id": tracker.run_id},
    }
    run.result.write_text(json.dumps(result))


def make_up_predictions(run: RunFolder, trial: int, *, folds: int) -> None:
    """Out-of-fold logits of a recipe for 2,000 images, of which the last folds were dropped."""
    random = np.random.default_rng(trial)
    indices = np.arange(2000)
    judged = indices[indices % 5 < folds]
    logits = random.standard_normal((1, len(judged), 10)).astype(np.float32)
    logits[0, np.arange(len(judged)), np.asarray(load_train().labels)[judged]] += 2
    run.out_of_fold(trial).parent.mkdir(parents=True)
    OutOfFold(judged, (judged % 5).astype(np.int8), logits, logits).save(run.out_of_fold(trial))


def made_up_value(recipe: Recipe, number: int, epoch: int) -> float:
    """Falls with the epochs, and is low where the learning rate is near 0.02."""
    noise = random.Random(100 * number + epoch).uniform(0, 0.1)
    return 2 / (1 + epoch) + 0.2 * abs(math.log10(recipe.optimizer.lr / 0.02)) + noise


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_no_outputs_are_stored(path: Path) -> None:
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    for cell in code:
        assert cell.outputs == []
        assert cell.execution_count is None


def test_all_of_them_on_a_smoke_search(
    smoke_run: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "quick-smoke"
    shutil.copytree(smoke_run, run)
    monkeypatch.setenv("CIFARTUNE_RUN", str(run))
    monkeypatch.setenv("CIFARTUNE_DATA", str(data_root))
    compare, error, explore, design = execute(*(path.stem for path in NOTEBOOKS), cwd=tmp_path)

    assert "50,000 images" in explore.text
    assert "test images was loaded: False" in explore.text
    assert explore.pictures == 4

    assert re.search("quick-smoke: (2 complete|1 complete, 1 stopped early)", compare.text)
    assert "2 of 2 trials agree" in compare.text
    assert "optimizer.weight_decay" in compare.text
    assert "All networks have one size: 498,104 weights" in compare.text
    assert "No estimate" in compare.text  # of importance, from two trials
    assert compare.pictures == 3

    assert "1,024 images, 2 folds" in error.text
    assert error.text.count("One recipe alone was refit") == 3 or "against trial 0" in error.text
    assert error.pictures in (5, 7)

    assert "too few trials to say: 1, and it takes 12" in design.text
    assert "follows a smoke search" in design.text
    written = load_space(run.with_name("quick-smoke-next.yaml"))
    assert written.warm_start == ["quick-smoke"]
    assert written.parameters == load_space(run / "space.yaml").parameters


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "told", "pictures"),
    [
        (
            MANY_TRIALS,
            {
                "compare": ["11 complete", "11 stopped early", "2 failed", "24 of 24 trials agree"],
                "error": ["2,000 images, 5 folds", "cannot be told apart"],
                "design": ["optimizer.momentum", "many-next.yaml: valid"],
            },
            {"compare": 3, "error": 7, "design": 3},
        ),
        (
            NO_PARAMETERS,
            {
                "compare": ["1 complete", "1 of 1 trials agree", "varies no parameter"],
                "error": ["One recipe alone was refit"],
                "design": ["varies no parameter", "0 parameters, 1 trials"],
            },
            {"compare": 1, "error": 5, "design": 0},
        ),
    ],
    ids=["many trials", "no parameters"],
)
def test_those_of_a_search_on_the_newest(
    changes: dict[str, Any],
    told: dict[str, list[str]],
    pictures: dict[str, int],
    smoke_run: Path,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CIFARTUNE_RUN", raising=False)
    monkeypatch.setenv("CIFARTUNE_DATA", str(data_root))
    result = json.loads((smoke_run / "result.json").read_text())
    # In a process of its own: a tracker redirects the logging of the whole process.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(make_up, tmp_path / "runs", changes, result).result()
    (tmp_path / "runs" / "unfinished").mkdir()
    names = ("compare_trials", "error_analysis", "search_space_design")
    found = dict(zip(told, execute(*names, cwd=tmp_path), strict=True))
    for name, texts in told.items():
        for text in texts:
            assert text in found[name].text
    assert {name: outcome.pictures for name, outcome in found.items()} == pictures


@pytest.mark.parametrize("is_named", [False, True])
def test_they_need_a_finished_search(
    is_named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished = tmp_path / "runs" / "quick"
    unfinished.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIFARTUNE_RUN", raising=False)
    if is_named:
        monkeypatch.setenv("CIFARTUNE_RUN", str(unfinished))
    with pytest.raises(UserError, match=r"no finished search in .*set CIFARTUNE_RUN") as error:
        finished_run()
    assert (str(unfinished) in str(error.value)) is is_named
