"""Files that are written whole or not at all."""

import os
import re
import uuid
from functools import partial
from pathlib import Path

PRIVATE = 0o600
"""The mode of files that their owner alone may read: they may hold passwords."""


def write_atomically(path: Path, content: bytes | str, *, mode: int = 0o666) -> None:
    """Replaces `path` by `content`; a reader, or a crash, never sees a part of it.

    Args:
        path: The file, or a link to it. Its folder is made where there is none. What is there and
            is no file, such as /dev/stdout, is written to, and stays.
        content: Text is written as UTF-8.
        mode: Who may read and write it, as far as the umask allows.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    try:
        # Not tempfile's, which nobody else on the machine could read.
        with open(temporary, "xb", opener=partial(os.open, mode=mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def leftovers(folder: Path) -> list[Path]:
    """What processes that were killed while they wrote a file left in `folder` or below."""
    return [path for path in folder.rglob(".*") if is_leftover(path)]


def is_leftover(path: Path) -> bool:
    """Whether a file is one of those, by its name, or is being written."""
    return bool(re.fullmatch(r"\.[0-9a-f]{32}", path.name))
