"""What every operation promises, one by one, and agreement with torchvision's."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from operations import OPERATIONS, generator, made
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as tv
from torchvision.transforms.v2 import functional as V

from cifartune.config.recipe import AugmentRecipe
from cifartune.data import LabelledImages
from cifartune.report.contact_sheet import augmented
from cifartune.training.augment import (
    apply_policy,
    colour,
    crop_and_flip,
    distort,
    geometry,
    mix,
    policy,
)
from cifartune.training.targets import Targets

every = pytest.mark.parametrize("values", OPERATIONS.values(), ids=OPERATIONS)


def away(found: Tensor, images: Tensor) -> float:
    return (found.float() - images.float()).abs().mean().item()


@pytest.fixture(scope="module")
def images(cifar: LabelledImages) -> Tensor:
    return torch.from_numpy(cifar.images[:64])


@every
def test_images_stay_images(images: Tensor, values: dict[str, Any]) -> None:
    before = images.clone()
    found = augmented(images, made(values), generator())
    assert found.dtype == torch.uint8 and found.shape == images.shape
    assert torch.equal(images, before)
    assert away(found, images) > 1


@every
def test_they_need_not_be_square(images: Tensor, values: dict[str, Any]) -> None:
    narrow = images[:, :, :20]
    assert augmented(narrow, made(values), generator()).shape == narrow.shape


@every
def test_equal_images_come_out_different(images: Tensor, values: dict[str, Any]) -> None:
    # Two images in turn: in a batch of equal ones, mixup would have nothing to mix.
    batch = images[:2].repeat(32, 1, 1, 1)
    found = augmented(batch, made(values), generator())
    kinds = {image.numpy().tobytes() for image in found[::2]}
    assert len(kinds) >= (2 if values.keys() & {"flip", "invert", "solarize"} else 8)


@every
def test_strength_zero_is_the_identity(images: Tensor, values: dict[str, Any]) -> None:
    found = augmented(images, made(values, strength=0.0), generator())
    assert torch.equal(found, images)


@every
def test_the_generator_is_the_only_source(images: Tensor, values: dict[str, Any]) -> None:
    recipe, state = made(values), torch.get_rng_state()
    first, second, other = (augmented(images, recipe, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@every
def test_a_stronger_one_changes_more(images: Tensor, values: dict[str, Any]) -> None:
    batch = images.repeat(4, 1, 1, 1)
    changes = [
        away(augmented(batch, made(values, strength=strength), generator()), batch)
        for strength in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    # Images are finite: a large turn may find something that looks like the original again.
    slack = 0.05 * changes[-1]
    assert all(b > a - slack for a, b in pairwise(changes)), changes
    assert changes[-1] > changes[1] > 0


@pytest.mark.parametrize(
    "off",
    [
        {"rotation": 30.0, "rotation_probability": 0.0},
        {"translate_x": 0.2, "shear": 10.0, "affine_probability": 0.0},
        {"perspective": 0.5, "perspective_probability": 0.0},
        {"elastic": 50.0, "elastic_probability": 0.0},
        {"brightness": 0.5, "jitter_probability": 0.0},
        {"solarize": 200, "solarize_probability": 0.0},
        {"policy": "randaugment", "policy_probability": 0.0},
        {"rotation": 30.0, "invert": 1.0, "hue": 0.2, "group_probability": 0.0},
    ],
)
def test_what_never_happens_changes_nothing(images: Tensor, off: dict[str, Any]) -> None:
    assert torch.equal(augmented(images, made(off), generator()), images)


def test_the_group_has_one_coin(images: Tensor) -> None:
    batch = images[:1].repeat(4000, 1, 1, 1)
    group = {"group_probability": 0.5, "rotation": 45.0, "brightness": 0.8}
    found = distort(batch, made(group, invert=0.5, perspective=0.5), generator())
    same = (found == batch).flatten(1).all(1).float().mean().item()
    assert same == pytest.approx(0.5, abs=0.03)  # with a coin each it would be far less


def test_what_is_off_draws_nothing(images: Tensor) -> None:
    draws, recipe = generator(3), AugmentRecipe()
    state = draws.get_state()
    labels = torch.zeros(len(images), dtype=torch.int64)
    assert distort(images, recipe, draws) is apply_policy(images, recipe, draws) is images
    mixed, targets = mix(images, labels, recipe, draws)
    assert mixed is images and targets.labels is labels and targets.shares is None
    assert torch.equal(draws.get_state(), state)


def test_a_crop_brings_in_black(images: Tensor) -> None:
    white = torch.full_like(images, 255)
    found = crop_and_flip(white, made({"crop": 5, "padding": "zero"}), generator())
    assert set(found.unique().tolist()) == {0, 255}
    assert 0.05 < (found == 0).float().mean() < 0.25
    reflected = crop_and_flip(images, made({"crop": 5}), generator())
    zero = crop_and_flip(images, made({"crop": 5, "padding": "zero"}), generator())
    assert torch.equal(torch.where(zero == 0, reflected, zero), reflected)


def value(x: float) -> Tensor:
    return torch.tensor([x])


BILINEAR = InterpolationMode.BILINEAR

MOVES: dict[str, tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]] = {
    "rotation": (
        lambda: geometry.rotation(value(25.0)),
        lambda image: V.rotate(image, 25.0, interpolation=BILINEAR),
    ),
    "affine": (
        lambda: geometry.affine(value(3.0), value(-5.0), value(0.7), value(20.0)),
        lambda image: V.affine(
            image,
            angle=0,
            translate=[3.0, -5.0],
            scale=0.7,
            shear=[20.0, 0.0],
            interpolation=BILINEAR,
        ),
    ),
    "perspective": (
        lambda: geometry.perspective(torch.tensor([[[3.0, 1], [0, 7], [5, 2], [4, 4]]]), 32, 32),
        lambda image: V.perspective(
            image,
            startpoints=[[0, 0], [31, 0], [31, 31], [0, 31]],
            endpoints=[[3, 1], [31, 7], [26, 29], [4, 27]],
            interpolation=BILINEAR,
        ),
    ),
    "corner_shear": (
        lambda: geometry.corner_shear(value(0.3), value(0.0), 32, 32),
        lambda image: V.affine(
            image,
            angle=0,
            translate=[0, 0],
            scale=1.0,
            shear=[16.699244, 0.0],
            center=[0, 0],
            interpolation=BILINEAR,
        ),
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_agree_with_torchvision(images: Tensor, name: str) -> None:
    map_of, original = MOVES[name]
    found = geometry.resample(images, map_of().expand(len(images), -1, -1), "zero")
    differences = (found.int() - original(images).int()).abs()
    assert differences.max() <= 2


def test_elastic_agrees_with_torchvision(images: Tensor) -> None:
    noise = torch.rand(1, 2, 32, 32, generator=generator()) * 2 - 1
    blurred = V.gaussian_blur(noise, [41, 41], [5.0, 5.0])
    original = V.elastic(images, (blurred * 250 / 32).permute(0, 2, 3, 1))
    maps = torch.eye(3).expand(len(images), -1, -1)
    displacement = geometry.elastic(noise, value(250.0)).expand(len(images), -1, -1, -1)
    found = geometry.resample(images, maps, "zero", displacement)
    assert (found.int() - original.int()).abs().max() <= 2
    assert away(found, images) > 5


def test_maps_compose_in_order(images: Tensor) -> None:
    """Against one step after the other; away from borders, which the steps lose."""
    turn, shift = geometry.rotation(value(90.0)), geometry.affine(*map(value, (4.0, 0, 1, 0)))
    both = geometry.resample(images[:1], turn @ shift, "zero")
    one = geometry.resample(geometry.resample(images[:1], turn, "zero"), shift, "zero")
    assert torch.equal(both[..., 5:], one[..., 5:])


@pytest.mark.parametrize(
    ("ours", "original", "factor"),
    [
        (colour.brightness, V.adjust_brightness, 1.6),
        (colour.brightness, V.adjust_brightness, 0.3),
        (colour.contrast, V.adjust_contrast, 1.7),
        (colour.contrast, V.adjust_contrast, 0.0),
        (colour.saturation, V.adjust_saturation, 1.9),
        (colour.saturation, V.adjust_saturation, 0.2),
        (colour.sharpness, V.adjust_sharpness, 1.9),
        (colour.sharpness, V.adjust_sharpness, 0.1),
        (colour.hue, V.adjust_hue, 0.31),
        (colour.hue, V.adjust_hue, -0.5),
        (colour.hue, V.adjust_hue, 0.0),
        (colour.solarize, V.solarize, 100.0),
    ],
)
def test_colours_agree_with_torchvision(
    images: Tensor, ours: Any, original: Any, factor: float
) -> None:
    found = ours(images, torch.full((len(images),), factor))
    assert (found.int() - original(images, factor).int()).abs().max() <= 3


@pytest.mark.parametrize("bits", [8, 5, 2])
def test_posterize_agrees_with_torchvision(images: Tensor, bits: int) -> None:
    found = colour.posterize(images, torch.full((len(images),), bits))
    assert torch.equal(found, V.posterize(images, bits))


def test_the_table_is_torchvisions() -> None:
    pairs = tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10)._policies
    assert [(*first, *second) for first, second in pairs] == [*policy.CIFAR10]


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("randaugment", tv.RandAugment(interpolation=BILINEAR)),
        ("trivialaugment", tv.TrivialAugmentWide(interpolation=BILINEAR)),
        ("autoaugment", tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10, interpolation=BILINEAR)),
    ],
)
def test_policies_agree_with_torchvision_in_distribution(
    images: Tensor, name: str, original: Callable[[Tensor], Tensor]
) -> None:
    """By how far images are moved, on average; torchvision goes image by image."""
    batch = images[:32].repeat(24, 1, 1, 1)
    found = apply_policy(batch, made({"policy": name, "padding": "zero"}), generator())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = torch.stack([original(image) for image in batch])
    changes = [(x.float() - batch.float()).abs().mean((1, 2, 3)) for x in (found, expected)]
    ours, theirs = (change.mean().item() for change in changes)
    assert ours == pytest.approx(theirs, rel=0.15)
    ours, theirs = ((change == 0).float().mean().item() for change in changes)
    assert ours == pytest.approx(theirs, abs=0.06)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_shares_are_beta(images: Tensor, alpha: float) -> None:
    black_and_white = torch.zeros(4000, 3, 2, 2, dtype=torch.uint8)
    labels = torch.arange(4000)
    black_and_white[::2] = 255
    recipe = made({"mixup": 1.0, "mixup_alpha": alpha})
    found, targets = mix(black_and_white, labels, recipe, generator())
    assert targets.others is not None and targets.shares is not None
    assert (targets.others != labels).all()
    assert targets.shares.mean().item() == pytest.approx(0.5, abs=0.02)
    assert targets.shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)
    # The white in an image is what it has of itself and of its partner.
    own, other = (black_and_white[x][:, 0, 0, 0] / 255 for x in (labels, targets.others))
    expected = targets.shares * own + (1 - targets.shares) * other
    assert (found[:, 0, 0, 0] / 255 - expected).abs().max() < 0.003


def test_cutmix_shares_are_areas() -> None:
    count = 2000
    colours = torch.arange(count) % 251
    flat = colours.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    found, targets = mix(flat, colours, made({"cutmix": 0.6}), generator())
    assert targets.others is not None and targets.shares is not None
    own = found[:, 0] == flat[:, 0]
    assert (own | (found[:, 0] == targets.others.view(-1, 1, 1))).all()
    differ = colours != targets.others
    assert torch.allclose(own.float().mean((1, 2))[differ], targets.shares[differ])
    assert (targets.shares == 1).float().mean().item() == pytest.approx(0.42, abs=0.06)


def test_both_mixes_share_the_images(images: Tensor) -> None:
    batch = torch.arange(2000).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    recipe = made({"mixup": 1.0, "cutmix": 1.0})
    found, _ = mix(batch, torch.zeros(2000, dtype=torch.int64), recipe, generator())
    foreign = (found != batch).flatten(1).float().mean(1)
    blended = (foreign == 1).float().mean().item()
    assert blended == pytest.approx(0.5, abs=0.05)


def test_mixed_targets_weigh_both_labels() -> None:
    logits = torch.randn(6, 10, generator=generator())
    first, second = torch.arange(6), torch.arange(6) + 3
    shares = torch.tensor([1.0, 0.8, 0.5, 0.3, 0.1, 0.0])
    targets = Targets(first, second, shares)
    soft = torch.zeros(6, 10)
    soft[torch.arange(6), first] += shares
    soft[torch.arange(6), second] += 1 - shares
    expected = torch.nn.functional.cross_entropy(logits, soft, label_smoothing=0.1)
    torch.testing.assert_close(targets.losses(logits, 0.1).mean(), expected)
    main = torch.tensor([0, 1, 2, 6, 7, 8])
    assert targets.correct(torch.eye(10)[main]) == 6

    longer = targets.after(torch.tensor([9]))
    assert longer.labels.tolist() == [9, *range(6)]
    assert longer.correct(torch.eye(10)[torch.cat([torch.tensor([9]), main])]) == 7
