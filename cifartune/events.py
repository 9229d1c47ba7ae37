"""What happens in a search, for whoever watches: the terminal, MLflow."""

from pathlib import Path

from optuna.trial import FrozenTrial

from cifartune.config import Recipe


class Observer:
    """Told of every event after it is recorded; does nothing by default."""

    def trial_started(self, number: int, recipe: Recipe) -> None:
        """Trial `number` begins, or goes on after an interruption."""

    def epoch_ended(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        """Trial `number` finished `epoch`."""

    def trial_ended(self, trial: FrozenTrial) -> None:
        """A trial is over; `trial.state` says how."""

    def refit_started(self, number: int, recipe: Recipe, folds: int) -> None:
        """The cross-validation of trial `number`'s recipe begins."""

    def fold_epoch_ended(
        self, number: int, fold: int, epoch: int, metrics: dict[str, float]
    ) -> None:
        """A fold of trial `number`'s refit finished `epoch`."""

    def fold_ended(self, number: int, fold: int, accuracy: float) -> None:
        """A fold is over; `accuracy` is that of its held-out images."""

    def refit_ended(self, number: int, metrics: dict[str, float]) -> None:
        """All folds of trial `number`'s refit are over."""

    def search_ended(self, metrics: dict[str, float], files: list[Path], model: Path) -> None:
        """All is over: the headline numbers, the files for readers, and the exported ensemble."""
