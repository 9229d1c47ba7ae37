"""The commands that use the models of a finished search: predict, export."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cifartune.cli.options import DataDirOption, RunsOption, UriOption

NamedArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A finished search, for its winner; a trial of it (NAME:TRIAL); or the id of an "
        "MLflow run of either.",
    ),
]
WhichOption = Annotated[
    Literal["folds", "all_images", "snapshots"] | None,
    typer.Option(
        "--model",
        help="The ensemble of the folds, one network trained on all images, or the ensemble of "
        "the folds' snapshots. Default: folds.",
        show_default=False,
    ),
]


def predict(
    name: NamedArgument,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Image files, or folders, with what is below."),
    ],
    model: WhichOption = None,
    top: Annotated[int, typer.Option(min=1, max=10, help="Classes to tell of each image.")] = 3,
    format: Annotated[
        Literal["table", "json", "csv"], typer.Option(help="How to print.")
    ] = "table",
    runs: RunsOption = Path("runs"),
    tracking_uri: UriOption = None,
) -> None:
    """Say what is in images of any size; 2 where one cannot be read, after all others."""
    from rich.console import Console

    from cifartune.entries import find_entry
    from cifartune.errors import UserError
    from cifartune.pictures import find_pictures
    from cifartune.tracking import default_uri

    entry = find_entry(name, runs, tracking_uri or default_uri(runs))
    paths = find_pictures(images)

    from cifartune.named_models import load_model
    from cifartune.predicting import Prediction, Unreadable, classify
    from cifartune.report.predictions import notes, print_predictions, to_csv, to_json

    named = load_model(entry, model)
    found = list(classify(named, paths))
    predictions = [one for one in found if isinstance(one, Prediction)]
    unreadable = [one for one in found if isinstance(one, Unreadable)]
    if format == "json":
        typer.echo(to_json(named, predictions, unreadable, top), nl=False)
    elif format == "csv":
        typer.echo(to_csv(predictions, top), nl=False)
        for note in notes(named, predictions):
            typer.echo(note, err=True)
    elif predictions:
        print_predictions(named, predictions, top, Console())
    if unreadable:
        raise UserError("\n".join(one.reason for one in unreadable))


def export(
    name: NamedArgument,
    format: Annotated[
        Literal["onnx", "safetensors", "pt2"],
        typer.Option(
            help="onnx: a program for ONNX Runtime; safetensors: the weights, and all that it "
            "takes to use them; pt2: a program for PyTorch alone.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file. Default: NAME and the format, here.", show_default=False),
    ] = None,
    model: WhichOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    runs: RunsOption = Path("runs"),
    tracking_uri: UriOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Write a model for use elsewhere, once it is seen to give the same on real images."""
    from cifartune.entries import find_entry
    from cifartune.export import FORMATS, IMAGES, check_target, export_model
    from cifartune.report.download import prepared
    from cifartune.tracking import default_uri

    entry = find_entry(name, runs, tracking_uri or default_uri(runs))
    default = entry.name.replace(":", "-") + FORMATS[format].suffix
    path = out or Path(default)
    check_target(format, path, force=force)
    root = prepared(data_dir)

    from cifartune.data import load_train
    from cifartune.named_models import load_model

    named = load_model(entry, model)
    every = load_train(root).images
    images = every[:: len(every) // IMAGES].transpose(0, 2, 3, 1).copy()
    difference = export_model(named.model, named.facts(), format, path, images)
    typer.echo(
        f"{path}: {named}; {path.stat().st_size / 1e6:.1f} MB\n"
        f"checked on {len(images)} training images: probabilities differ by {difference:.1g} at "
        "the most"
    )
