"""What makes a step of the trainer another one: clipping, sharpness, averages, hard examples."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifartune.config import Recipe
from cifartune.schedule import restart_epochs
from cifartune.training import EpochResult, SplitImages, Trainer
from cifartune.training.averaging import WeightAverage
from cifartune.training.sharpness import climb
from cifartune.training.targets import hardest

PLAIN = {
    "augment.strength": 0.0,
    "schedule.name": "constant",
    "schedule.warmup": 0.0,
    "optimizer.momentum": 0.0,
    "optimizer.weight_decay": 0.0,
    "optimizer.lr": 1.0,
}
"""Plain gradient descent at a rate of 1: the gradient is what a step takes off."""


def trainer_of(recipe: Recipe, split: SplitImages, **values: object) -> Trainer:
    known = {name.replace("__", "."): value for name, value in values.items()}
    return Trainer(recipe.with_values(PLAIN | known), split, device=torch.device("cpu"))


def step_of(trainer: Trainer) -> Tensor:
    """What one step on the first 64 images takes off the trained weights, as one vector."""
    weights = [weight for weight in trainer.network.parameters() if weight.requires_grad]
    before = torch.cat([weight.detach().flatten().clone() for weight in weights])
    trainer.train_on([trainer.split.train[:64]])
    return before - torch.cat([weight.detach().flatten() for weight in weights])


def test_a_long_gradient_is_clipped_and_a_short_one_left(
    recipe: Recipe, split: SplitImages
) -> None:
    free = step_of(trainer_of(recipe, split))
    norm = float(free.norm())
    clipped = step_of(trainer_of(recipe, split, optimizer__clip_norm=norm / 4))
    assert float(clipped.norm()) == pytest.approx(norm / 4, rel=1e-3)
    torch.testing.assert_close(clipped * 4, free, rtol=1e-3, atol=1e-5)
    assert torch.equal(step_of(trainer_of(recipe, split, optimizer__clip_norm=2 * norm)), free)


def test_sharpness_takes_the_gradient_up_the_slope() -> None:
    """On a parabola w^2 / 2 * a, the gradient at w + rho * sign is a * (w + rho * sign)."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, -2.0)

    def backward() -> None:
        (3 * network.weight.square().sum() / 2).backward()

    backward()
    climb(network, 0.5, backward)
    assert network.weight.item() == -2.0
    assert network.weight.grad is not None
    assert network.weight.grad.item() == pytest.approx(3 * -2.5)


def test_sharpness_counts_a_batch_once_in_running_statistics(
    recipe: Recipe, split: SplitImages
) -> None:
    plain, sharp = trainer_of(recipe, split), trainer_of(recipe, split, optimizer__sam_rho=0.5)
    steps = step_of(plain), step_of(sharp)
    assert not torch.allclose(*steps, rtol=0.1)
    norms = [m for m in sharp.network.modules() if isinstance(m, nn.BatchNorm2d)]
    twins = [m for m in plain.network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    for norm, twin in zip(norms, twins, strict=True):
        assert norm.running_mean is not None and twin.running_mean is not None
        assert torch.equal(norm.running_mean, twin.running_mean)
        assert norm.num_batches_tracked == twin.num_batches_tracked
        assert norm.track_running_stats


def test_sharpness_leaves_frozen_weights_alone(recipe: Recipe, split: SplitImages) -> None:
    trainer = trainer_of(recipe, split, optimizer__sam_rho=0.5, model__trainable="head")
    before = copy.deepcopy(trainer.network.state_dict())
    trainer.train_on([trainer.split.train[:64]])
    changed = {
        name
        for name, value in trainer.network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed and all(name.startswith("head.") for name in changed)


def test_the_average_forgets_the_start_and_then_decays() -> None:
    network = nn.BatchNorm1d(1)
    average = WeightAverage(network, decay=0.9)
    averaged = average.network.get_parameter("weight")
    values, expected = [5.0, 1.0, 2.0, 4.0], 1.0
    for steps, value in enumerate(values, start=1):
        nn.init.constant_(network.weight, value)
        average.update(steps)
        decay = min(0.9, (1 + steps) / (10 + steps))
        expected = decay * expected + (1 - decay) * value
    assert averaged.item() == pytest.approx(expected)
    average.update(10_000)
    assert averaged.item() == pytest.approx(0.9 * expected + 0.1 * 4.0)
    network.train()(torch.randn(8, 1))
    average.update(10_000)
    assert average.network.get_buffer("num_batches_tracked") == 1


def test_the_average_is_what_is_evaluated_and_predicts(recipe: Recipe, split: SplitImages) -> None:
    trainer = trainer_of(recipe, split, optimizer__lr=0.1, optimizer__ema_decay=0.9)
    result = next(iter(trainer))
    logits = trainer.predict(split.images[split.validation])
    loss = F.cross_entropy(logits, split.labels[split.validation]).item()
    assert loss == pytest.approx(result.val_loss, rel=1e-4)
    trainer.classifier.network = trainer.network
    trained = trainer.predict(split.images[split.validation])
    assert not torch.allclose(trained, logits, atol=1e-3)


def test_the_hardest_images_alone_give_the_gradient(recipe: Recipe, split: SplitImages) -> None:
    trainer = trainer_of(recipe, split, hard_examples=0.25)
    images = split.train[:64]
    twin = copy.deepcopy(trainer.network).train()
    losses = F.cross_entropy(
        twin(trainer.feed.inputs(images)), split.labels[images], reduction="none"
    )
    losses.topk(16).values.mean().backward()
    gradient = torch.cat([w.grad.flatten() for w in twin.parameters() if w.grad is not None])
    torch.testing.assert_close(step_of(trainer), gradient, rtol=1e-3, atol=1e-5)


def test_at_least_one_image_is_learned_from() -> None:
    losses = torch.tensor([1.0, 3.0, 2.0])
    assert hardest(losses, 0.01).tolist() == [3.0]
    assert hardest(losses, 0.67).tolist() == [3.0, 2.0]
    assert hardest(losses, 1.0).tolist() == [1.0, 3.0, 2.0]


def test_the_rate_falls_when_the_training_loss_stays(recipe: Recipe, split: SplitImages) -> None:
    """With a rate of next to nothing the loss stays as it is, up to the batches' order."""
    values = {"schedule.name": "plateau", "schedule.patience": 1, "schedule.gamma": 0.5}
    still = recipe.with_values(PLAIN | values | {"optimizer.lr": 1e-12, "epochs": 5})
    rates = [result.lr for result in Trainer(still, split, device=torch.device("cpu"))]
    assert rates[0] == 1e-12
    assert rates[-1] < 1e-12
    assert all(math.log2(rate / 1e-12) == round(math.log2(rate / 1e-12)) for rate in rates)


def test_the_warm_up_is_no_plateau(recipe: Recipe, split: SplitImages) -> None:
    values = {"schedule.name": "plateau", "schedule.patience": 1, "schedule.warmup": 0.5}
    recipe = recipe.with_values(PLAIN | values | {"epochs": 8})
    trainer = Trainer(recipe, split, device=torch.device("cpu"))
    trainer.history = [EpochResult(n, 2.0, 0, 0, 0, 0, 0, 0) for n in range(1, 6)]
    trainer.set_lr(trainer.total_steps - 1)
    assert trainer.optimizer.param_groups[0]["lr"] == 1.0
    trainer.history.append(EpochResult(6, 2.0, 0, 0, 0, 0, 0, 0))
    trainer.set_lr(trainer.total_steps - 1)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        ({"name": "restarts", "cycles": 3, "warmup": 0.0}, 30, [10, 20]),
        ({"name": "restarts", "cycles": 3, "warmup": 0.1}, 30, [12, 21]),
        ({"name": "restarts", "cycles": 3, "warmup": 0.0}, 29, [9, 19]),  # settled by then
        ({"name": "restarts", "cycles": 3, "cycle_growth": 2.0, "warmup": 0.0}, 70, [10, 30]),
        ({"name": "restarts", "cycles": 4, "warmup": 0.0}, 6, [3]),  # not so after 1 and after 4
        ({"name": "restarts", "cycles": 5, "warmup": 0.0}, 2, []),
        ({"name": "cosine"}, 30, []),
    ],
)
def test_the_epochs_before_a_restart(
    schedule: dict[str, object], epochs: int, expected: list[int]
) -> None:
    recipe = Recipe.model_validate({"schedule": schedule, "epochs": epochs})
    assert restart_epochs(recipe) == expected


NO_NORMS = {"model.name": "tutorial_net", "model.resolution": 32}


@pytest.mark.parametrize("mixed", [0.0, 0.5])
def test_a_step_in_parts_is_the_same_step(recipe: Recipe, split: SplitImages, mixed: float) -> None:
    values = NO_NORMS | {"augment.strength": 1.0, "augment.mixup": mixed, "optimizer.lr": 0.01}
    whole = trainer_of(recipe, split, **values)
    parts = trainer_of(recipe, split, **values, micro_batch=24)  # 22, 21 and 21 of 64
    torch.testing.assert_close(step_of(parts), step_of(whole), rtol=1e-4, atol=1e-7)
    (loss, accuracy), other = (t.train_on([split.train[:64]]) for t in (whole, parts))
    assert loss == pytest.approx(other[0], rel=1e-5) and accuracy == other[1]


def test_norms_see_only_a_part(recipe: Recipe, split: SplitImages) -> None:
    whole, parts = trainer_of(recipe, split), trainer_of(recipe, split, micro_batch=16)
    assert not torch.allclose(step_of(parts), step_of(whole), rtol=1e-2)


@pytest.mark.parametrize("extra", [{}, {"optimizer.clip_norm": 0.5}, {"optimizer.sam_rho": 0.05}])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.03), ("bf16", 0.08)])
def test_half_precision_takes_nearly_the_same_step(
    recipe: Recipe,
    split: SplitImages,
    precision: str,
    tolerance: float,
    extra: dict[str, float],
) -> None:
    values = NO_NORMS | {"optimizer.lr": 0.1} | extra
    whole = step_of(trainer_of(recipe, split, **values))
    half = step_of(trainer_of(recipe, split, **values, precision=precision))
    assert 0 < float((half - whole).norm() / whole.norm()) < tolerance


def test_half_precision_leaves_out_a_step_that_overflows(
    recipe: Recipe, split: SplitImages
) -> None:
    trainer = trainer_of(recipe, split, precision="fp16")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    assert not step_of(trainer).any()
    assert trainer.scaler.get_scale() == 2.0**119
    going_on = trainer_of(recipe, split, precision="fp16")
    going_on.load_state_dict(trainer.state_dict())
    assert going_on.scaler.get_scale() == 2.0**119


def test_a_step_that_is_left_out_leaves_no_momentum(recipe: Recipe, split: SplitImages) -> None:
    values = {"precision": "fp16", "optimizer.momentum": 0.9, "optimizer.lr": 0.1}
    first, second = (trainer_of(recipe, split, **values) for _ in range(2))
    first.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    assert not step_of(first).any()
    first.scaler = torch.amp.GradScaler("cpu")
    assert torch.equal(step_of(first), step_of(second))
