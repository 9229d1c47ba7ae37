"""Commands as the user has to type them."""

import os
import shutil
import sys
from pathlib import Path


def program(name: str) -> str:
    """`name` where it is on the PATH, else its path in this Python environment.

    After `make search` nothing of `.venv/bin` is on the PATH.
    """
    path = Path(sys.executable).with_name(name)
    if shutil.which(name) or not path.exists():
        return name
    return min(str(path), os.path.relpath(path), key=len)
