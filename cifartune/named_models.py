"""The model that a user means: a search's winner, one of its trials, or an MLflow run."""

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cifartune import __version__
from cifartune.data import CLASSES
from cifartune.entries import Entry
from cifartune.errors import UserError
from cifartune.report.answer import MODELS
from cifartune.runs import RunFolder

if TYPE_CHECKING:  # torch
    from cifartune.final_models import FinalModel

OF_TRIAL = "trial"
"""What the one network is called that a trial left which was not refit."""


@dataclass(frozen=True)
class NamedModel:
    """A model, and what is known of it.

    Attributes:
        entry: Whose it is: the search, the trial, and what the user calls it.
        which: `folds`, `all_images`, `snapshots`; or `trial`: that of a trial that was not refit.
        temperature: By which the logarithms of its probabilities are best divided, found out of
            fold; None where that is not known.
        model: The model itself, on the CPU.
    """

    entry: Entry
    which: str
    temperature: float | None
    model: "FinalModel"

    @property
    def networks(self) -> int:
        """How many it averages."""
        return len(self.model.ensemble.members)

    def __str__(self) -> str:
        """Its name in words."""
        kinds = {**MODELS, OF_TRIAL: "the trial's own network"}
        networks = f", {self.networks} networks" if self.networks > 1 else ""
        return f"{self.entry.run.name}, trial {self.entry.trial}: {kinds[self.which]}{networks}"

    def facts(self) -> dict[str, Any]:
        """What is known of it by name, for JSON."""
        return {
            "search": self.entry.run.name,
            "trial": self.entry.trial,
            "model": self.which,
            "networks": self.networks,
            "classes": CLASSES,
            "input": "images: uint8 (N, 32, 32, 3), RGB",
            "output": "probabilities: float32 (N, 10)",
            "recipe": self.model.recipe.model_dump(),
            "recipe_id": _recipe_id(self.entry),
            "temperature": self.temperature,
            **_accuracies(self.entry, self.which),
            "cifartune": __version__,
        }


def load_model(entry: Entry, which: str | None = None) -> NamedModel:
    """The model of what `find_entry` has found.

    Args:
        entry: A trial of a finished search.
        which: Default: the ensemble of the folds; or what there is of a trial that was not refit.

    Raises:
        UserError: There is no such model; says which there are.
    """
    from cifartune.final_models import FinalModel, model_files

    files = model_files(entry.run, entry.trial)
    if not entry.was_refit:
        files = {OF_TRIAL: [entry.weights]}
    wanted = which or next(iter(files), "folds")
    if wanted not in files:
        known = ", ".join(files) or "none"
        raise UserError(f"{entry.name}: there is no model {wanted}; there is {known}")
    temperature = _temperature(entry, wanted)
    return NamedModel(entry, wanted, temperature, FinalModel.load(files[wanted]))


def _temperature(entry: Entry, which: str) -> float | None:
    """Only the winner's is kept."""
    if entry.trial != entry.run.winner:
        return None
    outcome: dict[str, Any] = entry.run.outcome
    if which == "snapshots":
        looked = (outcome["models"] or {}).get(which)
        return float(looked["calibration"]["temperature"]) if looked else None
    return float(outcome["calibration"]["temperature"])


def _recipe_id(entry: Entry) -> str | None:
    """The trial's, by which MLflow and the table of trials name it; None where that is gone."""
    try:
        with entry.run.trials_csv.open(newline="") as file:
            ids = {row["trial"]: row["recipe_id"] for row in csv.DictReader(file)}
        return ids[str(entry.trial)]
    except (OSError, KeyError):
        return None


def _accuracies(entry: Entry, which: str) -> dict[str, Any]:
    """How good it is, as far as result.json says: shares in [0, 1] with their 95 % intervals."""
    run: RunFolder = entry.run
    found: dict[str, Any] = {}
    if not entry.was_refit:
        return found
    for candidate in run.outcome["candidates"]:
        if candidate["trial"] == entry.trial:
            found["cv_accuracy"] = candidate["cv_accuracy"]
    looked = run.outcome["models"] or {}  # none where the test set is sealed
    if entry.trial == run.winner and which in looked:
        found["test_accuracy"] = looked[which]["accuracy"]
        found["test_set"] = run.outcome["test_set"]
    return found
