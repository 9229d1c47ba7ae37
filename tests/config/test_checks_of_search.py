"""The rules for objectives, points and constraints, and the notes: their words and places."""

from typing import Any

import pytest
from small_space import LR, MOMENTUM, OPTIMIZER, STEM, STRENGTH, base, rules, space

# ---- Objectives


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"objective": {"metric": "val_loss"}, "scheduler": {"metric": "val_accuracy"}},
            "scheduler.metric: is no objective of this search, got val_accuracy",
        ),
        (
            {"objectives": [{"metric": "flops"}, {"metric": "val_loss"}]},
            "scheduler.metric: is required: flops is the same at every epoch; "
            "name the objective to stop by, such as val_loss",
        ),
        (
            {"objective": {"metric": "params"}},
            "objective: must have a metric that training changes, such as val_accuracy",
        ),
        (
            {"objectives": [{"metric": "params"}, {"metric": "flops"}]},
            "objectives: must have a metric that training changes, such as val_accuracy",
        ),
        (
            {"objective": {"metric": "val_loss"}, "objectives": [{"metric": "val_loss"}]},
            "objective: excludes objectives: a search has one or the other",
        ),
        (
            {"objectives": [{"metric": "val_loss"}, {"metric": "val_loss"}]},
            "objectives.1.metric: is given twice: val_loss",
        ),
        (
            {"objectives": [{"metric": "val_loss"}, {}], "search": {"sampler": "cmaes"}},
            "search.sampler: must not be cmaes, which takes one objective, not several",
        ),
        ({"objectives": []}, "objectives: must be a list of at least one value, got []"),
        (
            {"objectives": [{"metric": "val_loss", "mode": "max"}]},
            "objectives.0.mode: must be min for val_loss, got max",
        ),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "",
)
def test_objectives_fit_the_search(sections: dict[str, Any], message: str) -> None:
    assert rules(**sections) == [message]


def test_the_scheduler_names_the_objective_that_decides() -> None:
    objectives = [{"metric": "params"}, {"metric": "val_loss"}]
    found = space(objectives=objectives, scheduler={"metric": "val_loss"})
    assert [target.mode for target in found.targets] == ["min", "min"]
    assert found.target.metric == "val_loss"
    assert found.asks_for_networks
    assert not space().asks_for_networks


# ---- Points and constraints


POINTS = {
    "optimizer.name": OPTIMIZER,
    "optimizer.lr": LR,
    "optimizer.weight_decay": {"min": 0.01, "max": 0.1, "when": {"optimizer.name": "adamw"}},
    "epochs": {"min": 10, "max": 40},
    "augment.crop": {"values": [1, 4]},
}


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([{"optimizer.lrr": 0.2}], "0.optimizer.lrr: unknown key; did you mean optimizer.lr?"),
        ([{"tta": "flip"}], "0.tta: is not searched"),
        ([{"optimizer.lr": 2}], "0.optimizer.lr: must be between 0.01 and 1, got 2"),
        ([{"epochs": 10.5}], "0.epochs: must be a whole number, got 10.5"),
        ([{"augment.crop": True}], "0.augment.crop: must be one of 1, 4, got true"),
        ([{"epochs": 20}, {}], "1: is the same point as the baseline, which is trial 0"),
        ([{"optimizer.lr": 0.1}], "0: is the same point as the baseline, which is trial 0"),
        ([{"epochs": 20}, {"epochs": 20, "optimizer.lr": 0.1}], "1: is the same point as points.0"),
        (
            [{"epochs": 20, "optimizer.weight_decay": 0.05}],
            "0.optimizer.weight_decay: does not exist at this point: its `when` is not met",
        ),
        (
            [{"optimizer.name": "adamw"}],
            "0.optimizer.weight_decay: is required here: the baseline's 0.0005 is out of range",
        ),
        ([{"epochs": [20]}], "0.epochs: must be true or false, a whole number, a number or text"),
        ([3], "0: must be a section, {key: value}, got 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_point_lies_in_the_space_and_is_new(points: list[Any], message: str) -> None:
    (told,) = rules(parameters=POINTS, points=points)
    assert told.startswith(f"points.{message}")


def test_a_point_gives_what_it_needs() -> None:
    points = [{"optimizer.name": "adamw", "optimizer.weight_decay": 0.05}, {"epochs": 20}]
    assert space(parameters=POINTS, points=points).points == points


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ({"parms": {"max": 9}}, "parms: must be params or flops, got 'parms'; did you mean params"),
        ({"params": {"min": 2e6, "max": 1000}}, "params: min must be at most max, got 2,000,000 "),
        ({"params": {}}, "params: must have a min or a max"),
        ({"flops": {"max": -1}}, "flops.max: must be at least 0, got -1"),
        ({"flops": {"maxx": 1}}, "flops.maxx: unknown key; did you mean max?"),
    ],
    ids=["metric", "order", "neither", "negative", "key"],
)
def test_a_constraint_is_a_bound_of_a_metric(constraints: dict[str, Any], message: str) -> None:
    told = rules(constraints=constraints)
    assert len(told) == 1
    assert told[0].startswith(f"constraints.{message}")


# ---- Notes


@pytest.mark.parametrize(
    ("sections", "note"),
    [
        (
            {"parameters": {"optimizer.name": OPTIMIZER, "optimizer.momentum": MOMENTUM}},
            "parameters.optimizer.momentum has no effect where optimizer.name is adamw; "
            "add when: {optimizer.name: [sgd, muon]}",
        ),
        (
            {
                "parameters": {
                    "model.name": {"values": ["speednet", "resnet18"]},
                    "tta": {"values": ["none", "flip"]},
                    "model.stem": {**STEM, "when": {"tta": "none"}},
                    "optimizer.lr": LR,
                }
            },
            "parameters.model.stem has no effect where model.name is speednet; "
            "add when: {model.name: [resnet18]} to its conditions",
        ),
        (
            {"parameters": {"tta": {"values": ["none", "flip"]}}},
            "the space has 2 points: the search ends after 2 trials",
        ),
        (
            {
                "search": {"sampler": "grid", "num_trials": 3},
                "parameters": {"epochs": {"min": 26, "max": 30}},
            },
            "the grid has 5 points, of which 3 are tried",
        ),
        (
            {"search": {"sampler": "cmaes"}, "parameters": {**POINTS}},
            "cmaes draws choices and conditional parameters at random: "
            "optimizer.name, optimizer.weight_decay, augment.crop",
        ),
        (
            {"scheduler": {"grace_period": 30}},
            "the scheduler stops nothing: scheduler.grace_period is as long as a trial",
        ),
    ],
    ids=["waste", "waste-when", "few-points", "grid", "cmaes", "never-stops"],
)
def test_a_note_tells_what_may_not_be_meant(sections: dict[str, Any], note: str) -> None:
    assert space(**{"parameters": {"optimizer.lr": LR}} | sections).notes() == [note]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {
            "parameters": {
                "optimizer.name": OPTIMIZER,
                "optimizer.momentum": {**MOMENTUM, "when": {"optimizer.name": ["sgd", "muon"]}},
                "optimizer.lr": LR,
            }
        },
        # Flips are scaled also where the crop is 0.
        {"parameters": {"augment.strength": STRENGTH, "augment.crop": {"values": [0, 4]}}},
        {"scheduler": {"grace_period": 30, "name": "none"}},
        {"base": base(epochs=1)},
    ],
    ids=["defaults", "momentum-when", "strength", "no-scheduler", "one-epoch"],
)
def test_no_note_where_there_is_nothing_to_say(sections: dict[str, Any]) -> None:
    assert space(**{"parameters": {"optimizer.lr": LR}} | sections).notes() == []


def test_a_space_without_parameters_is_one_trial() -> None:
    assert space().notes() == ["nothing is searched: the baseline is the only trial"]
    assert space(search={"num_trials": 1}).notes() == []


@pytest.mark.parametrize(
    ("factor", "epochs", "fits"),
    [(1.001, 30, False), (1.1, 3, False), (1.5, 3, True), (2, 1, True)],
)
def test_there_are_no_more_rungs_than_epochs(factor: float, epochs: int, fits: bool) -> None:
    sections = {"base": base(epochs=epochs), "scheduler": {"reduction_factor": factor}}
    if fits:
        space(**sections)
    else:
        assert rules(**sections) == [
            f"scheduler.reduction_factor: must leave fewer rungs than the {epochs} epochs of a "
            f"trial, such as 3; got {factor}"
        ]


def test_a_fold_has_an_image_of_each_class() -> None:
    few = {"data": {"validation": 10, "train_subset": 30}, "stand_in": 10}
    small = {"base": base(batch_size=10), **few}
    space(**small, refit={"folds": 4})
    assert rules(**small, refit={"folds": 5}) == [
        "refit.folds: must leave ten images a fold, one of each class: "
        "at most 4 of 40 images, got 5"
    ]


@pytest.mark.parametrize(
    ("sections", "note"),
    [
        (
            {"scheduler": {"name": "none", "brackets": 2}},
            "scheduler.brackets has no effect with the scheduler none",
        ),
        (
            {"scheduler": {"name": "median", "reduction_factor": 2.0}},
            "scheduler.reduction_factor has no effect with the scheduler median",
        ),
        (
            {"scheduler": {"name": "median", "min_trials": 64}},
            "the scheduler stops nothing: scheduler.min_trials is as many as there are trials",
        ),
        (
            {"refit": {"top_k": 65}},
            "refit.top_k asks for more recipes than there are trials: 65 of 64",
        ),
    ],
)
def test_settings_without_effect_are_noted(sections: dict[str, Any], note: str) -> None:
    assert space(**{"parameters": {"optimizer.lr": LR}} | sections).notes() == [note]
