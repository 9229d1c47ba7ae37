import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cifartune.training import SplitImages
from cifartune.training.images import Normalization, channel_statistics, resize


def test_statistics_are_those_of_numpy(split: SplitImages) -> None:
    indices = torch.arange(0, 1000, 3)
    mean, deviation = channel_statistics(split.images, indices)
    pixels = split.images[indices].numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(deviation, pixels.std((0, 2, 3)), rtol=1e-6)
    assert mean.dtype == deviation.dtype == torch.float32


def test_statistics_of_one_colour_are_finite() -> None:
    images = torch.full((2, 3, 32, 32), 77, dtype=torch.uint8)
    mean, deviation = channel_statistics(images, torch.arange(2))
    torch.testing.assert_close(mean, torch.full((3,), 77 / 255))
    assert deviation.tolist() == [0, 0, 0]


def test_only_training_images_count(split: SplitImages) -> None:
    images = split.images.clone()
    images[split.validation] = 255
    assert len(split.train) < len(images)
    images[400:] = 0
    changed = dataclasses.replace(split, images=images)
    for name in ("split", "imagenet", "half"):
        one, other = Normalization.make(name, split), Normalization.make(name, changed)
        assert torch.equal(one.mean, other.mean) and torch.equal(one.deviation, other.deviation)
    train = dataclasses.replace(split, train=split.train[:100])
    assert not torch.equal(
        Normalization.make("split", split).mean, Normalization.make("split", train).mean
    )


def test_normalised_training_images_have_mean_0_and_deviation_1(split: SplitImages) -> None:
    x = Normalization.make("split", split)(split.images[split.train])
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_normalisation_leaves_the_images_alone(split: SplitImages) -> None:
    before = split.images[:10].clone()
    Normalization.make("half", split)(split.images[:10])
    assert torch.equal(split.images[:10], before)


def test_half_maps_bytes_to_minus_1_to_1(split: SplitImages) -> None:
    bytes_ = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    x = Normalization.make("half", split)(bytes_)
    torch.testing.assert_close(x[0], torch.full((3, 4, 4), -1.0))
    torch.testing.assert_close(x[1], torch.full((3, 4, 4), 1.0))


@pytest.mark.parametrize("side", [16, 24, 64])
def test_resizing_bytes_is_resizing_floats_rounded(split: SplitImages, side: int) -> None:
    images = split.images[:20]
    found = resize(images, side)
    assert found.dtype == torch.uint8 and found.shape == (20, 3, side, side)
    floats = F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)
    assert (found.float() - floats).abs().max() <= 1
    assert resize(images, 32) is images


def test_halving_averages_a_neighbourhood(split: SplitImages) -> None:
    # Without antialiasing every second pixel would be lost.
    stripes = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    stripes[..., ::4] = 255
    found = resize(stripes, 8).float()
    assert (found[..., 1:-1] - 255 / 4).abs().max() < 12
