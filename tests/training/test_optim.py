import math
from typing import Any, Literal, get_args

import pytest
import timm.optim
import torch
from torch import nn

from cifartune.config.recipe import ModelRecipe, OptimizerRecipe, ScheduleRecipe
from cifartune.models import build_model
from cifartune.schedule import WARMUP_START, lr_factor
from cifartune.training.device import MEMORY_FORMATS
from cifartune.training.optim import FUSED, build_optimizer

OptimizerName = Literal["sgd", "adam", "adamw", "adamax", "rmsprop", "lion", "muon"]
ScheduleName = Literal["one_cycle", "cosine", "restarts", "step", "constant"]
OPTIMIZERS = get_args(OptimizerName)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelRecipe(name="speednet_small"))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    torch.manual_seed(0)
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    optimizer.step()


def test_sgd_is_nesterov() -> None:
    optimizer = build_optimizer(network(), OptimizerRecipe(name="sgd", momentum=0.7))
    assert isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        assert group["nesterov"] and group["momentum"] == 0.7 and group["dampening"] == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_momentum_is_no_error(name: OptimizerName) -> None:
    model = network()
    step(model, build_optimizer(model, OptimizerRecipe(name=name, momentum=0)))


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_spares_norms_and_biases(name: OptimizerName, decay: float) -> None:
    model = network()
    optimizer = build_optimizer(model, OptimizerRecipe(name=name, weight_decay=decay))
    decays = {
        id(weight): group["weight_decay"]
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    for weight in model.parameters():
        if weight.requires_grad:
            assert decays.pop(id(weight)) == (decay if weight.ndim > 1 else 0)
    assert not decays  # nothing frozen


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rate_scales_every_weights_step(name: OptimizerName) -> None:
    """Muon's fallback too: the schedule sets `lr` in the groups."""
    changes = []
    for rate in (0.01, 0.005):
        model = network()
        recipe = OptimizerRecipe(name=name, lr=0.1, weight_decay=0)
        optimizer = build_optimizer(model, recipe)
        for group in optimizer.param_groups:
            group["lr"] = rate
        before = {n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad}
        step(model, optimizer)
        after = dict(model.named_parameters())
        changes.append({n: after[n].detach() - w for n, w in before.items()})
    for weight, change in changes[0].items():
        assert change.abs().max() > 0, weight
        torch.testing.assert_close(change, 2 * changes[1][weight], atol=1e-6, rtol=1e-2)


def test_muon_orthogonalises_matrices_and_leaves_vectors_to_adamw() -> None:
    model = network()
    recipe = OptimizerRecipe(name="muon", lr=0.1, weight_decay=0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = build_optimizer(model, recipe)
    step(model, optimizer)
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            assert torch.equal(weight, before[name])
            continue
        assert ("momentum_buffer" in optimizer.state[weight]) == (weight.ndim > 1)
        assert ("exp_avg" in optimizer.state[weight]) == (weight.ndim == 1)
    change = (model.get_parameter("head.weight").detach() - before["head.weight"]) / 0.1
    # Four images give a gradient of rank four; the scale is that of AdamW's updates.
    singular = torch.linalg.svdvals(change)[:4]
    torch.testing.assert_close(singular, torch.full((4,), 0.2 * math.sqrt(128)), rtol=0.03, atol=0)


@pytest.mark.parametrize("shape", [(10, 64), (48, 16, 3, 3)])
def test_muon_steps_as_it_is_written_down(shape: tuple[int, ...]) -> None:
    """With the nearest orthogonal matrix by an SVD, which Newton and Schulz come close to."""
    torch.manual_seed(0)
    rate, momentum, decay = 0.05, 0.8, 0.5
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(shape))
    optimizer = build_optimizer(
        model, OptimizerRecipe(name="muon", lr=rate, momentum=momentum, weight_decay=decay)
    )
    average = torch.zeros(shape)
    for _ in range(4):
        gradient, before = torch.randn(shape), model.weight.detach().clone()
        model.weight.grad = gradient.clone()
        optimizer.step()
        average = momentum * average + (1 - momentum) * gradient
        u, _, v = torch.linalg.svd(average.flatten(1), full_matrices=False)
        move = rate * 0.2 * math.sqrt(max(average.flatten(1).shape)) * (u @ v).view(shape)
        shrunk = (1 - rate * decay) * before
        error = model.weight.detach() - (shrunk - move)
        assert error.norm() < 0.05 * move.norm() < 0.1 * (before - shrunk).norm()


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS.values(), ids=MEMORY_FORMATS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_steps_are_those_of_one_weight_after_the_other(
    name: OptimizerName, memory_format: torch.memory_format
) -> None:
    recipe = OptimizerRecipe(name=name, lr=0.01, bias_lr_scale=4.0)
    ours, plain = (network().to(memory_format=memory_format) for _ in range(2))
    optimizer, reference = (build_optimizer(model, recipe) for model in (ours, plain))
    for group, other in zip(optimizer.param_groups, reference.param_groups, strict=True):
        assert bool(group.get("fused")) == (name in FUSED)
        other.update({way: False for way in ("fused", "foreach") if way in other})
    for seed in range(4):
        torch.manual_seed(seed)
        for weight, other_weight in zip(ours.parameters(), plain.parameters(), strict=True):
            if weight.requires_grad:
                weight.grad = torch.randn_like(weight)
                other_weight.grad = weight.grad.clone()
        optimizer.step(), reference.step()
    for weight, other_weight in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(weight, other_weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["one_cycle", "cosine"])
def test_the_schedule_rises_to_the_peak_and_falls_to_zero(name: ScheduleName) -> None:
    recipe = ScheduleRecipe(name=name, warmup=0.25)
    factors = [lr_factor(recipe, step / 1000) for step in range(1000)]
    assert factors[0] == WARMUP_START
    assert factors[250] == max(factors) == 1
    assert factors[125] == pytest.approx((1 + WARMUP_START) / 2)
    assert factors[:251] == sorted(factors[:251])
    assert factors[250:] == sorted(factors[250:], reverse=True)
    assert 0 < factors[-1] < 0.01
    assert factors[625] == pytest.approx(0.5)


def test_the_fall_is_a_line_or_half_a_cosine() -> None:
    line, curve = (ScheduleRecipe(name=name, warmup=0) for name in ("one_cycle", "cosine"))
    for progress in (0.0, 0.1, 0.25, 0.7):
        assert lr_factor(line, progress) == pytest.approx(1 - progress)
        assert lr_factor(curve, progress) == pytest.approx((1 + math.cos(math.pi * progress)) / 2)


def test_restarts_begin_at_the_peak_and_end_at_zero() -> None:
    recipe = ScheduleRecipe(name="restarts", warmup=0, cycles=3, cycle_growth=2)
    factors = [lr_factor(recipe, step / 700) for step in range(700)]
    # Cycles of 100, 200 and 400 steps.
    for start, end in ((0, 100), (100, 300), (300, 700)):
        assert factors[start] == 1
        assert factors[(start + end) // 2] == pytest.approx(0.5)
        assert factors[end - 1] < 0.001
        assert factors[start:end] == sorted(factors[start:end], reverse=True)


def test_steps_multiply_the_rate_at_equal_intervals() -> None:
    recipe = ScheduleRecipe(name="step", warmup=0.1, drops=2, gamma=0.5)
    factors = [lr_factor(recipe, step / 1000) for step in range(1000)]
    assert [factors[step] for step in (100, 399, 401, 699, 701, 999)] == [
        1,
        1,
        0.5,
        0.5,
        0.25,
        0.25,
    ]


def test_a_constant_rate_has_a_warm_up_too() -> None:
    recipe = ScheduleRecipe(name="constant", warmup=0.5)
    assert lr_factor(recipe, 0.0) == WARMUP_START
    assert {lr_factor(recipe, progress / 10) for progress in range(5, 10)} == {1.0}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("adamax", torch.optim.Adamax),
        ("rmsprop", torch.optim.RMSprop),
        ("lion", timm.optim.Lion),
    ],
)
def test_an_optimiser_is_what_its_name_says(name: OptimizerName, kind: Any) -> None:
    recipe = OptimizerRecipe(name=name, lr=0.003, momentum=0.7)
    torchs = kind([torch.zeros(1)]).defaults
    optimizer = build_optimizer(network(), recipe)
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert group["lr"] == 0.003
        assert group.get("momentum", 0.7) == 0.7
        for constant in {"alpha", "betas", "eps"} & group.keys():
            assert group[constant] == torchs[constant]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_lowers_the_loss(name: OptimizerName) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 3)
    inputs, targets = torch.randn(64, 8), torch.randint(3, (64,))
    optimizer = build_optimizer(model, OptimizerRecipe(name=name, lr=0.01, weight_decay=0))
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
