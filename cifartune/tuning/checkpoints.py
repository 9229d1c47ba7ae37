"""A run's checkpoints: named by their epoch, with a checksum, and two of them at a time."""

import io
import logging
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from cifartune.errors import first_line
from cifartune.files import write_atomically

logger = logging.getLogger(__name__)

KEPT = 2
"""The newest, and the one before it for the case that the newest is damaged."""

_DIGEST_BYTES = sha256().digest_size


class Checkpoints:
    """The checkpoints of one run, in a folder that need not exist.

    A file is the SHA-256 of what torch.save wrote, and that.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def epoch(self) -> int:
        """The epoch of the newest; 0 if there is none."""
        return max(self._paths(), default=0)

    def save(self, epoch: int, state: dict[str, Any]) -> Path:
        """Writes the state after an epoch, whole or not at all, and only then drops old ones."""
        import torch  # whoever only asks for the epochs does without

        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        path = self._folder / f"epoch-{epoch}.checkpoint"
        write_atomically(path, sha256(content).digest() + content)
        self.drop_after(epoch)  # they were damaged: this run began before them
        for old in sorted(self._paths())[:-KEPT]:
            self._paths()[old].unlink(missing_ok=True)
        return path

    def load(self) -> dict[str, Any] | None:
        """The newest state that is whole, on the CPU; None if there is none.

        Damaged files are named in the log.
        """
        import torch

        paths = self._paths()
        for epoch in sorted(paths, reverse=True):
            path = paths[epoch]
            try:
                buffer = io.BytesIO(_content(path))
                state: dict[str, Any] = torch.load(buffer, map_location="cpu", weights_only=True)
            except (OSError, ValueError) as error:
                logger.warning(
                    "%s is damaged (%s); the one before is used", path, first_line(error)
                )
                continue
            return state
        return None

    def drop_after(self, epoch: int) -> None:
        """Deletes those of later epochs."""
        for number, path in self._paths().items():
            if number > epoch:
                path.unlink(missing_ok=True)

    def damaged(self) -> list[Path]:
        """The files that are not what was written."""
        return [path for path in self._paths().values() if not _is_whole(path)]

    def clear(self) -> None:
        """Deletes all of them."""
        for path in self._paths().values():
            path.unlink(missing_ok=True)

    def _paths(self) -> dict[int, Path]:
        found = (
            (path, re.fullmatch(r"epoch-(\d+)\.checkpoint", path.name)) for path in self._files()
        )
        return {int(match[1]): path for path, match in found if match}

    def _files(self) -> list[Path]:
        return list(self._folder.iterdir()) if self._folder.is_dir() else []


def _content(path: Path) -> memoryview:
    """What torch.save wrote into a checkpoint.

    Raises:
        ValueError: The checksum says that this is something else.
    """
    content = memoryview(path.read_bytes())
    if sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
        raise ValueError("its checksum is another")
    return content[_DIGEST_BYTES:]


def _is_whole(path: Path) -> bool:
    try:
        _content(path)
    except (OSError, ValueError):
        return False
    return True
