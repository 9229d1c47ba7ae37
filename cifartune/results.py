"""What a search found, for use from Python; nothing is read before it is asked for."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cifartune.comparison import UNREADABLE
from cifartune.config import Recipe, SearchSpace, load_space
from cifartune.entries import Entry, find_entry
from cifartune.errors import UserError, first_line
from cifartune.runs import RunFolder

if TYPE_CHECKING:  # pandas, torch
    import pandas as pd

    from cifartune.final_models import FinalModel
    from cifartune.tuning.study import TrialStudy


@dataclass(frozen=True)
class OutOfFoldPredictions:
    """What the fold models of a refit say of the images that they did not train on.

    Attributes:
        indices: Which of the 50,000 training images they are, int64 (N,), ascending.
        fold: The fold that held each of them out, int8 (N,).
        labels: Their classes, uint8 (N,).
        logits: float32 (S, N, 10), of each seed, with the recipe's test-time augmentation.
        plain: The same without test-time augmentation.
    """

    indices: npt.NDArray[np.int64]
    fold: npt.NDArray[np.int8]
    labels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]
    plain: npt.NDArray[np.float32]


class SearchResult:
    """A search as its folder has it now, finished or not. It changes nothing there.

    Args:
        run: The folder.

    Attributes:
        run: The folder, with the path of each file in it.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def __repr__(self) -> str:
        state = "finished" if self.is_finished else "not finished"
        return f"<SearchResult {self.name}: {state}, {self.run.path}>"

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def is_finished(self) -> bool:
        """Whether there is an outcome; `trials`, `curves` and `best` need none."""
        return self.run.result.exists()

    @cached_property
    def space(self) -> SearchSpace:
        """What was searched."""
        return load_space(self.run.space_file)

    @property
    def result(self) -> dict[str, Any]:
        """What result.json holds: docs/METHOD.md says what its numbers mean.

        Raises:
            UserError: The search is not finished.
        """
        return self.run.outcome

    @property
    def recipe(self) -> Recipe:
        """The winner's recipe, as it was refit; raises as `result` does."""
        return Recipe.model_validate(self.result["winner"])

    def trials(self) -> "pd.DataFrame":
        """One row a trial: number, state, value, metrics, and the recipe by dotted names."""
        from cifartune.report.frames import trials_frame

        return trials_frame(self._study())

    def curves(self) -> "pd.DataFrame":
        """The objective after each epoch: one row an epoch of a trial."""
        from cifartune.report.frames import curves_frame

        return curves_frame(self._study())

    def best(self, count: int = 1) -> "pd.DataFrame":
        """The rows of `trials` of the best so far, the best first; those stopped early last."""
        numbers, trials = [t.number for t in self._study().best(count)], self.trials()
        return trials.iloc[numbers].reset_index(drop=True)  # a trial's number is its row

    def out_of_fold(
        self, trial: int | None = None, *, data_root: Path | None = None
    ) -> OutOfFoldPredictions:
        """The predictions that all estimates rest on.

        Args:
            trial: One that was refit. Default: the winner.
            data_root: The prepared images, for their labels. Default: where `cifartune data fetch`
                puts them.

        Raises:
            UserError: The search is not finished, the trial was not refit, or a file is damaged.
        """
        from cifartune.data import load_train

        entry = self._entry(trial)
        if not entry.was_refit:
            raise UserError(f"{entry.name}: was not refit, and so has no out-of-fold predictions")
        path, labels = self.run.out_of_fold(entry.trial), load_train(data_root).labels
        try:
            with np.load(path) as kept:
                found = {name: kept[name] for name in ("indices", "fold", "logits", "plain")}
        except UNREADABLE as error:
            raise UserError(f"{path}: cannot be read: {first_line(error)}") from None
        return OutOfFoldPredictions(**found, labels=labels[found["indices"]])

    def model(self, which: str | None = None, trial: int | None = None) -> "FinalModel":
        """A model, on the CPU.

        Args:
            which: `folds`, the ensemble of the fold models; `all_images`, one network that was
                trained on all images; `snapshots`, the ensemble of the folds' snapshots. Default:
                the folds', or the own network of a trial that was not refit.
            trial: Default: the winner.

        Raises:
            UserError: The search is not finished, or there is no such model; says which there are.
        """
        from cifartune.named_models import load_model

        return load_model(self._entry(trial), which).model

    def _entry(self, trial: int | None) -> Entry:
        name = self.name if trial is None else f"{self.name}:{trial}"
        return find_entry(name, self.run.runs, tracking_uri="")

    def _study(self) -> "TrialStudy":
        from cifartune.tuning.recorded import recorded_study

        return recorded_study(self.run, self.space)
