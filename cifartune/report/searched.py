"""A search as its folder tells of it: all that a report is made from."""

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifartune.config import SearchSpace, load_space
from cifartune.errors import UserError
from cifartune.programs import program
from cifartune.report.frames import equal_epoch
from cifartune.runs import RunFolder
from cifartune.tuning.study import TrialStudy, attributes


@dataclass(frozen=True)
class Searched:
    """What is known of a search.

    Attributes:
        run: Its folder.
        study: Its trials.
        result: What result.json holds; None while the search is unfinished.
    """

    run: RunFolder
    study: TrialStudy
    result: dict[str, Any] | None

    @classmethod
    def read(cls, run: RunFolder, study: TrialStudy | None = None) -> "Searched":
        """Reads a search from its folder, without disturbing whoever is at it.

        Args:
            run: The folder.
            study: Its trials, for those who have them open.

        Raises:
            UserError: No trial has begun yet, or a file cannot be read.
        """
        if study is None:
            from cifartune.tuning.recorded import recorded_trials

            try:
                trials = recorded_trials(run)
            except KeyError:
                trials = []
            study = TrialStudy.of(load_space(run.space_file), trials)
        if not study.trials:
            raise UserError(
                f"{run.name}: no trial has begun yet, so there is nothing to report; go on with: "
                f"{run.resume_command}"
            )
        return cls(run, study, run.outcome if run.result.exists() else None)

    @property
    def space(self) -> SearchSpace:
        """What was searched."""
        return self.study.space

    @property
    def metric(self) -> str:
        """The objective that ranks trials."""
        return self.space.target.metric

    @property
    def winner(self) -> int | None:
        """The trial that won; None while there is no answer."""
        return self.result["winner_trial"] if self.result else None

    @property
    def best(self) -> int | None:
        """The winner, or else the trial that is best so far; None where none has a result."""
        if self.winner is not None:
            return self.winner
        best = self.study.best()
        return best[0].number if best else None

    @property
    def epoch(self) -> int:
        """The epoch at which trials are compared with each other."""
        return equal_epoch(self.study)

    def new_search(self, *settings: str) -> str:
        """What the user types to search the same space again, but for some settings."""
        space = str(self.run.runs / self.run.name / self.run.space_file.name)
        runs = [] if self.run.runs == Path("runs") else ["--runs", str(self.run.runs)]
        changes = [word for setting in settings for word in ("--set", setting)]
        return shlex.join([program("cifartune"), "search", space, *changes, *runs])

    def extension(self, trials: int, *settings: str) -> str:
        """What the user types to give the search trials, so many in all, and other settings."""
        options = [word for setting in settings for word in ("--set", setting)]
        options += ["--num-trials", str(trials)]
        search = self.space.search
        if search.time_budget is not None:  # it counts what was spent before
            minutes = math.ceil(search.time_budget * trials / search.num_trials / 60)
            options += ["--time-budget", f"{minutes}m"]
        return self.run.command("resume", *options)

    def environment(self) -> dict[str, str]:
        """Versions, commit and hardware of the best trial's training, as it kept them itself."""
        in_order = sorted(self.study.trials, key=lambda trial: trial.number != self.best)
        for trial in in_order:
            if text := attributes(trial).get("environment"):
                known: dict[str, str] = json.loads(text)
                return known
        return {}
