"""The trainer with augmentation: what reaches the network, and what it is told to learn."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cifartune.config import Recipe
from cifartune.training import SplitImages, Trainer
from cifartune.training.augment import crop_and_flip, cutout_
from cifartune.training.targets import Targets

CPU = torch.device("cpu")

ALL: dict[str, Any] = {
    "augment.policy": "randaugment",
    "augment.rotation": 20.0,
    "augment.elastic": 30.0,
    "augment.hue": 0.1,
    "augment.mixup": 0.5,
    "augment.cutmix": 0.5,
    "augment.cutout": 8,
    "augment.copies": 1,
}


class Plain(Targets):
    """The loss and accuracy of labels that nothing can mix."""

    def losses(self, logits: Tensor, label_smoothing: float) -> Tensor:
        smoothing = label_smoothing
        return F.cross_entropy(logits, self.labels, label_smoothing=smoothing, reduction="none")

    def correct(self, logits: Tensor) -> Tensor:
        return (logits.argmax(1) == self.labels).sum()


def plainly(trainer: Trainer, indices: Tensor) -> tuple[Tensor, Targets]:
    """Crop, flip and cutout alone, without a trace of any other operation."""
    recipe, generator = trainer.recipe.augment, trainer.feed.generator
    images = crop_and_flip(trainer.split.images[indices], recipe, generator)
    x = cutout_(trainer.classifier.prepare(images), recipe, generator)
    return x, Plain(trainer.split.labels[indices])


def trained(recipe: Recipe, split: SplitImages) -> tuple[str, dict[str, Any]]:
    """The metrics of two epochs but for the times, and the state after them."""
    trainer = Trainer(recipe, split, device=CPU)
    metrics = [(r.train_loss, r.train_accuracy, r.val_loss, r.lr) for r in trainer]
    return json.dumps(metrics), trainer.state_dict()


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert torch.equal(first["generator"], second["generator"])
    for name, weights in first["network"].items():
        assert torch.equal(weights, second["network"][name]), name


@pytest.mark.parametrize("cutout", [0, 8])
def test_what_is_off_leaves_no_trace(
    recipe: Recipe, split: SplitImages, monkeypatch: pytest.MonkeyPatch, cutout: int
) -> None:
    recipe = recipe.with_values({"augment.cutout": cutout, "label_smoothing": 0.1})
    found, state = trained(recipe, split)
    monkeypatch.setattr(Trainer, "_augmented", plainly)
    expected, other = trained(recipe, split)
    assert found == expected
    assert_same(state, other)


def test_it_goes_on_from_a_checkpoint_with_everything_on(
    recipe: Recipe, split: SplitImages
) -> None:
    recipe = recipe.with_values(ALL)
    whole = Trainer(recipe, split, device=CPU)
    next(iter(whole))
    resumed = Trainer(recipe, split, device=CPU)
    resumed.load_state_dict(whole.state_dict())
    next(iter(whole)), next(iter(resumed))
    assert_same(whole.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("copies", [1, 3])
def test_copies_are_added_to_the_originals(recipe: Recipe, split: SplitImages, copies: int) -> None:
    recipe = recipe.with_values({"augment.copies": copies, "augment.cutmix": 1.0})
    trainer = Trainer(recipe, split, device=CPU)
    batch = split.train[:64]
    x, targets = trainer._augmented(batch)
    assert len(x) == len(targets.labels) == 64 * (1 + copies)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x[:64], trainer.classifier.prepare(split.images[batch]))
    assert torch.equal(targets.labels, split.labels[batch].repeat(1 + copies))
    assert targets.shares is not None and (targets.shares[:64] == 1).all()
    changed = (x[64:] != x[:64].repeat(copies, 1, 1, 1)).flatten(1).any(1).float().mean()
    assert changed > 0.9
    # An epoch still passes over every image once, in as many steps.
    plain = Trainer(recipe.with_values({"augment.copies": 0}), split, device=CPU)
    assert trainer.total_steps == plain.total_steps


def test_a_mixed_batch_is_harder(recipe: Recipe, split: SplitImages) -> None:
    """The loss of mixed labels can not fall to that of pure ones."""
    recipe = recipe.with_values({"epochs": 6, "augment.crop": 0})
    plain, mixed = (
        [r.train_loss for r in Trainer(r, split, device=CPU)][-1]
        for r in (recipe, recipe.with_values({"augment.mixup": 1.0}))
    )
    assert mixed > plain
