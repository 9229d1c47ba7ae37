"""What a report says is to be done next."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial

from cifartune.config import SearchSpace
from cifartune.config.load import load_space
from cifartune.report.advice import Advice, advice
from cifartune.report.searched import Searched
from cifartune.runs import RunFolder
from cifartune.tuning.proposals import distribution
from cifartune.tuning.study import TrialStudy

SPACE: dict[str, Any] = {
    "name": "toy",
    "base": {"model": {"name": "speednet_small"}, "epochs": 9, "optimizer": {"lr": 0.1}},
    "parameters": {
        "optimizer.lr": {"min": 0.001, "max": 1.0, "log": True},
        "model.dropout": {"min": 0.0, "max": 0.5},
        "augment.strength": {"min": 0.0, "max": 1.0},
    },
    "search": {"num_trials": 8},
}

RESULT: dict[str, Any] = {
    "winner_trial": 3,
    "verdicts": [],
    "models": {"folds": {}},
    "folds": 5,
    "seeds": 1,
    "test_looks_of_all_searches": 1,
}


def told(
    tmp_path: Path,
    *,
    winner: dict[str, float] | None = None,
    curves: list[dict[int, float]] | None = None,
    space: dict[str, Any] | None = None,
    result: dict[str, Any] | None = None,
    failures: int = 0,
) -> list[Advice]:
    """The advice after eight trials, of which trial 3 won."""
    searched_space = SearchSpace.model_validate(SPACE | (space or {}))
    run = RunFolder.create(tmp_path / "runs", searched_space)
    curves = curves or [{1: 0.5 + n / 100, 9: 0.8 + n / 100} for n in range(8)]
    trials = []
    for number, values in enumerate(curves):
        point = {"optimizer.lr": 0.05, "model.dropout": 0.2, "augment.strength": 0.5}
        if number == 3:
            point |= winner or {}
        fails = number >= len(curves) - failures
        trials.append(
            create_trial(
                state=TrialState.COMPLETE if 9 in values else TrialState.PRUNED,
                value=values[max(values)],
                params=point,
                distributions={
                    name: distribution(name, searched_space.parameters[name]) for name in point
                },
                intermediate_values=values,
                user_attrs={"facts": {"failure": "diverged", "message": ""}} if fails else {},
                system_attrs={"constraints:failed": 1.0} if fails else {},
            )
        )
    study = TrialStudy.of(searched_space, trials)
    return advice(Searched(run, study, RESULT | (result or {})))


def test_nothing_is_said_without_a_reason(tmp_path: Path) -> None:
    assert told(tmp_path) == []


def test_a_winner_at_the_edge_asks_for_a_wider_range(tmp_path: Path) -> None:
    [one] = told(tmp_path, winner={"optimizer.lr": 0.9})
    assert "at the edge of what was searched, between 0.001 and 1" in one.reason
    assert "--set parameters.optimizer.lr.max=3 --num-trials 12" in one.command
    # What the command says is accepted.
    changes = ["parameters.optimizer.lr.max=3", "search.num_trials=12"]
    load_space(tmp_path / "runs" / "toy" / "space.yaml", changes)


def test_the_low_edge_of_a_range_without_logarithm(tmp_path: Path) -> None:
    [one] = told(tmp_path, winner={"model.dropout": 0.49})
    assert "--set parameters.model.dropout.max=0.75" in one.command


def test_where_the_field_ends_there_is_no_wider_range(tmp_path: Path) -> None:
    assert told(tmp_path, winner={"augment.strength": 1.0, "model.dropout": 0.0}) == []


def apart(value: float, half: float) -> dict[str, Any]:
    folds = {"value": value, "low": value - half, "high": value + half}
    return {"verdicts": [{"rival": 0, "verdict": "cannot be told apart", "folds": folds}]}


def test_seeds_where_they_may_be_enough(tmp_path: Path) -> None:
    [one] = told(tmp_path, result=apart(0.009, 0.010))
    # The variance counts 1/15 + 1/4 in place of 1/5 + 1/4 times.
    assert "0.90 points between them, give or take 1.00" in one.reason
    assert "becomes about 0.84, which may be enough" in one.reason
    assert one.command.endswith(f"resume toy --set refit.seeds=3 --runs {tmp_path / 'runs'}")


def test_more_folds_where_seeds_are_not_enough(tmp_path: Path) -> None:
    [one] = told(tmp_path, result=apart(0.001, 0.010))
    assert "still more than the difference" in one.reason
    assert "--set refit.folds=10" in one.command


def test_a_late_winner_asks_for_more_trials(tmp_path: Path) -> None:
    [one] = told(tmp_path, result={"winner_trial": 7})
    assert "better ones were still being found" in one.reason
    assert "--num-trials 16" in one.command and "--time-budget" not in one.command


def test_more_trials_want_more_time(tmp_path: Path) -> None:
    """What was spent counts: the budget of before would refuse them."""
    run = RunFolder.create(tmp_path, SearchSpace.model_validate(SPACE), "timed")
    space = SearchSpace.model_validate(SPACE | {"search": {"num_trials": 8, "time_budget": "90s"}})
    command = Searched(run, TrialStudy(space), None).extension(12, "search.sampler=random")
    assert "--set search.sampler=random --num-trials 12 --time-budget 3m" in command


@pytest.mark.parametrize("says_little", [True, False])
def test_the_first_rung_is_judged_by_what_came_to_its_end(
    says_little: bool, tmp_path: Path
) -> None:
    ends = [{1: 0.5 + n / 100, 9: 0.8 + (-n if says_little else n) / 100} for n in range(8)]
    found = told(tmp_path, curves=[*ends, *({1: 0.3 + n / 100} for n in range(12))])
    assert [("rank correlation -1.00" in one.reason) for one in found] == [True] * says_little
    assert all("--set scheduler.grace_period=2" in one.command for one in found)


def test_a_shorter_refit_is_told(tmp_path: Path) -> None:
    [one] = told(tmp_path, space={"refit": {"epochs": 3}})
    assert "The folds had 3 epochs each (refit.epochs), the winner's recipe has 9" in one.reason
    assert one.command.split(" --runs")[0].endswith("--set refit.epochs=null")


def test_many_failures_are_told_with_their_rates(tmp_path: Path) -> None:
    [one] = told(tmp_path, failures=2)
    assert one.reason.startswith("2 of 8 trials failed, 2 by: diverged.")
    assert "The median optimizer.lr is 0.05 among them, 0.05 among the rest." in one.reason


def test_a_closed_and_a_worn_test_set(tmp_path: Path) -> None:
    [one] = told(tmp_path / "closed", result={"models": None})
    assert one.command.split(" --runs")[0].endswith("evaluate toy")
    [one] = told(tmp_path / "worn", result={"test_looks_of_all_searches": 40})
    assert "looked at 40 times" in one.reason


def test_an_unfinished_search_is_to_be_gone_on_with(tmp_path: Path) -> None:
    space = SearchSpace.model_validate(SPACE)
    run = RunFolder.create(tmp_path / "runs", space)
    study = TrialStudy(space)
    study.propose()
    [one] = advice(Searched(run, study, None))
    assert one.command == run.resume_command
