"""The run that is to be trained again, as its tracking store has it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from cifartune import __version__
from cifartune.config import Recipe, SearchSpace
from cifartune.config.load import parse_space
from cifartune.config.problems import hint, nearest
from cifartune.errors import UserError, first_line
from cifartune.passwords import without_password
from cifartune.runs import RunFolder
from cifartune.tracking import check_server, default_uri
from cifartune.tracking.lookup import look_up
from cifartune.tracking.store import LoggedSearch

if TYPE_CHECKING:  # a second to import
    from mlflow.entities import Run

RUN_ID = re.compile(r"[0-9a-f]{32}")
"""What MLflow's ids look like."""

NEEDED = ("recipe", "environment", "weights_sha256", "device", "threads", "workers")
"""The tags without which a run cannot be trained again, or be compared."""


@dataclass(frozen=True)
class Original:
    """A run as MLflow has it, with all that it takes to train it again.

    Attributes:
        name: The search and which of its runs it is, such as `quick:trial-3`.
        space: The search's, which says how the images are split.
        recipe: With nothing left to `auto`.
        fold: As a job's; None: a trial.
        device: Where it was trained, `cpu` or `cuda`.
        threads: Of each worker.
        workers: The processes that trained it together.
        environment: Versions and hardware by name.
        digest: Of the weights in the end; see `weights_digest`.
        curve: Its validation accuracy by epoch, without test-time augmentation.
        held_out_accuracy: Of a fold in the end, with it; None where there is none.
    """

    name: str
    space: SearchSpace
    recipe: Recipe
    fold: int | None
    device: str
    threads: int
    workers: int
    environment: dict[str, str]
    digest: str
    curve: dict[int, float]
    held_out_accuracy: float | None

    @property
    def val_accuracy(self) -> float:
        """That of the epoch that counts."""
        if self.recipe.stopping.keep == "best":
            return max(self.curve.values())
        return self.curve[max(self.curve)]


def find_original(wanted: str, runs: Path, tracking_uri: str | None = None) -> Original:
    """Reads a run from its tracking store.

    Args:
        wanted: MLflow's id of a trial, of a fold, or of a search, which stands for its winner's
            trial. Or the name of a search in `runs`; one of its trials, `quick:3`; or any of its
            runs by MLflow's name, `quick:refit-3-fold-0`.
        runs: The folder of all searches. For an id it need not be there.
        tracking_uri: The store. Default: the search's; for an id that of `runs`.

    Raises:
        UserError: There is no such run, or nothing can be compared with it; says why.
    """
    if RUN_ID.fullmatch(wanted):
        uri = tracking_uri or default_uri(runs)
        check_server(uri)
        search_id, key = look_up(uri, wanted)
    else:
        name, _, key = wanted.partition(":")
        key = f"trial-{key}" if key.isdigit() else key
        try:
            folder = RunFolder.open(runs, name)
        except UserError as error:
            told = f"{error}; and an id of MLflow's has 32 hexadecimal digits"
            raise UserError(told) from None
        uri, search_id = tracking_uri or folder.tracking_uri or default_uri(runs), folder.id
        check_server(uri)
    search, shown = LoggedSearch(uri, search_id), without_password(uri)
    if "search" not in search.runs:
        raise UserError(
            f"{wanted}: the MLflow store {shown} has no run of that search, or it was deleted "
            "there; name another store with --tracking-uri"
        )
    if key in ("", "search"):
        key = _winner(search, wanted)
    if key not in search.runs:
        known = hint(nearest(key, list(search.runs)))
        raise UserError(f"{wanted}: the search has no run {key} in the MLflow store {shown}{known}")
    return _original(search, key)


def _winner(search: LoggedSearch, wanted: str) -> str:
    result = search.text("result.json")
    if result is None:
        raise UserError(
            f"{wanted}: the search is not finished and has no winner; take one of its trials, such "
            f"as {search.runs['search'].info.run_name}:0"
        )
    try:
        return f"trial-{int(json.loads(result)['winner_trial'])}"
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{wanted}: the MLflow run's result.json is damaged or of another version, and names "
            f"no winner; take a trial, such as {search.runs['search'].info.run_name}:0"
        ) from None


def _original(search: LoggedSearch, key: str) -> Original:
    name = f"{search.runs['search'].info.run_name}:{key}"
    run = search.runs[key]
    tags = _tags(run)
    if reason := _in_the_way(tags, run.info.status):
        raise UserError(f"{name}: {reason}")
    text = search.text("space.yaml")
    if text is None:
        raise UserError(
            f"{name}: the MLflow run of its search has no space.yaml, which says how the images "
            "were split; send it with: cifartune sync NAME"
        )
    try:
        space = parse_space(text, source="space.yaml")
        recipe = Recipe.model_validate_json(tags["recipe"])
    except (UserError, ValidationError) as error:
        version = _tags(search.runs["search"]).get("version", "of another version")
        raise UserError(
            f"{name}: was logged by cifartune {version}, and {__version__} does not read its "
            f"settings ({first_line(error)}); install that version"
        ) from None
    try:
        environment = {
            str(name): str(text) for name, text in json.loads(tags["environment"]).items()
        }
        fold = int(tags["fold"]) if "fold" in tags else None
        threads, workers = int(tags["threads"]), int(tags["workers"])
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{name}: a tag of its MLflow run is damaged or of another version "
            f"({first_line(error)}); take another run"
        ) from None
    return Original(
        name=name,
        space=space,
        recipe=recipe,
        fold=fold,
        device=tags["device"],
        threads=threads,
        workers=workers,
        environment=environment,
        digest=tags["weights_sha256"],
        curve=search.curve(key, "val_accuracy"),
        held_out_accuracy=run.data.metrics.get("held_out_accuracy"),
    )


def _tags(run: "Run") -> dict[str, str]:
    """Ours, without what they all begin with."""
    return {name.removeprefix("cifartune."): text for name, text in run.data.tags.items()}


def _in_the_way(tags: dict[str, str], status: str) -> str:
    """Why nothing can be compared with a run; empty if something can."""
    needed = "; take a trial that is COMPLETE, or a fold of a refit"
    if tags.get("kind") == "refit":
        return f"is a whole cross-validation; take one of its folds, such as {tags['key']}-fold-0"
    if "failure" in tags:
        return f"failed: {tags.get('message', tags['failure'])}{needed}"
    if tags.get("state") == "PRUNED":
        return f"was stopped before its end{needed}"
    if "RUNNING" in (tags.get("state"), status):
        return f"is not over{needed}"
    if status != "FINISHED":
        return f"did not come to its end{needed}"
    if missing := [name for name in NEEDED if name not in tags]:
        return (
            f"has no tag cifartune.{missing[0]}, without which it cannot be trained again and "
            f"compared: an earlier cifartune logged it{needed} of a later search"
        )
    return ""
