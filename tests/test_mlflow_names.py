"""What runs are called in MLflow, which parameters they show, and the view of trials."""

import json
from typing import Any

import pytest

from cifartune.config import SearchSpace
from cifartune.tracking.names import Names, part_name
from cifartune.tracking.view import plain_address, view_of


def space_of(**changes: Any) -> SearchSpace:
    return SearchSpace.model_validate(
        {
            "name": "toy",
            "base": {"epochs": 9, "optimizer": {"name": "sgd", "lr": 0.1}},
            "parameters": {
                "optimizer.name": {"values": ["sgd", "adamw"]},
                "optimizer.momentum": {
                    "min": 0.5,
                    "max": 0.9,
                    "when": {"optimizer.name": ["sgd"]},
                },
                "optimizer.lr": {"min": 0.001, "max": 1.0, "log": True},
            },
            "search": {"num_trials": 101},
            **changes,
        }
    )


def test_a_name_says_what_is_special_and_sorts_like_the_number() -> None:
    space = space_of()
    names, base = Names(space), space.base
    adamw = base.with_values({"optimizer.name": "adamw", "optimizer.lr": 0.00312345678})
    sgd = base.with_values({"optimizer.momentum": 0.75})
    assert names.trial(0, base) == "trial 000 · baseline"
    assert names.trial(7, adamw) == "trial 007 · adamw, lr 0.0031"
    assert names.trial(100, sgd) == "trial 100 · sgd, momentum 0.75"
    parts = ("fold-3", "fold-3-seed-1", "all-images")
    assert [part_name(part) for part in parts] == ["fold 3", "fold 3 (seed 1)", "all images"]


def test_parameters_are_what_was_searched_and_the_rest_is_the_searchs() -> None:
    space = space_of()
    names = Names(space)
    recipe = space.base.with_values({"optimizer.name": "adamw", "optimizer.lr": 0.0012345678})
    assert names.own(recipe) == {"optimizer.name": "adamw", "optimizer.lr": "0.0012346"}
    longer = recipe.with_values({"epochs": 20, "seed": 8})
    assert names.own(longer) == {**names.own(recipe), "epochs": "20"}
    shared = names.shared()
    assert shared["epochs"] == "9" and not shared.keys() & {"seed", *space.parameters}
    assert len(shared) <= 100  # what MLflow takes at once


@pytest.mark.parametrize("keep", ["last", "best"])
def test_trials_are_sorted_by_the_value_that_counts(keep: str) -> None:
    stopping = {"keep": keep}
    objective = {"metric": "val_loss"}
    space = space_of(base={"epochs": 9, "stopping": stopping}, objective=objective)
    view = json.loads(view_of(space, "abc", "mine", 5))
    assert (view["name"], view["createdAt"]) == ("mine: trials", 5)
    state = json.loads(view["state"])
    wanted = "metrics.`objective`" if keep == "best" else "metrics.`val_loss`"
    assert (state["orderByKey"], state["orderByAsc"]) == (wanted, True)
    assert state["selectedColumns"][0] == wanted
    assert "params.`optimizer.momentum`" in state["selectedColumns"]
    assert "'abc'" in state["searchFilter"]
    assert "orderByAsc=true" in plain_address("1", space, "abc")


@pytest.mark.parametrize(
    ("scheduler", "rungs"),
    [
        ({"name": "asha", "grace_period": 1, "reduction_factor": 3}, [1, 3]),
        ({"name": "asha", "grace_period": 2, "reduction_factor": 1.5}, [2, 3, 5, 7]),
        ({"name": "median"}, []),
        ({"name": "none"}, []),
    ],
)
def test_rungs(scheduler: dict[str, Any], rungs: list[int]) -> None:
    assert space_of(scheduler=scheduler).rungs == rungs
