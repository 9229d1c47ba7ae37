"""Mixup and CutMix: two images of a batch become one, and so do their labels."""

import torch
from torch import Generator, Tensor

from cifartune.config.recipe import AugmentRecipe
from cifartune.training.augment.draws import Draws
from cifartune.training.targets import Targets


def mix(
    images: Tensor, labels: Tensor, recipe: AugmentRecipe, generator: Generator
) -> tuple[Tensor, Targets]:
    """Mixes images, each with another of the batch and by a share of its own.

    Mixup (Zhang et al., https://arxiv.org/abs/1710.09412) blends two images; CutMix (Yun et al.,
    https://arxiv.org/abs/1905.04899) puts a rectangle of one into the other; its centre is uniform
    over the image, and the border cuts it off. No image is its own partner.

    Args:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
        recipe: The augmentation.
        generator: The source of randomness, on the device of `images`.

    Returns:
        New uint8 images (N, 3, H, W), or `images` itself, and what to learn from them.
    """
    mixup, cutmix = recipe.strength * recipe.mixup, recipe.strength * recipe.cutmix
    if not (mixup or cutmix) or len(images) < 2:
        return images, Targets(labels)
    draws = Draws(len(images), generator)
    steps = 1 + draws.integer(len(images) - 1)
    partners = (torch.arange(len(images), device=images.device) + steps) % len(images)
    is_blended, is_cut = draws.coin(mixup), draws.coin(cutmix)
    is_cut &= ~is_blended | draws.coin(0.5)
    is_blended &= ~is_cut
    shares = torch.ones(len(images), device=images.device)
    others = images[partners]
    mixed = images
    if mixup:
        shares = torch.where(is_blended, draws.beta(recipe.mixup_alpha), shares)
        blend = torch.lerp(others.float(), images.float(), shares.view(-1, 1, 1, 1))
        mixed = blend.round_().to(torch.uint8)
    if cutmix:
        kept = draws.beta(recipe.cutmix_alpha).masked_fill_(~is_cut, 1.0)
        inside = _rectangles(images.shape[2], images.shape[3], 1 - kept, draws)
        mixed = torch.where(inside[:, None], others, mixed)
        shares = torch.where(is_cut, 1 - inside.float().mean((1, 2)), shares)
    return mixed, Targets(labels, labels[partners], shares)


def _rectangles(height: int, width: int, areas: Tensor, draws: Draws) -> Tensor:
    """bool (N, H, W): rectangles of the image's form and of `areas`, shares of it, (N,)."""
    sides = areas.sqrt()

    def span(size: int) -> Tensor:
        length = (sides * size).long()[:, None]
        start = draws.integer(size)[:, None] - length // 2
        places = torch.arange(size, device=areas.device)
        return (places >= start) & (places < start + length)

    rows, columns = span(height), span(width)
    return rows[:, :, None] & columns[:, None, :]
