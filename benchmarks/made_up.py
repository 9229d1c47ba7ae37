"""Finished searches that are made up, for what reads them: no training, as many trials as wanted.

Trials are drawn at random, and stopped as ASHA stops them. How good one is depends on its learning
rate, weight decay and dropout; a few fail. Images, labels and formats are real.
"""

import json
import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from cifartune.config import Recipe, SearchSpace
from cifartune.data import LabelledImages
from cifartune.refit.out_of_fold import OutOfFold
from cifartune.report.frames import trials_frame
from cifartune.report.mistakes import write_mistakes
from cifartune.runs import RunFolder
from cifartune.tuning.proposals import distribution
from cifartune.tuning.study import FACTS, METRICS, TrialStudy, attributes, kept_epoch, sqlite_url

BEGIN = datetime(2026, 1, 1)


def made_up_run(
    runs: Path,
    space: SearchSpace,
    *,
    result: Mapping[str, Any] | None = None,
    train: LabelledImages | None = None,
    trials: int | None = None,
) -> RunFolder:
    """A search as `cifartune search` leaves it.

    Args:
        runs: The folder of all runs.
        space: The search.
        result: Another search's result.json, for all that does not depend on the trials. None: the
            search is unfinished.
        train: Images, of which mistakes are made up; none are without.
        trials: How many have begun. Default: all.
    """
    run = RunFolder.create(runs, space, tracking_uri=f"sqlite:///{runs / 'mlflow.db'}")
    study = optuna.create_study(
        storage=sqlite_url(run.study),
        study_name=run.study_name,
        directions=["maximize" if t.mode == "max" else "minimize" for t in space.targets],
    )
    study.add_trials(made_up_trials(space, trials or space.search.num_trials))
    if result is None:
        return run
    read = TrialStudy.of(space, study.get_trials())
    best = read.best()[0]
    recipe = read.recipe(best)
    told = {
        "name": run.name,
        "objective": space.target.model_dump(),
        "objectives": [target.model_dump() for target in space.targets],
        "winner_trial": best.number,
        "winner": recipe.model_dump(),
        "validation_accuracy": attributes(best)["val_accuracy"],
        "validation_epoch": kept_epoch(best),
        "refit_epoch": recipe.last_epoch,
        "changed": {
            name: [space.base.flat()[name], value]
            for name, value in best.params.items()
            if space.base.flat()[name] != value
        },
        "failed_refits": [],
        "verdicts": [{"level": 0.05, **verdict} for verdict in result["verdicts"]],
        "mlflow": {"uri": run.tracking_uri, "run_id": "0" * 32},
        "pareto_front": [
            {
                "trial": t.number,
                **{o.metric: v for o, v in zip(space.targets, t.values, strict=True)},
            }
            for t in (read.front if len(space.targets) > 1 else [])
        ],
        "candidates": [
            {**one, "trial": best.number if one["trial"] else 0} for one in result["candidates"]
        ],
    }
    trials_frame(read).to_csv(run.trials_csv, index=False)
    run.result.write_text(json.dumps({**result, **told}))
    if train is not None:
        write_mistakes(made_up_predictions(train), train, run.mistakes)
    return run


def made_up_trials(space: SearchSpace, count: int) -> list[FrozenTrial]:
    """The first trials of a search, the baseline before all others."""
    random = np.random.default_rng(space.search.seed)
    ordered = space.ordered_parameters()
    integers = {name for name in ordered if isinstance(space.base.flat()[name], int)}
    seen: dict[int, list[float]] = {rung: [] for rung in space.rungs}
    trials = []
    for number in range(count):
        shares = random.random(len(ordered))
        drawn = {
            name: parameter.at(share, is_int=name in integers)
            for (name, parameter), share in zip(ordered.items(), shares, strict=True)
        }
        point = space.point(drawn if number else space.base.flat())
        recipe = space.base.with_values(point)
        fails = number > 0 and random.random() < 0.05
        values: dict[int, float] = {}
        state = TrialState.COMPLETE
        for epoch in range(1, recipe.last_epoch + 1):
            if fails and epoch > 1:
                state = TrialState.PRUNED
                break
            values[epoch] = _value(space, recipe, epoch, random)
            if epoch in seen and epoch < recipe.last_epoch:
                sign = 1 if space.target.mode == "max" else -1
                seen[epoch].append(sign * values[epoch])
                share = 100 * (1 - 1 / space.scheduler.reduction_factor)
                if number and sign * values[epoch] < np.percentile(seen[epoch], share):
                    state = TrialState.PRUNED
                    break
        trials.append(_trial(space, point, values, state, fails, number))
    return trials


def _trial(
    space: SearchSpace,
    point: Mapping[str, Any],
    values: dict[int, float],
    state: TrialState,
    fails: bool,
    number: int,
) -> FrozenTrial:
    last = values[max(values)]
    metrics = {
        "train_loss": 0.5,
        "train_accuracy": 0.8,
        "val_loss": 0.5,
        "val_accuracy": 0.8,
        "lr": 0.01,
        "images_per_second": 1500.0,
        space.target.metric: last,
        "seconds": 8.0 * len(values),
        "epoch": max(values),
    }
    depth = space.base.with_values(dict(point)).model.width
    facts: dict[str, Any] = {}
    if state is TrialState.COMPLETE or space.asks_for_networks:
        facts["params"] = 5_000 * depth**2
    if fails:
        facts |= {"failure": "diverged", "message": "the loss is <b>not</b> finite"}
    known = {**metrics, **facts}
    begin = BEGIN + timedelta(seconds=60 * number)
    trial = create_trial(
        state=state,
        values=[float(known[target.metric]) for target in space.targets],
        params=dict(point),
        distributions={name: distribution(name, space.parameters[name]) for name in point},
        intermediate_values=values,
        user_attrs={METRICS: metrics, FACTS: facts},
        system_attrs={"constraints:failed": 1.0} if fails else {},
    )
    trial.datetime_start, trial.datetime_complete = begin, begin + timedelta(seconds=50)
    return trial


def _value(space: SearchSpace, recipe: Recipe, epoch: int, random: np.random.Generator) -> float:
    """The objective after an epoch: best near a rate of 0.03, little decay, dropout of 0.15."""
    loss = 0.06 * math.log10(recipe.optimizer.lr / 0.03) ** 2
    loss += 0.008 * (math.log10(recipe.optimizer.weight_decay + 1e-9) + 4) ** 2
    loss += 0.3 * (recipe.model.dropout - 0.15) ** 2 - 0.05 * math.log10(recipe.model.width / 10)
    loss += 0.1 + 0.5 / (1 + epoch) + random.normal(0, 0.008)
    if space.target.metric.endswith("loss"):
        return 2 * loss
    return float(np.clip(1 - loss, 0.1, 0.999))


def made_up_predictions(train: LabelledImages) -> OutOfFold:
    """Predictions of which nine in ten are right, for all images of `train`."""
    random = np.random.default_rng(0)
    labels = np.asarray(train.labels)
    logits = random.standard_normal((1, len(labels), 10)).astype(np.float32)
    logits[0, np.arange(len(labels)), labels] += 3.2
    folds = (np.arange(len(labels)) % 5).astype(np.int8)
    return OutOfFold(np.arange(len(labels)), folds, logits, logits)
