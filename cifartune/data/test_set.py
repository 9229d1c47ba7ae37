"""The test images. Only `evaluate` imports this module, so that nothing else can look at them."""

from pathlib import Path

from cifartune.data.cifar10 import LabelledImages
from cifartune.data.prepared import load_split


def load_test(root: str | Path | None = None) -> LabelledImages:
    """Open the 10,000 test images as a copy-on-write memory map.

    Args:
        root: folder of the prepared arrays; by default `$CIFARTUNE_DATA` or the user's cache.

    Raises:
        UserError: they are not there; `cifartune data fetch` gets them.
    """
    return load_split(root, "test")
