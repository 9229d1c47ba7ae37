"""LeNet-5's form with more channels, ReLU and dropout.

Source of the form: LeCun et al., "Gradient-based learning applied to document recognition", 1998,
https://doi.org/10.1109/5.726791.
"""

from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from cifartune.models.network import Network, create_network


class LeNet(Network):
    """Two padded 5x5 convolutions with pooling, two hidden linear layers, and the head.

    Input (N, 3, S, S), floats, S = `img_size`; output logits (N, `num_classes`).

    Args:
        num_classes: The number of logits.
        img_size: The side of an image, 4 or more.
        drop_rate: Dropout probability before each of the three linear layers.
    """

    def __init__(
        self, *, num_classes: int = 10, img_size: int = 32, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        side = img_size // 4
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(
                nn.Flatten(), nn.Dropout(drop_rate), nn.Linear(64 * side**2, 384), nn.ReLU()
            ),
            nn.Sequential(nn.Dropout(drop_rate), nn.Linear(384, 192), nn.ReLU()),
        )
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(192, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.stages(x)))
        return logits


@register_model
def lenet(pretrained: bool = False, **kwargs: Any) -> LeNet:
    """Convolutions of 32 and 64 channels, hidden layers of 384 and 192: 1,702,794 weights."""
    return create_network(LeNet, pretrained, **kwargs)
