"""ResNets of basic blocks whose channels are free.

Source of the blocks: He et al., https://arxiv.org/abs/1512.03385; the stem is that of
https://github.com/kuangliu/pytorch-cifar.
"""

from typing import Any

from timm.layers import DropPath
from timm.models import register_model
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from cifartune.models.errors import UnfitNetwork
from cifartune.models.network import (
    Network,
    create_network,
    drop_path_rates,
    init_convolutions,
    parse_channels,
)

BLOCKS = 2
"""Blocks a stage, as in ResNet-18."""


class ResNetChannels(Network):
    """A 3x3 stem, stages of two basic blocks, the mean, a linear head.

    Input (N, 3, H, W), floats; output logits (N, `num_classes`). Each stage but the first halves
    the sides. A 1x1 convolution with a norm leads past a block that changes sides or channels.

    Args:
        num_classes: The number of logits.
        channels: Of the stem and of each stage, such as `64/64/128/256/512`, ResNet-18's.
        drop_rate: Dropout probability before the head.
        drop_path_rate: Probability of leaving out the last block; for the ones before it, less.

    Raises:
        UnfitNetwork: There are no channels for a stage.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        channels: str = "64/64/128/256/512",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        before, *widths = parse_channels(channels)
        if not widths:
            raise UnfitNetwork(
                f"model.channels must be those of the stem and of each stage, got {channels}"
            )
        self.stem = nn.Sequential(
            nn.Conv2d(3, before, 3, padding=1, bias=False), nn.BatchNorm2d(before), nn.ReLU()
        )
        rates = iter(drop_path_rates(drop_path_rate, BLOCKS * len(widths)))
        stages = []
        for number, width in enumerate(widths):
            blocks = []
            for index in range(BLOCKS):
                stride = 2 if number and not index else 1
                blocks.append(_block(before, width, stride, next(rates)))
                before = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(before, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        logits: Tensor = self.head(self.drop(x.mean((2, 3))))
        return logits


def _block(before: int, after: int, stride: int, drop_path: float) -> nn.Module:
    shortcut = None
    if stride > 1 or before != after:
        shortcut = nn.Sequential(
            nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
        )
    return BasicBlock(
        before, after, stride, shortcut, drop_path=DropPath(drop_path) if drop_path else None
    )


@register_model
def resnet_channels(pretrained: bool = False, **kwargs: Any) -> ResNetChannels:
    """A ResNet of given channels: 4,999,718 weights with 64/32/96/156/350."""
    return create_network(ResNetChannels, pretrained, **kwargs)
