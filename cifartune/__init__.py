"""cifartune: hyper-parameter search for CIFAR-10 classifiers.

Importing the package is free: neither torch nor ray is loaded until something is run.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifartune.api import load, search, train

__version__ = "0.1.0"

__all__ = ["__version__", "load", "search", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from cifartune import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
