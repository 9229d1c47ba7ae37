"""The notebooks: kept without outputs, and run from top to bottom on finished searches."""

import json
import math
import random
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from searches import QUICK

from cifartune.config import Recipe, SearchSpace
from cifartune.report.frames import trials_frame
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
    "search": {"num_trials": 14},
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


def execute(name: str, *, cwd: Path) -> tuple[str, int]:
    """Runs a notebook from top to bottom in `cwd`: its text output, and its number of pictures."""
    notebook = read(FOLDER / name)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(cwd)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(o.get("text", "") + o.get("data", {}).get("text/html", "") for o in outputs)
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


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
    run = RunFolder.create(runs, space)
    study = TrialStudy(space, url=sqlite_url(run.study), name=run.name)
    tracker = MlflowTracker(default_uri(runs), run, {})
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
    result = result | {
        "name": run.name,
        "objective": space.target.model_dump(),
        "winner_trial": study.best()[0].number,
        "changed": {"optimizer.lr": [0.1, 0.0312], "optimizer.name": ["sgd", "muon"]},
        "mlflow": {"uri": tracker.uri, "run_id": tracker.run_id},
    }
    run.result.write_text(json.dumps(result))


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


def test_compare_trials_on_a_smoke_search(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFARTUNE_RUN", str(smoke_run))
    text, pictures = execute("compare_trials.ipynb", cwd=tmp_path)
    assert re.search("quick-smoke: (2 complete|1 complete, 1 stopped early)", text)
    assert "2 of 2 trials agree" in text
    assert "optimizer.weight_decay" in text
    assert "No estimate" in text  # of importance, from two trials
    assert pictures == 2


@pytest.mark.parametrize(
    ("changes", "counts", "pictures"),
    [
        (MANY_TRIALS, ("6 complete", "6 stopped early", "2 failed", "14 of 14 trials agree"), 3),
        pytest.param(
            *(NO_PARAMETERS, ("1 complete", "1 of 1 trials agree"), 1), marks=pytest.mark.slow
        ),
    ],
    ids=["many trials", "no parameters"],
)
def test_compare_trials_on_the_newest_search(
    changes: dict[str, Any],
    counts: tuple[str, ...],
    pictures: int,
    smoke_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CIFARTUNE_RUN", raising=False)
    result = json.loads((smoke_run / "result.json").read_text())
    # In a process of its own: a tracker redirects the logging of the whole process.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(make_up, tmp_path / "runs", changes, result).result()
    (tmp_path / "runs" / "unfinished").mkdir()
    text, drawn = execute("compare_trials.ipynb", cwd=tmp_path)
    for count in counts:
        assert count in text
    assert drawn == pictures


@pytest.mark.parametrize("named", [False, True])
def test_compare_trials_needs_a_finished_search(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished = tmp_path / "runs" / "quick"
    unfinished.mkdir(parents=True)
    monkeypatch.delenv("CIFARTUNE_RUN", raising=False)
    if named:
        monkeypatch.setenv("CIFARTUNE_RUN", str(unfinished))
    with pytest.raises(CellExecutionError, match=r"no finished search in .*set CIFARTUNE_RUN") as e:
        execute("compare_trials.ipynb", cwd=tmp_path)
    assert (str(unfinished) in e.value.evalue) is named
