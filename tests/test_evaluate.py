"""The ensemble of the folds, and what is exported of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cifartune.config import Recipe
from cifartune.data import LabelledImages
from cifartune.evaluate import evaluate, export_ensemble, load_ensemble, stand_in
from cifartune.training import SplitImages, Trainer
from cifartune.training.classifier import Classifier, Ensemble, predict, save_classifier


@pytest.fixture(scope="module")
def ensemble(split: SplitImages, tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    recipe = Recipe().with_values(
        {"model.name": "speednet_small", "model.resolution": 16, "epochs": 1, "precision": "fp32"}
    )
    weights = []
    for seed in range(2):
        trainer = Trainer(recipe.with_values({"seed": seed, "batch_size": 64}), split)
        next(iter(trainer))
        weights.append(tmp_path_factory.mktemp("fold") / "weights.safetensors")
        save_classifier(trainer.classifier, weights[-1])
    return load_ensemble(weights)


def test_the_ensemble_averages_probabilities(ensemble: Ensemble, split: SplitImages) -> None:
    images = split.images[:5]
    members = [member for member in ensemble.members if isinstance(member, Classifier)]
    one, other = (predict(member, images).softmax(1) for member in members)
    torch.testing.assert_close(predict(ensemble, images), (one + other) / 2)


def test_accuracy_counts_right_answers(ensemble: Ensemble, split: SplitImages) -> None:
    images = split.images[:20]
    answers = predict(ensemble, images).argmax(1).numpy().astype(np.uint8)
    answers[:5] = (answers[:5] + 1) % 10
    accuracy = evaluate(ensemble, LabelledImages(images.numpy(), answers))
    # In bf16, where the machine has it, an image or two may fall the other way.
    assert accuracy.value == pytest.approx(15 / 20, abs=0.1)
    assert accuracy.low < accuracy.value < accuracy.high


def test_the_stand_in_is_what_its_indices_say(cifar: LabelledImages) -> None:
    chosen = stand_in(cifar, np.array([3, 1]))
    assert (chosen.images == cifar.images[[3, 1]]).all()
    assert (chosen.labels == cifar.labels[[3, 1]]).all()


def test_the_exported_program_gives_the_same(
    ensemble: Ensemble, split: SplitImages, tmp_path: Path
) -> None:
    export_ensemble(ensemble, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 3, 7):
        images = split.images[:count]
        torch.testing.assert_close(
            program(images.permute(0, 2, 3, 1)), predict(ensemble, images), rtol=1e-4, atol=1e-6
        )
