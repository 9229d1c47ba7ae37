"""Figures of answers: intervals, confusion, and what a whole is made up of."""

from collections.abc import Callable, Mapping
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from cifartune.report.charts.look import (
    INK,
    PALE,
    error_bars,
    name_rows,
    new_figure,
)
from cifartune.report.figures import GREY, ORANGE


def interval_chart(rows: pd.DataFrame, axis: str, *, line: float | None = None) -> go.Figure:
    """Shares with their intervals, a row each from the top.

    Args:
        rows: `name`, `value`, `low`, `high` (NaN where there is no interval), `colour`.
        axis: What is shown.
        line: Where a vertical line is drawn.
    """
    figure = new_figure(height=70 + 34 * len(rows), legend=False, margin={"t": 8, "b": 44})
    places = np.arange(len(rows), dtype=float)
    for colour in dict.fromkeys(rows["colour"]):
        chosen = (rows["colour"] == colour).to_numpy()
        own = rows[chosen]
        figure.add_scatter(
            x=own["value"].to_numpy(float),
            y=places[chosen],
            error_x=error_bars(own["value"], own["low"], own["high"]),
            mode="markers",
            marker={"color": colour, "size": 10},
            hovertemplate="%{x:.2%}<extra></extra>",
        )
    if line is not None:
        figure.add_vline(line, line={"color": GREY, "width": 1, "dash": "dash"})
    figure.update_xaxes(title=axis, tickformat=",.1~%")
    name_rows(figure, list(rows["name"]))
    return figure


def confusion_chart(confusion: pd.DataFrame) -> go.Figure:
    """Counts of images, true classes down, predicted ones across; errors alone are coloured."""
    counts = confusion.to_numpy(int)
    shown = counts.astype(float)
    np.fill_diagonal(shown, np.nan)
    names = [escape(str(name)) for name in confusion.index]
    figure = new_figure(height=430, margin={"l": 16, "r": 16, "t": 8, "b": 16})
    figure.add_heatmap(
        z=shown,
        x=names,
        y=names,
        colorscale=[[0, "#ffffff"], [1, ORANGE]],
        showscale=False,
        hovertemplate="%{y} taken for %{x}: %{z:,}<extra></extra>",
        xgap=1,
        ygap=1,
    )
    for row, column in np.ndindex(counts.shape):
        figure.add_annotation(
            x=names[column],
            y=names[row],
            text=f"<b>{counts[row, column]:,}</b>" if row == column else f"{counts[row, column]:,}",
            showarrow=False,
            font={"size": 11, "color": INK if counts[row, column] else PALE},
        )
    figure.update_xaxes(title="predicted", side="bottom", showgrid=False)
    figure.update_yaxes(title="true", autorange="reversed", showgrid=False)
    return figure


def share_chart(bars: pd.DataFrame, show: Mapping[str, Callable[[float], str]]) -> go.Figure:
    """Bars that show of what several wholes are made up.

    Args:
        bars: `whole`, `part`, `value`, `colour`; a bar a whole, from the top.
        show: How a value of each whole is written.
    """
    wholes = list(dict.fromkeys(bars["whole"]))
    figure = new_figure(height=90 + 56 * len(wholes), margin={"l": 16, "t": 24, "b": 40})
    totals = bars.groupby("whole")["value"].sum()
    for row in bars.to_dict("records"):
        share = row["value"] / (totals[row["whole"]] or 1.0)
        part, value = escape(str(row["part"])), show[row["whole"]](row["value"])
        figure.add_bar(
            x=[share],
            y=[escape(str(row["whole"]))],
            orientation="h",
            name=part,
            marker={"color": row["colour"]},
            text=f"{part}<br>{value}" if share > 0.07 else "",
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            hovertemplate=f"{part}: {value} (%{{x:.1%}})<extra></extra>",
        )
    figure.update_layout(barmode="stack", showlegend=False)
    figure.update_xaxes(tickformat=".0%", range=[0, 1])
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure
