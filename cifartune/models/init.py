"""Initialisation schemes, applied to any network in one place."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cifartune.config.recipe import Init

_SCHEMES: dict[Init, Callable[[Tensor], Any]] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    # He et al., https://arxiv.org/abs/1502.01852: variance 2 / fan-in.
    "kaiming_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "kaiming_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    # Saxe et al., https://arxiv.org/abs/1312.6120.
    "orthogonal": nn.init.orthogonal_,
}


def apply_init(network: nn.Module, scheme: Init) -> None:
    """Draws all trainable convolution and linear weights of `network` anew; biases become zero.

    `default` leaves the network as it was built. Frozen weights and norms are left alone.
    """
    if scheme == "default":
        return
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and module.weight.requires_grad:
            _SCHEMES[scheme](module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
