"""What a search found, as Python has it."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cifartune import load
from cifartune.config import load_space
from cifartune.data import load_train
from cifartune.errors import UserError
from cifartune.report.status import status_of
from cifartune.runs import RunFolder


def test_a_finished_search(smoke_run: Path, data_root: Path) -> None:
    found = load(smoke_run)
    assert found.is_finished and "quick-smoke: finished" in repr(found)
    assert load("quick-smoke", runs=smoke_run.parent).space == found.space
    with contextlib.chdir(smoke_run / "refit"):
        assert load("..").name == "quick-smoke"
    winner, result = found.run.winner, found.result
    trials = found.trials()
    kept = pd.read_csv(found.run.trials_csv, dtype={"recipe_id": str})
    assert trials["recipe_id"].tolist() == kept["recipe_id"].tolist()
    np.testing.assert_allclose(trials["value"], kept["value"])
    best = found.best(1)
    assert best["trial"].tolist() == [winner] or result["candidates"][1:]
    last = found.curves().groupby("trial")["value"].last()
    assert last[best["trial"][0]] == best["value"][0]
    assert found.recipe.model_dump() == result["winner"]

    held_out = found.out_of_fold(data_root=data_root)
    right = held_out.logits[0].argmax(1) == held_out.labels
    assert right.mean() == result["cv_accuracy"]["value"]
    assert (load_train(data_root).labels[held_out.indices] == held_out.labels).all()


def test_its_models_give_what_was_seen_of_them(smoke_run: Path, data_root: Path) -> None:
    """The stand-in for the test set, as the look at it has kept what was predicted."""
    from cifartune.data.splits import Splits

    found = load(smoke_run)
    stand_in = Splits.load(found.run.splits).stand_in[:50]
    images = load_train(data_root).images[stand_in].transpose(0, 2, 3, 1)
    with np.load(found.run.test_predictions(1)) as kept:
        for which in ("folds", "all_images"):
            probabilities = found.model(which).predict(images)
            # They were computed in bf16, where the machine has it.
            np.testing.assert_allclose(np.log(probabilities), kept[which][:50], atol=0.05)


def test_an_unfinished_search(smoke_run: Path, tmp_path: Path) -> None:
    shutil.copytree(smoke_run, tmp_path / "quick-smoke")
    (tmp_path / "quick-smoke" / "result.json").unlink()
    found = load("quick-smoke", runs=tmp_path)
    before = found.run.study.read_bytes()
    assert not found.is_finished and len(found.trials()) == 2 and len(found.best(5)) == 2
    for ask in (lambda: found.result, lambda: found.recipe, found.model, found.out_of_fold):
        with pytest.raises(UserError, match="quick-smoke is not finished; go on with: "):
            ask()
    assert found.run.study.read_bytes() == before


def test_a_folder_that_was_renamed(smoke_run: Path, tmp_path: Path) -> None:
    """Its trials are known still; of an earlier version's, they are not said to be none."""
    shutil.copytree(smoke_run, tmp_path / "other")
    found = load(tmp_path / "other")
    assert len(found.trials()) == 2 and status_of(found.run).standing.ended_count == 2
    identity = json.loads(found.run.identity.read_text())
    del identity["name"]
    found.run.identity.write_text(json.dumps(identity))
    for look in (found.trials, lambda: status_of(found.run)):
        with pytest.raises(UserError, match="holds no study called other; was the folder renamed"):
            look()


def test_a_search_without_a_trial(smoke_run: Path, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, load_space(smoke_run / "space.yaml"))
    found = load(run.path)
    assert found.trials().empty and found.curves().empty and found.best().empty


def test_what_is_not_there(smoke_run: Path) -> None:
    with pytest.raises(UserError, match=r"no run is called quik; there are .*quick-smoke"):
        load("quik", runs=smoke_run.parent)
    found = load(smoke_run)
    with pytest.raises(
        UserError, match=r"there is no model snapshots; there is folds, all_images$"
    ):
        found.model("snapshots")
    with pytest.raises(UserError, match="quick-smoke has no trial 9: its last is 1"):
        found.model(trial=9)
