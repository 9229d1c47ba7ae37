"""Blocks of parallel convolutions that are mixed by coefficients, other ones for each image.

The form is that of dynamic convolution: Chen et al., https://arxiv.org/abs/1912.03458.
"""

from typing import Any

import torch
from timm.models import register_model, register_notrace_module
from torch import Tensor, nn
from torch.nn import functional as F

from cifartune.models.network import (
    Network,
    create_network,
    init_convolutions,
    parse_channels,
)

MIXED = 3
"""The parallel convolutions of a block."""

POOLED = 2
"""2 x 2 max pooling follows on every so many blocks."""


class Mixture(Network):
    """Blocks of mixed convolutions, with max pooling after every second; the mean; a linear head.

    Input (N, 3, H, W), floats; output logits (N, `num_classes`).

    Args:
        num_classes: The number of logits.
        channels: Of each block, such as `64/64` or `64/64/128/128`.
        drop_rate: Dropout probability before the head.
    """

    def __init__(
        self, *, num_classes: int = 10, channels: str = "64/64", drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        sizes = (3, *parse_channels(channels))
        self.stages = nn.Sequential(
            *(
                Block(sizes[i], sizes[i + 1], pooled=(i + 1) % POOLED == 0)
                for i in range(len(sizes) - 1)
            )
        )
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(sizes[-1], num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(x)
        logits: Tensor = self.head(self.drop(x.mean((2, 3))))
        return logits


class Block(nn.Module):
    """A mixed convolution and its shortcut, added, normalised and activated.

    Input (N, `before`, H, W); output (N, `after`, H, W), or half the sides where `pooled`.
    """

    def __init__(self, before: int, after: int, *, pooled: bool) -> None:
        super().__init__()
        self.mixed = MixedConv(before, after)
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after)
            )
        self.norm = nn.BatchNorm2d(after)
        self.activation = nn.ReLU()
        self.pool = nn.MaxPool2d(2) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixed(x) + self.shortcut(x)
        pooled: Tensor = self.pool(self.activation(self.norm(x)))
        return pooled


@register_notrace_module  # it makes its kernels anew for each image
class MixedConv(nn.Module):
    """Parallel 3x3 convolutions, summed with coefficients that a linear layer reads off the image.

    The coefficients are the softmax of a linear function of each channel's spatial mean. A
    convolution is linear in its kernel, so the kernels are mixed instead of the outputs: one
    convolution an image in place of `MIXED`, all images at once as groups.

    Input (N, `before`, H, W); output (N, `after`, H, W).
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.coefficients = nn.Linear(before, MIXED)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, bias=False) for _ in range(MIXED)
        )

    def mix(self, x: Tensor) -> Tensor:
        """The coefficients of each image, (N, `MIXED`); they add up to 1."""
        return self.coefficients(x.mean((2, 3))).softmax(1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        kernels = torch.stack([conv.get_parameter("weight") for conv in self.convs])
        mixed = torch.einsum("nk,koihw->noihw", self.mix(x), kernels)
        count, channels, height, width = x.shape
        out = F.conv2d(
            x.reshape(1, count * channels, height, width),
            mixed.flatten(0, 1),
            padding=1,
            groups=count,
        )
        return out.reshape(count, -1, height, width)


@register_model
def mixture(pretrained: bool = False, **kwargs: Any) -> Mixture:
    """Blocks of given channels: 117,209 weights with 64/64."""
    return create_network(Mixture, pretrained, **kwargs)
