"""The group: colour jitter, rotation, affine, perspective, elastic, solarise, invert."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from cifartune.config.recipe import AugmentRecipe
from cifartune.training.augment import colour, geometry
from cifartune.training.augment.draws import Draws
from cifartune.training.augment.nowait import Chosen, constant

_JITTER: list[tuple[str, Callable[[Tensor, Tensor], Tensor], float]] = [
    # A field, what it changes, and the amount that changes nothing.
    ("brightness", colour.brightness, 1),
    ("contrast", colour.contrast, 1),
    ("saturation", colour.saturation, 1),
    ("hue", colour.hue, 0),
]


def distort(images: Tensor, recipe: AugmentRecipe, generator: Generator) -> Tensor:
    """Sends each image through the group with `group_probability`.

    There each operation throws a coin of its own. Jitter comes first, as brightness, contrast,
    saturation and hue; then all that moves pixels, as one map; then solarise and invert.

    Args:
        images: uint8 (N, 3, H, W).
        recipe: The augmentation.
        generator: The source of randomness, on the device of `images`.

    Returns:
        New uint8 images (N, 3, H, W); `images` itself where nothing is to be done.
    """
    jitters = any(getattr(recipe, name) for name, _, _ in _JITTER)
    moves = _is_affine(recipe) or recipe.rotation or recipe.perspective or recipe.elastic
    inverts = recipe.solarize or recipe.invert
    if not recipe.strength or not (jitters or moves or inverts):
        return images
    draws = Draws(len(images), generator)
    in_group = draws.coin(recipe.group_probability)
    if jitters:
        images = _jitter(images, recipe, in_group & draws.coin(recipe.jitter_probability), draws)
    if moves:
        images = _move(images, recipe, in_group, draws)
    if inverts:
        images = _invert(images, recipe, in_group, draws)
    return images


def _jitter(images: Tensor, recipe: AugmentRecipe, where: Tensor, draws: Draws) -> Tensor:
    chosen = Chosen.by(where)
    changed = chosen.of(images)
    for name, change, neutral in _JITTER:
        if size := recipe.strength * getattr(recipe, name):
            changed = change(changed, chosen.of(draws.uniform(neutral - size, neutral + size)))
    return chosen.put_(images.clone(), changed)


def _move(images: Tensor, recipe: AugmentRecipe, in_group: Tensor, draws: Draws) -> Tensor:
    """One map for each image: of what its coins leave out, the part that changes nothing.

    Rotation comes first, then affine, perspective and elastic.
    """
    (height, width), strength = images.shape[2:], recipe.strength

    def sized(largest: float, coin: Tensor) -> Tensor:
        return draws.uniform(-strength * largest, strength * largest) * coin

    moved = torch.zeros_like(in_group)
    maps = torch.eye(3, device=images.device).expand(len(images), 3, 3)
    if recipe.rotation:
        moved = moved | (coin := draws.coin(recipe.rotation_probability))
        maps = geometry.rotation(sized(recipe.rotation, coin))
    if _is_affine(recipe):
        moved = moved | (coin := draws.coin(recipe.affine_probability))
        # Between the ends, each drawn towards 1; a power of them, so that 1/2 goes as far as 2.
        low, high = recipe.scale_from**strength, recipe.scale_to**strength
        maps = maps @ geometry.affine(
            sized(recipe.translate_x * width, coin),
            sized(recipe.translate_y * height, coin),
            draws.uniform(low, high).masked_fill_(~coin, 1.0),
            sized(recipe.shear, coin),
        )
    if recipe.perspective:
        moved = moved | (coin := draws.coin(recipe.perspective_probability))
        half = constant((width // 2, height // 2), images.device)
        corners = draws.uniform(0, strength * recipe.perspective, 4, 2) * half
        maps = maps @ geometry.perspective(corners * coin.view(-1, 1, 1), height, width)
    alphas = None
    if recipe.elastic:
        moved = moved | (coin := draws.coin(recipe.elastic_probability))
        alphas = strength * recipe.elastic * coin
    chosen = Chosen.by(moved & in_group)
    displacement = None
    if alphas is not None:
        # For the chosen alone: two numbers for every pixel are the dearest draw of all.
        noise = Draws(chosen.count, draws.generator).uniform(-1, 1, 2, height, width)
        displacement = geometry.elastic(noise, chosen.of(alphas))
    moving, maps = chosen.of(images), chosen.of(maps)
    changed = geometry.resample(moving, maps, recipe.padding, displacement)
    return chosen.put_(images.clone(), changed)


def _is_affine(recipe: AugmentRecipe) -> bool:
    moves = recipe.translate_x or recipe.translate_y or recipe.shear
    return bool(moves) or (recipe.scale_from, recipe.scale_to) != (1, 1)


def _invert(images: Tensor, recipe: AugmentRecipe, in_group: Tensor, draws: Draws) -> Tensor:
    if levels := round(recipe.strength * recipe.solarize):
        coin = draws.coin(recipe.solarize_probability) & in_group
        # No level reaches 256: where the coin says no, nothing is inverted.
        images = colour.solarize(images, 256 - levels * coin)
    if recipe.invert:
        coin = draws.coin(recipe.strength * recipe.invert) & in_group
        images = colour.solarize(images, 256 - 256 * coin)
    return images
