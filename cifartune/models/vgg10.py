"""A small VGG of ten convolutions, with batch norm and without the large linear layers.

Source of the form: Simonyan and Zisserman, https://arxiv.org/abs/1409.1556.
"""

from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from cifartune.models.network import Network, create_network, init_convolutions

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))
"""The channels of the convolutions of each stage."""


class VGG10(Network):
    """Four stages of 3x3 convolutions, each ended by 2 x 2 max pooling; the mean; a linear head.

    Input (N, 3, H, W), floats, 16 pixels a side or more; output logits (N, `num_classes`).

    Args:
        num_classes: The number of logits.
        drop_rate: Dropout probability before the head.
    """

    def __init__(self, *, num_classes: int = 10, drop_rate: float = 0.0) -> None:
        super().__init__()
        stages, before = [], 3
        for widths in WIDTHS:
            layers: list[nn.Module] = []
            for width in widths:
                layers += [
                    nn.Conv2d(before, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                before = width
            stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        self.stages = nn.Sequential(*stages)
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(before, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.stages(x).mean((2, 3))))
        return logits


@register_model
def vgg10(pretrained: bool = False, **kwargs: Any) -> VGG10:
    """Stages of 64, 128, 256 and 512 channels: 7,643,082 weights."""
    return create_network(VGG10, pretrained, **kwargs)
