"""Which recipe fields act only together with others, and which are not the user's to set."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cifartune.config.networks import networks

FIXED = {"seed": "is drawn for each trial from search.seed: set that instead"}
"""Recipe fields that a file must not set, with the reason."""


@dataclass(frozen=True)
class Need:
    """What another field must be for a field to have any effect.

    Attributes:
        field: The other field.
        is_met_by: Whether a value of it will do.
        text: The same for people.
    """

    field: str
    is_met_by: Callable[[Any], bool]
    text: str


def _one_of(field: str, *values: str) -> Need:
    return Need(field, lambda value: value in values, f"{field} {' or '.join(values)}")


def _not_zero(field: str) -> Need:
    return Need(field, bool, f"{field} above 0")


def _family(name: str) -> Callable[[Any], bool]:
    return lambda value: value in networks() and networks()[value].family == name


EFFECTS: dict[str, list[Need]] = {
    "model.stem": [Need("model.name", _family("resnet"), "a ResNet")],
    "model.init": [_one_of("model.weights", "none")],
    "optimizer.momentum": [_one_of("optimizer.name", "sgd", "rmsprop", "muon")],
    "schedule.cycles": [_one_of("schedule.name", "restarts")],
    "schedule.cycle_growth": [_one_of("schedule.name", "restarts")],
    "schedule.drops": [_one_of("schedule.name", "step")],
    "schedule.gamma": [_one_of("schedule.name", "step")],
    "augment.strength": [_not_zero(f"augment.{name}") for name in ("crop", "flip", "cutout")],
    "augment.crop": [_not_zero("augment.strength")],
    "augment.flip": [_not_zero("augment.strength")],
    "augment.cutout": [_not_zero("augment.strength")],
}
"""Fields that act only where another has certain values: one of the needs must be met."""
