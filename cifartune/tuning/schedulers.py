"""Which trials are stopped early: Ray Tune's rules, rebuilt from what the study holds."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from cifartune.seeds import derive_seed
from cifartune.tuning.study import TrialStudy, kept_epoch


def make_scheduler(
    study: TrialStudy, *, went_on: Callable[[int], float] = lambda number: math.inf
) -> TrialScheduler:
    """The scheduler of the study's space, which knows the study's trials already.

    Args:
        study: Its finished trials count in all rungs that they came to.
        went_on: The epoch after which an unfinished trial, by its number, was last allowed to go
            on. What is recorded of later ones was not decided on before the process died: it will
            be, when the trial comes there again.
    """
    settings = study.space.scheduler
    common: dict[str, Any] = {
        # Not left to Tune, which would tell them after the rungs are rebuilt.
        "metric": tune_metric(study),
        "mode": study.space.target.mode,
        "time_attr": "epoch",
        "grace_period": settings.grace_period,
    }
    if settings.name == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    if settings.name == "median":
        return _Median(study, went_on, min_samples_required=settings.min_trials, **common)
    return _Halving(
        study,
        went_on,
        reduction_factor=settings.reduction_factor,
        brackets=settings.brackets if settings.name == "hyperband" else 1,
        max_t=study.space.max_epochs,
        **common,
    )


def tune_metric(study: TrialStudy) -> str:
    """The name of the objective that stops trials, in Tune's flattened results."""
    return f"metrics/{study.space.target.metric}"


class Unpickled:
    """Tune pickles its parts for its own restore. Ours is the study: nothing of this is kept."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Handle:
    """A trial, as far as a scheduler asks."""

    def __init__(self, number: int) -> None:
        self.trial_id = f"study-{number}"
        self.config = {"number": number}


class _FromStudy(Unpickled, TrialScheduler):
    """A scheduler whose state is rebuilt from the study: it is lost on Tune's own restore.

    It never stops the baseline, so that every search can say whether that was beaten.
    """

    _nobody: Any = None  # the controller that schedulers are given, and that ours do not use

    def __init__(self, study: TrialStudy, went_on: Callable[[int], float], **settings: Any) -> None:
        super().__init__(**settings)  # type: ignore[no-untyped-call]
        self._study = study
        self._went_on = went_on
        for trial in study.trials:
            if trial.state.is_finished():
                handle = Handle(trial.number)
                super().on_trial_add(self._nobody, handle)  # type: ignore[arg-type]
                self._replay(handle, trial)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        self._replay(trial, self._study.trials[trial.config["number"]])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        result = self._as_recorded(trial, result)
        decision = super().on_trial_result(tune_controller, trial, result)
        return decision if trial.config["number"] else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, self._as_recorded(trial, result))

    def _as_recorded(self, trial: Any, result: dict[str, Any]) -> dict[str, Any]:
        """Where an epoch is trained again, its first value counts: it may have been acted on."""
        recorded = self._study.trials[trial.config["number"]].intermediate_values
        value = recorded.get(result.get("epoch", 0))
        return result if value is None else {**result, tune_metric(self._study): value}

    def _replay(self, handle: Any, recorded: FrozenTrial) -> None:
        metric = tune_metric(self._study)
        last = math.inf if recorded.state.is_finished() else self._went_on(recorded.number)
        for epoch, value in sorted(recorded.intermediate_values.items()):
            if epoch > last:
                break
            self.on_trial_result(self._nobody, handle, {"epoch": epoch, metric: value})


class _NumberedBrackets(AsyncHyperBandScheduler):
    """Tune's ASHA, whose bracket for a trial depends on the trial's number alone.

    Tune draws it from numpy's global generator, which would be another draw after a restart.
    """

    def __init__(self, *, seed: int, **settings: Any) -> None:
        super().__init__(**settings)
        self._seed = seed

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        # As Tune weighs them: a bracket with one rung more gets e times as many trials.
        rungs = np.array([len(bracket._rungs) for bracket in self._brackets])
        weights = np.exp(rungs - rungs.max())
        random = np.random.default_rng(derive_seed(self._seed, "bracket", trial.config["number"]))
        chosen = random.choice(len(self._brackets), p=weights / weights.sum())
        self._trial_info[trial.trial_id] = self._brackets[chosen]


class _Halving(_FromStudy, _NumberedBrackets):
    """Asynchronous successive halving, in one bracket or in several.

    A trial that ended by its own recipe counts in the rungs that it did not come to, with the value
    that it kept: left out, it would leave them to worse ones.
    """

    def __init__(self, study: TrialStudy, went_on: Callable[[int], float], **settings: Any) -> None:
        super().__init__(study, went_on, seed=study.space.search.seed, **settings)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if any(key.startswith("facts/") for key in result):  # Tune has made it flat
            values = self._study.trials[trial.config["number"]].intermediate_values
            last = result[tune_metric(self._study)]
            kept = result.get("facts/kept_epoch", result["epoch"])
            self._fill(trial, result["epoch"], values.get(kept, last))
        super().on_trial_complete(tune_controller, trial, result)

    def _replay(self, handle: Any, recorded: FrozenTrial) -> None:
        super()._replay(handle, recorded)
        if recorded.state is TrialState.COMPLETE:
            value = recorded.intermediate_values[kept_epoch(recorded)]
            self._fill(handle, max(recorded.intermediate_values), value)

    def _fill(self, handle: Any, last: int, value: float) -> None:
        metric = tune_metric(self._study)
        for epoch in range(last + 1, self._study.space.max_epochs + 1):
            self.on_trial_result(self._nobody, handle, {"epoch": epoch, metric: value})


class _NeverPausing(MedianStoppingRule):
    """Tune's median stopping rule, for trials that run to their end or are stopped."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if not self._is_news(trial, result):
            return TrialScheduler.CONTINUE
        decision = super().on_trial_result(tune_controller, trial, result)
        # A trial that goes on although the rule said stop, the baseline, is judged anew.
        self._stopped_trials.clear()
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if self._is_news(trial, result):
            super().on_trial_complete(tune_controller, trial, result)

    def _is_news(self, trial: Any, result: dict[str, Any]) -> bool:
        """Not of a trial that repeats epochs after a crash, or ends in one by failing."""
        known = self._results.get(trial)
        return "epoch" in result and not (known and known[-1]["epoch"] >= result["epoch"])

    def _on_insufficient_samples(self, tune_controller: Any, trial: Any, time: float) -> str:
        return TrialScheduler.CONTINUE


class _Median(_FromStudy, _NeverPausing):
    """The median stopping rule."""
