"""What a search prints: for people, for scripts, or for machines."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from cifartune.errors import Interrupted, UserError, first_line

if TYPE_CHECKING:
    from rich.console import Console

    from cifartune.report.terminal import MakeView

QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        help="Print the run's folder at the end, and nothing else but warnings and errors.",
    ),
]
JsonLinesOption = Annotated[
    bool,
    typer.Option(
        "--json-lines", help="Print every event as a line of JSON (docs/WATCHING.md), for machines."
    ),
]


@dataclass(frozen=True)
class Output:
    """How a search is shown.

    Attributes:
        console: For texts; silent where they are not for people.
        view: What shows the search while it runs; None: a terminal on the console.
    """

    console: "Console"
    view: "MakeView | None" = None


def chosen_output(quiet: bool, json_lines: bool) -> Output:
    """The output that the options ask for."""
    from rich.console import Console

    if not (quiet or json_lines):
        return Output(Console())
    from cifartune.report.terminal import JsonLines, Quiet

    return Output(Console(quiet=True), JsonLines if json_lines else Quiet)


@contextmanager
def told_if_it_fails(quiet: bool, json_lines: bool) -> Iterator[None]:
    """With --json-lines, the last line is an `error` event if the `with` block ends in one.

    Raises:
        UserError: Both are asked for.
    """
    if quiet and json_lines:
        raise UserError("--quiet and --json-lines: give one of them: they print to the same place")
    try:
        yield
    except BaseException as error:
        if json_lines:
            from cifartune.report.terminal import print_event

            is_stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            code = 128 + signal.SIGINT if is_stopped else 2 if isinstance(error, UserError) else 1
            print_event(
                {
                    "event": "error",
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "kind": "interrupted" if is_stopped else "error",
                    "message": str(error) if isinstance(error, UserError) else first_line(error),
                    "exit_code": code,
                }
            )
        raise
