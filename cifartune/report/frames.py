"""Tables of a search, for pandas."""

import math
from typing import Any

import numpy as np
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from cifartune.statistics import Accuracy
from cifartune.tuning.study import REFUSED, TrialStudy, attributes, is_feasible, kept_epoch

COMPLETE, STOPPED, FAILED, UNFINISHED, UNTRAINED = (
    "complete",
    "stopped early",
    "failed",
    "unfinished",
    "refused untrained",
)
"""How a trial ended, in words. Of these, the first two say how good a recipe is."""


def kind_of(trial: FrozenTrial) -> str:
    """How a trial ended; a recipe that failed by itself failed, although it is PRUNED."""
    if attributes(trial).get("failure") == REFUSED:
        return UNTRAINED
    if trial.state is TrialState.FAIL or not is_feasible(trial):
        return FAILED
    kinds = {TrialState.COMPLETE: COMPLETE, TrialState.PRUNED: STOPPED}
    return kinds.get(trial.state, UNFINISHED)


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
    """The learning curves: one row an epoch of a trial, with `trial`, `epoch`, `value`, `kind`."""
    return pd.DataFrame(
        [
            {"trial": trial.number, "epoch": epoch, "value": value, "kind": kind_of(trial)}
            for trial in study.trials
            for epoch, value in sorted(trial.intermediate_values.items())
        ],
        columns=["trial", "epoch", "value", "kind"],
    )


def equal_epoch(study: TrialStudy) -> int:
    """The last epoch that nine tenths of the trials reached which tell how good a recipe is.

    At it, trials are compared: values after different numbers of epochs do not compare. 0 where
    there is no such trial.
    """
    lengths = sorted(
        max(trial.intermediate_values)
        for trial in study.trials
        if trial.intermediate_values and kind_of(trial) in (COMPLETE, STOPPED)
    )
    return lengths[len(lengths) // 10] if lengths else 0


def points_frame(study: TrialStudy, epoch: int) -> pd.DataFrame:
    """The searched fields of the trials that reached `epoch`, and the objective after it.

    Columns: `trial`, `kind`, `value`, then a column for each parameter, in which a trial has None
    where its recipe has no such parameter. Recipes that failed are left out.
    """
    names = list(study.space.parameters)
    rows = [
        {
            "trial": trial.number,
            "kind": kind_of(trial),
            "value": trial.intermediate_values[epoch],
            **{name: trial.params.get(name) for name in names},
        }
        for trial in study.trials
        if epoch in trial.intermediate_values and kind_of(trial) in (COMPLETE, STOPPED)
    ]
    return pd.DataFrame(rows, columns=["trial", "kind", "value", *names], dtype=object).astype(
        {"trial": int, "value": float}
    )


def sizes_frame(study: TrialStudy, cost: str = "params") -> pd.DataFrame:
    """Complete trials by what their network costs: `trial`, `cost`, `value`, `is_on_front`.

    On the front is what no other trial beats in both; `cost` is a fact of the network, of which
    less is better.
    """
    rows = [
        {
            "trial": trial.number,
            "cost": attributes(trial)[cost],
            "value": trial.intermediate_values[kept_epoch(trial)],
        }
        for trial in study.trials
        if kind_of(trial) == COMPLETE and cost in attributes(trial)
    ]
    frame = pd.DataFrame(rows, columns=["trial", "cost", "value"])
    is_high_good = study.space.target.mode == "max"
    in_order = frame.sort_values(["cost", "value"], ascending=[True, not is_high_good])
    values = in_order["value"] if is_high_good else -in_order["value"]
    before = values.cummax().shift(fill_value=-np.inf)
    frame["is_on_front"] = (values > before).reindex(frame.index)
    return frame


def leaderboard_frame(study: TrialStudy, count: int) -> pd.DataFrame:
    """The best `count` trials as the search ranks them, those that were stopped behind the others.

    Columns: `trial`, `kind`, `epoch`, `last_epoch` of the recipe, `value` where it counts,
    and, of an accuracy on validation images, the ends of Wilson's interval, `low` and `high`, NaN
    for other objectives; then the searched fields as in `points_frame`.
    """
    space = study.space
    rows: list[dict[str, Any]] = []
    for trial in study.best(count):
        value = trial.intermediate_values[kept_epoch(trial)]
        ends = {"low": math.nan, "high": math.nan}
        if space.target.metric == "val_accuracy":
            images = space.data.validation
            interval = Accuracy.of(round(value * images), images)
            ends = {"low": interval.low, "high": interval.high}
        rows.append(
            {
                "trial": trial.number,
                "kind": kind_of(trial),
                "epoch": max(trial.intermediate_values),
                "last_epoch": study.recipe(trial).last_epoch,
                "value": value,
                **ends,
                **{name: trial.params.get(name) for name in space.parameters},
            }
        )
    columns = ["trial", "kind", "epoch", "last_epoch", "value", "low", "high", *space.parameters]
    return pd.DataFrame(rows, columns=columns)


def ledger_frame(study: TrialStudy) -> pd.DataFrame:
    """What trials took, a row for each way in which they end: the index.

    Columns: `trials`, `epochs`, `images` that they trained on, counted as often as they were seen,
    and `seconds` of their epochs, as far as these are known.
    """
    rows = [
        {
            "kind": kind_of(trial),
            "trials": 1,
            "epochs": (epochs := max(trial.intermediate_values, default=0)),
            "images": epochs * study.space.train_images,
            "seconds": attributes(trial).get("seconds", 0.0),
        }
        for trial in study.trials
    ]
    frame = pd.DataFrame(rows, columns=["kind", "trials", "epochs", "images", "seconds"])
    kinds = [k for k in (COMPLETE, STOPPED, FAILED, UNFINISHED, UNTRAINED) if k in set(frame.kind)]
    return frame.groupby("kind").sum().reindex(kinds)


def failures_frame(study: TrialStudy) -> pd.DataFrame:
    """The kinds of failure, the most frequent first: `failure`, `trials`, `first`, `message`.

    `first` is the number of the first trial that failed so, and `message` what it said.
    """
    failed = [trial for trial in study.trials if kind_of(trial) in (FAILED, UNTRAINED)]
    rows: dict[str, dict[str, Any]] = {}
    for trial in failed:
        known = attributes(trial)
        kind = str(known.get("failure", "unknown")).replace("_", " ")
        row = rows.setdefault(
            kind,
            {
                "failure": kind,
                "trials": 0,
                "first": trial.number,
                "message": str(known.get("message", "")),
            },
        )
        row["trials"] += 1
    frame = pd.DataFrame(rows.values(), columns=["failure", "trials", "first", "message"])
    return frame.sort_values("trials", ascending=False, kind="stable", ignore_index=True)
