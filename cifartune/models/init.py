"""Initialisation schemes, applied to any network in one place."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cifartune.config.recipe import Init
from cifartune.models.network import head_layers

_SCHEMES: dict[Init, Callable[[Tensor], Any]] = {
    # Uniform up to 1 / sqrt(fan-in): what the layers' own `reset_parameters` does.
    "torch": lambda weight: nn.init.kaiming_uniform_(weight, a=math.sqrt(5)),
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    # He et al., https://arxiv.org/abs/1502.01852: variance 2 / fan-in.
    "kaiming_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "kaiming_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    # Saxe et al., https://arxiv.org/abs/1312.6120.
    "orthogonal": nn.init.orthogonal_,
    # Each output is the mean of its inputs; all units of a layer learn the same.
    "constant": lambda weight: nn.init.constant_(weight, 1 / weight[0].numel()),
}


def apply_init(network: nn.Module, scheme: Init, gain: float = 1.0) -> None:
    """Draws all trainable convolution and linear weights of `network` anew; biases become zero.

    `default` leaves the network as it was built. Frozen weights and norms are left alone.

    Args:
        network: Changed in place.
        scheme: The distribution of the weights.
        gain: Multiplies them.
    """
    if scheme == "default":
        return
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and module.weight.requires_grad:
            _SCHEMES[scheme](module.weight)
            with torch.no_grad():
                module.weight.mul_(gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def draw_head(network: nn.Module, deviation: float) -> None:
    """Draws the head's weights from N(0, `deviation`); its biases become zero."""
    for layer in head_layers(network):
        nn.init.normal_(layer.get_parameter("weight"), std=deviation)
        bias = layer.bias
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)
