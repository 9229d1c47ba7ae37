"""The commands that print what searches found, as table, CSV, JSON or YAML."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cifartune.cli.options import RunsOption


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


class RecipeFormat(StrEnum):
    """How a recipe is printed."""

    YAML = "yaml"
    JSON = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="How rows are printed.")]
SortOption = Annotated[
    str, typer.Option(metavar="COLUMN", help="Sort by a column; -COLUMN: the largest first.")
]
FilterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="COLUMN=VALUE",
        help="Only such rows, also with !=, <, <=, >, >=; may be given repeatedly.",
    ),
]
ColumnsOption = Annotated[
    str | None, typer.Option(metavar="A,B,...", help="The columns, in this order.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="Rows at the most.")]


def trials(
    name: Annotated[str, typer.Argument(help="The run's name.")],
    format: FormatOption = Format.TABLE,
    sort: SortOption = "",
    filters: FilterOption = None,
    columns: ColumnsOption = None,
    limit: LimitOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Print the trials of a search, running or finished: state, value, recipe, metrics."""
    from rich.console import Console

    from cifartune.config import load_space
    from cifartune.errors import UserError
    from cifartune.report.frames import trials_frame
    from cifartune.report.listing import Listing, print_listing, select
    from cifartune.runs import RunFolder
    from cifartune.tuning.recorded import recorded_study

    run = RunFolder.open(runs, name)
    space = load_space(run.space_file)
    frame = trials_frame(recorded_study(run, space))
    if frame.empty:
        raise UserError(f"{name}: there is no trial yet")
    some = ["trial", "state", "trained_epochs", "value", *space.parameters]
    wanted = Listing(filters or (), sort, columns.split(",") if columns else None, limit)
    print_listing(
        select(frame, wanted, some if format is Format.TABLE else None), format, Console()
    )


def best(
    name: Annotated[str, typer.Argument(help="The run's name.")],
    format: Annotated[
        RecipeFormat, typer.Option("--format", help="How the recipe is printed.")
    ] = RecipeFormat.YAML,
    runs: RunsOption = Path("runs"),
) -> None:
    """Print the best recipe as a search-space file, to train it or to search around it."""
    from cifartune.report.best import best_of, space_file_of
    from cifartune.runs import RunFolder

    found = best_of(RunFolder.open(runs, name))
    if format is RecipeFormat.JSON:
        typer.echo(json.dumps(found.as_dict(), indent=1))
    else:
        typer.echo(space_file_of(found), nl=False)


def leaderboard(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Searches. Default: all.")
    ] = None,
    format: FormatOption = Format.TABLE,
    sort: SortOption = "",
    filters: FilterOption = None,
    columns: ColumnsOption = None,
    limit: LimitOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Print finished searches side by side: winners, accuracies with intervals, verdicts, time."""
    from rich.console import Console

    from cifartune.report.leaderboard import SHOWN, leaderboard_frame
    from cifartune.report.listing import Listing, print_listing, select

    frame = leaderboard_frame(runs, names or (), lambda line: typer.echo(line, err=True))
    wanted = Listing(filters or (), sort, columns.split(",") if columns else None, limit)
    console = Console()
    print_listing(select(frame, wanted, SHOWN if format is Format.TABLE else None), format, console)
    if format is Format.TABLE and len(frame) > 1:
        console.print("Whether two of them differ, on the same images: cifartune compare A B")
