"""The versions that have to be the same on every machine of a search."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("cifartune", "torch", "torchvision", "timm", "numpy")
"""That Python and Ray are of one version, Ray sees to."""


def versions() -> dict[str, str]:
    """Each package's version here, or that it is missing."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def differences(drivers: Mapping[str, str]) -> list[str]:
    """Where this machine's versions are not the driver's, in words."""
    return [
        f"{name} is {here} there, {drivers[name]} here"
        for name, here in versions().items()
        if here != drivers[name]
    ]
