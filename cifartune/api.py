"""For use from Python: search, load, train. What they need is loaded when they are called."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from cifartune.config import Recipe, SearchSpace
    from cifartune.results import SearchResult
    from cifartune.training_run import TrainingRun


def search(
    space: "SearchSpace | Mapping[str, Any] | str | Path",
    *,
    name: str | None = None,
    smoke: bool = False,
    runs: str | Path = "runs",
    tracking_uri: str | None = None,
    storage: str = "",
    data_dir: str | Path | None = None,
    address: str = "local",
    sealed: bool = False,
    copy_to: str = "",
    quiet: bool = False,
) -> "SearchResult":
    """Searches, refits the best by cross-validation, evaluates once: the command of that name.

    Args:
        space: The path of a search-space file, what such a file holds, or a `SearchSpace`.
        name: The run's name. Default: the space's, with -2, -3, ... where that is taken.
        smoke: Shrinks everything: does it all work here?
        runs: The folder of all runs.
        tracking_uri: The MLflow store. Default: `MLFLOW_TRACKING_URI`, or mlflow.db in `runs`.
        storage: The Optuna URL of the database for the study. Default: a file in the run's folder.
        data_dir: A folder with the official CIFAR-10 files, where they are not to be fetched.
        address: The Ray cluster to run on, host:port or auto. Default: one of its own.
        sealed: Leaves the test set closed.
        copy_to: An address where a copy of the run's folder is kept, such as s3://bucket/runs.
        quiet: Prints nothing.

    Returns:
        What `load` returns for it.

    Raises:
        UserError: A mistake or circumstance that can be mended, in the words of the command line.
        Interrupted: Ctrl-C, which stops after the epoch under way; the message says how to go on.
    """
    started = time.monotonic()

    from rich.console import Console

    from cifartune.begin import new_run, told_how_to_go_on
    from cifartune.config import smoke_space
    from cifartune.results import SearchResult

    whole, source = _space(space)
    wanted = smoke_space(whole) if smoke else whole
    with (
        new_run(
            wanted,
            source=source,
            runs=Path(runs),
            name=name,
            tracking_uri=tracking_uri,
            storage=storage,
            data_dir=None if data_dir is None else Path(data_dir),
            address=address,
            sealed=sealed,
            copy_to=copy_to,
        ) as (run, root),
        told_how_to_go_on(run),
    ):
        from cifartune.stages import Search

        Search(
            wanted,
            run,
            data_root=root,
            console=Console(quiet=quiet),
            command="cifartune.search, from Python",
            started=started,
            address=address,
        ).run()
    return SearchResult(run)


def load(name: str | Path, runs: str | Path = "runs") -> "SearchResult":
    """A search by its name in `runs`, or by the path of its folder; finished or not.

    Raises:
        UserError: There is none.
    """
    from cifartune.results import SearchResult
    from cifartune.runs import RunFolder

    path = Path(name)
    if path.name in ("", ".."):
        path = path.resolve()
    if len(path.parts) != 1:
        runs, name = path.parent, path.name
    return SearchResult(RunFolder.open(Path(runs), str(name)))


def train(
    recipe: "Recipe | Mapping[str, Any] | str | Path",
    *,
    images: int | None = None,
    validation: int = 5000,
    seed: int = 0,
    data_dir: str | Path | None = None,
    device: "str | torch.device | None" = None,
) -> "TrainingRun":
    """Trains a recipe on CIFAR-10's training images: `for epoch in train(recipe)`.

    Args:
        recipe: The path of a search-space file, whose base is trained; what such a base holds; or
            a `Recipe`. The seed of the training is the recipe's.
        images: Training images. Default: all that do not validate.
        validation: Validation images; 0: none.
        seed: Draws which images train and validate: those of a search with this `search.seed`.
        data_dir: A folder with the official CIFAR-10 files, where they are not to be fetched.
        device: Default: the GPU where there is one.

    Returns:
        The run, which trains an epoch for each `EpochResult` that is asked for, and has `.model`.

    Raises:
        UserError: The recipe breaks a rule, there are not as many images, or the device or the
            network cannot be had.
    """
    from cifartune.config import Recipe, load_space, make_recipe
    from cifartune.report.download import prepared

    if isinstance(recipe, str | Path):
        wanted = load_space(recipe).base
    else:
        wanted = recipe if isinstance(recipe, Recipe) else make_recipe(recipe, source="recipe")
    root = prepared(None if data_dir is None else Path(data_dir))

    from cifartune.training_run import TrainingRun

    return TrainingRun(
        wanted, images=images, validation=validation, seed=seed, data_root=root, device=device
    )


def _space(space: "SearchSpace | Mapping[str, Any] | str | Path") -> "tuple[SearchSpace, str]":
    """The space, and what it is called in messages."""
    from cifartune.config import SearchSpace, load_space, make_space

    if isinstance(space, str | Path):
        return load_space(space), str(space)
    if isinstance(space, SearchSpace):
        return space, space.name
    return make_space(space, source="space"), "space"
