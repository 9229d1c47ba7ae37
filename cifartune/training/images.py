"""The images of one split, on the device, and the way they become the network's input."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class SplitImages:
    """Labelled images, and which of them train and which validate.

    Attributes:
        images: uint8 (N, 3, 32, 32), shared by all splits; on any device.
        labels: int64 (N,), on the same device.
        train: int64 indices of the training images.
        validation: int64 indices of the validation images.
    """

    images: Tensor
    labels: Tensor
    train: Tensor
    validation: Tensor

    def to(self, device: torch.device) -> "SplitImages":
        """The same split with every tensor on `device`; copies nothing that is there already."""
        tensors = (self.images, self.labels, self.train, self.validation)
        return SplitImages(*(tensor.to(device) for tensor in tensors))


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel, (1, 3, 1, 1) float32, in units of 0 to 1."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def make(cls, name: str, split: SplitImages) -> "Normalization":
        """`split`: of the training images of `split` alone; `imagenet`; `half`: 0.5 and 0.5."""
        if name == "split":
            mean, deviation = channel_statistics(split.images, split.train)
        elif name == "imagenet":
            mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_DEVIATION)
        else:
            mean, deviation = torch.full((3,), 0.5), torch.full((3,), 0.5)
        device = split.images.device
        return cls(mean.to(device).view(1, 3, 1, 1), deviation.to(device).view(1, 3, 1, 1))

    def __call__(
        self, images: Tensor, memory_format: torch.memory_format = torch.channels_last
    ) -> Tensor:
        """uint8 (N, 3, H, W) -> normalised float32 of the same shape, in `memory_format`."""
        x = images.to(torch.float32, memory_format=memory_format)
        return x.sub_(self.mean * 255).mul_(1 / (self.deviation * 255))


def channel_statistics(images: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation per channel, float32 (3,), of uint8 images in units of 0 to 1.

    Counted exactly, as a histogram: no float copy of the images is made.
    """
    counts = torch.zeros(3, 256, dtype=torch.int64, device=images.device)
    for chunk in indices.split(5000):
        pixels = images[chunk]
        for channel in range(3):
            counts[channel] += torch.bincount(pixels[:, channel].flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    weights = counts.double() / counts.sum(1, keepdim=True)
    mean = weights @ values
    variance = (weights * (values - mean[:, None]).square()).sum(1)
    return mean.float(), variance.sqrt().float()


def resize(images: Tensor, side: int) -> Tensor:
    """Resizes uint8 (N, 3, H, W) to (N, 3, side, side), bilinear with antialiasing."""
    if images.shape[-1] == side:
        return images
    # Only the CPU interpolates bytes with antialiasing.
    x = images if images.device.type == "cpu" else images.float()
    x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
    return x if x.dtype == torch.uint8 else x.round_().to(torch.uint8)
