"""The commands that show a search from another terminal, and leave it alone."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cifartune.cli.options import RunsOption

NameArgument = Annotated[
    str | None,
    typer.Argument(help="The run's name. Default: the one that runs, else the newest."),
]


def status(
    name: NameArgument = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """Say where a search stands: trials, best, rungs, refit, time left, addresses."""
    from rich.console import Console

    from cifartune.report.status import find_run, print_status, status_json, status_of

    found = status_of(find_run(runs, name))
    if as_json:
        typer.echo(json.dumps(status_json(found), indent=1))
    else:
        print_status(found, Console())


def watch(name: NameArgument = None, runs: RunsOption = Path("runs")) -> None:
    """Show a running search live until it ends; Ctrl-C leaves the search alone."""
    from rich.console import Console

    from cifartune.errors import Interrupted
    from cifartune.report.status import find_run, status_of
    from cifartune.report.status import watch as show

    run = find_run(runs, name)
    try:
        show(status_of(run), Console())
    except KeyboardInterrupt:
        raise Interrupted(f"cifartune: no longer watching {run.name}, which goes on") from None
