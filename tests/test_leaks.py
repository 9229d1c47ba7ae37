"""Held-out images have no part in what is trained; each test is shown to see the leak it is for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cifartune.config import Recipe
from cifartune.data.splits import make_splits
from cifartune.errors import UserError
from cifartune.models import build_model
from cifartune.outputs import LOGITS
from cifartune.refit import OutOfFold
from cifartune.training import SplitImages, Trainer
from cifartune.training import images as images_module
from cifartune.training import trainer as trainer_module
from cifartune.training.classifier import weights_digest
from cifartune.training.feed import Feed

EVERYTHING = {
    "augment.mixup": 0.5,
    "augment.cutmix": 0.5,
    "augment.cutout": 4,
    "augment.copies": 1,
    "augment.policy": "trivialaugment",
    "optimizer.ema_decay": 0.9,
    "schedule.name": "plateau",
    "schedule.patience": 1,
    "stopping.metric": "train_loss",
    "epochs": 2,
}
"""What is computed from images on the way to the weights, beside whitening and normalisation."""


def trained(recipe: Recipe, split: SplitImages) -> Trainer:
    trainer = Trainer(recipe, split)
    for _ in trainer:
        pass
    return trainer


def depends_on_held_out_images(recipe: Recipe, split: SplitImages) -> bool:
    """Whether the weights come out otherwise where the held-out images and labels are others."""
    images, labels = split.images.clone(), split.labels.clone()
    images[split.validation] = 255 - images[split.validation]
    labels[split.validation] = (labels[split.validation] + 1) % 10
    other = replace(split, images=images, labels=labels)
    return weights_digest(trained(recipe, split).classifier) != weights_digest(
        trained(recipe, other).classifier
    )


def test_nothing_of_held_out_images_reaches_the_weights(recipe: Recipe, split: SplitImages) -> None:
    assert not depends_on_held_out_images(recipe.with_values(EVERYTHING), split)


def normalize_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = images_module.channel_statistics
    monkeypatch.setattr(
        images_module,
        "channel_statistics",
        lambda images, indices: plain(images, torch.arange(len(images))),
    )


def mix_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Feed.augmented

    def augmented(self: Feed, indices: Tensor, epoch: int) -> Any:
        x, targets = plain(self, indices, epoch)
        x[0] = (x[0] + self.inputs(self.split.validation[:1])[0]) / 2
        return x, targets

    monkeypatch.setattr(Feed, "augmented", augmented)


def whiten_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Feed.inputs

    asked: list[Feed] = []

    def inputs(self: Feed, indices: Tensor) -> Tensor:
        if self not in asked:  # the first images that a trainer looks at are those to whiten by
            asked.append(self)
            indices = torch.cat([indices, self.split.validation])
        return plain(self, indices)

    monkeypatch.setattr(Feed, "inputs", inputs)


def stop_by_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        trainer_module,
        "has_ended",
        lambda stopping, history: any(result.val_accuracy > 0.1 for result in history),
    )


def teach_on_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Trainer._run_epoch

    def run_epoch(self: Trainer) -> Any:
        self.train_on([self.split.validation])
        return plain(self)

    monkeypatch.setattr(Trainer, "_run_epoch", run_epoch)


@pytest.mark.parametrize(
    "leak",
    [normalize_by_all, mix_with_all, whiten_by_all, stop_by_validation, teach_on_validation],
)
def test_a_leak_into_training_would_be_seen(
    monkeypatch: pytest.MonkeyPatch,
    recipe: Recipe,
    split: SplitImages,
    leak: Callable[[pytest.MonkeyPatch], None],
) -> None:
    leak(monkeypatch)
    assert depends_on_held_out_images(recipe, split)


@pytest.fixture
def folds(split: SplitImages) -> Callable[[int], SplitImages]:
    """Five folds of 400 images."""
    labels = split.labels[:400].numpy().astype(np.uint8)
    splits = make_splits(labels, validation=50, train_subset=None, folds=5, seed=0)

    def fold(number: int) -> SplitImages:
        train, held_out = map(torch.from_numpy, splits.of_run(number))
        return SplitImages(split.images[:400], split.labels[:400], train, held_out)

    return fold


def fold_depends_on_the_one_before(recipe: Recipe, folds: Callable[[int], SplitImages]) -> bool:
    """Whether a fold comes out otherwise in a process that trained another before."""
    alone = weights_digest(trained(recipe, folds(1)).classifier)
    trained(recipe, folds(0))
    return weights_digest(trained(recipe, folds(1)).classifier) != alone


def test_each_fold_begins_anew(recipe: Recipe, folds: Callable[[int], SplitImages]) -> None:
    assert not fold_depends_on_the_one_before(recipe, folds)


def test_weights_carried_from_fold_to_fold_would_be_seen(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, folds: Callable[[int], SplitImages]
) -> None:
    kept: list[Any] = []

    def build_once(model: Any) -> Any:
        kept.append(build_model(model))
        return kept[0]

    monkeypatch.setattr(trainer_module, "build_model", build_once)
    assert fold_depends_on_the_one_before(recipe, folds)


def test_an_image_is_judged_by_its_own_fold_alone(tmp_path: Path) -> None:
    """And so by no ensemble in which others are that trained on it."""
    labels = (np.arange(100) % 10).astype(np.uint8)
    splits = make_splits(labels, validation=10, train_subset=None, folds=5, seed=0)
    folders = [tmp_path / str(fold) for fold in range(5)]
    random = np.random.default_rng(0)
    for fold, folder in enumerate(folders):
        folder.mkdir()
        logits = random.standard_normal((len(splits.held_out(fold)[1]), 10), dtype=np.float32)
        np.save(folder / LOGITS, logits)

    def touched(gather: Callable[[], OutOfFold]) -> set[int]:
        """The folds of the images whose predictions change with those of fold 3."""
        before = gather()
        np.save(folders[3] / LOGITS, np.load(folders[3] / LOGITS) + 1)
        after = gather()
        changed = (before.logits != after.logits).any(axis=(0, 2))
        return set(after.fold[changed].tolist())

    def ours() -> OutOfFold:
        return OutOfFold.gather(splits, [folders])

    def ensemble() -> OutOfFold:
        """Each fold's logits mixed with the mean of all: what an ensemble across folds would do."""
        own = ours()
        return replace(own, logits=own.logits + own.logits.mean(axis=1, keepdims=True))

    assert touched(ours) == {3}
    assert touched(ensemble) == set(range(5))


def test_the_test_images_are_out_of_reach_of_a_search(data_root: Path) -> None:
    """All that runs on these images in other tests, searches and refits, could not open them."""
    from cifartune.data.test_set import look_at_test

    assert not list(data_root.glob("test_*"))
    with pytest.raises(UserError, match="is missing"):
        look_at_test(data_root)


def test_weights_carried_from_fold_to_fold_inflate_the_estimate(
    recipe: Recipe, split: SplitImages
) -> None:
    """As in source E2 (docs/SOURCES.md), whose 95 % was of images that had trained the network.

    Five folds of 500 images; what the models are worth is told by 400 others.
    """
    labels = split.labels[:500].numpy().astype(np.uint8)
    splits = make_splits(labels, validation=50, train_subset=None, folds=5, seed=0)
    others = torch.arange(500, 900)
    carried: dict[str, Tensor] | None = None
    honest, leaked, worth = [], [], []
    values = {
        "model.name": "tutorial_net",
        "model.resolution": 32,
        "epochs": 12,
        "batch_size": 32,
        "optimizer.name": "adamw",
        "optimizer.lr": 2e-3,
    }
    for fold in range(5):
        train, held_out = map(torch.from_numpy, splits.of_run(fold))
        own = SplitImages(split.images, split.labels, train, held_out)
        alone = Trainer(recipe.with_values({**values, "seed": fold}), own)
        chained = Trainer(recipe.with_values({**values, "seed": fold}), own)
        if carried is not None:
            chained.network.load_state_dict(carried)
        for trainer in (alone, chained):
            assert len(list(trainer)) == 12
        carried = chained.network.state_dict()
        honest.append(alone.history[-1].val_accuracy)
        leaked.append(chained.history[-1].val_accuracy)
        worth.append(alone.evaluate(others)[1])
    told, true = float(np.mean(honest)), float(np.mean(worth))
    assert abs(told - true) < 0.08, f"out of fold {told:.1%}, on others {true:.1%}"
    assert np.mean(leaked) > told + 0.1, f"{np.mean(leaked):.1%} against {told:.1%}"
