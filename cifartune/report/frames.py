"""Tables of a search, for pandas."""

import pandas as pd

from cifartune.tuning.study import TrialStudy, attributes, kept_epoch


def trials_frame(study: TrialStudy) -> pd.DataFrame:
    """One row a trial: number, state, value, failure, metrics and facts, then the recipe's fields.

    The recipe's columns have their dotted names; `value` is the objective at the epoch that counts,
    the last unless the recipe keeps its best, and `seconds` the time of all the trial's epochs.
    """
    rows = []
    for trial in study.trials:
        epochs = trial.intermediate_values
        known = attributes(trial)
        for name in ("recipe", "environment"):  # texts, of which the columns are made below
            known.pop(name, None)
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name,
                "trained_epochs": max(epochs, default=0),
                "value": epochs[kept_epoch(trial)] if epochs else None,
                "failure": known.pop("failure", None),
                "message": known.pop("message", None),
                "recipe_id": study.recipe(trial).id,
                **known,
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
