"""The table of trials, live and as a leaderboard, and how its values are written."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
    "trained_epochs": "epochs",
    "cv_accuracy": "cv",
    "cv_low": "low",
    "cv_high": "high",
    "test_accuracy": "test",
    "seconds": "time",
}
"""Headings that are shorter than the last part of a field's name."""


TEXT_WIDTH = 5
"""To so many letters a word may be cut."""


@dataclass
class Row:
    """A trial as the table shows it.

    Attributes:
        number: Its number; 0 is the baseline.
        values: Those of the searched fields, by dotted name.
        epochs: At which it ends, if nothing ends it before.
        state: `running`, `complete`, `stopped`, or the kind of its failure.
        epoch: The last that it has trained.
        value: The objective's, at the epoch that counts.
        feasible: Whether its recipe kept the constraints and did not fail.
        objectives: By metric, once it is over.
    """

    number: int
    values: dict[str, Any] = field(repr=False)
    epochs: int
    state: str = "running"
    epoch: int = 0
    value: float | None = None
    feasible: bool = True
    objectives: dict[str, float] = field(default_factory=dict, repr=False)


def trials_table(
    metric: str,
    parameters: Sequence[str],
    rows: Iterable[Row],
    *,
    width: int = 80,
    titles: Mapping[int, str] | None = None,
) -> Table:
    """A row a trial, in `width` columns.

    Where that is narrow, words are cut short, and never numbers; parameters for which there is no
    room are left out, the last first, and named below. `titles` are put above the rows at these
    places.
    """
    rows = list(rows)
    columns = {
        "trial": [f"{row.number}{'' if row.number else '*'}" for row in rows],
        "state": [row.state for row in rows],
        "epoch": [f"{row.epoch}/{row.epochs}" for row in rows],
        short(metric): ["" if row.value is None else show(metric, row.value) for row in rows],
    }
    heading_of = headings(parameters, taken=columns)
    columns |= {
        heading_of[name]: [
            show_value(row.values[name]) if name in row.values else "" for row in rows
        ]
        for name in parameters
    }
    words = {
        heading_of[name]
        for name in parameters
        if any(isinstance(row.values.get(name), str) for row in rows)
    }

    def widest(heading: str) -> int:
        return max(map(len, [heading, *columns[heading]]))

    def least(heading: str) -> int:
        is_text = heading in words or heading == "state"
        return min(TEXT_WIDTH, widest(heading)) if is_text else widest(heading)

    hidden: list[str] = []
    for name in reversed(parameters):
        if sum(least(heading) + 1 for heading in columns) <= width:
            break
        hidden.insert(0, name)
        del columns[heading_of[name]]
    room = width - sum(least(heading) + 1 for heading in columns)
    caption = "* baseline" + (f"; not shown: {', '.join(hidden)}" if hidden else "")
    table = Table(box=None, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    for heading in columns:
        left = heading in words or heading == "state"
        more = max(0, min(room, widest(heading) - least(heading)))
        room -= more
        table.add_column(
            heading,
            justify="left" if left else "right",
            no_wrap=True,
            overflow="ellipsis",
            width=least(heading) + more,
        )
    for place, (row, *line) in enumerate(zip(rows, *columns.values(), strict=True)):
        if titles and place in titles:
            table.add_row(titles[place], style="dim")
        table.add_row(*line, style="bold" if row.state == "running" else "")
    return table


def headings(names: Sequence[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Each column's heading by its name: short where no other column has the same, nor `taken`."""
    counts = Counter([*map(short, names), *taken])
    return {name: short(name) if counts[short(name)] == 1 else name for name in names}


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
