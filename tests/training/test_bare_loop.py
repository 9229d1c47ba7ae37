"""The whole trainer against a plain loop over the same batches."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cifartune.config import Recipe
from cifartune.training import SplitImages, Trainer

CPU = torch.device("cpu")

SPEED: dict[str, Any] = {
    "model.resolution": 32,  # the plain loop resizes nothing
    "augment.strength": 0.0,
    "optimizer.name": "muon",
    "optimizer.lr": 0.01,
    "optimizer.momentum": 0.8,
    "optimizer.weight_decay": 0.5,
    "schedule.name": "one_cycle",
    "schedule.warmup": 0.2,
    "label_smoothing": 0.2,
}
"""The speed recipe, but for its augmentation."""


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parent.parent.parent / "benchmarks"
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


Differ = Callable[[dict[str, Any]], list[str]]


@pytest.fixture
def differ(recipe: Recipe, split: SplitImages) -> Differ:
    """Trains the speed recipe, and in a plain loop another; names the tensors that differ in a bit.

    Batches are of 64 and 32 images: means over them round alike, whatever is summed first.
    """
    from bare_loop import BareLoop

    few = dataclasses.replace(split, train=split.train[:160], validation=split.validation[:20])

    def after_two_epochs(other: dict[str, Any]) -> list[str]:
        trainer = Trainer(recipe.with_values(SPEED), few, device=CPU)
        loop = BareLoop(recipe.with_values(SPEED | other), few, CPU)
        inputs: list[Tensor] = []

        def normalised_alike(network: Any, found: tuple[Tensor]) -> Tensor:
            """Both normalise in their own way, which rounds differently."""
            torch.testing.assert_close(found[0], inputs[-1])
            return inputs[-1]

        loop.network.register_forward_pre_hook(normalised_alike)
        for _ in range(2):
            state = trainer.feed.generator.get_state()
            batches = trainer.batches()
            trainer.feed.generator.set_state(state)
            loop.network.train()
            for batch in batches:
                inputs.append(trainer.feed.inputs(batch))
                loop.step(split.images[batch], split.labels[batch])
            next(iter(trainer))
        assert loop.steps == trainer.total_steps == 6
        ends = trainer.network.state_dict()
        return [n for n, v in loop.network.state_dict().items() if not torch.equal(v, ends[n])]

    return after_two_epochs


@pytest.mark.parametrize(
    "values", [{}, {"optimizer.name": "sgd"}, {"optimizer.name": "adamw"}], ids=str
)
def test_it_ends_where_a_plain_loop_ends(
    differ: Differ, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    for name, value in values.items():
        monkeypatch.setitem(SPEED, name, value)
    assert differ({}) == []


@pytest.mark.parametrize(
    "other",
    [
        {"label_smoothing": 0.1},
        {"schedule.warmup": 0.3},
        {"schedule.name": "cosine"},
        {"optimizer.weight_decay": 0.4},
    ],
)
def test_another_recipe_ends_elsewhere(differ: Differ, other: dict[str, Any]) -> None:
    assert "head.weight" in differ(other)
