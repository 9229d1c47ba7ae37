"""Drawing for pictures that need no plotting library: sheets of images, and dots with intervals."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cifartune.statistics import Interval

BLUE, ORANGE, GREY = "#1f6fb4", "#d9730d", "#8a8a8a"

_DETAIL = 2
"""Pixels for each of the lengths below: a plot is for screens of any kind."""

_MARGIN, _NAMES, _PANEL, _GAP = 20, 190, 330, 52
_TITLE, _ROW, _AXIS = 26, 40, 30


@dataclass(frozen=True)
class Mark:
    """A dot and a line for a value and its interval."""

    interval: Interval
    colour: str


@dataclass(frozen=True)
class Panel:
    """A part of a dot plot with an axis of its own.

    Attributes:
        title: Above it.
        rows: The marks of each row, from the top; none for a row that has nothing to show.
        write: How a number on the axis is written.
        line: Where a vertical line is drawn.
        legend: What each colour means: text and colour.
    """

    title: str
    rows: Sequence[Sequence[Mark]]
    write: Callable[[float], str]
    line: float | None = None
    legend: Sequence[tuple[str, str]] = ()


def dot_plot(title: str, names: Sequence[str], panels: Sequence[Panel]) -> Image.Image:
    """Values with their intervals, a row for each of `names`, the panels side by side.

    Returns:
        An RGB picture, twice as large as it is meant to be shown.
    """
    width = 2 * _MARGIN + _NAMES + len(panels) * (_PANEL + _GAP) - _GAP
    height = 2 * _MARGIN + 3 * _TITLE + len(names) * _ROW + _AXIS
    picture = Image.new("RGB", (width * _DETAIL, height * _DETAIL), "white")
    draw = ImageDraw.Draw(picture)
    _text(draw, (_MARGIN, _MARGIN), fitting(title, width - 2 * _MARGIN, 16), 16)
    top = _MARGIN + 3 * _TITLE
    for row, name in enumerate(names):
        at = _MARGIN + _NAMES - 12, top + (row + 0.5) * _ROW
        _text(draw, at, fitting(name, _NAMES - 12, 14), 14, anchor="rm")
    for number, panel in enumerate(panels):
        left = _MARGIN + _NAMES + number * (_PANEL + _GAP)
        _draw_panel(draw, panel, left, top, len(names) * _ROW)
    return picture


def _draw_panel(
    draw: ImageDraw.ImageDraw, panel: Panel, left: float, top: float, height: float
) -> None:
    _text(draw, (left, top - 2 * _TITLE), fitting(panel.title, _PANEL, 14), 14)
    at = left
    for text, colour in panel.legend:
        _dot(draw, at + 5, top - 0.7 * _TITLE, colour)
        _text(draw, (at + 14, top - 0.7 * _TITLE), text, 12, anchor="lm", colour="dimgrey")
        at += 34 + font(12).getlength(text)
    shown = [mark.interval for row in panel.rows for mark in row]
    ends = [end for interval in shown for end in (interval.low, interval.high)]
    ends += [] if panel.line is None else [panel.line]
    ticks = nice_ticks(min(ends, default=0.0), max(ends, default=1.0))
    low, scale = ticks[0], _PANEL / (ticks[-1] - ticks[0])

    def x(value: float) -> float:
        return left + (value - low) * scale

    for tick in ticks:
        _line(draw, (x(tick), top), (x(tick), top + height), "#e4e4e4")
        _text(draw, (x(tick), top + height + 8), panel.write(tick), 12, anchor="ma")
    if panel.line is not None:
        _line(draw, (x(panel.line), top), (x(panel.line), top + height), GREY, 1.5)
    for row, marks in enumerate(panel.rows):
        for place, mark in enumerate(marks):
            y = top + (row + (place + 1) / (len(marks) + 1)) * _ROW
            interval = mark.interval
            _line(draw, (x(interval.low), y), (x(interval.high), y), mark.colour, 2)
            _dot(draw, x(interval.value), y, mark.colour)


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers, evenly spaced, that enclose `low` and `high`."""
    span = (high - low) or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= span / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def enlarged(image: npt.NDArray[np.uint8], zoom: int) -> Image.Image:
    """An image, uint8 (3, H, W), each pixel as a square of `zoom` times `zoom`."""
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    size = picture.width * zoom, picture.height * zoom
    return picture.resize(size, Image.Resampling.NEAREST)


def fitting(text: str, width: float, size: float) -> str:
    """`text`, cut short where it is wider than `width` in letters of `size`."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


@cache
def font(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which has letters, digits and few signs: no arrow, no minus."""
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)  # Pillow's wheels have FreeType
    return found


def png(picture: Image.Image) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: float,
    anchor: str = "la",
    colour: str = "black",
) -> None:
    draw.text((at[0] * _DETAIL, at[1] * _DETAIL), text, colour, font(size * _DETAIL), anchor)


def _line(
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    width: float = 1,
) -> None:
    points = [value * _DETAIL for value in (*start, *end)]
    draw.line(points, colour, round(width * _DETAIL))


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, colour: str) -> None:
    corners = x - 4, y - 4, x + 4, y + 4
    draw.ellipse([value * _DETAIL for value in corners], colour)
