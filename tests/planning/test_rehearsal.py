"""The rehearsal: the real sampler and scheduler, on made-up learning curves."""

from statistics import fmean
from typing import Any

import pytest

from cifartune.config import SearchSpace
from cifartune.planning.rehearsal import MOST_TRIALS, Rehearsed, rehearse

PARAMETERS: dict[str, Any] = {
    "optimizer.name": {"values": ["sgd", "adamw"]},
    "optimizer.lr": {"min": 1e-3, "max": 1.0, "log": True},
    "optimizer.momentum": {"min": 0.8, "max": 0.98, "when": {"optimizer.name": "sgd"}},
    "model.dropout": {"min": 0.0, "max": 0.5},
}


def make_space(parameters: dict[str, Any] = PARAMETERS, **sections: Any) -> SearchSpace:
    return SearchSpace.model_validate(
        {
            "name": "toy",
            "base": {"model": {"name": "speednet_small"}, "epochs": 9},
            "parameters": parameters,
            "search": {"num_trials": 16} | sections.pop("search", {}),
            **sections,
        }
    )


def epochs(runs: list[list[Rehearsed]]) -> float:
    return fmean(sum(trial.epochs for trial in run) for run in runs)


def test_a_rehearsal_is_repeatable_and_each_differs() -> None:
    space = make_space()
    runs = rehearse(space)
    assert runs == rehearse(space)
    assert len({sum(trial.epochs for trial in run) for run in runs}) > 5
    assert all(len(run) == 16 for run in runs)


def test_nothing_is_stopped_without_a_scheduler() -> None:
    assert epochs(rehearse(make_space(scheduler={"name": "none"}))) == 16 * 9


def test_chance_alone_passes_a_third_of_each_rung() -> None:
    """Random proposals on ASHA: as many pass as the order statistics of independent draws say."""
    runs = [
        run
        for seed in range(6)
        for run in rehearse(
            make_space(search={"sampler": "random", "num_trials": 32, "seed": seed})
        )
    ]
    # The k-th of independent values passes with 1/3 + 1/(3k); the first always. See docs/LOG.md.
    expected = 1 + sum(1 / 3 + 1 / (3 * k) for k in range(2, 33))
    passed = fmean(sum(trial.epochs > 1 for trial in run) for run in runs)
    assert passed == pytest.approx(expected, rel=0.15)


def test_a_sampler_that_learns_gets_more_trials_past_the_rungs() -> None:
    learning = epochs(rehearse(make_space(search={"num_trials": 40})))
    chance = epochs(rehearse(make_space(search={"num_trials": 40, "sampler": "random"})))
    assert learning > 1.2 * chance


def test_the_baseline_is_trained_to_its_end() -> None:
    assert all(run[0].epochs == 9 for run in rehearse(make_space()))


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_every_scheduler_stops_something_but_not_all(name: str) -> None:
    runs = rehearse(make_space(scheduler={"name": name, "brackets": 2}), slots=2)
    assert 16 < epochs(runs) < 16 * 9
    assert all(any(trial.epochs == 9 for trial in run[1:]) for run in runs)


def test_a_loss_is_stopped_from_above() -> None:
    runs = rehearse(make_space(objective={"metric": "val_loss"}))
    assert 16 < epochs(runs) < 16 * 9


def test_the_best_are_marked_for_the_refit() -> None:
    for run in rehearse(make_space(refit={"top_k": 2})):
        chosen = [trial for trial in run if trial.is_best]
        assert len(chosen) == 2
        assert all(trial.epochs == 9 for trial in chosen)


def test_a_small_space_ends_early() -> None:
    parameters = {"optimizer.name": {"values": ["sgd", "adamw"]}}
    assert all(len(run) == 2 for run in rehearse(make_space(parameters)))


def test_epochs_that_are_searched_count_as_drawn() -> None:
    parameters = {"epochs": {"min": 5, "max": 15}}
    runs = rehearse(make_space(parameters, scheduler={"name": "none"}))
    for run in runs:
        assert all(trial.epochs == trial.recipe.epochs for trial in run)
        assert len({trial.epochs for trial in run}) > 3


def test_several_objectives_and_constraints_are_rehearsed_too() -> None:
    names = {"model.name": {"values": ["speednet_small", "speednet", "resnet18"]}}
    space = make_space(
        {**names, **PARAMETERS},
        objectives=[{"metric": "val_accuracy"}, {"metric": "val_loss"}, {"metric": "params"}],
        constraints={"params": {"max": 5_000_000}},
    )
    for run in rehearse(space):
        assert all(trial.recipe.model.name != "resnet18" for trial in run)


def test_a_long_search_is_rehearsed_in_part() -> None:
    space = make_space(search={"num_trials": 1000, "sampler": "random"})
    assert {len(run) for run in rehearse(space)} == {MOST_TRIALS}
