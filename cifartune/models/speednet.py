"""Small, fast networks for CIFAR-10, after the ideas of airbench.

Source of the ideas: K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU",
https://arxiv.org/abs/2404.00498.
"""

from itertools import pairwise
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

from cifartune.models.network import Network, create_network

HEAD_SCALE = 1 / 9
"""The head's logits are scaled down, which acts like a lower learning rate for the head."""

WHITENING_EPSILON = 5e-4
WHITENING_CHUNK = 500


class SpeedNet(Network):
    """A whitening convolution, three stages of convolutions, and a scaled linear head.

    Input (N, 3, H, W), floats, 9 pixels a side or more; output logits (N, `num_classes`).

    Args:
        num_classes: The number of logits.
        widths: The channels of the three stages.
        is_deep: Whether stages have three convolutions, not two, and a residual connection.
        whitens: Whether the first layer is frozen, and waits for `init_from_images`.
        drop_rate: Dropout probability before the head.
    """

    stem_names = r"^whitening\."

    def __init__(
        self,
        *,
        num_classes: int = 10,
        widths: tuple[int, int, int] = (64, 256, 256),
        is_deep: bool = False,
        whitens: bool = True,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        kernel = 2
        # Every patch direction and its negative, so that no sign is lost in the activation.
        self.whitening = nn.Conv2d(3, 2 * 3 * kernel**2, kernel)
        self.whitens = whitens
        self.whitening.weight.requires_grad_(not whitens)
        assert self.whitening.bias is not None
        nn.init.zeros_(self.whitening.bias)
        self.activation = nn.GELU()
        channels = (self.whitening.out_channels, *widths)
        stage = DeepStage if is_deep else Stage
        self.stages = nn.Sequential(*(stage(*pair) for pair in pairwise(channels)))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.whitening(x))
        x = self.stages(x)
        logits: Tensor = self.head(self.drop(self.pool(x).flatten(1)))
        return logits * HEAD_SCALE

    @torch.no_grad()
    def init_from_images(self, images: Tensor) -> None:
        """Sets the first layer to whiten the patches of `images` (N, 3, H, W), normalised floats.

        Each filter is a principal direction of the 2 x 2 patches, divided by the standard
        deviation along it, once with each sign.
        """
        size = self.whitening.kernel_size[0]
        covariance = torch.zeros(3 * size**2, 3 * size**2, dtype=torch.float64)
        for chunk in images.split(WHITENING_CHUNK):
            patches = F.unfold(chunk, size).transpose(0, 1).flatten(1)
            covariance += (patches @ patches.T / patches.shape[1]).double() * len(chunk)
        variances, directions = torch.linalg.eigh(covariance / len(images))
        filters = directions.T / (variances + WHITENING_EPSILON).sqrt()[:, None]
        filters = filters.flip(0).reshape(-1, 3, size, size)
        self.whitening.weight.copy_(torch.cat([filters, -filters]))


class Stage(nn.Module):
    """Convolution, 2 x 2 max pooling, convolution; each normalised and activated."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.activation = nn.GELU()
        for conv in (self.conv1, self.conv2):
            _start_as_identity(conv)
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm1(self.pool(self.conv1(x))))
        x = self.activation(self.norm2(self.conv2(x)))
        return x


class DeepStage(Stage):
    """A stage with a third convolution, which what comes out of the pooling goes around."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.conv3 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        _start_as_identity(self.conv3)
        self.norm3.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.activation(self.norm1(self.pool(self.conv1(x))))
        x = self.activation(self.norm2(self.conv2(pooled)))
        x = self.activation(self.norm3(self.conv3(x)) + pooled)
        return x


def _start_as_identity(conv: nn.Conv2d) -> None:
    """Has the first filters pass their input through: gradients reach early layers at once."""
    nn.init.dirac_(conv.weight[: conv.in_channels])


@register_model
def speednet(pretrained: bool = False, **kwargs: Any) -> SpeedNet:
    """Stages of 64, 256 and 256 channels: 1,972,792 weights."""
    return create_network(SpeedNet, pretrained, widths=(64, 256, 256), **kwargs)


@register_model
def speednet_small(pretrained: bool = False, **kwargs: Any) -> SpeedNet:
    """Stages of 32, 128 and 128 channels: a quarter of `speednet`'s cost, for CPUs."""
    return create_network(SpeedNet, pretrained, widths=(32, 128, 128), **kwargs)


@register_model
def speednet_large(pretrained: bool = False, **kwargs: Any) -> SpeedNet:
    """Deep stages of 128, 384 and 512 channels, as in airbench96."""
    widths = (128, 384, 512)
    return create_network(SpeedNet, pretrained, widths=widths, is_deep=True, **kwargs)
