"""The probe of a slot, in this process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sparse_data import write_splits, write_train

from cifartune.config import Recipe, SearchSpace
from cifartune.data import LabelledImages
from cifartune.models.facts import UnfitNetwork
from cifartune.tuning.messages import Probe
from cifartune.tuning.probe import run_probe

CPU = torch.device("cpu")


@pytest.fixture
def make_probe(tmp_path: Path, cifar: LabelledImages, recipe: Recipe) -> Any:
    def make(parameters: dict[str, Any], *recipes: Recipe, base: Recipe = recipe) -> Probe:
        space = SearchSpace.model_validate(
            {"name": "toy", "base": base, "parameters": parameters, "data": {"validation": 100}}
        )
        return Probe(
            id="probe",
            space=space,
            recipes=[base, *recipes],
            folder=tmp_path / "probe",
            data_root=write_train(tmp_path / "data", cifar),
            splits=write_splits(tmp_path / "splits.npz"),
        )

    return make


def test_a_probe_measures_what_recipes_cost(make_probe: Any, recipe: Recipe) -> None:
    large = recipe.with_values({"model.name": "resnet18", "model.resolution": 32})
    found = run_probe(make_probe({"optimizer.lr": {"min": 0.01, "max": 1}}, large), device=CPU)
    assert found.idle == {}
    small_cost, large_cost = found.costs
    assert small_cost.train_rate > 3 * large_cost.train_rate > 0
    assert small_cost.eval_rate > 3 * large_cost.eval_rate > large_cost.train_rate
    # ResNet-18: 11,173,962 weights of four bytes, and the statistics of its norms.
    assert 44_695_848 < large_cost.weights_bytes < 44_900_000
    # A checkpoint of SGD holds its momentum too.
    assert 2 * 44_695_848 < large_cost.checkpoint_bytes < 2.1 * 44_900_000
    assert found.memory_bytes > large_cost.checkpoint_bytes
    assert all(cost.build_seconds > 0 and cost.checkpoint_seconds > 0 for cost in found.costs)


def test_a_probe_leaves_no_files(make_probe: Any) -> None:
    probe = make_probe({})
    run_probe(probe, device=CPU)
    assert not any(probe.folder.iterdir())


def test_a_probe_finds_what_does_nothing(make_probe: Any, recipe: Recipe) -> None:
    weak = recipe.with_values({"augment.strength": 0.4, "augment.crop": 0})
    parameters = {"augment.crop": {"min": 0, "max": 1}, "optimizer.lr": {"min": 0.01, "max": 1}}
    # 0.4 of one pixel is none.
    assert run_probe(make_probe(parameters, base=weak), device=CPU).idle == {"augment.crop": (0, 1)}


def test_a_recipe_that_diverges_at_once_can_be_measured(make_probe: Any, recipe: Recipe) -> None:
    wild = recipe.with_values(
        {"optimizer.lr": 10.0, "optimizer.momentum": 0.999, "schedule.warmup": 0.0, "batch_size": 8}
    )
    cost = run_probe(make_probe({}, wild), device=CPU).costs[1]
    assert cost.train_rate > 0


def test_a_network_that_cannot_take_the_images_is_named(make_probe: Any) -> None:
    names = ["speednet_small", "inception_v4"]
    with pytest.raises(UnfitNetwork, match="inception_v4 cannot take images of 16 x 16"):
        run_probe(make_probe({"model.name": {"values": names}}), device=CPU)


def test_a_network_is_tried_on_what_the_space_gives_it(make_probe: Any, recipe: Recipe) -> None:
    """Its conditional parameters may be what it needs: larger images, say."""
    assert recipe.model.resolution == 16
    names = {"model.name": {"values": ["speednet_small", "edgenext_xx_small"]}}
    with pytest.raises(UnfitNetwork, match="edgenext_xx_small cannot take images of 16 x 16"):
        run_probe(make_probe(names), device=CPU)
    larger = {"values": [32], "when": {"model.name": "edgenext_xx_small"}}
    probe = make_probe({**names, "model.resolution": larger})
    assert run_probe(probe, device=CPU).idle == {}
