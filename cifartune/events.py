"""What happens in a search, for whoever watches: the terminal, MLflow."""

from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from cifartune.config import Recipe


class Observer:
    """Told of every event after it is recorded; does nothing by default."""

    def search_started(self) -> None:
        """This process is at the search from now on."""

    def slots_started(self, count: int, slot: str, dashboard: str) -> None:
        """Ray is up, and `count` slots are on their way; `slot` is what each has of the machine.

        `dashboard` is the address of Ray's, empty where there is none.
        """

    def planned(self, plan: dict[str, Any]) -> None:
        """What the search is expected to take, as plan.json has it."""

    def noted(self, text: str, label: str = "note") -> None:
        """Something that the user should know, though the search goes on; `label` is its topic."""

    def trial_started(self, number: int, recipe: Recipe) -> None:
        """Trial `number` begins, or goes on after an interruption."""

    def epoch_ended(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        """Trial `number` finished `epoch`."""

    def trial_ended(self, trial: FrozenTrial) -> None:
        """A trial is over; `trial.state` says how."""

    def refit_started(self, number: int, recipe: Recipe) -> None:
        """The cross-validation of trial `number`'s recipe begins, or goes on."""

    def part_epoch_ended(
        self, number: int, part: str, epoch: int, metrics: dict[str, float]
    ) -> None:
        """A training run of trial `number`'s refit finished `epoch`; `part` says which it is."""

    def part_ended(
        self, number: int, part: str, accuracy: float | None, facts: dict[str, Any]
    ) -> None:
        """A training run of a refit is over.

        `accuracy` is that of the images that it held out, if it did; `facts` say how it was
        trained, where that is known. Of one that left no model, which the refit survives, they are
        the kind of its `failure` and the `message`.
        """

    def refit_ended(self, number: int, metrics: dict[str, float], dropped: str = "") -> None:
        """All folds of trial `number`'s refit are over, or it is `dropped` for that reason."""

    def search_ended(self, metrics: dict[str, float], files: list[Path], model: Path) -> None:
        """All is over: the headline numbers, the files for readers, and the exported ensemble."""

    def concluded(self, result: dict[str, Any]) -> None:
        """The outcome is written: what result.json holds."""
