"""Figures of parameters: how much each mattered, and which of its values did well."""

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from cifartune.config import Choice, Range
from cifartune.report.charts.look import (
    COLOURS,
    PALE,
    clipped,
    error_bars,
    name_rows,
    new_figure,
    number_format,
    shown_value,
    value_axis,
)
from cifartune.report.figures import BLUE, GREY, ORANGE
from cifartune.report.frames import COMPLETE, STOPPED

Parameters = Mapping[str, Range | Choice]

NOWHERE = -0.12
"""The height of what a recipe has not, below all values."""

MOST_BESIDE = 4
"""How many names of categories fit side by side below a slice; of more, each second is lower."""


def importance_chart(importance: pd.DataFrame) -> go.Figure:
    """The share of each parameter with its interval, by each method of `importance_frame`.

    The dashed line is where all would lie if no parameter mattered more than another.
    """
    names = list(dict.fromkeys(importance["parameter"]))
    figure = new_figure(height=90 + 44 * len(names))
    places = {name: place for place, name in enumerate(names)}
    methods = list(dict.fromkeys(importance["method"]))
    for number, (method, colour) in enumerate(zip(methods, (BLUE, ORANGE), strict=False)):
        own = importance[importance["method"] == method]
        shift = 0.14 * (2 * number - 1) if len(methods) > 1 else 0.0
        figure.add_scatter(
            x=own["share"],
            y=own["parameter"].map(places) + shift,
            error_x=error_bars(own["share"], own["low"], own["high"]),
            customdata=own["parameter"].map(escape),
            name=method,
            mode="markers",
            marker={"color": colour, "size": 9},
            hovertemplate=f"%{{customdata}}: %{{x:.0%}}<extra>{method}</extra>",
        )
    figure.add_vline(1 / len(names), line={"color": GREY, "width": 1, "dash": "dash"})
    figure.update_xaxes(title="share of the importance", tickformat=".0%", rangemode="tozero")
    name_rows(figure, names)
    return figure


def slice_chart(
    points: pd.DataFrame, name: str, parameter: Range | Choice, metric: str, winner: int | None
) -> go.Figure:
    """The objective at one epoch against a parameter, a dot a trial that has the parameter.

    Args:
        points: Of `points_frame`.
        name: The parameter's, a column of `points`.
        parameter: What it may be: its axis.
        metric: The objective's name.
        winner: The trial that is drawn on top.
    """
    figure = new_figure(height=250, legend=False, margin={"l": 52, "r": 8, "t": 8, "b": 44})
    own = points[points[name].notna()]
    x = own[name].astype(float) if isinstance(parameter, Range) else _places(own, name, parameter)
    for kind in (STOPPED, COMPLETE, "winner"):
        chosen = own["trial"] == winner if kind == "winner" else own["kind"] == kind
        figure.add_scatter(
            x=x[chosen].to_numpy(float),
            y=own["value"][chosen].to_numpy(float),
            customdata=np.stack(
                [own["trial"][chosen].astype(str), own[name][chosen].map(shown_value)], axis=1
            ),
            name=kind,
            mode="markers",
            marker={
                "color": COLOURS.get(kind, ORANGE),
                "size": 11 if kind == "winner" else 7,
                "symbol": "diamond" if kind == "winner" else "circle",
                "opacity": 1 if kind == "winner" else 0.7,
            },
            hovertemplate=f"trial %{{customdata[0]}}<br>%{{customdata[1]}}: "
            f"%{{y:{number_format(metric)}}}<extra></extra>",
        )
    figure.update_xaxes(title=escape(name))
    if isinstance(parameter, Choice):
        labels = [shown_value(value).replace("_", "<br>") for value in parameter.values]
        if len(labels) > MOST_BESIDE:
            labels = [label if i % 2 == 0 else f"<br><br>{label}" for i, label in enumerate(labels)]
        figure.update_xaxes(
            tickvals=list(range(len(labels))),
            ticktext=labels,
            range=[-0.5, len(labels) - 0.5],
            tickangle=0,
            tickfont={"size": 11},
        )
    elif parameter.log:
        few = parameter.min >= 1e-4
        figure.update_xaxes(type="log", dtick=1, tickformat="~g" if few else ".0e")
    value_axis(figure, points["value"], metric, title=None)
    return figure


def parallel_coordinates(
    points: pd.DataFrame,
    parameters: Parameters,
    metric: str,
    mode: str,
    winner: int | None,
    called: str = "winner",
) -> go.Figure:
    """A line a trial across all parameters to the objective at one epoch, coloured by its rank.

    What a recipe has not lies on the lowest level. Groups are hidden by a click on their names.

    Args:
        points: Of `points_frame`.
        parameters: The axes, and what each may be.
        metric: The objective's name, the last axis.
        mode: `max` or `min`: which values are good.
        winner: The trial that is drawn on top.
        called: What it is called.
    """
    figure = new_figure(height=440, margin={"l": 48, "r": 56, "t": 40, "b": 40})
    axes = [*parameters, metric]
    levels = {name: _levels(points, name, parameter) for name, parameter in parameters.items()}
    value = points["value"]
    low, high = clipped(value, metric)
    levels[metric] = (value.clip(low, high) - low) / ((high - low) or 1.0)
    heights = np.stack([levels[name].to_numpy(float) for name in axes], axis=1)
    rank = value.rank(pct=True, ascending=mode == "min", method="first")
    groups = {
        "lower half": (rank > 0.5, PALE, 0.8),
        "upper half": ((rank <= 0.5) & (rank > 0.1), "#7fa8d1", 1.0),
        "best tenth": (rank <= 0.1, BLUE, 1.8),
        called: (points["trial"] == winner, ORANGE, 3.0),
    }
    texts = np.stack(
        [points[name].map(shown_value) for name in parameters]
        + [value.map(lambda v: f"{v:{number_format(metric)}}")],
        axis=1,
    )
    for name, (chosen, colour, width) in groups.items():
        rows = np.flatnonzero(chosen)
        if not len(rows):
            continue
        gap = np.full((len(rows), 1), np.nan)
        across = np.tile([*np.arange(len(axes), dtype=float), np.nan], len(rows))
        told = [
            f"trial {points['trial'].iloc[row]}<br>{escape(axis)}: {text}"
            for row in rows
            for axis, text in [*zip(axes, texts[row], strict=True), ("", "")]
        ]
        figure.add_scatter(
            x=across,
            y=np.hstack([heights[rows], gap]).ravel(),
            text=told,
            name=f"{name} ({len(rows):,})" if name != called else name,
            mode="lines",
            line={"color": colour, "width": width},
            opacity=1.0 if name == called else min(1.0, max(0.4, 80 / len(rows))),
            hovertemplate="%{text}<extra></extra>",
        )
    for place, name in enumerate(axes):
        figure.add_vline(place, line={"color": "#6c798a", "width": 1}, layer="below")
        ends = _ends(parameters[name]) if name in parameters else _both(low, high, metric)
        ends += [(NOWHERE, "none")] if (levels[name] == NOWHERE).any() else []
        for level, text in ends:
            figure.add_annotation(
                x=place,
                y=level,
                text=text,
                showarrow=False,
                xanchor="left" if place < len(axes) - 1 else "right",
                xshift=4 if place < len(axes) - 1 else -4,
                font={"size": 11},
                bgcolor="rgba(255,255,255,.75)",
            )
    figure.update_xaxes(
        tickvals=list(range(len(axes))),
        ticktext=[f"<b>{escape(name)}</b>".replace(".", ".<br>") for name in axes],
        showgrid=False,
        range=[-0.1, len(axes) - 0.9],
        ticklabeloverflow="allow",
    )
    figure.update_yaxes(visible=False, range=[-0.16, 1.06])
    return figure


def _places(points: pd.DataFrame, name: str, parameter: Choice) -> "pd.Series[float]":
    """Where the values of a choice lie, side by side, moved a little so that no dot hides another.

    The same at each drawing.
    """
    texts = [str(value) for value in parameter.values]
    moved = np.random.default_rng(0).uniform(-0.18, 0.18, len(points))
    return points[name].map(lambda value: float(texts.index(str(value)))) + moved


def _levels(points: pd.DataFrame, name: str, parameter: Range | Choice) -> "pd.Series[float]":
    """The heights of a parameter's values between 0 and 1; below for those without it."""
    column = points[name]
    if isinstance(parameter, Choice):
        texts = [str(value) for value in parameter.values]
        step = 1 / max(1, len(texts) - 1)
        level = column.map(lambda v: np.nan if v is None else step * texts.index(str(v)))
    else:
        scale = np.log if parameter.log else np.asarray
        low, high = (float(scale(end)) for end in (parameter.min, parameter.max))
        level = 0.0 * column.isna() + (_scaled(column.to_numpy(float), scale) - low) / (high - low)
    return pd.Series(level, index=points.index, dtype=float).fillna(NOWHERE)


def _scaled(
    values: npt.NDArray[np.float64], scale: Callable[[Any], Any]
) -> npt.NDArray[np.float64]:
    scaled: npt.NDArray[np.float64] = scale(values)
    return scaled


def _ends(parameter: Range | Choice) -> list[tuple[float, str]]:
    """What is written beside a parameter's axis: height and text."""
    if isinstance(parameter, Range):
        return [(0.0, f"{parameter.min:g}"), (1.0, f"{parameter.max:g}")]
    step = 1 / max(1, len(parameter.values) - 1)
    return [(step * place, shown_value(value)) for place, value in enumerate(parameter.values)]


def _both(low: float, high: float, metric: str) -> list[tuple[float, str]]:
    return [(0.0, f"{low:{number_format(metric)}}"), (1.0, f"{high:{number_format(metric)}}")]
