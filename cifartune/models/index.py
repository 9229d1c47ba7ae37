"""Writes the index of all networks that `cifartune.config.networks` reads."""

import json
from importlib.metadata import version
from typing import Any

import timm

from cifartune.config.networks import INDEX
from cifartune.models import build_model  # noqa: F401  (registers our networks with timm)


def make_index() -> dict[str, Any]:
    """The index: networks by family, each with 1 where timm has weights for it, else 0."""
    with_weights = {name.partition(".")[0] for name in timm.list_models(pretrained=True)}
    families = {
        family: {name: int(name in with_weights) for name in timm.list_models(module=family)}
        for family in timm.list_modules()
    }
    return {"timm": version("timm"), "families": {k: v for k, v in sorted(families.items()) if v}}


if __name__ == "__main__":
    INDEX.write_text(json.dumps(make_index(), indent=1) + "\n")
