"""A picture of what an augmentation does to images, at several strengths."""

import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Generator, Tensor

from cifartune.config import SearchSpace
from cifartune.config.recipe import AugmentRecipe
from cifartune.data import CLASSES, load_train
from cifartune.errors import UserError
from cifartune.files import write_atomically
from cifartune.report.figures import enlarged, font
from cifartune.training.augment import apply_policy, crop_and_flip, cutout_, distort, mix

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The rows; the strength of the recipe is not heeded."""

COLUMNS = 12
"""Images a row."""

ZOOM = 3
"""How many times larger an image is drawn."""

_GAP, _MARGIN, _LABEL, _LINE = 6, 16, 116, 24


def sheet_of(space: SearchSpace, data_root: Path) -> Image.Image:
    """The sheet of the baseline of `space`, on training images of all classes."""
    train = load_train(data_root)
    labels = np.asarray(train.labels)
    # The first image of each class, then the second of some.
    order = [int(np.flatnonzero(labels == c)[n]) for n in (0, 1) for c in range(len(CLASSES))]
    chosen = order[:COLUMNS]
    images = torch.from_numpy(np.stack([train.images[index] for index in chosen]))
    names = [CLASSES[labels[index]] for index in chosen]
    augment = space.base.augment
    title = f"{space.name}: {_summary(augment)}"
    return contact_sheet(images, augment, title=title, names=names, seed=space.search.seed)


def _summary(recipe: AugmentRecipe) -> str:
    """What is on: crop, flip, and the fields that differ from their defaults."""
    default = AugmentRecipe().model_dump()
    shown = {
        name: value
        for name, value in recipe.model_dump().items()
        if name != "strength" and (value != default[name] or (name in ("crop", "flip") and value))
    }
    words = (
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in shown.items()
    )
    return ", ".join(words) or "nothing is changed"


def contact_sheet(
    images: Tensor, recipe: AugmentRecipe, *, title: str, names: Sequence[str], seed: int = 0
) -> Image.Image:
    """A row for each strength, a column for each image; all rows draw the same random numbers.

    Args:
        images: uint8 (N, 3, H, W), one a column; mixup and CutMix mix them with each other.
        recipe: The augmentation, of which all but the strength is used.
        title: A line above the rows.
        names: What to write above each column.
        seed: Of all random draws.

    Returns:
        An RGB picture.
    """
    height, width = (side * ZOOM + _GAP for side in images.shape[2:])
    lines = textwrap.wrap(title, width=(_LABEL + len(images) * width) // 8)
    first = _MARGIN + (1 + len(lines)) * _LINE
    size = (2 * _MARGIN + _LABEL + len(images) * width, first + len(STRENGTHS) * height + _MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + number * _LINE), line, "black", font(15))
    for column, name in enumerate(names):
        centre = _MARGIN + _LABEL + column * width + (width - _GAP) // 2
        draw.text((centre, first - _GAP), name, "dimgrey", font(13), anchor="ms")
    for row, strength in enumerate(STRENGTHS):
        at = recipe.model_copy(update={"strength": strength})
        changed = augmented(images, at, Generator().manual_seed(seed))
        top = first + row * height
        text = f"strength {strength:g}"
        draw.text((_MARGIN, top + (height - _GAP) // 2), text, "black", font(13), anchor="lm")
        for column, image in enumerate(changed):
            picture = enlarged(image.numpy(), ZOOM)
            sheet.paste(picture, (_MARGIN + _LABEL + column * width, top))
    return sheet


def augmented(images: Tensor, recipe: AugmentRecipe, generator: Generator) -> Tensor:
    """uint8 images (N, 3, H, W) as the trainer would show them to a network, but as images."""
    images = crop_and_flip(images, recipe, generator)
    images = distort(apply_policy(images, recipe, generator), recipe, generator)
    images, _ = mix(images, torch.zeros(len(images), dtype=torch.int64), recipe, generator)
    # The trainer cuts out of normalised images, where 0 is the mean.
    mean = images.float().mean((0, 2, 3), keepdim=True)
    x = cutout_(images - mean, recipe, generator) + mean
    return x.round().clamp(0, 255).to(torch.uint8)


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Writes a picture in the format of its name.

    Raises:
        UserError: The name is no picture's, or the file cannot be written.
    """
    form = Image.registered_extensions().get(path.suffix.lower())
    if form not in Image.SAVE:
        raise UserError(f"{path}: --out must end in .png or another picture's ending")
    picture = BytesIO()
    try:
        sheet.save(picture, form)
        write_atomically(path, picture.getvalue())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
