"""From a recipe's model section to a network."""

from typing import Any

import timm
from timm.models import ResNet
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cifartune.config.networks import networks
from cifartune.config.recipe import PACKAGE_NETWORKS, ModelRecipe
from cifartune.data import CLASSES
from cifartune.models import (  # noqa: F401  (registers our networks with timm)
    lenet,
    mixture,
    mlp,
    resnet_channels,
    speednet,
    tutorial_net,
    vgg10,
    wideresnet,
)
from cifartune.models.activations import replace_activations
from cifartune.models.errors import UnfitNetwork
from cifartune.models.freezing import freeze
from cifartune.models.init import apply_init, draw_head
from cifartune.models.weights import fetch_imagenet, load_packaged, load_weights


def build_model(recipe: ModelRecipe) -> nn.Module:
    """Builds the network of `recipe` with ten outputs, on the CPU, in fp32.

    Any name of timm's registry works. A network that is made for one size of image, such as a
    ViT, is made for the recipe's: its patches stay as large as they are, so at 32 pixels
    `vit_tiny_patch16_224` sees four of them. A field that the network has no use for is ignored.

    Weights are drawn from torch's global generator: seed it first. With given weights, `init` is
    not applied, and what does not fit them, the head and a cifar stem, is drawn.

    Raises:
        UnfitNetwork: The network cannot be had as the recipe asks for it.
    """
    network = _create(recipe)
    if recipe.stem == "cifar" and isinstance(network, ResNet):
        _use_cifar_stem(network)
    if recipe.block_dropout:
        _add_block_dropout(network, recipe.block_dropout)
    replace_activations(network, recipe.activation)

    if recipe.weights == "none":
        apply_init(network, recipe.init, recipe.init_gain)
    elif recipe.weights in PACKAGE_NETWORKS:
        load_packaged(network, recipe.weights, recipe.name)
    elif recipe.weights != "imagenet":
        load_weights(network, recipe.weights)
    if recipe.head_std:
        draw_head(network, recipe.head_std)

    freeze(network, recipe.trainable)
    if recipe.norm_momentum:
        _set_norm_momentum(network, recipe.norm_momentum)
    return network


def _create(recipe: ModelRecipe) -> nn.Module:
    """The network as timm makes it for ten classes, with its ImageNet weights if they are wanted.

    Raises:
        UnfitNetwork: The weights cannot be had, or not at the recipe's size of image.
    """
    is_pretrained = recipe.weights == "imagenet"
    try:
        network: nn.Module = timm.create_model(
            recipe.name,
            pretrained=is_pretrained,
            pretrained_cfg_overlay=fetch_imagenet(recipe.name) if is_pretrained else None,
            num_classes=len(CLASSES),
            drop_rate=recipe.dropout,
            **options_of(recipe),
        )
    except RuntimeError as error:
        if not is_pretrained:
            raise
        raise UnfitNetwork(
            f"model.weights: imagenet: timm's weights of {recipe.name} do not fit it at "
            f"model.resolution {recipe.resolution} ({' '.join(str(error).split())})"
        ) from error
    return network


def options_of(recipe: ModelRecipe) -> dict[str, Any]:
    """What timm's `create_model` is told beside the name: only to networks that know of it."""
    known = networks()[recipe.name]
    options: dict[str, Any] = {
        "img_size": recipe.resolution,
        "drop_path_rate": recipe.drop_path,
        "proj_drop_rate": recipe.block_dropout,
    }
    options = {name: value for name, value in options.items() if name in known.takes}
    if known.family == "wideresnet":
        options["depth"] = recipe.depth
        options["width"] = recipe.width
        options["squeeze_excite"] = recipe.squeeze_excite
    if known.family == "speednet":
        options["whitens"] = recipe.whitening
    if known.family in ("resnet_channels", "mixture") and recipe.channels != "default":
        options["channels"] = recipe.channels
    return options


def _use_cifar_stem(network: nn.Module) -> None:
    """Keeps the full 32 x 32 resolution in the first stage, as pytorch-cifar's ResNets do."""
    # One convolution, or three in a row, as in resnet18d.
    *_, last = (m for m in network.get_submodule("conv1").modules() if isinstance(m, nn.Conv2d))
    stem = nn.Conv2d(3, last.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    network.conv1 = stem
    network.maxpool = nn.Identity()


def _set_norm_momentum(network: nn.Module, momentum: float) -> None:
    for norm in network.modules():
        if isinstance(norm, _BatchNorm):
            norm.momentum = momentum


def _add_block_dropout(network: nn.Module, probability: float) -> None:
    """Drops units after the first activation of a ResNet's blocks, where timm has no place."""
    for block in network.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            block.act1 = nn.Sequential(block.act1, nn.Dropout(probability))
