"""What a search prints: for people, for scripts, or for machines."""

import errno
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


_REFUSED = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room, and go on with the same command"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "see who may read and write there"),
}
"""What to do where the system refuses to read or write a file, by its error."""


def what_to_mend(error: BaseException) -> str | None:
    """What is told of an error that the user can mend, with exit code 2; None of a defect."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _REFUSED:
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}; {_REFUSED[error.errno]}"
    return None


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
            told = what_to_mend(error)
            code = 128 + signal.SIGINT if is_stopped else 1 if told is None else 2
            print_event(
                {
                    "event": "error",
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "kind": "interrupted" if is_stopped else "error",
                    "message": first_line(error) if told is None else told,
                    "exit_code": code,
                }
            )
        raise
