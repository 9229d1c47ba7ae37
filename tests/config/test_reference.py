"""The reference: generated, complete, and not stale."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cifartune.config.fields import all_fields
from cifartune.config.load import _read_yaml
from cifartune.config.reference import (
    PAGE,
    SCHEMA,
    file_entries,
    find_entries,
    json_schema,
    recipe_entries,
    reference_page,
    schema_text,
)
from cifartune.config.space import SearchSpace
from cifartune.errors import UserError

SPACES = Path(__file__).parents[2] / "search_spaces"


def test_the_generated_files_are_up_to_date() -> None:
    stale = "is stale: make reference"
    assert PAGE.read_text() == reference_page(), stale
    assert SCHEMA.read_text() == schema_text(), stale


def test_every_key_is_described() -> None:
    assert [entry.name for entry in recipe_entries()] == list(all_fields())
    assert {entry.name.split(".")[0] for entry in file_entries()} == set(SearchSpace.model_fields)
    for entry in [*recipe_entries(), *file_entries()]:
        assert entry.domain, entry.name
        assert entry.description.endswith("."), entry.name


def test_a_key_a_section_and_a_parameter_can_be_found() -> None:
    [rate] = find_entries("optimizer.lr")
    assert (rate.domain, rate.default) == ("number, above 0, at most 10", "0.1")
    [momentum] = find_entries("optimizer.momentum")
    assert momentum.remarks == ("Acts only with optimizer.name sgd or rmsprop or muon.",)
    assert [e.name for e in find_entries("schedule")] == [
        f"schedule.{key}"
        for key in ("name", "warmup", "cycles", "cycle_growth", "drops", "gamma", "patience")
    ]
    [trials] = find_entries("search.num_trials")
    assert trials.remarks == ("Also called num_samples or max_trials.",)
    assert {"parameters.<field>.min", "parameters.<field>.values"} <= {
        entry.name for entry in find_entries("parameters")
    }
    with pytest.raises(UserError, match=r"optimizer.lrr: no such key; did you mean optimizer.lr\?"):
        find_entries("optimizer.lrr")


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_schema_accepts_our_spaces(path: Path, validator: Any) -> None:
    validator.validate(_read_yaml(path.read_text())[1])


GOOD = {
    "name": "a",
    "base": {},
    "parameters": {
        "optimizer.lr": {"lower": 0.1, "maxval": 1, "log": True},
        "optimizer.name": {"values": ["sgd", "adamw"]},
        "optimizer.momentum": {"min": 0.8, "max": 0.9, "when": {"optimizer.name": "sgd"}},
    },
    "search": {"num_samples": 3, "time_budget": "2h"},
}


def test_the_schema_knows_aliases_and_short_forms(validator: Any) -> None:
    validator.validate(GOOD)
    SearchSpace.model_validate(GOOD)


@pytest.mark.parametrize(
    "change",
    [
        {"serch": {}},
        {"search": {"num_trial": 3}},
        {"search": {"sampler": "tp"}},
        {"base": {"model": {"name": "resnet81"}}},
        {"base": {"optimizer": {"lr": 0}}},
        {"parameters": {"optimizer.lrr": {"min": 0.1, "max": 1}}},
        {"parameters": {"optimizer.lr": {"minn": 0.1, "max": 1}}},
        {"search": {"time_budget": "2 hours"}},
    ],
    ids=json.dumps,
)
def test_the_schema_refuses_what_an_editor_should_underline(
    change: dict[str, Any], validator: Any
) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(GOOD | change)


def test_our_spaces_name_the_schema() -> None:
    for path in SPACES.glob("*.yaml"):
        lines = path.read_text().splitlines()
        assert "# yaml-language-server: $schema=../docs/search_space.schema.json" in lines[:12]
        assert (path.parent / "../docs/search_space.schema.json").resolve() == SCHEMA
        assert yaml.safe_load(path.read_text())["name"] == path.stem
