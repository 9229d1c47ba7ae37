"""Frozen parts of a network: what is not trained, and stays as it is."""

import math
from bisect import bisect_left
from typing import Any

from timm.models import VGG, group_parameters
from torch import nn

from cifartune.config.recipe import Trainable
from cifartune.models.errors import UnfitNetwork
from cifartune.models.network import head_layers


def freeze(network: nn.Module, trainable: Trainable) -> None:
    """Takes the gradients from all weights of `network` but those that `trainable` names.

    What a stage is, the network says: a ResNet's are its four groups of blocks, a Swin's and
    ours likewise, a VGG's the convolutions from pooling to pooling, a ViT's its blocks. What lies
    between the last stage and the head is trained with it. Weights that are frozen by design
    stay so.

    Raises:
        UnfitNetwork: The network has no head, or fewer stages than asked for.
    """
    if trainable == "all":
        return
    head = {id(weight) for layer in head_layers(network) for weight in layer.parameters()}
    kept = set(head)
    if trainable != "head":
        count = int(trainable.removeprefix("last_"))
        groups = group_parameters(network, _matcher(network), return_values=True)
        every = [{id(weight) for weight in groups[key]} for key in sorted(groups)]
        stages = [group for group in every if not group & head]
        if len(stages) < count:
            name = type(network).__name__
            raise UnfitNetwork(
                f"model.trainable is {trainable}, but {name} has {len(stages)} stages"
            )
        kept.update(*stages[-count:], *(group for group in every if group & head))
    for weight in network.parameters():
        weight.requires_grad_(weight.requires_grad and id(weight) in kept)


def _matcher(network: nn.Module) -> Any:
    """What tells the stage of a parameter from its name, in timm's form."""
    if not isinstance(network, VGG):
        return network.group_matcher(coarse=True)  # type: ignore[operator]
    # To timm each layer is a group, and a norm another one than its convolution.
    ends = [int(str(info["module"]).removeprefix("features.")) for info in network.feature_info]

    def stage_of(name: str) -> float:
        part, layer, *_ = name.split(".")
        return bisect_left(ends, int(layer)) if part == "features" else math.inf

    return stage_of


def set_training(network: nn.Module) -> None:
    """Puts `network` in training mode, but its frozen parts in evaluation mode.

    A part is frozen when all of its weights are: its norms keep their statistics, and what is
    dropped in it in training is kept.
    """
    network.train()
    _rest(network)


def _rest(module: nn.Module) -> None:
    for part in module.children():
        weights = list(part.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            part.eval()
        else:
            _rest(part)
