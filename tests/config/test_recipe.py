from typing import Any

import pytest
from pydantic import ValidationError

from cifartune.config import Recipe
from cifartune.config.fields import all_fields
from cifartune.config.recipe import recipe_fields


def other_value(name: str, value: Any) -> Any:
    """A legal value of a recipe field that differs from `value`."""
    others = {
        "model.name": ("speednet",),
        "model.weights": ("imagenet",),
        "model.channels": ("64/64",),
        "model.depth": (16,),
    }
    if words := all_fields()[name].words or others.get(name):
        return next(word for word in words if word != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    legal = all_fields()[name].check
    return next(other for other in (value / 2 + 0.07, value + 1) if legal(other) is None)


@pytest.mark.parametrize("name", recipe_fields())
def test_every_field_changes_the_id(name: str) -> None:
    recipe = Recipe()
    changed = recipe.with_values({name: other_value(name, recipe.flat()[name])})
    assert changed.id != recipe.id
    assert changed.with_values({name: recipe.flat()[name]}).id == recipe.id


def test_the_id_depends_on_values_alone() -> None:
    written = Recipe.model_validate({"epochs": 3, "optimizer": {"lr": 1, "name": "sgd"}})
    other_order = Recipe.model_validate({"optimizer": {"name": "sgd", "lr": 1.0}, "epochs": 3})
    assert written.id == other_order.id == Recipe.model_validate_json(written.model_dump_json()).id
    assert len(written.id) == 12
    int(written.id, 16)


def test_the_id_is_the_same_in_every_process() -> None:
    # Whoever changes a field or a default changes what was recorded: raise SCHEMA_VERSION if a
    # field has a new meaning, then write the new id here.
    assert Recipe().id == "580f5e81f3f1"


def test_with_values_checks_and_leaves_the_original() -> None:
    recipe = Recipe()
    changed = recipe.with_values({"optimizer.lr": 1, "model.name": "speednet", "epochs": 3})
    assert (changed.optimizer.lr, changed.model.name, changed.epochs) == (1.0, "speednet", 3)
    assert recipe == Recipe()
    assert changed.flat() | {"optimizer.lr": 0.1, "model.name": "resnet18", "epochs": 30} == (
        recipe.flat()
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.dropout", 1.0),
        ("model.dropout", float("nan")),
        ("model.name", "lenet6"),
        ("model.depth", 12),
        ("model.depth", 4),
        ("model.channels", "64/0"),
        ("model.channels", "64,64"),
        ("model.channels", ""),
        ("model.weights", "imagenet22k"),
        ("model.weights", "weights.zip"),
        ("model.trainable", "last_4"),
        ("model.resolution", 8),
        ("optimizer.lr", 0),
        ("optimizer.lr", True),
        ("optimizer.lr", "0.1"),
        ("epochs", 2.5),
        ("epochs", True),
        ("epochs", "3"),
        ("batch_size", 1),
        ("optimizer.beta", 0.9),
    ],
)
def test_illegal_values_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Recipe().with_values({name: value})


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().optimizer.lr = 1.0  # type: ignore[misc]


def test_recipe_fields_are_typed() -> None:
    fields = recipe_fields()
    assert fields["optimizer.lr"] is float
    assert fields["epochs"] is int
    assert fields["model.init"] is str
    assert fields.keys() == Recipe().flat().keys()
