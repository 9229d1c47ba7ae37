"""How much each parameter mattered."""

import pandas as pd
import pytest
from optuna.trial import TrialState, create_trial

from cifartune.config import SearchSpace
from cifartune.report.frames import equal_epoch, sizes_frame
from cifartune.report.importance import FEWEST_TRIALS, FOREST, PED_ANOVA, importance_frame
from cifartune.tuning.proposals import distribution
from cifartune.tuning.study import TrialStudy

SPACE = SearchSpace.model_validate(
    {
        "name": "toy",
        "base": {"model": {"name": "speednet_small"}, "epochs": 9},
        "parameters": {
            "optimizer.lr": {"min": 0.001, "max": 1.0, "log": True},
            "model.dropout": {"min": 0.0, "max": 0.5},
            "optimizer.name": {"values": ["sgd", "adamw"]},
            "optimizer.momentum": {"min": 0.5, "max": 0.9, "when": {"optimizer.name": "sgd"}},
        },
        "search": {"num_trials": 200},
    }
)


def study_of(count: int, *, is_flat: bool = False) -> TrialStudy:
    """Trials whose value after epoch 1 depends on dropout alone; after epoch 9, on the rate alone.

    One in four goes on to epoch 9.
    """
    golden = 0.618034
    trials = []
    for number in range(count):
        shares = [(number * golden * (2 * place + 1)) % 1 for place in range(3)]
        point = SPACE.point(
            {
                "optimizer.lr": SPACE.parameters["optimizer.lr"].at(shares[0], is_int=False),
                "model.dropout": 0.5 * shares[1],
                "optimizer.name": "sgd" if shares[2] < 0.5 else "adamw",
                "optimizer.momentum": 0.7,
            }
        )
        values = {1: 0.5 if is_flat else 0.5 + 0.4 * shares[1]}
        if number % 4 == 0:
            values[9] = 0.5 + 0.4 * shares[0]
        trials.append(
            create_trial(
                state=TrialState.COMPLETE if 9 in values else TrialState.PRUNED,
                value=values[max(values)],
                params=point,
                distributions={n: distribution(n, SPACE.parameters[n]) for n in point},
                intermediate_values=values,
                user_attrs={"facts": {"params": 1000 + number % 3}},
            )
        )
    return TrialStudy.of(SPACE, trials)


@pytest.mark.parametrize("method", [PED_ANOVA, FOREST])
def test_what_decides_at_the_equal_epoch_is_found(method: str) -> None:
    study = study_of(60)
    assert equal_epoch(study) == 1
    frame = importance_frame(study, 1)
    own = frame[frame["method"] == method].set_index("parameter")
    others = own.drop("model.dropout")
    assert own.loc["model.dropout", "low"] > others["high"].max()
    assert own["share"].sum() == pytest.approx(1)
    assert ((own["low"] <= own["share"]) & (own["share"] <= own["high"])).all()
    # A forest cannot weigh what only some of the trials have.
    assert ("optimizer.momentum" in own.index) is (method == PED_ANOVA)
    pd.testing.assert_frame_equal(frame, importance_frame(study, 1))


def test_no_estimate_where_there_is_nothing_to_estimate_from() -> None:
    assert not len(importance_frame(study_of(FEWEST_TRIALS - 1), 1))
    assert not len(importance_frame(study_of(60, is_flat=True), 1))


def test_rungs_are_where_trials_are_stopped() -> None:
    assert SPACE.rungs == [1, 3]
    fractions = SPACE.scheduler.model_copy(update={"reduction_factor": 1.5, "grace_period": 2})
    assert SPACE.model_copy(update={"scheduler": fractions}).rungs == [2, 3, 5, 7]
    none = SPACE.scheduler.model_copy(update={"name": "none"})
    assert SPACE.model_copy(update={"scheduler": none}).rungs == []


def test_the_front_is_what_nothing_beats_in_both() -> None:
    sizes = sizes_frame(study_of(60))
    for row in sizes.itertuples():
        beaten = ((sizes["cost"] <= row.cost) & (sizes["value"] > row.value)) | (
            (sizes["cost"] < row.cost) & (sizes["value"] >= row.value)
        )
        assert row.is_on_front == (not beaten.any())
    assert sizes["is_on_front"].sum() >= 1
