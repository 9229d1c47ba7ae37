"""Finished searches side by side, a row each."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cifartune.errors import UserError, first_line
from cifartune.report.headline import headline
from cifartune.runs import RunFolder

SHOWN = (
    "name",
    "winner",
    "cv_accuracy",
    "cv_low",
    "cv_high",
    "test_accuracy",
    "verdict",
    "trials",
    "seconds",
)
"""Of the columns, those that a table has room for."""


def leaderboard_frame(
    runs: Path, names: Sequence[str], tell: Callable[[str], Any] = lambda line: None
) -> pd.DataFrame:
    """The outcome of each search in a row, the best out-of-fold accuracy first.

    Args:
        runs: The folder of all runs.
        names: Searches, which have to be finished. None: all that are.
        tell: Called with a line about a search that was not named and cannot be read.

    Raises:
        UserError: A search that was named cannot be read, or there is none.
    """
    rows = []
    for run in (
        [RunFolder.open(runs, name) for name in names]
        if names
        else [RunFolder(path.parent) for path in sorted(runs.glob("*/result.json"))]
    ):
        try:
            rows.append(_row(run))
        except UserError as error:
            if names:
                raise
            tell(str(error))
    if not rows:
        raise UserError(f"{runs}: there are no finished searches; say where they are: --runs")
    return pd.DataFrame(rows).sort_values("cv_accuracy", ascending=False, kind="stable")


def _row(run: RunFolder) -> dict[str, Any]:
    result = run.outcome
    try:
        row = headline(result)
    except (TypeError, AttributeError) as error:
        raise UserError(f"{run.result}: cannot be read: {first_line(error)}") from None
    # A search may have been moved, or copied, under another name.
    return {**row, "name": run.name, "changed": ", ".join(row["changed"])}
