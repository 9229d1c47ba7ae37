"""How often the test set was looked at: a line for each look, beside the data, for all searches."""

import json
import os
from pathlib import Path
from typing import Any

from cifartune.errors import UserError

FILE = "test_looks.jsonl"


def record_look(root: Path, about: dict[str, Any]) -> None:
    """Notes that the test images in `root` are about to be looked at.

    Raises:
        UserError: It cannot be noted, and so they must not be looked at.
    """
    path = root / FILE
    try:
        # One write at the end of the file: others may look at the same time. It begins with the
        # end of the line before, which a power cut may have torn.
        with path.open("ab") as file:
            file.write(b"\n" + json.dumps(about).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"{path}: looks at the test set are counted there, and it cannot be written: "
            f"{error.strerror}; set CIFARTUNE_DATA to a folder of your own"
        ) from None


def looks(root: Path) -> list[dict[str, Any]]:
    """What was noted of each look so far, the oldest first."""
    path = root / FILE
    if not path.exists():
        return []
    found = []
    for line in filter(None, path.read_text().splitlines()):
        try:
            found.append(json.loads(line))
        except ValueError:  # it was being written when the power went: a look all the same
            found.append({})
    return found
