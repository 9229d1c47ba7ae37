"""Drawing without a plotting library."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from cifartune.report.figures import (
    BLUE,
    ORANGE,
    Mark,
    Panel,
    dot_plot,
    enlarged,
    fitting,
    font,
    nice_ticks,
    png,
)
from cifartune.statistics import Interval


def columns_of(pixels: npt.NDArray[np.uint8], colour: str) -> npt.NDArray[np.int64]:
    """The columns in which a colour is."""
    is_there = (pixels == ImageColor.getrgb(colour)).all(2)
    return np.flatnonzero(is_there.any(0))


def test_marks_lie_where_their_values_are() -> None:
    rows = [[Mark(Interval(2.0, 1.0, 4.0), BLUE)], [Mark(Interval(3.0, 2.0, 4.0), ORANGE)]]
    pixels = np.asarray(dot_plot("title", ["a", "b"], [Panel("panel", rows, "{:g}".format)]))
    blue, orange = columns_of(pixels, BLUE), columns_of(pixels, ORANGE)
    unit = (blue[-1] - blue[0]) / 3  # from 1 to 4
    assert orange[-1] == pytest.approx(blue[-1], abs=2)
    assert orange[0] == pytest.approx(blue[0] + unit, abs=4)
    dot = (pixels == ImageColor.getrgb(BLUE)).all(2).sum(0)
    assert np.flatnonzero(dot == dot.max()).mean() == pytest.approx(blue[0] + unit, abs=4)


def test_rows_may_be_empty() -> None:
    none = Panel("differences", [[]], "{:g}".format, line=0.0, legend=[("by images", BLUE)])
    assert columns_of(np.asarray(dot_plot("title", ["a"], [none])), BLUE).size  # the legend's


@given(
    low=st.floats(-1e3, 1e3),
    span=st.one_of(st.just(0.0), st.floats(1e-3, 1e3)),
)
def test_ticks_enclose_the_values(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    steps = np.diff(ticks)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-6 * steps[0] and low + span <= ticks[-1] + 1e-6 * steps[0]
    assert steps == pytest.approx(np.full(len(steps), steps[0]), rel=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (-2.4, 0, [-3, -2, -1, 0]),
        (90.2, 94.1, [90, 91, 92, 93, 94, 95]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_text_is_cut_where_there_is_no_room() -> None:
    long = "a-search-with-quite-a-long-name"
    cut = fitting(long, 90, 14)
    assert cut.endswith("…") and long.startswith(cut[:-1]) and font(14).getlength(cut) <= 90
    assert fitting("short", 90, 14) == "short"


def test_an_image_is_enlarged_pixel_by_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    large = np.asarray(enlarged(image, 3))
    assert large.shape == (12, 15, 3)
    assert (large[1::3, 1::3] == image.transpose(1, 2, 0)).all()
    assert (large[:3, :3] == large[0, 0]).all()
    again = Image.open(io.BytesIO(png(enlarged(image, 3))))
    assert (np.asarray(again) == large).all()
