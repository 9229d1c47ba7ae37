"""Figures of trials: their learning curves, and what they cost."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from cifartune.report.charts.look import (
    COLOURS,
    INK,
    new_figure,
    number_format,
    value_axis,
)
from cifartune.report.figures import BLUE, GREY, ORANGE
from cifartune.report.frames import COMPLETE, FAILED, STOPPED, UNFINISHED


def learning_curves(
    curves: pd.DataFrame,
    metric: str,
    *,
    rungs: Sequence[int] = (),
    winner: int | None = None,
    called: str = "winner",
) -> go.Figure:
    """The objective after each epoch, a line a trial, coloured by how far the trial got.

    Args:
        curves: Of `curves_frame`.
        metric: The objective's name.
        rungs: The epochs after which trials may be stopped; a line marks each.
        winner: The trial that is drawn on top; the baseline is, in any case.
        called: What it is called: it has not won before the search is finished.
    """
    figure = new_figure(height=420)
    last = curves.groupby("trial")["epoch"].transform("max")
    stops = sorted(last[curves["kind"] == STOPPED].unique())
    # By the epoch of the end while these are few: the palest were stopped first.
    greys = ["#d5d9de", "#bcc3cb", "#a2abb6", "#8792a0", "#6c798a"]
    groups: list[tuple[str, pd.DataFrame, str, float]] = []
    if len(stops) <= len(greys):
        for stop, colour in zip(stops, greys, strict=False):
            own = curves[(curves["kind"] == STOPPED) & (last == stop)]
            groups.append((f"stopped after epoch {stop}", own, colour, 1.0))
    else:
        groups.append((STOPPED, curves[curves["kind"] == STOPPED], greys[1], 1.0))
    for kind, width in ((FAILED, 1.2), (UNFINISHED, 1.4), (COMPLETE, 1.4)):
        groups.append((kind, curves[curves["kind"] == kind], COLOURS[kind], width))
    for name, own, colour, width in groups:
        if len(own):
            count = own["trial"].nunique()
            _curve(figure, own, f"{name} ({count:,})", metric, colour, width)
    if winner != 0:
        baseline = curves[curves["trial"] == 0]
        _curve(figure, baseline, "baseline", metric, INK, 2.2, dash="dot")
    if winner is not None:
        name = called if winner else f"{called}, the baseline"
        _curve(figure, curves[curves["trial"] == winner], name, metric, ORANGE, 3)
    for rung in rungs:
        if rung <= curves["epoch"].max():
            figure.add_vline(rung, line={"color": GREY, "width": 1, "dash": "dash"}, layer="below")
    figure.update_xaxes(title="epoch" + (" (dashed: the rungs)" if rungs else ""))
    if curves["epoch"].max() <= 12:
        figure.update_xaxes(dtick=1)
    value_axis(figure, curves["value"], metric)
    return figure


def _curve(
    figure: go.Figure,
    curves: pd.DataFrame,
    name: str,
    metric: str,
    colour: str,
    width: float,
    dash: str = "solid",
) -> None:
    """Adds lines as one trace, with a gap behind each trial: a thousand traces would be slow."""
    if not len(curves):
        return
    ends = np.flatnonzero(np.diff(curves["trial"].to_numpy())) + 1
    is_short = curves.groupby("trial")["epoch"].size().max() == 1  # a line of one point is unseen
    figure.add_scatter(
        x=np.insert(curves["epoch"].to_numpy(float), ends, np.nan),
        y=np.insert(curves["value"].to_numpy(float), ends, np.nan),
        customdata=np.insert(curves["trial"].to_numpy(float), ends, np.nan),
        name=name,
        mode="markers" if is_short else "lines+markers" if len(curves) < 200 else "lines",
        line={"color": colour, "width": width, "dash": dash},
        marker={"color": colour, "size": 5 if is_short else 3 + width},
        hovertemplate=f"trial %{{customdata}}, epoch %{{x}}: %{{y:{number_format(metric)}}}"
        "<extra></extra>",
    )


def size_chart(
    sizes: pd.DataFrame, cost: str, metric: str, winner: int | None, called: str = "winner"
) -> go.Figure:
    """Complete trials: the objective against what the network costs, with the Pareto front."""
    figure = new_figure(height=340)
    front = sizes[sizes["is_on_front"]].sort_values("cost")
    hover = (
        f"trial %{{customdata}}<br>%{{x:,}} {cost}: %{{y:{number_format(metric)}}}<extra></extra>"
    )
    figure.add_scatter(
        x=front["cost"].to_numpy(float),
        y=front["value"].to_numpy(float),
        customdata=front["trial"].to_numpy(),
        name="Pareto front: no other is better in both",
        mode="lines+markers",
        line={"color": ORANGE, "shape": "hv", "width": 1.6},
        marker={"size": 11, "color": "white", "line": {"color": ORANGE, "width": 2}},
        hovertemplate=hover,
    )
    for name, own, colour in (
        ("complete trials", sizes, BLUE),
        (called, sizes[sizes["trial"] == winner], ORANGE),
    ):
        figure.add_scatter(
            x=own["cost"].to_numpy(float),
            y=own["value"].to_numpy(float),
            customdata=own["trial"].to_numpy(),
            name=name,
            mode="markers",
            marker={"color": colour, "size": 7},
            hovertemplate=hover,
        )
    figure.update_xaxes(title=cost, type="log", exponentformat="SI")
    value_axis(figure, sizes["value"], metric)
    return figure
