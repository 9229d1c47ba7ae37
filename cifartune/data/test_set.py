"""The test images, which nothing but an evaluation looks at; and each look is counted."""

import datetime
from pathlib import Path
from typing import Any

from cifartune.data.cifar10 import LabelledImages, resolve_root
from cifartune.data.looks import record_look
from cifartune.data.prepared import load_split
from cifartune.errors import UserError


def look_at_test(root: str | Path | None = None, **about: Any) -> LabelledImages:
    """Opens the 10,000 test images, as a copy-on-write memory map, and counts that as a look.

    Args:
        root: The folder of the prepared arrays; by default `$CIFARTUNE_DATA` or the user's cache.
        about: Who looks, for the record; the time is added.

    Raises:
        UserError: They are not there, `cifartune data fetch` gets them; or looks cannot be counted.
    """
    if (why := why_not(root)) is not None:
        raise why
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record_look(resolve_root(root), {"time": now, **about})
    return load_split(root, "test")


def why_not(root: str | Path | None = None) -> UserError | None:
    """Why the test images cannot be looked at; None if they can. Opens none of them."""
    folder = resolve_root(root)
    for name in ("test_images.npy", "test_labels.npy"):
        if not (folder / name).exists():
            return UserError(f"{folder / name} is missing: run `cifartune data fetch`")
    return None
