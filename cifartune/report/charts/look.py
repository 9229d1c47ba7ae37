"""What all figures have in common: colours, letters, axes."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from cifartune.report.figures import BLUE, GREY, ORANGE
from cifartune.report.frames import COMPLETE, FAILED, STOPPED, UNFINISHED

RED, GREEN, INK, PALE = "#b3261e", "#3b7d4f", "#1c2430", "#c9ced6"

COLOURS = {COMPLETE: BLUE, STOPPED: "#9aa3af", FAILED: RED, UNFINISHED: GREEN}
"""Of each way in which a trial ends."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

LOOK = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": INK},
        "colorway": [BLUE, ORANGE, GREEN, GREY],
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hovermode": "closest",
        "hoverlabel": {"font": {"family": FONT}},
        "margin": {"l": 60, "r": 16, "t": 24, "b": 48},
        "xaxis": {"gridcolor": "#eceef1", "zeroline": False, "automargin": True},
        "yaxis": {"gridcolor": "#eceef1", "zeroline": False, "automargin": True},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }
)


def new_figure(*, height: int, legend: bool = True, margin: Mapping[str, int] | None = None) -> Any:
    figure = go.Figure()
    figure.update_layout(template=LOOK, height=height, showlegend=legend)
    if margin:
        figure.update_layout(margin=dict(margin))
    return figure


def name_rows(figure: go.Figure, names: Sequence[str]) -> None:
    """Names the rows of a figure, which lie at 0, 1, ... from the top."""
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[escape(name) for name in names],
        range=[len(names) - 0.5, -0.5],
        showgrid=False,
    )


def error_bars(
    value: "pd.Series[float]", low: "pd.Series[float]", high: "pd.Series[float]"
) -> dict[str, Any]:
    # Nothing where there is no interval.
    return {
        "type": "data",
        "symmetric": False,
        "array": (high - value).fillna(0).to_numpy(float),
        "arrayminus": (value - low).fillna(0).to_numpy(float),
        "thickness": 2,
        "width": 0,
    }


def value_axis(
    figure: go.Figure, values: "pd.Series[float]", metric: str, title: str | None = ""
) -> None:
    """The axis of the objective; a loss that explodes must not flatten all others."""
    low, high = clipped(values, metric)
    room = 0.04 * ((high - low) or 0.1)
    figure.update_yaxes(range=[low - room, high + room])
    if title is not None:
        figure.update_yaxes(title=title or metric)
    if metric.endswith("accuracy"):
        figure.update_yaxes(tickformat=",.1~%")


def clipped(values: "pd.Series[float]", metric: str) -> tuple[float, float]:
    most = 1.0 if metric.endswith("accuracy") else 0.95
    return float(values.min()), float(values.quantile(most))


def number_format(metric: str) -> str:
    """How plotly and Python write a value of the metric."""
    return ".2%" if metric.endswith("accuracy") else ".4g"


def shown_value(value: Any) -> str:
    """A value of a parameter for people; nothing where a recipe has no such parameter."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "none"
    return f"{value:.3g}" if isinstance(value, float) else escape(str(value))
