from typing import Any

import pytest
import yaml

from cifartune.config import SearchSpace, smoke_space
from cifartune.config.load import parse_space
from cifartune.errors import UserError

RESNET = """
name: resnet
base:
  model: {name: resnet18}
  optimizer: {lr: 0.1, momentum: 0.9}
  batch_size: 1024
  epochs: 30
parameters:
  optimizer.name: {values: [sgd, adamw, muon]}
  optimizer.lr: {min: 1.0e-3, max: 1.0, log: true}
  optimizer.momentum: {min: 0.8, max: 0.98, when: {optimizer.name: [sgd, muon]}}
  batch_size: {values: [512, 1024]}
  augment.cutout: {min: 0, max: 16, step: 8, when: {batch_size: 1024}}
  augment.crop: {min: 1, max: 8, when: {batch_size: 512}}
  augment.strength: {min: 0.0, max: 1.0, when: {augment.crop: 4, epochs: [29, 30]}}
  epochs: {min: 20, max: 40}
scheduler: {name: asha, grace_period: 5}
refit: {top_k: 3, folds: 5, epochs: 40}
"""


def space(**changes: Any) -> SearchSpace:
    """A small space; keyword arguments replace its sections."""
    values = {"name": "a", "base": {"model": {"name": "speednet"}}} | changes
    return parse_space(yaml.safe_dump(values), source="f.yaml")


def rule(**changes: Any) -> str:
    """The rule that a changed space breaks, without file and line."""
    with pytest.raises(UserError) as caught:
        space(**changes)
    return str(caught.value).partition(": ")[2]


@pytest.mark.parametrize(
    ("name", "parameter", "message"),
    [
        ("model.drop", {"min": 0, "max": 0.5}, ": unknown key; did you mean model.dropout?"),
        ("seed", {"min": 0, "max": 9}, ": is drawn for each trial from search.seed: set that"),
        ("compile", {"values": ["never", "always"]}, ": changes how fast a recipe trains, not"),
        ("model.dropout", {"min": 0, "max": 1}, ".max: must be below 1, got 1.0"),
        ("model.dropout", {"values": [0, 3]}, ".values.1: must be below 1, got 3"),
        ("model.init", {"min": 0, "max": 1}, ": is no number: use values"),
        ("epochs", {"min": 1.5, "max": 40}, ".min: must be a whole number, as epochs is, got 1.5"),
        ("epochs", {"min": 1, "max": 40, "step": 1.5}, ".step: must be a whole number"),
        ("epochs", {"values": [30, 1.5]}, ".values.1: must be a whole number, got 1.5"),
        (
            "tta",
            {"values": ["none", "flop"]},
            ".values.1: must be none, flip or six_views, got 'flop'; did",
        ),
        ("batch_size", {"min": 512, "max": 50_000}, ": must be at most the 45,000 training images"),
        (
            "model.dropout",
            {"min": 0, "max": 0.5, "when": {"optimizer.name": "sgd"}},
            ".when.optimizer.name: optimizer.name is not searched: it is not among the parameters",
        ),
        (
            "model.dropout",
            {"min": 0, "max": 0.5, "when": {"model.dropout": 0}},
            ".when: depends on itself in a circle",
        ),
        (
            "model.dropout",
            {"min": 0, "max": 0.5, "when": {"model.drop": 0}},
            ".when.model.drop: unknown key; did you mean model.dropout?",
        ),
    ],
)
def test_a_parameter_must_fit_its_field(name: str, parameter: dict[str, Any], message: str) -> None:
    assert rule(parameters={name: parameter}).startswith(f"parameters.{name}{message}")


@pytest.mark.parametrize(
    ("value", "hint"), [("adam", "; did you mean adamw?"), (3, ""), ("muon", "")]
)
def test_a_condition_that_can_never_hold_is_refused(value: Any, hint: str) -> None:
    parameters = {
        "optimizer.name": {"values": ["sgd", "adamw"]},
        "model.dropout": {"min": 0, "max": 0.5, "when": {"optimizer.name": ["sgd", value]}},
    }
    assert rule(parameters=parameters) == (
        "parameters.model.dropout.when.optimizer.name: "
        f"can never be {value!r}: optimizer.name is one of sgd, adamw{hint}"
    )


def test_a_condition_on_a_range_must_lie_in_it() -> None:
    parameters = {
        "epochs": {"min": 10, "max": 40},
        "model.dropout": {"min": 0, "max": 0.5, "when": {"epochs": 9}},
    }
    assert "can never be 9: epochs is between 10 and 40" in rule(parameters=parameters)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"base": {"model": {"dropout": 0.9}}},
            "base.model.dropout: is 0.9, but parameters.model.dropout is between 0 and 0.5: "
            "the baseline is trial 0 and must lie in the space",
        ),
        ({"base": {"seed": 3}}, "base.seed: is drawn for each trial from search.seed: set that"),
        (
            {"base": {"epochs": 2}, "scheduler": {"grace_period": 3}},
            "scheduler.grace_period: must be at most the 2 epochs of a trial, got 3",
        ),
        (
            {"data": {"train_subset": 500}},
            "base.batch_size: must be at most the 500 training images, got 512",
        ),
        (
            {"data": {"validation": 30_000, "train_subset": 30_000}},
            "data: validation and train_subset must not exceed 50,000 images together",
        ),
        (
            {"stand_in": 30_000, "data": {"validation": 15_000, "train_subset": 6_000}},
            "stand_in: must leave enough of the 50,000 images",
        ),
    ],
)
def test_sections_must_fit_each_other(changes: dict[str, Any], message: str) -> None:
    parameters = {"model.dropout": {"min": 0, "max": 0.5}}
    assert rule(**{"parameters": parameters} | changes).startswith(message)


def test_a_baseline_need_not_have_what_does_not_apply_to_it() -> None:
    parameters = {
        "optimizer.name": {"values": ["sgd", "adamw"]},
        "model.dropout": {"min": 0.1, "max": 0.5, "when": {"optimizer.name": "adamw"}},
    }
    assert space(parameters=parameters).base.model.dropout == 0


def test_the_mode_follows_from_the_metric() -> None:
    assert space(objective={"metric": "val_loss"}).target.mode == "min"
    assert space().target.mode == "max"


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1.5m", 90), ("2 h", 7200), (9, 9)])
def test_a_time_has_a_unit(text: str | int, seconds: float) -> None:
    assert space(search={"time_budget": text}).search.time_budget == seconds
    assert space(resources={"epoch_timeout": text}).resources.epoch_timeout == seconds


def test_parameters_are_ordered_by_their_conditions() -> None:
    names = list(parse_space(RESNET, source="resnet").ordered_parameters())
    assert sorted(names) == sorted(yaml.safe_load(RESNET)["parameters"])
    for name, other in {
        "optimizer.momentum": "optimizer.name",
        "augment.crop": "batch_size",
        "augment.strength": "augment.crop",
    }.items():
        assert names.index(name) > names.index(other)


def test_a_circle_of_conditions_is_refused() -> None:
    parameters = {
        "model.init": {"values": ["default", "orthogonal"]},
        "model.dropout": {"values": [0], "when": {"tta": "none"}},
        "tta": {"values": ["none"], "when": {"augment.crop": 4}},
        "augment.crop": {"values": [4], "when": {"model.dropout": 0}},
    }
    assert rule(parameters=parameters).endswith("when: depends on itself in a circle")


def test_a_space_survives_its_own_dump() -> None:
    for original in (parse_space(RESNET, source="resnet"), space()):
        assert SearchSpace.model_validate(original.model_dump()) == original
        assert SearchSpace.model_validate_json(original.model_dump_json()) == original


@pytest.mark.parametrize(
    ("base", "note"),
    [
        (
            {"epochs": 5, "stopping": {"metric": "val_loss"}},
            "stopping.metric ends no run: stopping.patience is 5, of 5 epochs",
        ),
        (
            {"epochs": 5, "stopping": {"epoch": 5}},
            "stopping.epoch has no effect: a run has 5 epochs",
        ),
        ({"epochs": 6, "stopping": {"metric": "val_loss"}}, None),
        ({"epochs": 6, "stopping": {"epoch": 5}}, None),
    ],
)
def test_an_end_that_never_comes_is_noted(base: dict[str, Any], note: str | None) -> None:
    parameters = {"optimizer.lr": {"min": 0.1, "max": 0.2}}
    space = SearchSpace.model_validate({"name": "end", "base": base, "parameters": parameters})
    assert space.notes() == ([note] if note else [])


def test_a_smoke_space_leaves_out_what_acts_after_its_only_epoch() -> None:
    parameters = {
        "stopping.metric": {"values": ["none", "val_loss"]},
        "stopping.patience": {"values": [3, 5], "when": {"stopping.metric": "val_loss"}},
        "schedule.name": {"values": ["one_cycle", "plateau"]},
        "schedule.patience": {"values": [2, 3], "when": {"schedule.name": "plateau"}},
        "optimizer.name": {"values": ["sgd", "adamw"]},
    }
    space = SearchSpace.model_validate({"name": "late", "base": {}, "parameters": parameters})
    assert set(smoke_space(space).parameters) == {"optimizer.name"}
    parameters["schedule.name"] = {"values": ["one_cycle", "cosine"]}
    del parameters["schedule.patience"]
    plateau = {"schedule": {"name": "plateau"}}
    lowering = {"schedule.gamma": {"values": [0.1, 0.5]}, "optimizer.lr": {"values": [0.1, 0.2]}}
    space = SearchSpace.model_validate({"name": "late", "base": plateau, "parameters": lowering})
    assert set(smoke_space(space).parameters) == {"optimizer.lr"}
    space = SearchSpace.model_validate({"name": "late", "base": {}, "parameters": parameters})
    assert set(smoke_space(space).parameters) == {"schedule.name", "optimizer.name"}


def test_a_smoke_space_is_valid_and_small() -> None:
    smoke = smoke_space(parse_space(RESNET, source="resnet"))
    assert smoke.notes() == []
    assert SearchSpace.model_validate(smoke.model_dump()) == smoke
    assert smoke.name == "resnet-smoke"
    assert (smoke.base.epochs, smoke.base.batch_size, smoke.base.model.resolution) == (2, 128, 16)
    assert (smoke.search.num_trials, smoke.refit.folds, smoke.refit.top_k) == (2, 2, 1)
    assert smoke.refit.epochs is None
    assert (smoke.data.validation, smoke.data.train_subset, smoke.stand_in) == (512, 512, 512)
    assert smoke.scheduler.grace_period == 1
    # Batch size and epochs are fixed; what they ruled out at the baseline is gone with them.
    assert smoke.parameters.keys() == {
        "optimizer.name",
        "optimizer.lr",
        "optimizer.momentum",
        "augment.cutout",
        "augment.strength",
    }
    assert smoke.parameters["augment.cutout"].when == {}
    assert smoke.parameters["optimizer.momentum"].when == {"optimizer.name": ["sgd", "muon"]}


def test_smoke_changes_nothing_else() -> None:
    full = space(name="a" * 100, search={"seed": 7, "sampler": "random"})
    smoke = smoke_space(full)
    assert smoke.search.seed == 7
    assert smoke.search.sampler == "random"
    assert smoke.base.model.name == "speednet"
    assert full == space(name="a" * 100, search={"seed": 7, "sampler": "random"})


def test_a_smoke_run_drops_what_no_longer_acts() -> None:
    """With the epochs fixed, the strength is 0 for good, and the crop does nothing."""
    full = space(
        base={"augment": {"strength": 0.0}, "epochs": 3},
        parameters={
            "epochs": {"values": [3, 5]},
            "augment.strength": {"values": [0, 0.5], "when": {"epochs": 5}},
            "augment.crop": {"min": 0, "max": 8},
            "optimizer.lr": {"min": 0.01, "max": 1.0},
        },
    )
    assert smoke_space(full).parameters.keys() == {"optimizer.lr"}


@pytest.mark.parametrize(
    ("name", "resolution"), [("resnet18", 16), ("speednet", 16), ("convnext_atto", 32)]
)
def test_a_smoke_run_shrinks_images_only_where_that_is_known_to_work(
    name: str, resolution: int
) -> None:
    smoke = smoke_space(space(base={"model": {"name": name}}))
    assert smoke.base.model.resolution == resolution
    searched = {"model.name": {"values": [name, "resnet34"]}}
    both = space(base={"model": {"name": name}}, parameters=searched)
    assert smoke_space(both).base.model.resolution == resolution
