"""What a model says of pictures, as a table, as csv or as JSON."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cifartune.named_models import NamedModel
from cifartune.predicting import Prediction, Unreadable

NAMED = 3
"""So many files are named where more are told of."""


def print_predictions(
    named: NamedModel, predictions: Sequence[Prediction], top: int, console: Console
) -> None:
    """Prints a row a picture, and what must be known to read it."""
    console.print(f"[bold]{named}[/]", highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("image", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("class", no_wrap=True)
    table.add_column("%", justify="right", no_wrap=True)
    if top > 1:
        table.add_column("or, %")
    for prediction in predictions:
        picture, (best, *others) = prediction.picture, prediction.best(top)
        rest = ", ".join(f"{name} {100 * share:.0f}" for name, share in others)
        table.add_row(
            Text(str(picture.path)),
            f"{picture.width}x{picture.height}",
            best[0],
            f"{100 * best[1]:.1f}",
            *([rest] if others else []),
        )
    console.print(table)
    for note in notes(named, predictions):
        console.print(note, highlight=False, markup=False)


def notes(named: NamedModel, predictions: Sequence[Prediction]) -> list[str]:
    """What must be known to read predictions, in sentences."""
    if named.temperature is None:
        told = ["Probabilities are the networks' own: there is no out-of-fold temperature."]
    else:
        told = [
            f"Probabilities are scaled by the temperature {named.temperature:.3g}, which was found "
            "out of fold."
        ]
    if far := [prediction.picture for prediction in predictions if prediction.picture.is_far]:
        names = ", ".join(f"{p.path.name} ({p.width}x{p.height})" for p in far[:NAMED])
        more = f" and {len(far) - NAMED} more" if len(far) > NAMED else ""
        told.append(
            f"Far from 32x32, and so from what the model knows: {names}{more}. Of each it sees the "
            "square in the middle, made 32x32."
        )
    return told


def to_csv(predictions: Sequence[Prediction], top: int) -> str:
    """A line a picture: image, width, height, then class and probability, the likeliest first."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    places = ["", *(f"_{place}" for place in range(2, top + 1))]
    names = [f"{column}{place}" for place in places for column in ("class", "probability")]
    writer.writerow(["image", "width", "height", *names])
    for prediction in predictions:
        picture = prediction.picture
        best = [value for pair in prediction.best(top) for value in pair]
        writer.writerow([picture.path, picture.width, picture.height, *best])
    return buffer.getvalue()


def to_json(
    named: NamedModel,
    predictions: Sequence[Prediction],
    unreadable: Sequence[Unreadable],
    top: int,
) -> str:
    """The model, a list of predictions, and a list of the files that could not be read."""
    told: dict[str, Any] = {
        "search": named.entry.run.name,
        "trial": named.entry.trial,
        "model": named.which,
        "networks": named.networks,
        "temperature": named.temperature,
        "predictions": [prediction.as_dict(top) for prediction in predictions],
        "unreadable": [{"image": str(one.path), "reason": one.reason} for one in unreadable],
        "notes": notes(named, predictions),
    }
    return json.dumps(told, indent=1) + "\n"
