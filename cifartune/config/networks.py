"""The names of all networks, known without loading torch: an index that is generated from timm.

`python -m cifartune.models.index` writes it anew.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cifartune.config.problems import hint, nearest

INDEX = Path(__file__).with_name("networks.json")

OPTIONS = ("img_size", "drop_path_rate", "proj_drop_rate")
"""What may be asked of timm's networks, in timm's words, that only some of them know."""


@dataclass(frozen=True)
class Network:
    """A network in timm's registry, ours among them.

    Attributes:
        family: The module that defines it, such as `resnet`.
        has_weights: Whether timm offers weights that were trained on ImageNet.
        takes: Of the options in `OPTIONS`, those that it has, by timm's names.
    """

    family: str
    has_weights: bool
    takes: frozenset[str]


@cache
def networks() -> Mapping[str, Network]:
    """Every network by its name."""
    index = json.loads(INDEX.read_text())
    takes = {
        family: frozenset(option for option in OPTIONS if family in index["takes"][option])
        for family in index["families"]
    }
    return {
        name: Network(family, bool(has_weights), takes[family])
        for family, names in index["families"].items()
        for name, has_weights in names.items()
    }


def known_network(name: str) -> str:
    """Returns `name`.

    Raises:
        ValueError: No network is called that.
    """
    if name not in networks():
        raise ValueError(
            f"must be the name of a network of timm or cifartune, got {name!r}"
            + hint(nearest(name, list(networks())))
        )
    return name
