"""Which parameters mattered, and how sure that is."""

import warnings
from collections.abc import Sequence

import numpy as np
import optuna
import pandas as pd
from optuna.importance import (
    BaseImportanceEvaluator,
    MeanDecreaseImpurityImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import FrozenTrial, create_trial

from cifartune.report.frames import COMPLETE, STOPPED, kind_of
from cifartune.tuning.proposals import distribution
from cifartune.tuning.study import TrialStudy

FEWEST_TRIALS = 16
"""With fewer trials at one epoch there is no estimate."""

PED_ANOVA, FOREST = "PED-ANOVA", "random forest"

DRAWS = {PED_ANOVA: 50, FOREST: 20}
"""Halves of the trials from which each method estimates; a forest takes longer."""

Z = 1.96
"""Standard deviations of a 95 % interval."""


def importance_frame(study: TrialStudy, epoch: int) -> pd.DataFrame:
    """The share of each parameter in what decided the objective after `epoch`, by two methods.

    PED-ANOVA (https://arxiv.org/abs/2304.10255) asks in which parameters the better half of the
    trials differs from all of them. A random forest (mean decrease in impurity) asks which
    parameters predict the value; it leaves out those that only some of the trials have. The shares
    of a method sum up to 1.

    Each method is asked about many random halves of the trials. Estimates from halves, drawn
    without replacement, vary about as much as one from all trials would from one such search to
    the next, so that their mean and 1.96 of their standard deviations are given.

    Args:
        study: The trials; those that reached `epoch` and did not fail are compared.
        epoch: The same for all of them.

    Returns:
        `parameter`, `method`, `share`, `low`, `high`, the largest shares of PED-ANOVA first; empty
        where there are fewer than 16 trials, nothing varies, or all values are the same.
    """
    columns = ["parameter", "method", "share", "low", "high"]
    trials = _at(study, epoch)
    varied = {name for trial in trials for name, drawn in trial.distributions.items()}
    if len(trials) < FEWEST_TRIALS or not varied or len({trial.value for trial in trials}) < 2:
        return pd.DataFrame(columns=columns)
    evaluators = {
        PED_ANOVA: PedAnovaImportanceEvaluator(target_quantile=0.5),
        FOREST: MeanDecreaseImpurityImportanceEvaluator(seed=0),
    }
    common = set.intersection(*(set(trial.params) for trial in trials))
    rows = []
    for method, evaluator in evaluators.items():
        names = sorted(varied if method == PED_ANOVA else common)
        if not names:
            continue
        random = np.random.default_rng(0)
        draws = []
        for _ in range(DRAWS[method]):
            half = random.choice(len(trials), len(trials) // 2, replace=False)
            shares = _shares([trials[place] for place in half], evaluator, study, names)
            draws.append([shares.get(name, 0.0) for name in names])
        means, spreads = np.mean(draws, axis=0), Z * np.std(draws, axis=0, ddof=1)
        for name, mean, spread in zip(names, means, spreads, strict=True):
            low, high = max(0.0, mean - spread), min(1.0, mean + spread)
            rows.append((name, method, float(mean), float(low), float(high)))
    frame = pd.DataFrame(rows, columns=columns)
    of_first = frame[frame["method"] == PED_ANOVA].set_index("parameter")["share"]
    order = frame["parameter"].map(of_first)
    return (
        frame.assign(order=order)
        .sort_values(["order", "parameter"], ascending=[False, True], kind="stable")
        .drop(columns="order")
        .reset_index(drop=True)
    )


def _at(study: TrialStudy, epoch: int) -> list[FrozenTrial]:
    """The trials as if all had ended at `epoch`, with the parameters' ranges of now.

    A range that was made wider on the way is one parameter all the same.
    """
    ranges = {name: distribution(name, p) for name, p in study.space.parameters.items()}
    return [
        create_trial(
            value=trial.intermediate_values[epoch],
            params=trial.params,
            distributions={name: ranges[name] for name in trial.params},
        )
        for trial in study.trials
        if epoch in trial.intermediate_values and kind_of(trial) in (COMPLETE, STOPPED)
    ]


def _shares(
    trials: Sequence[FrozenTrial],
    evaluator: BaseImportanceEvaluator,
    study: TrialStudy,
    names: Sequence[str],
) -> dict[str, float]:
    """The shares from some of the trials; of parameters that none of them has, none."""
    sample = optuna.create_study(
        direction="maximize" if study.space.target.mode == "max" else "minimize"
    )
    sample.add_trials(trials)
    known = {name for trial in trials for name in trial.params}
    with warnings.catch_warnings():
        # That a parameter has few trials shows in its interval.
        warnings.simplefilter("ignore")
        return get_param_importances(
            sample, evaluator=evaluator, params=[name for name in names if name in known]
        )
