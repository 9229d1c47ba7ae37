"""The final models, judged on images that they never saw."""

import json
from pathlib import Path

import numpy as np
import pytest
from searches import QUICK

from cifartune.config import Recipe, load_space, smoke_space
from cifartune.data import LabelledImages
from cifartune.data.looks import record_look
from cifartune.evaluate import judge, save_predictions, stand_in, why_no_look
from cifartune.final_models import FinalModel
from cifartune.runs import RunFolder
from cifartune.statistics import Accuracy
from cifartune.training import SplitImages, Trainer
from cifartune.training.classifier import predict, save_classifier


@pytest.fixture(scope="module")
def weights(split: SplitImages, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of two networks, each of which looks at an image and its mirror image."""
    recipe = Recipe().with_values(
        {
            "model.name": "speednet_small",
            "model.resolution": 16,
            "epochs": 1,
            "precision": "fp32",
            "tta": "flip",
        }
    )
    weights = []
    for seed in range(2):
        trainer = Trainer(recipe.with_values({"seed": seed, "batch_size": 64}), split)
        next(iter(trainer))
        weights.append(tmp_path_factory.mktemp("fold") / "weights.safetensors")
        save_classifier(trainer.classifier, weights[-1])
    return weights


def test_final_models_are_judged_together(
    weights: list[Path], split: SplitImages, tmp_path: Path
) -> None:
    """Each network predicts once, whatever models it is in."""
    images = LabelledImages(split.images[:200].numpy(), split.labels[:200].numpy().astype(np.uint8))
    models = {"folds": weights, "all_images": weights[:1]}
    tested, predictions = judge(models, {"folds": 1.0, "all_images": 2.0}, images)
    expected = predict(FinalModel.load(weights).ensemble, split.images[:200]).log().numpy()
    # In bf16, where the machine has it.
    np.testing.assert_allclose(predictions["folds"], expected, atol=0.1)
    both, one = tested["folds"], tested["all_images"]
    assert (both.networks, one.networks) == (2, 1)
    assert both.weights == 2 * one.weights
    assert both.seconds_per_image > one.seconds_per_image > 0
    for name, model in tested.items():
        right = predictions[name].argmax(1) == images.labels
        assert model.accuracy == Accuracy.of(int(right.sum()), 200)
        plain = predictions[f"{name}_plain"].argmax(1) == images.labels
        assert model.plain_accuracy == Accuracy.of(int(plain.sum()), 200)
        loss = -predictions[name][np.arange(200), images.labels].mean()
        assert model.calibration.log_loss == pytest.approx(loss, rel=1e-4)
    assert not np.array_equal(predictions["folds"], predictions["folds_plain"])
    assert both.calibration.scaled_error == both.calibration.error
    assert one.calibration.scaled_error != one.calibration.error
    save_predictions(predictions, tmp_path / "test.npz")
    with np.load(tmp_path / "test.npz") as kept:
        assert sorted(kept) == sorted(predictions)
        np.testing.assert_array_equal(kept["labels"], images.labels)


def test_a_search_looks_by_itself_once(tmp_path: Path) -> None:
    real, smoke = load_space(QUICK), smoke_space(load_space(QUICK))
    root = tmp_path / "data"
    root.mkdir()
    run = RunFolder.create(tmp_path / "runs", real)
    assert "test_images.npy is missing" in str(why_no_look(run, real, 3, root))
    assert why_no_look(run, smoke, 3, root) is None
    for name in ("images", "labels"):
        (root / f"test_{name}.npy").touch()
    assert why_no_look(run, real, 3, root) is None
    record_look(root, {"run": "another"})
    assert why_no_look(run, real, 3, root) is None
    record_look(root, {"run": run.id})  # and then the process died
    assert why_no_look(run, real, 3, root) == "this search has looked before"
    look = {"trial": 3, "models_sha256": run.models_digest(3), "models": {}}
    run.evaluation.write_text(json.dumps([look]))
    assert why_no_look(run, real, 3, root) == why_no_look(run, smoke, 3, root) == ""
    assert why_no_look(run, real, 4, root) == "this search has looked before"
    sealed = RunFolder.create(tmp_path / "runs", real, sealed=True)
    assert why_no_look(sealed, real, 3, root) == ""


def test_the_stand_in_is_what_its_indices_say(cifar: LabelledImages) -> None:
    chosen = stand_in(cifar, np.array([3, 1]))
    assert (chosen.images == cifar.images[[3, 1]]).all()
    assert (chosen.labels == cifar.labels[[3, 1]]).all()
