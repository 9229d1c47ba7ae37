import dataclasses
from pathlib import Path

import pytest
import torch

from cifartune.config import Recipe
from cifartune.training import SplitImages, Trainer
from cifartune.training.classifier import (
    Classifier,
    Ensemble,
    eval_batch,
    load_classifier,
    predict,
    save_classifier,
)
from cifartune.training.images import Normalization

CPU = torch.device("cpu")


def trained(recipe: Recipe, split: SplitImages) -> Classifier:
    """A classifier whose statistics and running means are those of a short training."""
    trainer = Trainer(recipe, split, device=CPU)
    next(iter(trainer))
    return trainer.classifier


@pytest.mark.parametrize("name", ["speednet_small", "resnet18"])
def test_a_classifier_survives_a_file(
    recipe: Recipe, split: SplitImages, tmp_path: Path, name: str
) -> None:
    values = {"model.name": name, "model.dropout": 0.2, "tta": "flip", "epochs": 1}
    split = dataclasses.replace(split, train=split.train[:16], validation=split.validation[:8])
    classifier = trained(recipe.with_values(values), split)
    path = tmp_path / "folder" / "model.safetensors"
    save_classifier(classifier, path)
    state = torch.get_rng_state()
    loaded = load_classifier(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.recipe == classifier.recipe
    assert not loaded.training
    for key, value in classifier.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    images = split.images[:20]
    assert torch.equal(predict(loaded, images), predict(classifier, images))


def test_flipping_averages_an_image_and_its_mirror(recipe: Recipe, split: SplitImages) -> None:
    plain = trained(recipe.with_values({"model.resolution": 32}), split)
    flip = Classifier(
        plain.network,
        recipe.with_values({"tta": "flip", "model.resolution": 32}),
        Normalization(plain.mean, plain.deviation),
    )
    images = split.images[:20]
    both = (predict(plain, images) + predict(plain, images.flip(3))) / 2
    torch.testing.assert_close(predict(flip, images), both)
    torch.testing.assert_close(predict(flip, images.flip(3)), both)
    assert not torch.allclose(predict(plain, images), both)


def test_predictions_do_not_depend_on_the_batch(recipe: Recipe, split: SplitImages) -> None:
    classifier = trained(recipe, split)
    count = eval_batch(recipe) + 5
    images = split.images.repeat(5, 1, 1, 1)[:count]
    logits = predict(classifier, images)
    assert logits.shape == (count, 10) and logits.dtype == torch.float32
    torch.testing.assert_close(logits[5:8], predict(classifier, images[5:8]))
    assert torch.equal(logits[:5].argmax(1), logits[-5:].argmax(1))
    half = predict(classifier, images[:8], precision="bf16")
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, logits[:8], atol=0.1, rtol=0.1)
    assert not torch.equal(half, logits[:8])


def test_an_ensemble_averages_probabilities(recipe: Recipe, split: SplitImages) -> None:
    members = [trained(recipe.with_values({"seed": seed}), split) for seed in (1, 2)]
    images = split.images[:20]
    probabilities = predict(Ensemble(members), images)
    expected = sum(predict(member, images).softmax(1) for member in members) / 2
    torch.testing.assert_close(probabilities, expected)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(20))
