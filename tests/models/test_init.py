import math
from typing import get_args

import pytest
import torch
from torch import nn

from cifartune.config.recipe import Init, ModelRecipe
from cifartune.models import build_model
from cifartune.models.init import apply_init, draw_head

SCHEMES = [scheme for scheme in get_args(Init) if scheme != "default"]


def fans(weight: torch.Tensor) -> tuple[int, int]:
    """Fan-in and fan-out of a weight."""
    field = weight[0, 0].numel()
    return weight.shape[1] * field, weight.shape[0] * field


@pytest.mark.parametrize("name", ["resnet18", "speednet_small"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_trainable_weight_follows_the_scheme(scheme: Init, name: str) -> None:
    torch.manual_seed(0)
    network = build_model(ModelRecipe.model_validate({"name": name, "init": scheme}))
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    drawn = [layer for layer in layers if layer.weight.requires_grad]
    assert len(drawn) >= 7
    for layer in drawn:
        weight = layer.weight.detach()
        fan_in, fan_out = fans(weight)
        if scheme == "constant":
            assert (weight == 1 / fan_in).all()
            continue
        if scheme == "orthogonal":
            matrix = weight.flatten(1)
            matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
            torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-4, rtol=0)
            continue
        variance = 2 / (fan_in + fan_out)
        if scheme.startswith("kaiming"):
            variance = 2 / fan_in
        elif scheme == "torch":
            variance = 1 / (3 * fan_in)
        tolerance = 8 / math.sqrt(weight.numel())
        assert weight.var().item() == pytest.approx(variance, rel=tolerance)
        if scheme.endswith("uniform") or scheme == "torch":
            assert weight.abs().max().item() <= math.sqrt(3 * variance) * 1.0001
        else:
            assert weight.abs().max().item() > math.sqrt(3 * variance)
        assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_frozen_weights_and_norms_are_left_alone(scheme: Init) -> None:
    network = build_model(ModelRecipe(name="speednet_small"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    apply_init(network, scheme)
    changed = {
        name for name, value in network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {
        "head.weight",
        *(f"stages.{stage}.conv{conv}.weight" for stage in range(3) for conv in (1, 2)),
    }


def test_torchs_is_that_of_its_layers() -> None:
    """So that a speednet loses the identity and nothing else: its head is drawn alike."""
    layer = nn.Conv2d(5, 7, 3)
    torch.manual_seed(3)
    layer.reset_parameters()
    expected = layer.weight.detach().clone()
    torch.manual_seed(3)
    apply_init(layer, "torch")
    assert torch.equal(layer.weight, expected)


def test_default_changes_nothing() -> None:
    network = build_model(ModelRecipe(name="speednet_small"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    apply_init(network, "default")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_gain_multiplies_what_is_drawn() -> None:
    def weight(gain: float) -> torch.Tensor:
        torch.manual_seed(0)
        recipe = ModelRecipe(name="speednet_small", init="kaiming_normal", init_gain=gain)
        return build_model(recipe).get_parameter("stages.1.conv1.weight")

    torch.testing.assert_close(weight(0.5), weight(1.0) / 2)


def test_the_head_is_drawn_apart_from_the_rest() -> None:
    torch.manual_seed(0)
    network = build_model(ModelRecipe(name="resnet18"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    draw_head(network, 1e-3)
    changed = {n for n, v in network.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"fc.weight", "fc.bias"}
    assert network.get_parameter("fc.weight").std().item() == pytest.approx(1e-3, rel=0.1)
    assert not network.get_parameter("fc.bias").any()
