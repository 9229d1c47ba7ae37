"""What becomes of the levels of pixels: each image of a batch by its own amount.

Images are uint8 (N, 3, H, W) and stay so; they are rounded after each operation. A factor
is float32 (N,): 1 leaves an image as it is and 0 takes away all of what the operation is named for,
as in torchvision.
"""

import torch
from torch import Tensor

from cifartune.training.augment.nowait import constant

_GREY = (0.2989, 0.587, 0.114)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with black."""
    return _levels(images.float() * _each(factor))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the image's mean grey."""
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the image in grey."""
    return _blend(images, _grey(images), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the image blurred by 3x3 pixels; the border is left alone."""
    x = images.float()
    inner = x[:, :, 1:-1]
    rows = x[:, :, :-2] + inner + x[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    x[:, :, 1:-1, 1:-1] = (total + 4 * inner[..., 1:-1]) / 13
    return _blend(images, x.round_(), factor)


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shifts the hue by `turns` (N,) of the colour circle; value and saturation stay."""
    x = images.float()
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    spread = value - x.amin(1)
    divisor = spread.clamp(min=1)  # of grey pixels, whose hue does not matter
    sixth = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixth = sixth + 6 * turns.view(-1, 1, 1)
    # Smith's hexcone, backwards: each channel falls off with the distance from its own hue.
    offsets = constant((5.0, 3.0, 1.0), images.device).view(1, 3, 1, 1)
    k = (sixth[:, None] + offsets).remainder_(6)
    fall = torch.minimum(k, 4 - k).clamp_(0, 1)
    return _levels(value[:, None] - spread[:, None] * fall)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts the levels from `threshold` (N,) on."""
    return torch.where(images >= _each(threshold), images.bitwise_not(), images)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the highest `bits` (N,), int64, of each level."""
    mask = 256 - 2 ** (8 - bits)
    return images & _each(mask).to(torch.uint8)


def _levels(x: Tensor) -> Tensor:
    return x.round_().clamp_(0, 255).to(torch.uint8)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return _levels(torch.lerp(other.expand(images.shape), images.float(), _each(factor)))


def _grey(images: Tensor) -> Tensor:
    weights = constant(_GREY, images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
