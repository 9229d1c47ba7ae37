"""Compiled networks: the same values, and never in silence not compiled."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

from cifartune.config import Recipe
from cifartune.training import SplitImages, Trainer
from cifartune.training.compiling import CompiledNetwork


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x) * self.factor)


@pytest.fixture(autouse=True)
def forgotten() -> None:
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.slow
def test_many_different_networks_are_all_compiled() -> None:
    with torch._dynamo.config.patch(recompile_limit=2):
        x = torch.randn(3, 4)
        for factor in range(1, 6):
            network = Scaled(float(factor))
            compiled = CompiledNetwork(network)
            torch.testing.assert_close(compiled(x), network(x))
            assert counters["stats"]["unique_graphs"] == factor
        compiled(x)  # and reused
        CompiledNetwork(Scaled(5.0))(x)
        assert counters["stats"]["unique_graphs"] == 5


@pytest.mark.parametrize("way", ["always", pytest.param("graphs", marks=pytest.mark.slow)])
def test_a_compiled_run_learns_what_the_other_does(
    recipe: Recipe, split: SplitImages, way: str
) -> None:
    """64 of 300 images a step: the last batch is smaller, and not compiled."""
    recipe = recipe.with_values({"model.name": "tutorial_net", "model.resolution": 32})
    plain = list(Trainer(recipe, split))
    trainer = Trainer(recipe.with_values({"compile": way}), split)
    compiled = list(trainer)
    assert counters["stats"]["unique_graphs"] == 1
    for one, other in zip(plain, compiled, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.val_loss == pytest.approx(other.val_loss, rel=1e-4)


def test_all_parts_of_a_step_are_compiled(recipe: Recipe, split: SplitImages) -> None:
    """Also where a batch does not divide evenly, or is all that there is."""
    trainer = Trainer(recipe.with_values({"batch_size": 64, "micro_batch": 25}), split)
    sizes = []

    def compiled(x: Tensor) -> Tensor:
        sizes.append(len(x))
        logits: Tensor = trainer.network(x)
        return logits

    trainer._compiled = compiled
    trainer.train_on(trainer.batches()[:2])
    assert sizes == [22, 21, 21] * 2
    few = replace(split, train=split.train[:40])
    trainer = Trainer(recipe.with_values({"batch_size": 64}), few)
    trainer._compiled = compiled
    trainer.train_on(trainer.batches())
    assert sizes[6:] == [40]


def test_a_compiled_run_goes_on_bit_for_bit(recipe: Recipe, split: SplitImages) -> None:
    recipe = recipe.with_values({"compile": "always", "model.dropout": 0.3})
    unbroken = Trainer(recipe, split)
    list(unbroken)
    first, second = Trainer(recipe, split), Trainer(recipe, split)
    next(iter(first))
    second.load_state_dict(first.state_dict())
    list(second)
    theirs = second.network.state_dict()
    for name, tensor in unbroken.network.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def test_the_end_of_a_network_is_compiled(recipe: Recipe, split: SplitImages) -> None:
    values = {"model.trainable": "head", "augment.strength": 0.0, "epochs": 2}
    recipe = recipe.with_values(values)
    plain = Trainer(recipe, split)
    compiled = Trainer(recipe.with_values({"compile": "always"}), split)
    assert compiled.keeps_features
    for one, other in zip(plain, compiled, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("micro_batch", [0, 32])
def test_graphs_are_replayed_for_whole_steps(
    recipe: Recipe, split: SplitImages, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def compile_nothing(network: nn.Module, *, dynamic: bool, mode: str | None) -> nn.Module:
        asked.append(mode)
        return network

    monkeypatch.setattr(torch, "compile", compile_nothing)
    recipe = recipe.with_values({"compile": "graphs", "micro_batch": micro_batch, "epochs": 1})
    list(Trainer(recipe, split))
    assert asked == [None if micro_batch else "reduce-overhead"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("values", [{}, {"optimizer.sam_rho": 0.05}, {"optimizer.name": "muon"}])
def test_a_run_by_graphs_learns_what_the_other_does(
    recipe: Recipe, split: SplitImages, values: dict[str, object]
) -> None:
    recipe = recipe.with_values({"precision": "fp32", **values})
    plain = list(Trainer(recipe, split))
    replayed = list(Trainer(recipe.with_values({"compile": "graphs"}), split))
    for one, other in zip(plain, replayed, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-2)
        assert one.val_loss == pytest.approx(other.val_loss, rel=1e-2)
