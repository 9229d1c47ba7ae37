"""A small valid space, and what the rules say of a change of it."""

from typing import Any

import pytest
import yaml

from cifartune.config import SearchSpace
from cifartune.config.load import parse_space
from cifartune.errors import UserError

OPTIMIZER = {"values": ["sgd", "adamw", "muon"]}
LR = {"min": 0.01, "max": 1.0, "log": True}
STRENGTH, CROP = {"min": 0, "max": 1}, {"min": 1, "max": 8}
MOMENTUM = {"min": 0.8, "max": 0.98}
STEM, INIT = {"values": ["cifar", "native"]}, {"values": ["default", "orthogonal"]}


def space(**sections: Any) -> SearchSpace:
    """A small valid space, with `sections` in place of its own."""
    data = {"name": "a", "base": {"model": {"name": "speednet"}}, **sections}
    return parse_space(yaml.safe_dump(data, sort_keys=False), source="f.yaml")


def rules(**sections: Any) -> list[str]:
    """What is wrong with a space: the messages without file and line."""
    with pytest.raises(UserError) as caught:
        space(**sections)
    return [line.split(": ", 1)[1] for line in str(caught.value).splitlines()]


def base(**values: Any) -> dict[str, Any]:
    """The base section, of dotted names with __ for the dot."""
    tree: dict[str, Any] = {"model": {"name": "speednet"}}
    for name, value in values.items():
        section, _, key = name.rpartition("__")
        (tree.setdefault(section, {}) if section else tree)[key] = value
    return tree
