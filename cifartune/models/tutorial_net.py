"""The network of PyTorch's CIFAR-10 tutorial.

Source: https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html.
"""

from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from cifartune.models.network import Network, create_network


class TutorialNet(Network):
    """Two 5x5 convolutions with pooling, two hidden linear layers, and the head.

    Input (N, 3, S, S), floats, S = `img_size`; output logits (N, `num_classes`).

    Args:
        num_classes: The number of logits.
        img_size: The side of an image, 16 or more.
        drop_rate: Dropout probability before the head; the tutorial has none.
    """

    def __init__(
        self, *, num_classes: int = 10, img_size: int = 32, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        side = ((img_size - 4) // 2 - 4) // 2
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            nn.Sequential(nn.Linear(16 * side**2, 120), nn.ReLU()),
            nn.Sequential(nn.Linear(120, 84), nn.ReLU()),
        )
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.stages(x)))
        return logits


@register_model
def tutorial_net(pretrained: bool = False, **kwargs: Any) -> TutorialNet:
    """The tutorial's network: 62,006 weights at 32 x 32."""
    return create_network(TutorialNet, pretrained, **kwargs)
