"""Random crop, flip and cutout: per image, a whole batch at once, on the device of the images."""

import torch
from torch import Generator, Tensor

from cifartune.config.recipe import AugmentRecipe


def crop_and_flip(
    images: Tensor,
    recipe: AugmentRecipe,
    generator: Generator,
    mirrored: Tensor | None = None,
) -> Tensor:
    """Shifts each image by up to `crop` pixels and mirrors it with probability `flip`.

    `strength` scales both. What a shift brings in is the image reflected at its border, or black.

    Args:
        images: uint8 (N, 3, H, W).
        recipe: The augmentation.
        generator: The source of randomness, on the device of `images`.
        mirrored: Which images are mirrored, bool (N,), where that is not left to chance.

    Returns:
        New uint8 images (N, 3, H, W); `images` itself where nothing is to be done.
    """
    padding = round(recipe.strength * recipe.crop)
    flip = recipe.strength * recipe.flip
    if not padding and not flip:
        return images
    count, channels, height, width = images.shape
    device = images.device
    offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=generator, device=device)
    if mirrored is None:
        mirrored = torch.rand(count, generator=generator, device=device) < flip

    rows = offsets[0, :, None] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(count, -1)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns) + offsets[1, :, None]
    rows, columns = rows - padding, columns - padding
    # One gather crops and flips at once; the image is read in place, with no padded copy.
    pixels = _reflect(rows, height)[:, :, None] * width + _reflect(columns, width)[:, None, :]
    flat = images.reshape(count, channels, height * width)
    found = flat.gather(2, pixels.view(count, 1, -1).expand(-1, channels, -1)).view_as(images)
    if recipe.padding == "zero" and padding:
        inside = _is_inside(rows, height)[:, :, None] & _is_inside(columns, width)[:, None, :]
        found *= inside[:, None]
    return found


def alternates(coins: Tensor, recipe: AugmentRecipe, epoch: int) -> Tensor:
    """Which images an alternating flip mirrors in an epoch, bool (N,).

    Those with coins below `2 * strength * flip` are mirrored in every other epoch, half of them in
    those with even numbers: in any epoch, as many as a flip by chance mirrors on average.

    Args:
        coins: One for each image for the whole run, uniform in [0, 1), float32 (N,).
        recipe: The augmentation.
        epoch: Counted from 0.
    """
    flip = recipe.strength * recipe.flip
    return (coins < 2 * flip) & ((coins < flip) == (epoch % 2 == 0))


def cutout_(x: Tensor, recipe: AugmentRecipe, generator: Generator) -> Tensor:
    """Sets a square of `strength * cutout` pixels to zero, the mean, in each normalised image.

    The centre is uniform over the image, so that a square may hang over the border
    (DeVries and Taylor, https://arxiv.org/abs/1708.04552). Changes `x` (N, 3, H, W) in place.
    """
    side = round(recipe.strength * recipe.cutout)
    if not side:
        return x
    count, _, height, width = x.shape
    top = torch.randint(0, height, (count, 1), generator=generator, device=x.device) - side // 2
    left = torch.randint(0, width, (count, 1), generator=generator, device=x.device) - side // 2
    rows = torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device)
    in_rows = (rows >= top) & (rows < top + side)
    in_columns = (columns >= left) & (columns < left + side)
    return x.masked_fill_((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Positions outside 0..size-1, reflected back in without repeating the border."""
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


def _is_inside(positions: Tensor, size: int) -> Tensor:
    return (positions >= 0) & (positions < size)
