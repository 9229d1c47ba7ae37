"""Which recipe fields act only together with others, and which are not the user's to set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cifartune.config.networks import networks
from cifartune.config.parameters import Choice, Range
from cifartune.config.recipe import Recipe

FIXED = {"seed": "is drawn for each trial from search.seed: set that instead"}
"""Recipe fields that a file must not set, with the reason."""


UNSEARCHED = {
    name: "changes how fast a recipe trains, not what it learns: fix it in base, or leave it"
    for name in ("memory_format", "compile")
}
"""Recipe fields that there is nothing to search for, with the reason."""


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


def _takes(option: str) -> Callable[[Any], bool]:
    return lambda value: value in networks() and option in networks()[value].takes


def _any_of(*rules: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: any(rule(value) for rule in rules)


_BLOCKS = _any_of(_family("resnet"), _family("resnet_channels"), _takes("proj_drop_rate"))

_JITTER = ("brightness", "contrast", "saturation", "hue")
_AFFINE = ("translate_x", "translate_y", "shear")
_MOVES = ("rotation", *_AFFINE, "perspective", "elastic")
_CHAIN = (*_JITTER, *_MOVES, "solarize", "invert")
_MIXES = ("mixup", "cutmix")
_SCALES = [
    Need(f"augment.{name}", lambda value: value != 1, f"augment.{name} other than 1")
    for name in ("scale_from", "scale_to")
]
_POLICY = _one_of("augment.policy", "randaugment", "trivialaugment", "autoaugment")

_JUDGED = Need("stopping.metric", lambda value: value != "none", "a stopping.metric")

EFFECTS: dict[str, list[Need]] = {
    "model.stem": [Need("model.name", _family("resnet"), "a ResNet")],
    "model.depth": [Need("model.name", _family("wideresnet"), "a wideresnet")],
    "model.width": [Need("model.name", _family("wideresnet"), "a wideresnet")],
    "model.squeeze_excite": [Need("model.name", _family("wideresnet"), "a wideresnet")],
    "model.channels": [
        Need(
            "model.name",
            _any_of(_family("resnet_channels"), _family("mixture")),
            "resnet_channels or mixture",
        )
    ],
    "model.block_dropout": [Need("model.name", _BLOCKS, "a network with dropout in its blocks")],
    "model.drop_path": [
        Need("model.name", _takes("drop_path_rate"), "a network with stochastic depth")
    ],
    "model.init": [_one_of("model.weights", "none")],
    "model.init_gain": [
        Need("model.init", lambda value: value != "default", "an init other than default")
    ],
    "model.whitening": [Need("model.name", _family("speednet"), "a speednet")],
    "data.small_share": [_not_zero("data.small_side")],
    "augment.flip_mode": [_not_zero("augment.flip")],
    "optimizer.momentum": [_one_of("optimizer.name", "sgd", "rmsprop", "muon")],
    "schedule.cycles": [_one_of("schedule.name", "restarts")],
    "schedule.cycle_growth": [_one_of("schedule.name", "restarts")],
    "schedule.drops": [_one_of("schedule.name", "step")],
    "schedule.gamma": [_one_of("schedule.name", "step", "plateau")],
    "schedule.patience": [_one_of("schedule.name", "plateau")],
    "stopping.patience": [_JUDGED],
    "stopping.min_delta": [_JUDGED],
    "augment.strength": [
        *(_not_zero(f"augment.{name}") for name in ("crop", "flip", "cutout", *_CHAIN, *_MIXES)),
        *_SCALES,
        _POLICY,
    ],
    "augment.padding": [
        *(_not_zero(f"augment.{name}") for name in ("crop", *_MOVES)),
        *_SCALES,
        _POLICY,
    ],
    **{
        f"augment.{name}": [_not_zero("augment.strength")]
        for name in (
            *("crop", "flip", "cutout", "policy", "scale_from", "scale_to"),
            *(*_CHAIN, *_MIXES),
        )
    },
    "augment.policy_probability": [_POLICY],
    "augment.randaugment_ops": [_one_of("augment.policy", "randaugment")],
    "augment.randaugment_magnitude": [_one_of("augment.policy", "randaugment")],
    "augment.group_probability": [*(_not_zero(f"augment.{name}") for name in _CHAIN), *_SCALES],
    "augment.jitter_probability": [_not_zero(f"augment.{name}") for name in _JITTER],
    "augment.affine_probability": [*(_not_zero(f"augment.{name}") for name in _AFFINE), *_SCALES],
    **{
        f"augment.{name}_probability": [_not_zero(f"augment.{name}")]
        for name in ("rotation", "perspective", "elastic", "solarize")
    },
    **{f"augment.{name}_alpha": [_not_zero(f"augment.{name}")] for name in _MIXES},
}
"""Fields that act only where another has certain values: one of the needs must be met."""


def acts_late(name: str, parameter: Range | Choice, base: Mapping[str, Any]) -> bool:
    """Whether a searched field does nothing before some epochs are over."""
    may_plateau = isinstance(parameter, Choice) and "plateau" in parameter.values
    of_plateau = name == "schedule.gamma" and base["schedule.name"] == "plateau"
    is_patience = name.startswith("stopping.") or name == "schedule.patience"
    return is_patience or may_plateau or of_plateau


def augments(recipe: Recipe) -> bool:
    """Whether training changes images, or adds to them."""
    values = recipe.flat()
    acts = any(need.is_met_by(values[need.field]) for need in EFFECTS["augment.strength"])
    return recipe.augment.copies > 0 or (recipe.augment.strength > 0 and acts)


def repeats_inputs(recipe: Recipe) -> bool:
    """Whether a frozen part gets the same images in several epochs, so that once is enough."""
    is_frozen = recipe.model.trainable != "all" and recipe.last_epoch > 1
    return is_frozen and not augments(recipe) and not recipe.data.small_side
