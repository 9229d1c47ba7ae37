"""Other activations in the place of a network's own."""

from collections.abc import Callable

from timm.layers import activations
from torch import nn

from cifartune.config.recipe import Activation

_NEW: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
}

# Sigmoids, softmaxes and hyperbolic tangents are left out: they are gates and weights.
_OLD = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    activations.Swish,
    activations.Mish,
    activations.PReLU,
    activations.GELU,
    activations.GELUTanh,
    activations.QuickGELU,
    activations.HardSwish,
    activations.HardMish,
)


def replace_activations(network: nn.Module, activation: Activation) -> None:
    """Puts `activation` in the place of every activation module of `network`.

    Also of those in timm's norms with activation, and between the layers of squeeze-and-excite;
    not of the gates, which map to [0, 1]. `default` leaves the network as it was built.
    """
    if activation == "default":
        return
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, _OLD):
                parent._modules[name] = _NEW[activation]()
