"""What the notebooks share: which search they read, and the pictures that several of them draw.

They draw with matplotlib, which is installed with `cifartune[notebook]`.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cifartune.config import Choice, Range
from cifartune.errors import UserError
from cifartune.report.figures import BLUE, GREY, ORANGE
from cifartune.report.tables import show_value

with warnings.catch_warnings():
    # In a notebook, tqdm would like widgets, which nothing here needs.
    warnings.filterwarnings("ignore", "IProgress not found")
    from cifartune.report.frames import COMPLETE, FAILED, STOPPED, UNFINISHED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas.io.formats.style import Styler

RED = "#b3261e"
WINNER = "winner"

COLOURS = {FAILED: RED, UNFINISHED: GREY, STOPPED: "#b4bac2", COMPLETE: BLUE, WINNER: ORANGE}
"""Of each way in which a trial ends, in the order of drawing: what matters most lies on top."""


def finished_run() -> Path:
    """The folder of the search that CIFARTUNE_RUN names, else of the newest in runs or ../runs.

    Raises:
        UserError: There is no finished search.
    """
    named = os.environ.get("CIFARTUNE_RUN")
    folders = [Path(named)] if named else [*Path("runs").glob("*"), *Path("../runs").glob("*")]
    finished = [file for folder in folders for file in folder.glob("result.json")]
    if not finished:
        raise UserError(
            f"no finished search in {named or './runs or ../runs'}: run `make search` first, or "
            "set CIFARTUNE_RUN to the folder of a run that has a result.json"
        )
    return max(finished, key=lambda file: file.stat().st_mtime).parent.resolve()


def set_look() -> None:
    """Makes matplotlib's figures plain: no frames, pale lines, legends without a box."""
    import matplotlib.pyplot as plt

    plt.rcdefaults()
    plt.rc("figure", dpi=110)
    plt.rc("figure.constrained_layout", use=True)
    plt.rc("axes", grid=True, axisbelow=True, titlelocation="left", titlesize="medium")
    plt.rc("axes.spines", top=False, right=False)
    plt.rc("grid", color="0.92")
    plt.rc("legend", frameon=False)


def write_values(axis: "Axes", metric: str) -> None:
    """Writes the objective on the vertical axis as people do: accuracies in percent."""
    from matplotlib.ticker import PercentFormatter

    if metric.endswith("accuracy"):
        axis.yaxis.set_major_formatter(PercentFormatter(1))


def draw_slices(
    points: pd.DataFrame,
    parameters: Mapping[str, Range | Choice],
    metric: str,
    winner: int,
    *,
    following: Mapping[str, Range | Choice] | None = None,
) -> None:
    """Draws the objective against each parameter, a dot a trial that has the parameter.

    Args:
        points: Of `points_frame`.
        parameters: What is drawn, and what each may be.
        metric: The objective's name.
        winner: The trial that is drawn on top.
        following: Ranges and values that are shaded: what the next search may try.
    """
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    rows = -(-len(parameters) // 2)
    fig, axes = plt.subplots(
        rows, 2, figsize=(9, 0.6 + 2.3 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    kinds = points["kind"].mask(points["trial"] == winner, WINNER)
    for axis, (name, parameter) in zip(axes.flat, parameters.items(), strict=False):
        if following and name in following:
            _shade(axis, parameter, following[name])
        own = points[points[name].notna()]
        x = own[name].map(lambda value, parameter=parameter: _position(parameter, value))
        if isinstance(parameter, Choice):  # so that no dot hides another
            x += np.random.default_rng(0).uniform(-0.18, 0.18, len(x))
            labels = [str(value).replace("_", "\n") for value in parameter.values]
            axis.set_xticks(range(len(labels)), labels, fontsize="small")
            axis.set_xlim(-0.5, len(labels) - 0.5)
        elif parameter.log:
            axis.set_xscale("log")
        for kind, colour in COLOURS.items():
            chosen = kinds[own.index] == kind
            axis.scatter(
                x[chosen], own["value"][chosen], s=36, color=colour, edgecolor="white", label=kind
            )
        axis.set_xlabel(name)
        write_values(axis, metric)
    for axis in axes.flat[len(parameters) :]:
        axis.set_visible(False)
    shown = [kind for kind in COLOURS if (kinds == kind).any()]
    handles = [Line2D([], [], color=COLOURS[k], marker="o", ls="", label=k) for k in shown]
    fig.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    plt.show()


def draw_importance(importance: pd.DataFrame) -> None:
    """Draws the shares of `importance_frame` with their intervals, and the even share."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    names = list(dict.fromkeys(importance["parameter"]))
    _, axis = plt.subplots(figsize=(9, 1 + 0.45 * len(names)))
    for number, (method, own) in enumerate(importance.groupby("method", sort=False)):
        height = own["parameter"].map(names.index) + 0.26 * number - 0.13
        colour = (BLUE, ORANGE)[number]
        axis.hlines(height, own["low"], own["high"], color=colour, alpha=0.5)
        axis.plot(own["share"], height, "o", color=colour, label=method)
    axis.axvline(1 / len(names), color=GREY, linewidth=1, linestyle="--", label="even share")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, None)
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    plt.show()


def table_of_words(rows: Sequence[dict[str, str]], index: str) -> "Styler":
    """A table for reading: its cells begin at the left."""
    table = pd.DataFrame(rows).set_index(index).style
    return table.set_table_styles([{"selector": "th, td", "props": "text-align: left"}])


def shown_parameter(parameter: Range | Choice | None) -> str:
    """What a parameter may be, for a cell of a table."""
    if parameter is None:
        return "one value"
    if isinstance(parameter, Choice):
        return ", ".join(map(show_value, parameter.values))
    return f"{parameter.min:g} to {parameter.max:g}"


def _position(parameter: Range | Choice, value: object) -> float:
    """Where a value lies on its axis; of a choice, the place in the list."""
    if isinstance(parameter, Range):
        return float(str(value))
    return float([str(other) for other in parameter.values].index(str(value)))


def _shade(axis: "Axes", before: Range | Choice, after: Range | Choice) -> None:
    if isinstance(after, Range):
        axis.axvspan(after.min, after.max, color=BLUE, alpha=0.08, linewidth=0)
        return
    for value in after.values:
        place = _position(before, value)
        axis.axvspan(place - 0.5, place + 0.5, color=BLUE, alpha=0.08, linewidth=0)
