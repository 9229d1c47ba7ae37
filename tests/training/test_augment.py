import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from cifartune.config.recipe import AugmentRecipe
from cifartune.data import LabelledImages
from cifartune.training.augment import crop_and_flip, cutout_


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture
def images(cifar: LabelledImages) -> Tensor:
    return torch.from_numpy(cifar.images[:64])


def slowly(images: Tensor, recipe: AugmentRecipe, seed: int) -> Tensor:
    """The reference: pads, crops and flips one image after the other."""
    draws = generator(seed)
    padding = round(recipe.strength * recipe.crop)
    offsets = torch.randint(0, 2 * padding + 1, (2, len(images)), generator=draws)
    mirrored = torch.rand(len(images), generator=draws) < recipe.strength * recipe.flip
    found = []
    for image, top, left, mirror in zip(images.numpy(), *offsets, mirrored, strict=True):
        border = ((0, 0), (padding, padding), (padding, padding))
        padded = np.pad(image, border, mode="reflect")
        crop = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
        found.append(torch.from_numpy((crop[:, :, ::-1] if mirror else crop).copy()))
    return torch.stack(found)


@pytest.mark.parametrize(
    "recipe",
    [
        AugmentRecipe(),
        AugmentRecipe(strength=0.5, crop=7, flip=0.3),
        AugmentRecipe(crop=16, flip=0.5),
        AugmentRecipe(crop=0, flip=0.5),
        AugmentRecipe(crop=3, flip=0.0),
    ],
)
def test_it_agrees_with_a_slow_reference(images: Tensor, recipe: AugmentRecipe) -> None:
    before = images.clone()
    found = crop_and_flip(images, recipe, generator(3))
    assert found.dtype == torch.uint8
    assert torch.equal(found, slowly(images, recipe, 3))
    assert torch.equal(images, before)
    assert not torch.equal(found, images)


def test_images_need_not_be_square(images: Tensor) -> None:
    narrow = images[:, :, :20]
    recipe = AugmentRecipe(crop=5)
    assert torch.equal(crop_and_flip(narrow, recipe, generator()), slowly(narrow, recipe, 0))


def test_strength_zero_changes_nothing(images: Tensor) -> None:
    recipe = AugmentRecipe(strength=0, crop=8, flip=0.5, cutout=16)
    assert torch.equal(crop_and_flip(images, recipe, generator()), images)
    x = images.float()
    assert torch.equal(cutout_(x.clone(), recipe, generator()), x)


def test_equal_images_of_a_batch_are_changed_each_in_its_own_way(images: Tensor) -> None:
    batch = images[:1].expand(64, -1, -1, -1)
    found = crop_and_flip(batch, AugmentRecipe(), generator())
    assert len({image.numpy().tobytes() for image in found}) > 40


def test_it_follows_the_generator(images: Tensor) -> None:
    first, second, other = (
        crop_and_flip(images, AugmentRecipe(), generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_offsets_are_uniform_and_flips_as_often_as_told() -> None:
    # Each pixel holds its own column (and row), so that an image tells what was done to it.
    count = 20_000
    ramp = torch.arange(32, dtype=torch.uint8).expand(32, 32)
    image = torch.stack([ramp, ramp.T, torch.zeros_like(ramp)])
    recipe = AugmentRecipe(strength=0.5, crop=4, flip=0.4)
    found = crop_and_flip(image.expand(count, -1, -1, -1), recipe, generator()).int()
    mirrored = found[:, 0, 16, 17] < found[:, 0, 16, 16]
    assert mirrored.float().mean().item() == pytest.approx(0.2, abs=0.01)
    shifts_x = torch.where(mirrored, found[:, 0, 16, 15], found[:, 0, 16, 16]) - 16
    shifts_y = found[:, 1, 16, 16] - 16
    for shifts in (shifts_x, shifts_y):
        counts = torch.bincount(shifts + 2, minlength=5)
        assert counts.sum() == count and len(counts) == 5
        assert ((counts / count - 0.2).abs() < 0.015).all()
    pairs = torch.bincount((shifts_x + 2) * 5 + shifts_y + 2, minlength=25)
    assert ((pairs / count - 0.04).abs() < 0.008).all()


@pytest.mark.parametrize(("strength", "cutout", "side"), [(1.0, 8, 8), (0.5, 10, 5)])
def test_cutout_blanks_one_square(strength: float, cutout: int, side: int) -> None:
    count = 2000
    x = torch.ones(count, 3, 32, 32)
    recipe = AugmentRecipe(strength=strength, cutout=cutout)
    assert cutout_(x, recipe, generator()) is x
    holes = x == 0
    assert torch.equal(holes[:, 0], holes[:, 1]) and torch.equal(holes[:, 0], holes[:, 2])
    rows, columns = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(holes[:, 0].sum((1, 2)), rows * columns)
    assert rows.max() == columns.max() == side
    # The centre is uniform: a square keeps all its rows unless it hangs over the border.
    whole = (rows == side).float().mean().item()
    assert whole == pytest.approx((32 - side + 1) / 32, abs=0.03)
    assert rows.min() >= side // 2
