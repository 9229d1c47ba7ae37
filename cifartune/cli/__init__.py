"""The command line: it parses, calls one function, and prints."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cifartune.cli import answers, listing, pages, using, watching
from cifartune.cli.machine import cluster_app, data_app
from cifartune.cli.options import (
    LOCAL,
    AddressOption,
    DataDirOption,
    RunsOption,
    SetOption,
    SpaceArgument,
    UriOption,
)
from cifartune.cli.output import (
    JsonLinesOption,
    Output,
    QuietOption,
    chosen_output,
    told_if_it_fails,
    what_to_mend,
)

if TYPE_CHECKING:
    from cifartune.config import SearchSpace
    from cifartune.runs import RunFolder

_STARTED = time.monotonic()

app = typer.Typer(
    help="Hyper-parameter search for CIFAR-10 classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(cluster_app, name="cluster")


@app.command()
def search(
    space_file: SpaceArgument,
    overrides: SetOption = None,
    name: Annotated[str | None, typer.Option(help="The run's name. Default: the file's.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Shrink everything: does it all work here?")
    ] = False,
    runs: RunsOption = Path("runs"),
    tracking_uri: UriOption = None,
    storage: Annotated[
        str,
        typer.Option(
            help="Optuna URL of the database for the study, such as postgresql://user@host/db. "
            "Default: study.db in the run's folder.",
            show_default=False,
        ),
    ] = "",
    data_dir: DataDirOption = None,
    address: AddressOption = LOCAL,
    sealed: Annotated[
        bool,
        typer.Option(
            "--sealed", help="Leave the test set closed; cifartune evaluate opens it another day."
        ),
    ] = False,
    copy_to: Annotated[
        str,
        typer.Option(
            metavar="URI",
            help="Keep a copy of the run's folder there, such as s3://bucket/runs: "
            "cifartune restore brings it back.",
            show_default=False,
        ),
    ] = "",
    quiet: QuietOption = False,
    json_lines: JsonLinesOption = False,
) -> None:
    """Search, refit the best by cross-validation, evaluate once, report."""
    from cifartune.begin import new_run
    from cifartune.config import load_space, smoke_space

    with told_if_it_fails(quiet, json_lines):
        space = load_space(space_file, overrides or ())
        if smoke:
            space = smoke_space(space)
        with new_run(
            space,
            source=str(space_file),
            runs=runs,
            name=name,
            tracking_uri=tracking_uri,
            storage=storage,
            data_dir=data_dir,
            address=address,
            sealed=sealed,
            copy_to=copy_to,
        ) as (run, root):
            _run(space, run, root, address, chosen_output(quiet, json_lines))


@app.command()
def resume(
    name: Annotated[str, typer.Argument(help="The run's name.")],
    num_trials: Annotated[
        int | None, typer.Option(help="Trials in all: more than before, to extend the search.")
    ] = None,
    time_budget: Annotated[
        str | None, typer.Option(help="The time for all trials, such as 2h; none: no limit.")
    ] = None,
    overrides: SetOption = None,
    runs: RunsOption = Path("runs"),
    data_dir: DataDirOption = None,
    address: AddressOption = LOCAL,
    quiet: QuietOption = False,
    json_lines: JsonLinesOption = False,
) -> None:
    """Go on with an interrupted search where it stopped, or extend a finished one.

    Ranges can be made wider: --set parameters.optimizer.lr.max=3.
    """
    from cifartune.extend import space_to_resume
    from cifartune.report.download import prepared
    from cifartune.runs import RunFolder

    with told_if_it_fails(quiet, json_lines):
        run = RunFolder.open(runs, name)
        wanted = list(overrides or ())
        if num_trials is not None:
            wanted.append(f"search.num_trials={num_trials}")
        if time_budget is not None:
            wanted.append(f"search.time_budget={'null' if time_budget == 'none' else time_budget}")
        space = space_to_resume(run, wanted, _tell)
        _run(space, run, prepared(data_dir), address, chosen_output(quiet, json_lines))


@app.command()
def restore(
    uri: Annotated[str, typer.Argument(help="The copy of a run, such as s3://bucket/runs/quick.")],
    runs: RunsOption = Path("runs"),
) -> None:
    """Bring a run's folder back from the copy that search --copy-to kept of it."""
    from cifartune import copies

    run = copies.restore(uri, runs)
    typer.echo(f"{run.path}: restored; go on with: {run.resume_command}")


@app.command()
def sync(
    name: Annotated[str, typer.Argument(help="The run's name.")],
    runs: RunsOption = Path("runs"),
) -> None:
    """Send to MLflow what it could not be sent during a search."""
    from cifartune.begin import checked_uri
    from cifartune.passwords import without_password
    from cifartune.runs import RunFolder
    from cifartune.tracking import count_refused, send_rest

    run = RunFolder.open(runs, name)
    checked_uri(run.tracking_uri, runs)
    with run.locked(_tell):
        count, left = send_rest(run.tracking_uri, run), count_refused(run)
    typer.echo(f"{count} events sent to {without_password(run.tracking_uri)}")
    if left:
        _tell(f"MLflow refuses {left} events of {name}, which are kept: {run.refused}")


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="The run's name.")],
    runs: RunsOption = Path("runs"),
    data_dir: DataDirOption = None,
) -> None:
    """Check that a search's study, files and MLflow runs fit together; 1 if they do not."""
    from cifartune.check import check_run
    from cifartune.report.download import prepared
    from cifartune.runs import RunFolder

    run = RunFolder.open(runs, name)
    root = prepared(data_dir) if run.result.exists() else Path()
    with run.locked(_tell):
        findings = check_run(run, root)
    for finding in findings:
        typer.echo(finding)
    if findings:
        raise typer.Exit(1)
    typer.echo(f"{name}: study, files and MLflow fit together")


@app.command()
def validate(
    space_files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Search-space files.")
    ],
    overrides: SetOption = None,
) -> None:
    """Check files: every error at once, with line, key, rule and suggestion."""
    from cifartune.config import load_space
    from cifartune.errors import UserError

    wrong = []
    for path in space_files:
        try:
            space = load_space(path, overrides or ())
        except UserError as error:
            wrong.append(str(error))
            continue
        typer.echo(
            f"{path}: valid; {len(space.parameters)} parameters, {space.search.num_trials} trials"
        )
        for note in space.notes():
            typer.echo(f"{path}: note: {note}")
    if wrong:
        raise UserError("\n".join(wrong))


@app.command()
def plan(
    space_file: SpaceArgument,
    overrides: SetOption = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Plan the smoke run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    runs: RunsOption = Path("runs"),
    data_dir: DataDirOption = None,
    address: AddressOption = LOCAL,
) -> None:
    """Say what a search will cost: a rehearsal, and a minute's measuring on this machine."""
    import json

    from rich.console import Console

    from cifartune.begin import check_ahead
    from cifartune.config import load_space, smoke_space
    from cifartune.report.download import prepared

    space = load_space(space_file, overrides or ())
    if smoke:
        space = smoke_space(space)
    check_ahead(space, str(space_file), runs, address)
    root = prepared(data_dir)

    from cifartune.planning.ahead import plan_search
    from cifartune.report.planned import plan_table, savings_lines
    from cifartune.tuning.warm_start import load_warm_start

    warm_start = load_warm_start(space, runs)
    planned = plan_search(
        space,
        data_root=root,
        started=_STARTED,
        warm_start=warm_start,
        address=address,
        runs=None if address == LOCAL else runs.resolve(),
    )
    if as_json:
        typer.echo(json.dumps(planned.as_dict(), indent=1))
        return
    console = Console()
    console.print(plan_table(planned))
    for note in space.notes():
        console.print(f"note: {note}", highlight=False)
    if lines := savings_lines(planned):
        console.print("\n[bold]To be faster[/]")
        console.print("\n".join(lines), highlight=False)


@app.command()
def augment(
    space_file: SpaceArgument,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("augment.png"),
    overrides: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Draw what the baseline's augmentation does to training images, at several strengths."""
    from cifartune.config import load_space
    from cifartune.report.download import prepared

    space = load_space(space_file, overrides or ())
    root = prepared(data_dir)

    from cifartune.report.contact_sheet import sheet_of, write_sheet

    write_sheet(sheet_of(space, root), out)
    typer.echo(out)


@app.command()
def describe(
    key: Annotated[str | None, typer.Argument(help="A key or a section, such as search.")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a file, for editors.")
    ] = False,
) -> None:
    """Print what a key may be and means; without a key, every field of the recipe."""
    from cifartune.config import reference

    if schema:
        typer.echo(reference.schema_text(), nl=False)
        return

    from rich.console import Console
    from rich.padding import Padding

    console = Console()
    for entry in reference.find_entries(key) if key else reference.recipe_entries():
        default = f"; default {entry.default}" if entry.default not in ("", "section") else ""
        console.print(f"[bold]{entry.name}[/]  {entry.domain}{default}", highlight=False)
        text = " ".join([entry.description, *entry.remarks])
        console.print(Padding(text, (0, 0, 0, 4)), highlight=False)
    if not key:
        sections = "search, scheduler, refit, data, parameters, ..."
        console.print(f"\nThe file's other keys: cifartune describe SECTION ({sections})")


for command in (
    *(watching.status, watching.watch),
    *(listing.trials, listing.best, listing.leaderboard),
    *(answers.evaluate, answers.compare, answers.reproduce, answers.report),
    *(using.predict, using.export, pages.ui),
):
    app.command()(command)


def main() -> None:
    """Runs the command line; a mistake of the user's ends it with exit code 2."""
    from cifartune.errors import Interrupted

    try:
        app()
    except (Interrupted, KeyboardInterrupt) as error:
        print(str(error) or "cifartune: stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        told = what_to_mend(error)
        if told is None:
            raise
        print(f"cifartune: {told}", file=sys.stderr)
        if isinstance(error, OSError):
            # What standard output did not take must not fail once more when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)


def _run(
    space: "SearchSpace",
    run: "RunFolder",
    root: Path,
    address: str,
    output: Output | None = None,
) -> None:
    from cifartune.begin import told_how_to_go_on
    from cifartune.passwords import without_password

    output = output or chosen_output(quiet=False, json_lines=False)
    with told_how_to_go_on(run):
        from cifartune.stages import Search

        Search(
            space,
            run,
            data_root=root,
            console=output.console,
            view=output.view,
            command=" ".join(["cifartune", *map(without_password, sys.argv[1:])]),
            started=_STARTED,
            address=address,
        ).run()


def _tell(line: str) -> None:
    typer.echo(line, err=True)
