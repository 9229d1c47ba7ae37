"""Writes the index of all networks that `cifartune.config.networks` reads."""

import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import timm

from cifartune.config.networks import INDEX, OPTIONS
from cifartune.models import build_model  # noqa: F401  (registers our networks with timm)


def make_index() -> dict[str, Any]:
    """The index: networks by family, each with 1 where timm has weights for it, else 0.

    Besides, the families whose networks all take an option, for each of `OPTIONS`.
    """
    with_weights = {name.partition(".")[0] for name in timm.list_models(pretrained=True)}
    families = {
        family: {name: int(name in with_weights) for name in timm.list_models(module=family)}
        for family in timm.list_modules()
    }
    families = {family: names for family, names in sorted(families.items()) if names}
    takes = {f: frozenset.intersection(*map(_arguments, names)) for f, names in families.items()}
    return {
        "timm": version("timm"),
        "takes": {option: [f for f in families if option in takes[f]] for option in OPTIONS},
        "families": families,
    }


class _Found(Exception):
    """Carries the class of a network out of its entry point, before it is built."""


def _arguments(name: str) -> frozenset[str]:
    """The arguments that the class of network `name` takes by name."""
    entry_point = timm.model_entrypoint(name)
    with _caught_before_building(sys.modules[entry_point.__module__]):
        try:
            entry_point()
        except _Found as found:
            return _arguments_of(found.args[0])
    return frozenset()


@contextmanager
def _caught_before_building(module: Any) -> Iterator[None]:
    """Lets the functions of `module` that build a network raise its class instead."""

    def catch(kind: Callable[..., Any], *_: Any, **__: Any) -> None:
        raise _Found(kind)

    builders = [n for n in ("build_model_with_cfg", "create_network") if hasattr(module, n)]
    originals = {name: getattr(module, name) for name in builders}
    try:
        for name in builders:
            setattr(module, name, catch)
        with warnings.catch_warnings(action="ignore"):  # of deprecated names
            yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


def _arguments_of(kind: Any) -> frozenset[str]:
    """The arguments of a class by name, with those that it hands on to the class it is made of."""
    found: set[str] = set()
    constructors = (
        [vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)]
        if isinstance(kind, type)
        else [kind]
    )
    for constructor in constructors:
        parameters = inspect.signature(constructor).parameters
        found |= parameters.keys()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return frozenset(found)


if __name__ == "__main__":
    INDEX.write_text(json.dumps(make_index(), indent=1) + "\n")
