"""A fully connected network, the baseline of all others."""

from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from cifartune.models.network import Network, create_network


class MLP(Network):
    """Hidden layers with ReLU and dropout, on the pixels in a row.

    Input (N, 3, S, S), floats, S = `img_size`; output logits (N, `num_classes`).

    Args:
        num_classes: The number of logits.
        img_size: The side of an image.
        widths: The units of the hidden layers.
        drop_rate: Dropout probability after each hidden layer.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        img_size: int = 32,
        widths: tuple[int, ...] = (512, 256),
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = (3 * img_size**2, *widths)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU(), nn.Dropout(drop_rate))
                for i in range(len(widths))
            )
        )
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(x.flatten(1)))
        return logits


@register_model
def mlp(pretrained: bool = False, **kwargs: Any) -> MLP:
    """Hidden layers of 512 and 256 units: 1,707,274 weights at 32 x 32."""
    return create_network(MLP, pretrained, **kwargs)
