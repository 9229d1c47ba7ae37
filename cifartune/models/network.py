"""What our own networks have in common, so that they can be used like timm's."""

from typing import Any, ClassVar, TypeVar

from torch import nn

from cifartune.models.errors import UnfitNetwork

TIMM_KEYS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""What timm hands to every network for its own purposes."""


class Network(nn.Module):
    """A stem, `stages`, what is between them and the head, and the linear `head`.

    Its parts can be found by the names by which timm asks for them.
    """

    stages: nn.Module
    head: nn.Linear
    stem_names: ClassVar[str] = r"^stem\."
    """Matches the names of the parameters in front of the stages."""

    def get_classifier(self) -> nn.Module:
        """The layer that computes the logits."""
        return self.head

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which stage a parameter belongs to, in timm's form; what is behind them, to the last."""
        return {
            "stem": self.stem_names,
            "blocks": [(r"^stages\.(\d+)", None), (r"^norm\.", (99999,))],
        }


AnyNetwork = TypeVar("AnyNetwork", bound=Network)


def create_network(kind: type[AnyNetwork], pretrained: bool, **kwargs: Any) -> AnyNetwork:
    """Builds one of our networks from what `timm.create_model` hands to its entry point.

    Raises:
        ValueError: Pretrained weights are asked for.
    """
    if pretrained:
        raise ValueError(f"{kind.__name__} has no pretrained weights")
    return kind(**{key: value for key, value in kwargs.items() if key not in TIMM_KEYS})


def parse_channels(text: str) -> tuple[int, ...]:
    """Numbers of channels from the recipe's form of them, such as `64/64/128`."""
    return tuple(int(part) for part in text.split("/"))


def drop_path_rates(largest: float, blocks: int) -> list[float]:
    """The rate of each block: from 0 in a straight line to `largest`, as in the paper.

    Source: Huang et al., https://arxiv.org/abs/1603.09382.
    """
    return [largest * index / max(blocks - 1, 1) for index in range(blocks)]


def head_layers(network: nn.Module) -> list[nn.Module]:
    """The layers that compute the logits of a network, ours or timm's: one, or a few side by side.

    Raises:
        UnfitNetwork: The network has no head.
    """
    heads = network.get_classifier()  # type: ignore[operator]
    heads = heads if isinstance(heads, tuple | list) else [heads]
    layers: list[nn.Module] = [
        layer
        for head in heads
        for layer in head.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    if not layers:
        raise UnfitNetwork(f"{type(network).__name__} has no head of ten classes")
    return layers


def init_convolutions(network: nn.Module) -> None:
    """He et al.'s normal initialisation by the fan-out, as ResNets have it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
