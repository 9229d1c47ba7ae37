"""The commands about what a search runs on: the images, and several machines."""

from pathlib import Path

import typer

from cifartune.cli.options import LOCAL, AddressOption, DataDirOption, RunsOption

data_app = typer.Typer(help="The CIFAR-10 images.", no_args_is_help=True)
cluster_app = typer.Typer(help="Several machines.", no_args_is_help=True)


@data_app.command()
def fetch(data_dir: DataDirOption = None) -> None:
    """Fetch and verify CIFAR-10; instant when it is there already."""
    from cifartune.report.download import fetched

    typer.echo(fetched(data_dir))


@data_app.command()
def verify() -> None:
    """Check every image against the published hashes."""
    from cifartune.data import verify

    verify()
    typer.echo("All 60,000 images are as published.")


@data_app.command()
def info() -> None:
    """Show where the images are and where they came from."""
    from cifartune.data import CLASSES
    from cifartune.data import info as data_info

    found = data_info()
    typer.echo(
        f"folder   {found.path}\n"
        f"images   {found.train_images:,} for training, {found.test_images:,} for the test\n"
        f"size     {found.bytes / 1e6:,.0f} MB\n"
        f"source   {found.source}, {found.fetched:%Y-%m-%d}\n"
        "classes  "
        + ", ".join(f"{c} {n:,}" for c, n in zip(CLASSES, found.class_counts, strict=True))
    )


@cluster_app.command()
def check(
    address: AddressOption = LOCAL,
    runs: RunsOption = Path("runs"),
    data_dir: DataDirOption = None,
) -> None:
    """Say of each machine of a Ray cluster whether it can take part; fetch its images."""
    from rich.console import Console

    from cifartune.report.download import prepared

    root = prepared(data_dir)

    from cifartune.report.machine import machines_table
    from cifartune.tuning.cluster import OPEN, OWN, cluster, lets_everyone_in

    with cluster(address) as dashboard:
        from cifartune.tuning.machines import require_all, survey

        if address != OWN and lets_everyone_in(dashboard):
            typer.echo(f"note: {OPEN}")
        machines = survey(runs.resolve(), root)
    Console().print(machines_table(machines))
    require_all(machines)
