"""The images, fetched with a progress bar where they are missing."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from cifartune.data import default_root, fetch, load_train
from cifartune.errors import UserError


def prepared(data_dir: Path | None) -> Path:
    """The prepared images, fetched first where there are none.

    The training images are enough to begin with: only the evaluation needs the others.
    """
    if data_dir is None:
        try:
            load_train()
            return default_root()
        except UserError:
            return fetched(None)
    return fetched(data_dir)


def fetched(data_dir: Path | None) -> Path:
    """All images, fetched with a progress bar where they are missing."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def show(description: str, done: int, total: int | None) -> None:
            if description not in tasks:
                tasks[description] = bar.add_task(description, total=total)
            bar.update(tasks[description], completed=done, total=total)

        return fetch(data_dir=data_dir, progress=show)
