"""Networks, counted before they train."""

import pytest
import torch

from cifartune.config.recipe import ModelRecipe
from cifartune.models import build_model
from cifartune.models.facts import UnfitNetwork, network_facts


@pytest.mark.parametrize(
    ("name", "params", "flops"),
    [
        ("resnet18", 11_173_962, 1_110_845_440),
        ("speednet", 1_972_792, 236_294_720),
        ("speednet_small", 498_104, 66_132_544),
        ("speednet_large", 9_918_776, 903_934_528),
    ],
)
def test_a_network_is_counted(name: str, params: int, flops: int) -> None:
    facts = network_facts(ModelRecipe(name=name))
    assert (facts.params, facts.flops) == (params, flops)
    network = build_model(ModelRecipe(name=name))
    assert facts.params == sum(p.numel() for p in network.parameters())


def test_resolution_costs_and_dropout_does_not() -> None:
    plain = network_facts(ModelRecipe(name="speednet_small"))
    assert (
        network_facts(ModelRecipe(name="speednet_small", dropout=0.5, init="orthogonal")) == plain
    )
    larger = network_facts(ModelRecipe(name="speednet_small", resolution=64))
    assert larger.params == plain.params
    assert larger.flops == pytest.approx(4 * plain.flops, rel=0.15)


def test_counting_draws_no_random_numbers() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    network_facts(ModelRecipe(name="resnet34"))
    assert torch.rand(1) == expected


def test_a_network_made_for_larger_images_is_told_so() -> None:
    with pytest.raises(UnfitNetwork, match=r"32 x 32 pixels \(.*\); set model.resolution"):
        network_facts(ModelRecipe(name="inception_v4"))
    assert network_facts(ModelRecipe(name="inception_v4", resolution=96)).params > 4e7


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_network_for_one_size_of_image_is_made_for_the_recipes(name: str) -> None:
    small = network_facts(ModelRecipe(name=name))
    large = network_facts(ModelRecipe(name=name, resolution=224))
    assert small.flops * 10 < large.flops


def test_what_cannot_be_built_is_told_in_the_recipes_words() -> None:
    with pytest.raises(UnfitNetwork, match=r"^model.weights: there is no file .*absent\.pt$"):
        network_facts(ModelRecipe(name="resnet18", weights="absent.pt"))
    with pytest.raises(UnfitNetwork, match=r"^model.trainable is last_3, but MLP has 2 stages$"):
        network_facts(ModelRecipe(name="mlp", trainable="last_3"))
    with pytest.raises(UnfitNetwork, match=r"^model.channels must be"):
        network_facts(ModelRecipe(name="resnet_channels", channels="64"))
