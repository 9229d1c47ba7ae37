"""Our networks: their sizes, and what they refuse."""

from typing import Any

import pytest
import timm
import torch

from cifartune.config.recipe import ModelRecipe
from cifartune.models.build import build_model
from cifartune.models.facts import network_facts

OURS = [
    "lenet",
    "mixture",
    "mlp",
    "resnet_channels",
    "speednet",
    "tutorial_net",
    "vgg10",
    "wideresnet",
]


@pytest.mark.parametrize(
    ("values", "params"),
    [
        ({"name": "mlp"}, 1_707_274),
        ({"name": "tutorial_net"}, 62_006),  # the tutorial's
        ({"name": "lenet"}, 1_702_794),
        ({"name": "vgg10"}, 7_643_082),
        ({"name": "wideresnet"}, 36_479_194),  # WRN-28-10's
        ({"name": "wideresnet", "depth": 16, "width": 8}, 10_961_370),  # WRN-16-8's
        ({"name": "resnet_channels"}, 11_173_962),  # ResNet-18's with a 3x3 stem
        ({"name": "resnet_channels", "channels": "64/32/96/156/350"}, 4_999_718),
        ({"name": "mixture"}, 117_209),
        ({"name": "mixture", "channels": "64/64/128/128"}, 790_943),
    ],
)
def test_they_have_the_published_size(values: dict[str, Any], params: int) -> None:
    assert network_facts(ModelRecipe.model_validate(values)).params == params


@pytest.mark.parametrize("name", OURS)
def test_they_are_created_like_timms(name: str) -> None:
    network = timm.create_model(name, num_classes=7, drop_rate=0.3)
    assert network.get_submodule("head").out_features == 7
    assert 0.3 in {module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)}
    with pytest.raises(ValueError, match="has no pretrained weights"):
        timm.create_model(name, pretrained=True)
    with pytest.raises(TypeError, match="unheard_of"):
        timm.create_model(name, unheard_of=1)


def test_a_wideresnet_has_no_other_depth() -> None:
    with pytest.raises(ValueError, match=r"must be 6n \+ 4.*got 12"):
        timm.create_model("wideresnet", depth=12)


def test_squeeze_and_excite_adds_two_layers_a_block() -> None:
    plain, weighed = (
        network_facts(ModelRecipe(name="wideresnet", depth=10, width=1, squeeze_excite=value))
        for value in (False, True)
    )
    # timm rounds the hidden layer to 8 units.
    hidden = 8
    assert weighed.params - plain.params == sum(2 * c * hidden + c + hidden for c in (16, 32, 64))


def test_stochastic_depth_rises_from_block_to_block() -> None:
    for name in ("wideresnet", "resnet_channels"):
        values = {"name": name, "drop_path": 0.3, "depth": 16, "width": 1, "channels": "8/8/8"}
        network = build_model(ModelRecipe.model_validate(values))
        rates = [m.drop_prob for m in network.modules() if isinstance(m, timm.layers.DropPath)]
        assert rates == sorted(rates)
        assert rates[-1] == pytest.approx(0.3)
        assert len(rates) == (5 if name == "wideresnet" else 3)  # the first block has none
