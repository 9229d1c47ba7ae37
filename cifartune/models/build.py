"""From a recipe's model section to a network."""

import timm
from timm.models import ResNet
from torch import nn

from cifartune.config.recipe import ModelRecipe
from cifartune.data import CLASSES
from cifartune.models import speednet  # noqa: F401  (registers our networks with timm)
from cifartune.models.init import apply_init


def build_model(recipe: ModelRecipe) -> nn.Module:
    """Builds the network of `recipe` with ten outputs, on the CPU, in fp32.

    Weights are drawn from torch's global generator: seed it first. With ImageNet's, `init` is not
    applied, and what does not fit them, the head and a cifar stem, is drawn.
    """
    has_weights = recipe.weights == "imagenet"
    network: nn.Module = timm.create_model(
        recipe.name, pretrained=has_weights, num_classes=len(CLASSES), drop_rate=recipe.dropout
    )
    if recipe.stem == "cifar" and isinstance(network, ResNet):
        _use_cifar_stem(network)
    if not has_weights:
        apply_init(network, recipe.init)
    return network


def _use_cifar_stem(network: nn.Module) -> None:
    """Keeps the full 32 x 32 resolution in the first stage, as pytorch-cifar's ResNets do."""
    native = network.get_submodule("conv1")
    assert isinstance(native, nn.Conv2d)
    stem = nn.Conv2d(3, native.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    network.conv1 = stem
    network.maxpool = nn.Identity()
