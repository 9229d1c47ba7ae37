"""The table of trials, live and as a leaderboard, and how its values are written."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

SHORT = {
    "optimizer.name": "optim",
    "optimizer.weight_decay": "decay",
    "optimizer.momentum": "mom",
    "model.name": "model",
    "model.dropout": "drop",
    "augment.strength": "augm",
    "val_accuracy": "valid",
    "label_smoothing": "smooth",
}
"""Headings that are shorter than the last part of a field's name."""


@dataclass
class Row:
    """A trial as the table shows it; `values` are those of the searched fields, by dotted name."""

    number: int
    values: dict[str, Any] = field(repr=False)
    epochs: int
    state: str = "running"
    epoch: int = 0
    value: float | None = None


def trials_table(metric: str, parameters: Sequence[str], rows: Iterable[Row]) -> Table:
    """A row a trial. Where the terminal is narrow, words are cut short, and never numbers."""
    rows = list(rows)
    columns = {
        "trial": [f"{row.number}{'' if row.number else '*'}" for row in rows],
        "state": [row.state for row in rows],
        "epoch": [f"{row.epoch}/{row.epochs}" for row in rows],
        short(metric): ["" if row.value is None else show(metric, row.value) for row in rows],
    }
    columns |= {short(name): [show_value(row.values[name]) for row in rows] for name in parameters}
    words = {short(name) for name in parameters if rows and isinstance(rows[0].values[name], str)}
    table = Table(box=None, padding=(0, 1, 0, 0), caption="* baseline", caption_justify="left")
    for heading, cells in columns.items():
        widest = max(map(len, [heading, *cells]))
        left = heading in words or heading == "state"
        table.add_column(
            heading,
            justify="left" if left else "right",
            no_wrap=True,
            overflow="ellipsis",
            min_width=5 if left else widest,
        )
    for row, *line in zip(rows, *columns.values(), strict=True):
        table.add_row(*line, style="bold" if row.state == "running" else "")
    return table


def short(name: str) -> str:
    """A column's heading: short enough for six of them on 80 columns."""
    return SHORT.get(name, name.split(".")[-1].replace("_", " "))


def show(metric: str, value: float) -> str:
    """A metric for people: accuracies in percent."""
    if metric.endswith("accuracy"):
        return f"{value:.2%}"
    return f"{value:.4f}" if metric.endswith("loss") else f"{value:,.0f}"


def show_value(value: Any) -> str:
    """A recipe value for people: two significant digits."""
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def show_time(seconds: float) -> str:
    """A duration for people: `40 s`, `5 min 39 s`, `3 h 20 min`, `2.5 days`."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 36:
        return f"{seconds / 86400:.1f} days"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
