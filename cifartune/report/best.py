"""The best recipe of a search, as a file that the next search can begin with."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from cifartune.config import Recipe, SearchSpace, load_space
from cifartune.errors import UserError
from cifartune.report.headline import headline
from cifartune.report.tables import show
from cifartune.runs import RunFolder
from cifartune.statistics import Interval
from cifartune.tuning.recorded import recorded_study
from cifartune.tuning.study import kept_epoch


@dataclass(frozen=True)
class Best:
    """The best recipe so far.

    Attributes:
        run: The search's folder.
        space: The search.
        trial: The trial that found it.
        recipe: As it was refit; as the trial trained it, where the search is not finished.
        value: The objective's, on the validation images that chose it.
        epoch: Of the trial, after which it had that value.
        outcome: The headline numbers of the search; empty where it is not finished.
    """

    run: RunFolder
    space: SearchSpace
    trial: int
    recipe: Recipe
    value: float
    epoch: int
    outcome: dict[str, Any]

    @property
    def metric(self) -> str:
        """The objective."""
        return self.space.target.metric

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "name": self.run.name,
            "trial": self.trial,
            "metric": self.metric,
            "value": self.value,
            "epoch": self.epoch,
            "recipe": self.recipe.model_dump(exclude={"seed"}),
            "outcome": self.outcome or None,
        }


def best_of(run: RunFolder) -> Best:
    """The winner of a finished search, or the trial of another that leads so far.

    Raises:
        UserError: No trial has a value yet, or a file cannot be read.
    """
    space = load_space(run.space_file)
    study = recorded_study(run, space)
    outcome = run.outcome if run.result.exists() else None
    leading = study.trials[run.winner : run.winner + 1] if outcome else study.best()
    if outcome and not leading:
        raise UserError(f"{run.study}: has no trial {run.winner}, which {run.result} says has won")
    if not leading:
        raise UserError(f"{run.name}: no trial has a value yet; look again: cifartune status")
    trial = leading[0]
    recipe = Recipe.model_validate(outcome["winner"]) if outcome else study.recipe(trial)
    epoch = kept_epoch(trial)
    value = trial.intermediate_values[epoch]
    found = headline(outcome) if outcome else {}
    return Best(run, space, trial.number, recipe, value, epoch, found)


def space_file_of(best: Best) -> str:
    """A search-space file that trains the recipe and no other, with comments on what it is."""
    space, exactly = best.space, {"num_trials": 1, "seed": best.space.search.seed}
    sections = {
        "name": f"{best.run.name[:95]}-best",
        "objective": space.target.model_dump(),
        "base": best.recipe.model_dump(exclude={"seed"}),
        "data": space.data.model_dump(),
        "search": exactly,
        "scheduler": {"name": "none"},
        "refit": space.refit.model_dump() | {"top_k": 1},
        **({"stand_in": space.stand_in} if space.stand_in else {}),
    }
    text = yaml.safe_dump(sections, default_flow_style=None, sort_keys=False, width=100)
    comments = "".join(f"# {line}\n" for line in _comments(best))
    return comments + text


def _comments(best: Best) -> Iterator[str]:
    value = show(best.metric, best.value)
    yield f"{best.run.name}, trial {best.trial}: {best.metric} {value} after epoch {best.epoch}"
    if found := best.outcome:
        interval = Interval(found["cv_accuracy"], found["cv_low"], found["cv_high"])
        yield f"cross-validated: {interval}"
    else:
        yield f"the search is not finished: {best.run.resume_command}"
    yield "train it: cifartune search THIS_FILE; or take base: into a file of your own"
