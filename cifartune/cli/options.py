"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer


def _a_folder(runs: Path) -> Path:
    from cifartune.begin import check_folder

    check_folder(runs)
    return runs


RunsOption = Annotated[
    Path, typer.Option("--runs", help="The folder of all runs.", callback=_a_folder)
]
UriOption = Annotated[
    str | None,
    typer.Option(help="MLflow store. Default: MLFLOW_TRACKING_URI, else <runs>/mlflow.db."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a key of the file; may be given repeatedly."
    ),
]
SpaceArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A search-space file.")]
DataDirOption = Annotated[
    Path | None, typer.Option(help="A folder with the official CIFAR-10 files.")
]
AddressOption = Annotated[
    str,
    typer.Option(
        envvar="RAY_ADDRESS",
        help="The Ray cluster to run on: host:port, or auto for one that runs here. Default: one "
        "of its own.",
        show_default=False,
    ),
]
LOCAL = "local"
