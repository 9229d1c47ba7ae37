"""Tables of a search, for pandas."""

import pandas as pd

from cifartune.tuning.study import METRICS, TrialStudy, kept_epoch


def trials_frame(study: TrialStudy) -> pd.DataFrame:
    """One row a trial: number, state, value, failure, metrics and facts, then the recipe's fields.

    The recipe's columns have their dotted names; `value` is the objective at the epoch that counts,
    the last unless the recipe keeps its best, and `seconds` the time of all the trial's epochs.
    """
    rows = []
    for trial in study.trials:
        epochs = trial.intermediate_values
        attributes = {METRICS: {}} | trial.user_attrs
        # Of a trial that is under way the metrics are one attribute, of others many.
        metrics = attributes.pop(METRICS) | attributes
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name,
                "trained_epochs": max(epochs, default=0),
                "value": epochs[kept_epoch(trial)] if epochs else None,
                "failure": trial.user_attrs.get("failure"),
                "message": trial.user_attrs.get("message"),
                "recipe_id": study.recipe(trial).id,
                **{k: v for k, v in metrics.items() if k not in ("failure", "message")},
                **study.recipe(trial).flat(),
            }
        )
    return pd.DataFrame(rows)


def curves_frame(study: TrialStudy) -> pd.DataFrame:
    """The learning curves: one row an epoch of a trial, with `trial`, `epoch` and `value`."""
    return pd.DataFrame(
        [
            {"trial": trial.number, "epoch": epoch, "value": value}
            for trial in study.trials
            for epoch, value in sorted(trial.intermediate_values.items())
        ],
        columns=["trial", "epoch", "value"],
    )
