"""What several tests train on: a slice of the real images where they are prepared."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings

from cifartune.config import Recipe
from cifartune.data import LabelledImages, load_train
from cifartune.errors import UserError

if TYPE_CHECKING:  # tests without torch stay fast
    from cifartune.training import SplitImages

# The same examples at every run, however slow the machine is at the moment.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def cifar() -> LabelledImages:
    """A thousand training images; without the real ones, generated images of the same form."""
    try:
        train = load_train()
    except UserError:
        return _generated(1000)
    return LabelledImages(np.array(train.images[:1000]), np.array(train.labels[:1000]))


@pytest.fixture(scope="session")
def split(cifar: LabelledImages) -> "SplitImages":
    """300 images to train on and 100 to validate on, of `cifar`."""
    import torch

    from cifartune.training import SplitImages

    return SplitImages(
        images=torch.from_numpy(cifar.images),
        labels=torch.from_numpy(cifar.labels).long(),
        train=torch.arange(300),
        validation=torch.arange(300, 400),
    )


@pytest.fixture
def recipe() -> Recipe:
    """A recipe that trains in a second: a small network on small images."""
    return Recipe().with_values(
        {
            "model.name": "speednet_small",
            "model.resolution": 16,
            "epochs": 2,
            "batch_size": 64,
            "precision": "fp32",
        }
    )


def _generated(count: int) -> LabelledImages:
    """Noise over a colour and a stripe direction for each class: easy to learn, but not at once."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, count).astype(np.uint8)
    y, x = np.mgrid[:32, :32] / 32
    angle = labels[:, None, None] * np.pi / 10
    waves = 40 * np.sin(12 * (x * np.cos(angle) + y * np.sin(angle)))
    colours = random.uniform(90, 170, (10, 3))[labels]
    pixels = colours[:, :, None, None] + waves[:, None] + random.normal(0, 25, (count, 3, 32, 32))
    return LabelledImages(pixels.clip(0, 255).astype(np.uint8), labels)
