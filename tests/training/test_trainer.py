import dataclasses
import io
import math
import pickle
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cifartune.config import Recipe
from cifartune.training import EpochResult, NonFiniteLoss, SplitImages, Trainer, train
from cifartune.training.classifier import weights_digest

CPU = torch.device("cpu")


def flatten(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a state, by path."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from flatten(value, f"{path}.{key}")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from flatten(value, f"{path}.{index}")
    else:
        yield path, tree


def assert_same(one: Trainer, other: Trainer) -> None:
    """Fails where the states of two trainers differ in a single bit, but for wall time."""
    first, second = (
        {name: value for name, value in flatten(trainer.state_dict()) if "second" not in name}
        for trainer in (one, other)
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name], name


def untimed(result: EpochResult) -> EpochResult:
    return dataclasses.replace(result, seconds=0, images_per_second=0)


def through_a_file(state: dict[str, Any]) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


VARIANTS = [
    {"optimizer.name": "sgd", "model.dropout": 0.3, "augment.cutout": 8},
    {"optimizer.name": "adamw", "optimizer.lr": 0.01, "schedule.name": "cosine"},
    {"optimizer.name": "muon", "optimizer.lr": 0.01, "precision": "bf16", "model.dropout": 0.1},
    {"model.name": "resnet18", "model.dropout": 0.3, "batch_size": 8},
    {"optimizer.ema_decay": 0.9, "optimizer.sam_rho": 0.05, "model.dropout": 0.1},
    {
        "augment.flip_mode": "alternate",
        "data.small_side": 12,
        "model.norm_momentum": 0.4,
        "optimizer.bias_lr_scale": 8.0,
        "precision": "fp16",
        "micro_batch": 24,
    },
]


@pytest.mark.parametrize("values", VARIANTS)
def test_any_epoch_can_be_resumed_bit_for_bit(
    recipe: Recipe, split: SplitImages, values: dict[str, Any]
) -> None:
    recipe = recipe.with_values({"epochs": 3} | values)
    split = dataclasses.replace(
        split, train=split.train[: 2 * recipe.batch_size], validation=split.validation[:8]
    )
    unbroken = Trainer(recipe, split, device=CPU)
    states, results = [through_a_file(unbroken.state_dict())], []
    for result in unbroken:
        results.append(untimed(result))
        states.append(through_a_file(unbroken.state_dict()))
    assert [result.epoch for result in results] == [1, 2, 3]
    for done, state in enumerate(states):
        torch.manual_seed(done)  # whatever the process did meanwhile
        torch.rand(3)
        resumed = Trainer(recipe, split, device=CPU)
        resumed.load_state_dict(state)
        assert [untimed(result) for result in resumed] == results[done:]
        assert_same(resumed, unbroken)


def test_a_state_is_a_copy(recipe: Recipe, split: SplitImages) -> None:
    trainer = Trainer(recipe, split, device=CPU)
    epochs = iter(trainer)
    next(epochs)
    state = trainer.state_dict()
    last = untimed(next(epochs))
    trainer.load_state_dict(state)
    assert untimed(next(iter(trainer))) == last


def test_a_state_of_another_recipe_is_refused(recipe: Recipe, split: SplitImages) -> None:
    state = Trainer(recipe, split, device=CPU).state_dict()
    other = Trainer(recipe.with_values({"seed": 1}), split, device=CPU)
    with pytest.raises(ValueError, match="belongs to another recipe"):
        other.load_state_dict(state)


def test_two_trainers_do_not_disturb_each_other(recipe: Recipe, split: SplitImages) -> None:
    recipes = [recipe.with_values({"model.dropout": 0.3, "seed": seed}) for seed in (1, 2)]
    alone = [Trainer(recipe, split, device=CPU) for recipe in recipes]
    expected = [[untimed(result) for result in trainer] for trainer in alone]
    together = [Trainer(recipe, split, device=CPU) for recipe in recipes]
    rounds = list(zip(*together, strict=True))
    assert [[untimed(r) for r in column] for column in zip(*rounds, strict=True)] == expected
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)
    assert expected[0] != expected[1]


def test_the_global_random_state_is_untouched(recipe: Recipe, split: SplitImages) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    for _ in Trainer(recipe.with_values({"model.dropout": 0.3}), split, device=CPU):
        pass
    assert torch.equal(torch.get_rng_state(), before[0])
    assert repr(np.random.get_state()) == repr(before[1])
    assert random.getstate() == before[2]


def test_it_learns(recipe: Recipe, split: SplitImages) -> None:
    values = {"epochs": 8, "batch_size": 30, "optimizer.name": "muon", "optimizer.lr": 0.03}
    recipe = recipe.with_values(values | {"augment.strength": 0})
    results = list(train(recipe, split, device=CPU))
    assert results[-1].train_loss < 0.6 * results[0].train_loss
    assert results[-1].train_accuracy > 0.75
    assert results[-1].val_accuracy > 0.2


def test_results_are_what_they_say(recipe: Recipe, split: SplitImages) -> None:
    recipe = recipe.with_values({"label_smoothing": 0.2, "model.dropout": 0.2, "tta": "flip"})
    trainer = Trainer(recipe, split, device=CPU)
    *_, last = trainer
    labels = split.labels[split.validation]
    images = split.images[split.validation]
    x = trainer.classifier.eval().prepare(images)
    with torch.inference_mode():
        logits, mirrored = trainer.network(x), trainer.network(x.flip(3))
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert last.val_loss == pytest.approx(loss, rel=1e-5)
    assert last.val_accuracy == (logits.argmax(1) == labels).sum().item() / 100
    torch.testing.assert_close(trainer.predict(images), (logits + mirrored) / 2)
    assert last.metrics().keys() == {
        *("train_loss", "train_accuracy", "val_loss", "val_accuracy"),
        *("lr", "images_per_second", "seconds"),
    }
    assert 0 < last.lr < recipe.optimizer.lr
    assert 300 / last.seconds < last.images_per_second


@pytest.mark.parametrize(
    ("images", "batch_size", "steps"),
    [(300, 64, 5), (300, 300, 1), (300, 1000, 1), (129, 64, 2), (130, 64, 3), (128, 64, 2)],
)
def test_the_last_batch_may_be_smaller_but_not_one_image(
    recipe: Recipe,
    split: SplitImages,
    monkeypatch: pytest.MonkeyPatch,
    images: int,
    batch_size: int,
    steps: int,
) -> None:
    split = dataclasses.replace(split, train=split.train[:images])
    trainer = Trainer(recipe.with_values({"batch_size": batch_size}), split, device=CPU)
    seen: list[Tensor] = []
    augmented = trainer._augmented

    def spy(indices: Tensor) -> Any:
        seen.append(indices)
        return augmented(indices)

    monkeypatch.setattr(trainer, "_augmented", spy)
    result = next(iter(trainer))
    assert len(seen) == trainer.steps_per_epoch == steps
    assert sum(map(len, seen)) == images - (images % batch_size == 1)
    assert np.isfinite(result.train_loss) and 0 <= result.train_accuracy <= 1


def test_every_image_is_seen_once_an_epoch_in_a_new_order(
    recipe: Recipe, split: SplitImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    trainer = Trainer(recipe, split, device=CPU)
    augmented = trainer._augmented

    def spy(indices: Tensor) -> Any:
        seen.append(indices)
        return augmented(indices)

    monkeypatch.setattr(trainer, "_augmented", spy)
    list(trainer)
    first, second = torch.cat(seen[:5]), torch.cat(seen[5:])
    for epoch in (first, second):
        assert torch.equal(epoch.sort().values, split.train)
    assert not torch.equal(first, second)


def test_the_rate_follows_the_schedule_over_the_whole_run(
    recipe: Recipe, split: SplitImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe.with_values({"schedule.warmup": 0.2, "optimizer.lr": 0.1})
    trainer = Trainer(recipe, split, device=CPU)
    rates: list[float] = []
    step = trainer.optimizer.step

    def spy() -> None:
        rates.append(trainer.optimizer.param_groups[-1]["lr"])
        step()

    monkeypatch.setattr(trainer.optimizer, "step", spy)
    results = list(trainer)
    expected = [0.02, 0.06, *(0.1 * (1 - i / 8) for i in range(8))]
    assert rates == pytest.approx(expected)
    assert [result.lr for result in results] == pytest.approx([expected[4], expected[9]])


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_frozen_weights_stay_as_they_are(recipe: Recipe, split: SplitImages, name: str) -> None:
    values = {"optimizer.name": name, "optimizer.weight_decay": 0.1, "optimizer.lr": 0.05}
    trainer = Trainer(recipe.with_values(values), split, device=CPU)
    before = {n: w.detach().clone() for n, w in trainer.network.named_parameters()}
    next(iter(trainer))
    for weight_name, weight in trainer.network.named_parameters():
        assert torch.equal(weight, before[weight_name]) != weight.requires_grad, weight_name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run(
    recipe: Recipe, split: SplitImages, bad: float
) -> None:
    trainer = Trainer(recipe.with_values({"epochs": 3}), split, device=CPU)
    epochs = iter(trainer)
    next(epochs)
    state = torch.get_rng_state()
    head = trainer.network.get_parameter("head.weight")
    with torch.no_grad():
        head[0, 0] = bad
    with pytest.raises(NonFiniteLoss, match="in epoch 2") as failure:
        next(epochs)
    assert failure.value.epoch == 2
    assert failure.value.kind == "non_finite_loss"
    assert torch.equal(torch.get_rng_state(), state)
    copy = pickle.loads(pickle.dumps(failure.value))
    assert (copy.epoch, str(copy)) == (2, str(failure.value))


def test_a_rate_that_is_too_high_ends_the_run_by_name(recipe: Recipe, split: SplitImages) -> None:
    values = {"optimizer.lr": 10, "optimizer.momentum": 0.99, "optimizer.weight_decay": 1.0}
    recipe = recipe.with_values(values | {"epochs": 30, "batch_size": 8, "schedule.warmup": 0})
    with pytest.raises(NonFiniteLoss):
        list(Trainer(recipe, split, device=CPU))


def test_a_validation_loss_that_is_not_finite_ends_the_run(
    recipe: Recipe, split: SplitImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(recipe, split, device=CPU)
    monkeypatch.setattr(trainer, "evaluate", lambda images: (float("inf"), 0.1))
    with pytest.raises(NonFiniteLoss, match="in epoch 1"):
        next(iter(trainer))


def test_too_few_images_are_refused(recipe: Recipe, split: SplitImages) -> None:
    none = dataclasses.replace(split, validation=split.validation[:0])
    keeps = recipe.with_values({"stopping.keep": "best"})
    heeds = recipe.with_values({"stopping.metric": "val_loss"})
    for wanted, images in (
        (recipe, dataclasses.replace(split, train=split.train[:1])),
        (keeps, none),
        (heeds, none),
    ):
        with pytest.raises(ValueError, match="are needed at least"):
            Trainer(wanted, images, device=CPU)


def test_a_run_may_hold_out_no_images(recipe: Recipe, split: SplitImages) -> None:
    """As one that is trained on all of them: it has no accuracy, and is trained as any other."""
    none = dataclasses.replace(split, validation=split.validation[:0])
    whole, usual = Trainer(recipe, none, device=CPU), Trainer(recipe, split, device=CPU)
    for result, other in zip(whole, usual, strict=True):
        assert math.isnan(result.val_loss) and math.isnan(result.val_accuracy)
        assert {"val_loss", "val_accuracy"}.isdisjoint(result.metrics())
        assert result.train_loss == other.train_loss
    assert weights_digest(whole.classifier) == weights_digest(usual.classifier)


def test_the_first_layer_is_whitened_by_training_images(recipe: Recipe, split: SplitImages) -> None:
    images = split.images.clone()
    images[300:] = 0
    one, other = (
        Trainer(recipe, dataclasses.replace(split, images=data), device=CPU)
        for data in (split.images, images)
    )
    weight = "whitening.weight"
    assert torch.equal(one.network.get_parameter(weight), other.network.get_parameter(weight))
    seed = Trainer(recipe.with_values({"seed": 9}), split, device=CPU)
    assert torch.equal(one.network.get_parameter(weight), seed.network.get_parameter(weight))


def test_stopping_is_not_asking_for_more(recipe: Recipe, split: SplitImages) -> None:
    epochs = train(recipe, split, device=CPU)
    assert next(epochs).epoch == 1
    assert next(epochs).epoch == 2
    with pytest.raises(StopIteration):
        next(epochs)


def test_images_and_indices_are_not_changed(recipe: Recipe, split: SplitImages) -> None:
    before = dataclasses.astuple(split)
    list(Trainer(recipe.with_values({"augment.cutout": 8}), split, device=CPU))
    for tensor, original in zip(dataclasses.astuple(split), before, strict=True):
        assert torch.equal(tensor, original)


EARLY = {
    "augment.strength": 0.0,
    "optimizer.lr": 1e-9,  # nothing gets better
    "epochs": 9,
    "stopping.metric": "val_accuracy",
    "stopping.patience": 2,
}


def test_a_run_ends_early_and_a_copy_of_it_at_the_same_epoch(
    recipe: Recipe, split: SplitImages
) -> None:
    """Also where the copy goes on from a state in the middle of the patience."""
    recipe = recipe.with_values(EARLY)
    trainer = Trainer(recipe, split, device=CPU)
    epochs = iter(trainer)
    next(epochs), next(epochs)
    state = trainer.state_dict()
    assert not trainer.is_over
    rest = [result.epoch for result in epochs]
    assert trainer.is_over and rest[-1] < 9
    other = Trainer(recipe, split, device=CPU)
    other.load_state_dict(state)
    assert [result.epoch for result in other] == rest
    assert_same(trainer, other)


def test_a_run_that_ends_after_an_epoch_is_the_start_of_the_whole_run(
    recipe: Recipe, split: SplitImages
) -> None:
    """The schedule is that of all epochs."""
    recipe = recipe.with_values({"epochs": 4})
    part = list(train(recipe.with_values({"stopping.epoch": 2}), split, device=CPU))
    whole = list(train(recipe, split, device=CPU))
    assert [untimed(result) for result in part] == [untimed(result) for result in whole[:2]]


@pytest.mark.parametrize(("ema_decay", "weights"), [(0.0, "network"), (0.5, "average")])
def test_the_best_epoch_is_kept_also_across_a_restart(
    recipe: Recipe,
    split: SplitImages,
    monkeypatch: pytest.MonkeyPatch,
    ema_decay: float,
    weights: str,
) -> None:
    accuracies = [0.1, 0.4, 0.2, 0.4]
    monkeypatch.setattr(Trainer, "evaluate", lambda self, _: (1.0, accuracies[self.epoch]))
    values = {"stopping.keep": "best", "optimizer.ema_decay": ema_decay, "epochs": 4}
    recipe = recipe.with_values(values)
    trainer, other = Trainer(recipe, split, device=CPU), Trainer(recipe, split, device=CPU)
    states = []
    for result in trainer:
        states.append(trainer.state_dict())
        assert trainer.kept_epoch == min(result.epoch, 2)
    other.load_state_dict(states[2])
    assert [result.epoch for result in other] == [4]
    best, last = states[1][weights], states[2][weights]
    for one in (trainer, other):
        kept = one.classifier.network.state_dict()
        assert all(torch.equal(kept[name], best[name]) for name in best)
        assert not all(torch.equal(kept[name], last[name]) for name in last)


FROZEN = {"model.trainable": "last_1", "augment.strength": 0.0, "epochs": 3, "model.dropout": 0.2}


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_features_that_are_kept_change_nothing(
    recipe: Recipe, split: SplitImages, monkeypatch: pytest.MonkeyPatch, ema_decay: float
) -> None:
    recipe = recipe.with_values(FROZEN | {"optimizer.ema_decay": ema_decay})
    keeping = Trainer(recipe, split, device=CPU)
    monkeypatch.setattr(Trainer, "_keep_features", lambda trainer: None)
    plain = Trainer(recipe, split, device=CPU)
    assert keeping.keeps_features and not plain.keeps_features
    for result, expected in zip(keeping, plain, strict=True):
        assert result.train_loss == pytest.approx(expected.train_loss, rel=1e-3)
        assert result.val_loss == pytest.approx(expected.val_loss, rel=1e-3)
    images = split.images[split.validation]
    torch.testing.assert_close(keeping.predict(images), plain.predict(images), rtol=1e-2, atol=1e-2)


def test_features_are_not_part_of_the_state(recipe: Recipe, split: SplitImages) -> None:
    """A run that is restored in the middle ends as the unbroken one, bit for bit."""
    recipe = recipe.with_values(FROZEN)
    trainer, other = Trainer(recipe, split, device=CPU), Trainer(recipe, split, device=CPU)
    epochs = iter(trainer)
    next(epochs)
    other.load_state_dict(trainer.state_dict())
    assert len(list(epochs)) == len(list(other)) == 2
    assert_same(trainer, other)


@pytest.mark.parametrize(
    "values",
    [
        {"model.trainable": "all"},
        {"augment.strength": 1.0},
        {"augment.copies": 1},
        {"epochs": 1},
        {"stopping.epoch": 1},
    ],
)
def test_features_are_kept_only_where_that_saves_something(
    recipe: Recipe, split: SplitImages, values: dict[str, object]
) -> None:
    assert Trainer(recipe.with_values(FROZEN), split, device=CPU).keeps_features
    assert not Trainer(recipe.with_values(FROZEN | values), split, device=CPU).keeps_features


def test_augmentation_that_does_nothing_is_none(recipe: Recipe, split: SplitImages) -> None:
    still = {"augment.strength": 1.0, "augment.crop": 0, "augment.flip": 0.0}
    assert Trainer(recipe.with_values(FROZEN | still), split, device=CPU).keeps_features
    for name, value in (("augment.scale_to", 1.2), ("augment.policy", "randaugment")):
        changed = recipe.with_values(FROZEN | still | {name: value})
        assert not Trainer(changed, split, device=CPU).keeps_features
