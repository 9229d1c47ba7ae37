"""Sheets of training images, with what was made of each written under it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw

from cifartune.report.figures import enlarged, fitting, font

SHOWN = 40
"""Images of a part of a sheet, at the most."""

ZOOM = 3
"""How many times larger an image is drawn."""

_COLUMNS, _CELL, _LINE, _MARGIN, _HEADING, _GAP = 8, 136, 16, 16, 24, 14


@dataclass(frozen=True)
class Part:
    """A part of a sheet.

    Attributes:
        title: Lines above it, the first of them its name.
        rows: The images: the index of each, its class, another class, and the latter's probability.
    """

    title: Sequence[str]
    rows: Sequence[tuple[int, str, str, float]]

    @classmethod
    def of(cls, title: Sequence[str], frame: pd.DataFrame, columns: Sequence[str]) -> "Part":
        """The part of the first rows of a table, `columns` being those of the classes."""
        chosen = frame[["index", *columns]].head(SHOWN)
        return cls(title, list(chosen.itertuples(index=False, name=None)))


def image_sheet(parts: Iterable[Part], images: npt.NDArray[np.uint8]) -> Image.Image:
    """Images, three times as large, with `true -> predicted 97 %` and their number under each.

    Args:
        parts: One below the other. One without images says so.
        images: All training images, uint8 (50,000, 3, 32, 32).

    Returns:
        An RGB picture.
    """
    parts = list(parts)
    side = images.shape[-1] * ZOOM
    cell = side + 3 * _LINE + 8
    heights = [
        _HEADING * len(part.title) + cell * max(1, -(-len(part.rows) // _COLUMNS)) + _GAP
        for part in parts
    ]
    width = 2 * _MARGIN + _COLUMNS * _CELL
    sheet = Image.new("RGB", (width, 2 * _MARGIN + sum(heights)), "white")
    draw, top = ImageDraw.Draw(sheet), _MARGIN
    for part, height in zip(parts, heights, strict=True):
        for number, line in enumerate(part.title):
            size, colour = (13, "dimgrey") if number else (16, "black")
            text = fitting(line, width - 2 * _MARGIN, size)
            draw.text((_MARGIN, top + number * _HEADING), text, colour, font(size))
        first = top + _HEADING * len(part.title)
        if not part.rows:
            draw.text((_MARGIN, first), "none", "dimgrey", font(13))
        for place, (index, true, other, probability) in enumerate(part.rows):
            row, column = divmod(place, _COLUMNS)
            x, y = _MARGIN + column * _CELL, first + row * cell
            sheet.paste(enlarged(np.asarray(images[index]), ZOOM), (x, y))
            told = true, f"-> {other} {_percent(probability)}", f"image {index}"
            for number, line in enumerate(told):
                colour = "dimgrey" if number == 2 else "black"
                draw.text((x, y + side + 2 + number * _LINE), line, colour, font(12))
        top += height
    return sheet


def _percent(probability: float) -> str:
    """Never 100 %, which no model may claim."""
    return "> 99 %" if probability > 0.995 else f"{100 * probability:.0f} %"
