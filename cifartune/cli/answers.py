"""The commands about what a search found, and how sure that is."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cifartune.cli.options import DataDirOption, RunsOption, UriOption


def evaluate(
    name: Annotated[str, typer.Argument(help="The run's name.")],
    again: Annotated[
        bool, typer.Option("--again", help="Look once more, where the winner was looked at.")
    ] = False,
    runs: RunsOption = Path("runs"),
    data_dir: DataDirOption = None,
) -> None:
    """Judge a search's winner on the test set, once; every look is counted."""
    import sys

    from rich.console import Console

    from cifartune.config import load_space
    from cifartune.report.download import prepared
    from cifartune.runs import RunFolder

    run = RunFolder.open(runs, name)
    root = prepared(data_dir)

    from cifartune.stages import Search

    search = Search(
        load_space(run.space_file),
        run,
        data_root=root,
        console=Console(),
        command=" ".join(["cifartune", *sys.argv[1:]]),
    )
    search.evaluate(again=again)


def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="A B...",
            help="Finished searches, trials of them (NAME:TRIAL), or ids of MLflow runs of either.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder for comparison.csv and comparison.png. Default: one in "
            "<runs>/_comparisons.",
            show_default=False,
        ),
    ] = None,
    runs: RunsOption = Path("runs"),
    tracking_uri: UriOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Compare recipes on the same images: by how much they differ, and whether that is sure."""
    from cifartune.entries import find_entries
    from cifartune.report.download import prepared
    from cifartune.tracking import default_uri

    entries = find_entries(names, runs, tracking_uri or default_uri(runs))
    root = prepared(data_dir)

    from rich.console import Console

    from cifartune.comparison import compare as compare_entries
    from cifartune.data import load_train
    from cifartune.report.compared import default_folder, print_comparison, write_comparison

    compared = compare_entries(entries, load_train(root).labels)
    console = Console()
    print_comparison(compared, console)
    console.print()
    for path in write_comparison(compared, out or default_folder(entries, runs)):
        console.print(str(path), highlight=False, soft_wrap=True)


def reproduce(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="The id of an MLflow run; or NAME of a search, for its winner; NAME:TRIAL; or a "
            "fold, such as NAME:refit-3-fold-0.",
        ),
    ],
    runs: RunsOption = Path("runs"),
    tracking_uri: UriOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Train a logged run again, from MLflow alone: 1 if something else comes out."""
    from cifartune.originals import find_original
    from cifartune.report.download import prepared

    original = find_original(run, runs, tracking_uri)
    root = prepared(data_dir)

    from cifartune.interrupt import ctrl_c
    from cifartune.reproduce import Reproduction
    from cifartune.reproduce import reproduce as train_again
    from cifartune.training.memory import run_keeping_memory

    found: list[Reproduction] = []
    with ctrl_c(lambda _: typer.echo("Stopping after the epoch under way.")) as stop:
        # As in a slot: it is faster.
        run_keeping_memory(
            lambda: found.append(train_again(original, root, say=typer.echo, stop=stop))
        )
    [reproduction] = found
    for pair in reproduction.pairs:
        typer.echo(pair)
    typer.echo(reproduction.verdict)
    if not reproduction.holds:
        raise typer.Exit(1)


def report(
    name: Annotated[str, typer.Argument(help="The run's name.")],
    form: Annotated[
        Literal["html", "md"],
        typer.Option("--format", help="html: a page with figures; md: Markdown, tables alone."),
    ] = "html",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write. Default: the run's report.html; Markdown is printed.",
            show_default=False,
        ),
    ] = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Write the report of a search: what won, by how much, how sure that is, what to do next.

    Of an unfinished search it tells what is known so far.
    """
    from cifartune.runs import RunFolder

    run = RunFolder.open(runs, name)

    from cifartune.report.report import report as report_of
    from cifartune.report.report import save

    text = report_of(run, form)
    if form == "md" and out is None:
        typer.echo(text, nl=False)
        return
    path = out or run.report
    save(text, path)
    typer.echo(path)
