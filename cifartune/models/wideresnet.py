"""Wide ResNets: few layers, many channels, dropout inside the blocks.

Source: Zagoruyko and Komodakis, https://arxiv.org/abs/1605.07146.
"""

from typing import Any

from timm.layers import DropPath, SqueezeExcite
from timm.models import register_model
from torch import Tensor, nn

from cifartune.models.network import (
    Network,
    create_network,
    drop_path_rates,
    init_convolutions,
)

SQUEEZE = 1 / 16
"""The hidden layer of squeeze-and-excite, as a share of the channels."""


class WideResNet(Network):
    """A 3x3 stem, three stages of pre-activation blocks, norm, ReLU, the mean, a linear head.

    Input (N, 3, H, W), floats; output logits (N, `num_classes`). The second and the third stage
    halve the sides.

    Args:
        num_classes: The number of logits.
        depth: 6n + 4, with n blocks a stage.
        width: Multiplies the channels of the stages: 16, 32 and 64.
        squeeze_excite: Whether blocks weigh their channels (https://arxiv.org/abs/1709.01507).
        drop_rate: Dropout probability before the head.
        proj_drop_rate: Dropout probability between the convolutions of each block.
        drop_path_rate: Probability of leaving out the last block; for the ones before it, less.

    Raises:
        ValueError: `depth` is not 6n + 4.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        depth: int = 28,
        width: int = 10,
        squeeze_excite: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6n + 4, such as 10, 16, 28 or 40, got {depth}")
        blocks = (depth - 4) // 6
        rates = drop_path_rates(drop_path_rate, 3 * blocks)
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        stages, before = [], 16
        for stage in range(3):
            layers = []
            for index in range(blocks):
                after = 16 * width * 2**stage
                layers.append(
                    Block(
                        before,
                        after,
                        stride=2 if stage and not index else 1,
                        squeeze_excite=squeeze_excite,
                        dropout=proj_drop_rate,
                        drop_path=rates[stage * blocks + index],
                    )
                )
                before = after
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(before)
        self.activation = nn.ReLU()
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(before, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.stages(self.stem(x))))
        logits: Tensor = self.head(self.drop(x.mean((2, 3))))
        return logits


class Block(nn.Module):
    """Norm, ReLU, convolution, norm, ReLU, dropout, convolution; added to what came in."""

    def __init__(
        self,
        before: int,
        after: int,
        *,
        stride: int,
        squeeze_excite: bool,
        dropout: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.act1 = nn.ReLU()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.act2 = nn.ReLU()
        self.drop = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.se = SqueezeExcite(after, rd_ratio=SQUEEZE) if squeeze_excite else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        is_same = before == after and stride == 1
        self.shortcut = None if is_same else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act1(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        x = self.conv1(activated)
        x = self.conv2(self.drop(self.act2(self.norm2(x))))
        return self.drop_path(self.se(x)) + shortcut  # type: ignore[no-any-return]


@register_model
def wideresnet(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """A network of `depth` and `width`: 36,479,194 weights at 28 and 10."""
    return create_network(WideResNet, pretrained, **kwargs)
