"""Pages to look at a search in a browser: MLflow's."""

from pathlib import Path
from typing import Annotated

import typer

from cifartune.cli.options import RunsOption


def ui(
    name: Annotated[
        str | None, typer.Argument(help="The run's name. Default: all runs of the folder.")
    ] = None,
    runs: RunsOption = Path("runs"),
    host: Annotated[
        str, typer.Option(help="The address to listen on; others than this let others in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Default: 5000, or the next that is free.", show_default=False
        ),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open it in a browser.")
    ] = True,
) -> None:
    """Open MLflow on a search: its trials side by side. Ctrl-C ends it.

    MLflow has no password: who reaches the port can change and delete all runs.

    From another machine: ssh -L 5000:127.0.0.1:5000 THIS-MACHINE

    A server with passwords, for several people: docs/MLFLOW.md
    """
    import signal
    import webbrowser

    from cifartune.errors import UserError
    from cifartune.tracking.server import find_page, free_port, is_local, serving

    page = find_page(runs, name)
    if page.server:
        typer.echo(page.address(page.server))
        if browser:
            webbrowser.open(page.address(page.server))
        return
    port = free_port(host, port)
    for sent in (signal.SIGTERM, signal.SIGHUP):  # as a Ctrl-C: the server has to end, too
        signal.signal(sent, signal.default_int_handler)
    if not is_local(host):
        typer.echo(
            f"Anyone who can reach {host}:{port} can read, change and delete all runs: MLflow asks "
            "for no password.",
            err=True,
        )
    with serving(page.uri, host, port) as (process, address):
        typer.echo(page.address(address))
        typer.echo("Ctrl-C ends it.")
        if is_local(host):
            typer.echo(f"From another machine: ssh -L {port}:127.0.0.1:{port} THIS-MACHINE")
        if browser:
            webbrowser.open(page.address(address))
        try:
            process.wait()
        except KeyboardInterrupt:
            return
    raise UserError("MLflow's server has ended by itself")
