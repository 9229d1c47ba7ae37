"""Published policies: RandAugment, TrivialAugment and AutoAugment, for each image on its own.

Magnitudes, and AutoAugment's table, are those of torchvision's transforms of these names.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as V

from cifartune.config.recipe import AugmentRecipe
from cifartune.training.augment import colour, geometry
from cifartune.training.augment.draws import Draws
from cifartune.training.augment.nowait import Chosen, constant

OPS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Color", "Contrast", "Sharpness"),
    *("Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"),
)
"""The operations, by number. Neither RandAugment nor TrivialAugment has the last one."""

MOVES = OPS[1:6]
"""Those that move pixels."""

NARROW = (0.0, 0.3, 0.3, 150 / 331, 150 / 331, 30.0, 0.9, 0.9, 0.9, 0.9, 4.0, 1.0, 0.0, 0.0, 0.0)
"""The largest magnitude of each: tangents, shares of the side, degrees, changes of a factor, bits
that are lost, share of the levels that is inverted."""

WIDE = (0.0, 0.99, 0.99, 1.0, 1.0, 135.0, 0.99, 0.99, 0.99, 0.99, 6.0, 1.0, 0.0, 0.0, 0.0)
"""The same in TrivialAugment, where a shift has 32 pixels whatever the image's side."""

CIFAR10 = (
    ("Invert", 0.1, None, "Contrast", 0.2, 6),
    ("Rotate", 0.7, 2, "TranslateX", 0.3, 9),
    ("Sharpness", 0.8, 1, "Sharpness", 0.9, 3),
    ("ShearY", 0.5, 8, "TranslateY", 0.7, 9),
    ("AutoContrast", 0.5, None, "Equalize", 0.9, None),
    ("ShearY", 0.2, 7, "Posterize", 0.3, 7),
    ("Color", 0.4, 3, "Brightness", 0.6, 7),
    ("Sharpness", 0.3, 9, "Brightness", 0.7, 9),
    ("Equalize", 0.6, None, "Equalize", 0.5, None),
    ("Contrast", 0.6, 7, "Sharpness", 0.6, 5),
    ("Color", 0.7, 7, "TranslateX", 0.5, 8),
    ("Equalize", 0.3, None, "AutoContrast", 0.4, None),
    ("TranslateY", 0.4, 3, "Sharpness", 0.2, 6),
    ("Brightness", 0.9, 6, "Color", 0.2, 8),
    ("Solarize", 0.5, 2, "Invert", 0.0, None),
    ("Equalize", 0.2, None, "AutoContrast", 0.6, None),
    ("Equalize", 0.2, None, "Equalize", 0.6, None),
    ("Color", 0.9, 9, "Equalize", 0.6, None),
    ("AutoContrast", 0.8, None, "Solarize", 0.2, 8),
    ("Brightness", 0.1, 3, "Color", 0.7, 0),
    ("Solarize", 0.4, 5, "AutoContrast", 0.9, None),
    ("TranslateY", 0.9, 9, "TranslateY", 0.7, 9),
    ("AutoContrast", 0.9, None, "Solarize", 0.8, 3),
    ("Equalize", 0.8, None, "Invert", 0.1, None),
    ("TranslateY", 0.7, 9, "AutoContrast", 0.9, None),
)
"""AutoAugment's 25 pairs for CIFAR-10: operation, probability and magnitude out of 9, twice."""

Layer = tuple[Tensor, Tensor]
"""Number of an operation, int64 (N,), and its magnitude as a share of the largest, (N,)."""


def apply_policy(images: Tensor, recipe: AugmentRecipe, generator: Generator) -> Tensor:
    """Sends each image through `policy` with a probability of `strength * policy_probability`.

    RandAugment (Cubuk et al., https://arxiv.org/abs/1909.13719): some operations of one magnitude.
    TrivialAugment (Müller and Hutter, https://arxiv.org/abs/2103.10158): one operation of
    a random magnitude. AutoAugment (Cubuk et al., https://arxiv.org/abs/1805.09501): a pair of
    operations out of 25 pairs. An operation that has two directions goes either way.

    Args:
        images: uint8 (N, 3, H, W).
        recipe: The augmentation.
        generator: The source of randomness, on the device of `images`.

    Returns:
        New uint8 images (N, 3, H, W); `images` itself where nothing is to be done.
    """
    probability = recipe.strength * recipe.policy_probability
    if recipe.policy == "none" or not probability:
        return images
    draws = Draws(len(images), generator)
    is_in = draws.coin(probability)
    largest = constant(WIDE if recipe.policy == "trivialaugment" else NARROW, images.device)
    for ops, shares in _layers(recipe, draws):
        magnitudes = shares * largest[ops]
        signs = draws.coin(0.5) * 2.0 - 1
        images = _apply(images, ops * is_in, magnitudes, signs, recipe.padding)
    return images


def _layers(recipe: AugmentRecipe, draws: Draws) -> Iterator[Layer]:
    """The operations of all images, one after the other."""
    device = draws.generator.device
    if recipe.policy == "randaugment":
        share = torch.full((draws.count,), recipe.randaugment_magnitude / 30, device=device)
        for _ in range(recipe.randaugment_ops):
            yield draws.integer(len(OPS) - 1), share
    elif recipe.policy == "trivialaugment":
        yield draws.integer(len(OPS) - 1), draws.integer(31) / 30
    else:
        pairs = draws.integer(len(CIFAR10))
        for start in (0, 3):
            rows = [pair[start : start + 3] for pair in CIFAR10]
            table = constant(tuple((OPS.index(str(op)), p, m or 0) for op, p, m in rows), device)
            op, probability, magnitude = table[pairs].unbind(1)
            yield op.long() * (draws.uniform() < probability), magnitude / 9


def _apply(images: Tensor, ops: Tensor, sizes: Tensor, signs: Tensor, padding: str) -> Tensor:
    """One operation on each image, uint8 (N, 3, H, W): those that are alike together."""
    moved, images = Chosen.by((ops > 0) & (ops <= len(MOVES))), images.clone()
    changed = _move(moved.of(images), moved.of(ops), moved.of(sizes * signs), padding)
    moved.put_(images, changed)
    for number, name in enumerate(OPS):
        if name != "Identity" and name not in MOVES:
            chosen = Chosen.by(ops == number)
            if chosen.count:
                changed = _recolour(name, *map(chosen.of, (images, sizes, signs)))
                chosen.put_(images, changed)
    return images


def _move(images: Tensor, ops: Tensor, sizes: Tensor, padding: str) -> Tensor:
    """Shears, shifts and rotations, by one map for each image."""
    height, width = images.shape[2:]

    def only(name: str) -> Tensor:
        return sizes.masked_fill(ops != OPS.index(name), 0.0)

    zero = torch.zeros_like(sizes)
    maps = geometry.rotation(only("Rotate"))
    maps = maps @ geometry.corner_shear(only("ShearX"), only("ShearY"), height, width)
    shift_x, shift_y = only("TranslateX") * width, only("TranslateY") * height
    maps = maps @ geometry.affine(shift_x, shift_y, zero + 1, zero)
    return geometry.resample(images, maps, padding)


def _recolour(name: str, images: Tensor, sizes: Tensor, signs: Tensor) -> Tensor:
    changed: Tensor
    match name:
        case "Brightness":
            return colour.brightness(images, 1 + signs * sizes)
        case "Color":
            return colour.saturation(images, 1 + signs * sizes)
        case "Contrast":
            return colour.contrast(images, 1 + signs * sizes)
        case "Sharpness":
            return colour.sharpness(images, 1 + signs * sizes)
        case "Posterize":
            return colour.posterize(images, (8 - sizes).round().long())
        case "Solarize":
            return colour.solarize(images, 255 * (1 - sizes))
        case "AutoContrast":
            changed = V.autocontrast(images)
            return changed
        case "Equalize":
            changed = V.equalize(images)
            return changed
        case _:
            return images.bitwise_not()
