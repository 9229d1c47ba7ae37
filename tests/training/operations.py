"""Recipes that augment in one way each, for the tests of augmentation."""

from typing import Any

from torch import Generator

from cifartune.config.recipe import AugmentRecipe

OFF: dict[str, Any] = {"crop": 0, "flip": 0.0}

OPERATIONS: dict[str, dict[str, Any]] = {
    "crop": {"crop": 4},
    "crop_zero": {"crop": 4, "padding": "zero"},
    "flip": {"flip": 0.5},
    "cutout": {"cutout": 12},
    "brightness": {"brightness": 0.8},
    "contrast": {"contrast": 0.8},
    "saturation": {"saturation": 0.8},
    "hue": {"hue": 0.3},
    "rotation": {"rotation": 45.0},
    "translate": {"translate_x": 0.3, "translate_y": 0.2},
    "scale": {"scale_from": 0.5, "scale_to": 0.8},
    "shear": {"shear": 40.0},
    "perspective": {"perspective": 0.6},
    "elastic": {"elastic": 200.0},
    "solarize": {"solarize": 200, "solarize_probability": 0.7},
    "invert": {"invert": 0.5},
    "randaugment": {"policy": "randaugment"},
    "trivialaugment": {"policy": "trivialaugment"},
    "autoaugment": {"policy": "autoaugment"},
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 0.8},
    "joint_group": {
        **{"crop": 5, "padding": "zero", "group_probability": 0.5, "rotation": 180.0},
        **{"translate_x": 0.1, "translate_y": 0.3, "scale_from": 0.5, "scale_to": 0.75},
        **{"perspective": 0.5, "perspective_probability": 0.5, "elastic": 250.0},
        **{"solarize": 64, "solarize_probability": 0.5, "invert": 0.5},
    },
}
"""Fields with which one operation alone is on; the last are a published set of many."""


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def made(values: dict[str, Any], **more: Any) -> AugmentRecipe:
    return AugmentRecipe(**OFF | values | more)
