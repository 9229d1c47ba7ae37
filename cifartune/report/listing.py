"""Tables for the command line: filtered, sorted, and printed as a table, CSV or JSON."""

import json
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cifartune.config.problems import nearest
from cifartune.errors import UserError
from cifartune.report.event_log import finite
from cifartune.report.tables import headings, show_time

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
"""Of filters, those of two letters first."""


@dataclass(frozen=True)
class Listing:
    """What is wanted of a table.

    Attributes:
        filters: Such as `optimizer.name=adamw` or `value>=0.8`; a row has to pass all.
        sort: The column to sort by; with `-` in front, the largest first. Empty: as it is.
        columns: Which to keep, in this order. None: those of the table's own choice.
        limit: Rows at the most.
    """

    filters: Sequence[str] = ()
    sort: str = ""
    columns: Sequence[str] | None = None
    limit: int | None = None


def select(
    frame: pd.DataFrame, wanted: Listing, shown: Sequence[str] | None = None
) -> pd.DataFrame:
    """The rows and columns of a frame that are wanted.

    Args:
        frame: The table; its columns can be sorted and filtered by, also those not shown.
        wanted: What of it.
        shown: The columns if none are asked for. Default: all.

    Raises:
        UserError: There is no such column, or a filter makes no sense.
    """
    for text in wanted.filters:
        frame = frame[_passes(frame, text)]
    if wanted.sort:
        name = _column(frame, "--sort", wanted.sort.removeprefix("-"))
        is_falling = wanted.sort.startswith("-")
        frame = frame.sort_values(
            name, ascending=not is_falling, kind="stable", na_position="last", key=_sortable
        )
    if wanted.columns is not None:
        names = [_column(frame, "--columns", name.strip()) for name in wanted.columns]
        shown = list(dict.fromkeys(names))
    if wanted.limit is not None:
        frame = frame.head(wanted.limit)
    return frame if shown is None else frame[list(shown)]


def print_listing(frame: pd.DataFrame, format: str, console: Console) -> None:
    """Prints a frame: for people, numbers are short; as CSV and JSON they are whole."""
    if format == "csv":
        console.file.write(frame.to_csv(index=False))
    elif format == "json":
        rows = [{str(k): _plain(v) for k, v in row.items()} for row in frame.to_dict("records")]
        console.file.write(json.dumps(finite(rows), indent=1, allow_nan=False) + "\n")
    else:
        console.print(_table(frame, console.width), highlight=False)


def _table(frame: pd.DataFrame, width: int) -> Table:
    """The columns for which there is room in `width`; the others are named below."""
    names = [str(name) for name in frame.columns]
    texts = {name: [_short(name, value) for value in frame[name]] for name in names}
    heading_of = headings(names)
    widths = {name: max(map(len, [heading_of[name], *texts[name]])) for name in names}
    shown = list(names)
    while len(shown) > 1 and sum(widths[name] + 2 for name in shown) - 2 > width:
        shown.pop()
    caption = f"not shown: {', '.join(names[len(shown) :])}" if len(shown) < len(names) else None
    table = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), caption=caption, caption_justify="left"
    )
    for name in shown:
        is_number = pd.api.types.is_numeric_dtype(frame[name])
        is_number = is_number and not pd.api.types.is_bool_dtype(frame[name])
        table.add_column(
            heading_of[name], justify="right" if is_number else "left", overflow="fold"
        )
    for row in zip(*(texts[name] for name in shown), strict=True):
        table.add_row(*map(Text, row))
    return table


def _passes(frame: pd.DataFrame, text: str) -> "pd.Series[bool]":
    """Which rows pass a filter; a value that is not there passes none but `!=`."""
    found = re.fullmatch(r"(.+?)(==|!=|<=|>=|=|<|>)(.*)", text)
    if not found:
        raise UserError(
            f"--filter {text}: must be COLUMN=VALUE, or with !=, <, <=, > or >= in between"
        )
    name, sign, wanted = (part.strip() for part in found.groups())
    column = frame[_column(frame, f"--filter {text}", name)]
    compare = OPERATORS[sign]
    numbers = pd.to_numeric(column, errors="coerce")
    try:
        return pd.Series(compare(numbers.astype(float), float(wanted)), index=frame.index)
    except ValueError:  # it is a word
        if sign not in ("=", "==", "!="):
            raise UserError(
                f"--filter {text}: {sign} compares numbers, and {wanted!r} is none; use = or !="
            ) from None
    return pd.Series(compare(column.map(_word), wanted.lower()), index=frame.index)


def _word(value: Any) -> str:
    return "" if value is None or value != value else str(value).lower()


def _sortable(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Numbers as numbers; a column of other things by their words."""
    return column if pd.api.types.is_numeric_dtype(column) else column.map(_word)


def _column(frame: pd.DataFrame, where: str, name: str) -> str:
    if name in frame.columns:
        return name
    known = [str(column) for column in frame.columns]
    meant = " or ".join(nearest(name, known))
    told = f"did you mean {meant}?" if meant else "--format csv has them all in its first line"
    raise UserError(f"{where}: there is no column {name!r}; {told}")


def _plain(value: Any) -> Any:
    """A value of a frame as JSON has it."""
    return value.item() if hasattr(value, "item") else value


def _short(name: str, value: Any) -> str:
    if value is None or value != value:
        return ""
    if not isinstance(value, float):
        return str(value)
    if name.endswith(("accuracy", "_low", "_high")):
        return f"{value:.2%}"
    return show_time(value) if name == "seconds" else f"{value:.4g}"
