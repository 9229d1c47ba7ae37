from typing import Literal

import pytest
import torch
from torch import nn

from cifartune.config.recipe import ModelRecipe
from cifartune.models import build_model

Name = Literal["resnet18", "resnet34", "resnet50", "speednet", "speednet_small"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 11_173_962), ("speednet", 1_972_792), ("speednet_small", 498_104)],
)
def test_networks_have_the_published_size(name: Name, parameters: int) -> None:
    # ResNet-18's is that of kuangliu/pytorch-cifar.
    network = build_model(ModelRecipe(name=name))
    assert sum(weight.numel() for weight in network.parameters()) == parameters


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [16, 32, 64])
@pytest.mark.parametrize("name", ["resnet18", "speednet_small"])
def test_networks_take_every_size_in_every_precision(
    name: Name, side: int, precision: torch.dtype
) -> None:
    torch.manual_seed(0)
    network = build_model(ModelRecipe(name=name))
    images = torch.randn(2, 3, side, side).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        logits = network(images)
        logits.float().square().sum().backward()
    assert logits.shape == (2, 10)
    for weight in network.parameters():
        assert (weight.grad is not None) == weight.requires_grad
        assert weight.grad is None or weight.grad.isfinite().all()


def test_the_cifar_stem_keeps_the_resolution() -> None:
    images = torch.zeros(1, 3, 32, 32)
    sides = {}
    for stem in ("cifar", "native"):
        network = build_model(ModelRecipe.model_validate({"name": "resnet18", "stem": stem}))
        seen: list[int] = []
        layer = network.get_submodule("layer1")
        layer.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.shape[-1]))
        network.eval()(images)
        sides[stem] = seen
    assert sides == {"cifar": [32], "native": [8]}


@pytest.mark.parametrize("name", ["resnet18", "speednet_small"])
def test_dropout_acts_in_training_and_only_there(name: Name) -> None:
    images = torch.randn(4, 3, 16, 16)
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        network = build_model(ModelRecipe(name=name, dropout=dropout))
        head = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
        seen: list[torch.Tensor] = []
        head.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0]))
        network.train()(images)
        network.eval()(images)
        network(images)
        assert (seen[0] == 0).float().mean().item() == pytest.approx(dropout, abs=0.1)
        assert torch.equal(seen[1], seen[2])


def test_weights_follow_the_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        network = build_model(ModelRecipe(name="speednet_small", init="kaiming_normal"))
        return torch.cat([weight.flatten() for weight in network.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
