"""A comparison for people: two tables, a csv of all pairs and classes, and a picture."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console
from rich.table import Table

from cifartune.comparison import Compared, Pair
from cifartune.data import CLASSES
from cifartune.entries import Entry
from cifartune.errors import UserError
from cifartune.files import write_atomically
from cifartune.report.figures import BLUE, ORANGE, Mark, Panel, dot_plot, png
from cifartune.statistics import ERROR_RATE, Accuracy, Interval, paired


def print_comparison(compared: Compared, console: Console) -> None:
    """Prints the accuracies, each entry against the best, and what must be known to read them."""
    best, count = compared.entries[0].name, compared.comparisons
    console.print(f"\n[bold]{_title(compared)}[/]\n", highlight=False)
    console.print(_accuracies(compared))
    console.print(f"\n[bold]Against {best}[/], in percentage points\n", highlight=False)
    console.print(_differences(compared))
    console.print()
    shared = f", shared among {count} comparisons" if count > 1 else ""
    if any(entry.rivals > 1 for entry in compared.entries):
        shared += ": a winner counts once for each refit that it was chosen from"
    level = (
        f"Two are told apart where every p is below {ERROR_RATE / count:.2g}: an error rate of "
        f"{ERROR_RATE:.0%}{shared}."
    )
    for note in [*([] if compared.on_validation else [level]), *compared.notes]:
        console.print(note, highlight=False)


def _title(compared: Compared) -> str:
    count = f"{len(compared.labels):,}"
    if compared.on_validation:
        return f"Accuracy on {count} validation images, without test-time augmentation"
    return f"Out-of-fold accuracy on {count} training images"


def _accuracies(compared: Compared) -> Table:
    against_best = {pair.entry: pair.comparison.verdict for pair in _with_best(compared)}
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "trial", "accuracy", "95 % interval", "against the best"):
        is_text = heading in ("", "against the best")
        table.add_column(
            heading, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text
        )
    for place, (entry, accuracy) in enumerate(
        zip(compared.entries, compared.accuracies, strict=True)
    ):
        table.add_row(
            entry.name,
            str(entry.trial),
            f"{accuracy.value:.2%}",
            f"{accuracy.low:.2%} to {accuracy.high:.2%}",
            against_best.get(place, "the best"),
        )
    return table


def _differences(compared: Compared) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    tests = [] if compared.on_validation else ["p", "test"]
    for heading in ("", "by", "difference", "95 % interval", *tests):
        is_text = heading in ("", "by", "test")
        table.add_column(
            heading, justify="left" if is_text else "right", overflow="fold", no_wrap=heading != ""
        )
    for pair in _with_best(compared):
        name, told = compared.entries[pair.entry].name, pair.comparison
        rows = [(name, "images", *_points(told.images.difference), _p(told.images.p), "McNemar")]
        if told.folds is not None and told.folds_p is not None:
            rows.append(("", "folds", *_points(told.folds), _p(told.folds_p), "corrected t"))
        for row in rows:
            table.add_row(*row[: len(table.columns)])
    return table


def _with_best(compared: Compared) -> Iterator[Pair]:
    return (pair for pair in compared.pairs if pair.other == 0)


def _points(difference: Interval) -> tuple[str, str]:
    """A difference of shares in percentage points, and its interval."""
    points = _percent(difference)
    return f"{points.value:+.2f}", f"{points.low:+.2f} to {points.high:+.2f}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def comparison_frame(compared: Compared) -> pd.DataFrame:
    """A row for each pair, and for each pair and class.

    Columns: the two names; `class`, `all` or a class; the number of images; both accuracies with
    Wilson's interval; how many images only one of them gets right; the difference in accuracy by
    images with its interval and McNemar's p; for all images also the difference by folds, with the
    interval and p of the corrected resampled t, and the verdict. The p-values of classes are as
    they are: no error rate is shared among them. On validation images there are no p-values and no
    verdict: these images chose.
    """
    groups = {"all": np.full(len(compared.labels), True)}
    groups |= {CLASSES[label]: compared.labels == label for label in np.unique(compared.labels)}
    rows = []
    for pair in compared.pairs:
        told = pair.comparison
        for group, chosen in groups.items():
            first, second = (compared.right[i][:, chosen] for i in (pair.entry, pair.other))
            images = paired(first[0], second[0])
            row: dict[str, Any] = {
                "entry": compared.entries[pair.entry].name,
                "against": compared.entries[pair.other].name,
                "class": group,
                "images": int(chosen.sum()),
                **_named("accuracy", Accuracy.of_runs(first)),
                **_named("against_accuracy", Accuracy.of_runs(second)),
                "only_entry_right": images.only_first,
                "only_against_right": images.only_second,
                **_named("difference", images.difference),
                "mcnemar_p": None if compared.on_validation else images.p,
            }
            if group == "all" and told.folds is not None:
                row |= _named("folds_difference", told.folds)
                row["folds_p"] = None if compared.on_validation else told.folds_p
            if group == "all" and not compared.on_validation:
                row["verdict"] = told.verdict
            rows.append(row)
    return pd.DataFrame(rows)


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def comparison_figure(compared: Compared) -> Image.Image:
    """The accuracies with their intervals, and the differences from the best with theirs."""
    differences: list[list[Mark]] = [[] for _ in compared.entries]
    for pair in _with_best(compared):
        told = pair.comparison
        differences[pair.entry].append(Mark(_percent(told.images.difference), BLUE))
        if told.folds is not None:
            differences[pair.entry].append(Mark(_percent(told.folds), ORANGE))
    legend = [("by images", BLUE)]
    if any(len(marks) > 1 for marks in differences):
        legend.append(("by folds", ORANGE))
    accuracies = [[Mark(_percent(accuracy), BLUE)] for accuracy in compared.accuracies]
    return dot_plot(
        _title(compared),
        [entry.name for entry in compared.entries],
        [
            Panel("Accuracy, with its 95 % interval", accuracies, "{:.4g} %".format),
            Panel(
                "Difference from the best, in points",
                differences,
                lambda points: f"{points:+.3g}" if points else "0",
                line=0.0,
                legend=legend,
            ),
        ],
    )


def _percent(share: Interval) -> Interval:
    return Interval(100 * share.value, 100 * share.low, 100 * share.high)


def write_comparison(compared: Compared, folder: Path) -> list[Path]:
    """Writes comparison.csv and comparison.png, each whole or not at all; returns their paths.

    Raises:
        UserError: They cannot be written.
    """
    files: dict[Path, bytes | str] = {
        folder / "comparison.csv": comparison_frame(compared).to_csv(index=False),
        folder / "comparison.png": png(comparison_figure(compared)),
    }
    for path, content in files.items():
        try:
            write_atomically(path, content)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    return list(files)


def default_folder(entries: Sequence[Entry], runs: Path) -> Path:
    """Where a comparison is written if the user does not say: a folder named by its entries.

    No search can be called as the folder around it: a name begins with a letter or a digit.
    """
    names = "-".join(entry.name.replace(":", "-") for entry in entries)
    return runs / "_comparisons" / names[:200]  # file systems allow 255
