"""What is asked of a finished search: the test set, once; the same weights again; a comparison."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from searches import cifartune, logged_states

from cifartune.data import load_train
from cifartune.data.looks import looks

SEALED = """
name: sealed
base: {model: {name: mlp, resolution: 16}, epochs: 1, batch_size: 500, tta: flip}
parameters:
  optimizer.lr: {min: 0.01, max: 0.3, log: true}
data: {validation: 500, train_subset: 2000}
search: {num_trials: 2}
scheduler: {name: none}
refit: {top_k: 2, folds: 2}
"""


def with_test_images(train_only: Path, folder: Path) -> Path:
    """The same training images, and 10,000 of them in place of the test images."""
    folder.mkdir()
    for path in train_only.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    train = load_train(train_only)
    np.save(folder / "test_images.npy", train.images[:10_000])
    np.save(folder / "test_labels.npy", train.labels[:10_000])
    return folder


def result_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def test_a_second_look_needs_to_be_asked_for(smoke_run: Path, data_root: Path) -> None:
    before = (smoke_run / "evaluation.json").read_bytes()
    refused = cifartune(
        "evaluate", smoke_run.name, cwd=smoke_run.parent.parent, CIFARTUNE_DATA=str(data_root)
    )
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    assert f"the winner, trial {result_of(smoke_run)['winner_trial']}, was evaluated at" in line
    assert line.endswith("To look all the same: --again")
    assert (smoke_run / "evaluation.json").read_bytes() == before


def test_a_search_that_is_not_finished_is_not_evaluated(
    smoke_run: Path, data_root: Path, tmp_path: Path
) -> None:
    """Its winner may be another: nothing is looked at, or written."""
    shutil.copytree(smoke_run, tmp_path / "runs" / "begun")
    (tmp_path / "runs" / "begun" / "result.json").unlink()
    refused = cifartune("evaluate", "begun", cwd=tmp_path, CIFARTUNE_DATA=str(data_root))
    assert refused.returncode == 2
    assert "begun is not finished; go on with" in refused.stderr
    assert not (tmp_path / "runs" / "begun" / "result.json").exists()


def test_a_refused_look_leaves_mlflow_as_it_was(smoke_run: Path) -> None:
    names = dict(logged_states(smoke_run.parent / "mlflow.db"))
    assert names["search"] == "FINISHED"


def test_a_smoke_run_looks_at_no_test_image_and_counts_nothing(
    smoke_run: Path, data_root: Path
) -> None:
    assert looks(data_root) == []
    assert result_of(smoke_run)["test_looks_of_all_searches"] == 0
    assert result_of(smoke_run)["test_looks"] == 0


def test_every_number_has_its_file(smoke_run: Path) -> None:
    result = result_of(smoke_run)
    refit = smoke_run / "refit" / f"trial-{result['winner_trial']}"
    with np.load(refit / "oof.npz") as kept:
        assert len(kept["indices"]) == result["images"] == 1024
        assert kept["logits"].shape == kept["plain"].shape == (1, 1024, 10)
    assert (refit / "all-images" / "weights.safetensors").exists()
    with np.load(smoke_run / "test_predictions" / "look-1.npz") as kept:
        right = kept["folds"].argmax(1) == kept["labels"]
        assert right.mean() == result["test_accuracy"]["value"]
        alone = kept["all_images_plain"].argmax(1) == kept["labels"]
        assert alone.mean() == result["models"]["all_images"]["plain_accuracy"]["value"]
    names = {path.name for path in (smoke_run / "mistakes").iterdir()}
    assert {"confusion.csv", "classes.csv", "mistakes.csv", "hardest.png"} <= names


@pytest.mark.slow
def test_the_test_set_stays_sealed_until_it_is_asked_for(tmp_path: Path, data_root: Path) -> None:
    """Search and refit of all images run without the test images; evaluate alone wants them."""
    (tmp_path / "sealed.yaml").write_text(SEALED)
    done = cifartune(
        "search",
        "sealed.yaml",
        "--sealed",
        cwd=tmp_path,
        timeout=280,
        CIFARTUNE_DATA=str(data_root),
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "sealed"
    assert "not looked at; look: cifartune evaluate sealed" in done.stdout
    assert result_of(run)["test_accuracy"] is None

    missing = cifartune("evaluate", "sealed", cwd=tmp_path, CIFARTUNE_DATA=str(data_root))
    assert missing.returncode == 2 and "test_images.npy is missing" in missing.stderr
    assert result_of(run)["test_accuracy"] is None

    root = with_test_images(data_root, tmp_path / "data")
    looked = cifartune("evaluate", "sealed", cwd=tmp_path, CIFARTUNE_DATA=str(root))
    assert looked.returncode == 0, looked.stderr
    assert "one look by this search, 1 by all with these images" in " ".join(looked.stdout.split())
    assert result_of(run)["test_accuracy"]["value"] > 0.15
    [look] = looks(root)
    assert (look["name"], look["trial"]) == ("sealed", result_of(run)["winner_trial"])

    assert cifartune("evaluate", "sealed", cwd=tmp_path, CIFARTUNE_DATA=str(root)).returncode == 2
    assert len(looks(root)) == 1
    again = cifartune("evaluate", "sealed", "--again", cwd=tmp_path, CIFARTUNE_DATA=str(root))
    assert again.returncode == 0, again.stderr
    assert len(looks(root)) == 2 and result_of(run)["test_looks"] == 2

    checked = cifartune("check", "sealed", cwd=tmp_path, CIFARTUNE_DATA=str(root))
    assert checked.returncode == 0, checked.stdout
    same = cifartune("reproduce", "sealed", cwd=tmp_path, CIFARTUNE_DATA=str(root))
    assert same.returncode == 0, same.stdout + same.stderr
    assert "the same weights, bit for bit" in same.stdout
    compared = cifartune("compare", "sealed:0", "sealed:1", cwd=tmp_path, CIFARTUNE_DATA=str(root))
    assert compared.returncode == 0, compared.stderr
    assert (tmp_path / "runs" / "_comparisons").is_dir()
