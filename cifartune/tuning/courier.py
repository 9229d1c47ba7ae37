"""A job's files on a machine that does not see the driver's disk: fetched, and brought back."""

import errno
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock, Timeout

from cifartune.errors import first_line
from cifartune.files import write_atomically
from cifartune.outputs import as_written
from cifartune.tuning.messages import Job, Work

SCRATCH = "cifartune-slot-"
"""How the names of slots' folders begin."""


class Files:
    """The driver's disk, for those who do not see it; the body of a Ray actor beside the driver."""

    def read(self, path: Path) -> bytes:
        """A file's content."""
        return path.read_bytes()

    def checkpoints(self, folder: Path) -> dict[str, bytes]:
        """A job's checkpoints by their names. Makes `folder` if it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        return {path.name: path.read_bytes() for path in folder.glob("epoch-*.checkpoint")}

    def write(self, folder: Path, changed: dict[str, bytes], gone: list[str]) -> None:
        """Writes files of `folder`, each whole or not at all, and then deletes others of it.

        Nothing where the folder is gone: its job is over, and this comes late.
        """
        if not folder.is_dir():
            return
        for name, content in changed.items():
            write_atomically(folder / name, content)
        for name in gone:
            (folder / name).unlink(missing_ok=True)


class AtHome(OSError):
    """The driver's disk, not this machine's, could not be read or written."""


class Undelivered(RuntimeError):
    """Files did not come or go, through no fault of the recipe or of the driver's disk."""


class Courier:
    """Carries a slot's files between the driver's disk and a folder on the slot's machine.

    Args:
        files: The driver's `Files`.
        folder: The slot's own, there for the `with` block; its name begins with `SCRATCH`. Folders
            beside it of slots that were killed are deleted.
    """

    def __init__(self, files: Any, folder: Path) -> None:
        self._files = files
        self._folder = folder
        self._lock = FileLock(folder / ".lock")
        self._splits: dict[Path, Path] = {}  # those that are here, by where they are at home
        self._here = folder / "job"
        self._home = Path()
        self._known: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> None:
        for other in self._folder.parent.glob(f"{SCRATCH}*"):
            with suppress(Timeout, OSError), FileLock(other / ".lock", timeout=0):
                shutil.rmtree(other, ignore_errors=True)
        self._folder.mkdir(0o700)
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.release()

    @contextmanager
    def carrying(self, job: Work) -> Iterator[Work]:
        """`job` with its splits and checkpoints on this machine, for the `with` block.

        Raises:
            AtHome: They cannot be read there.
            Undelivered: They cannot be had, or the block cannot write here.
        """
        try:
            if job.splits not in self._splits:
                splits = self._folder / f"splits-{len(self._splits)}.npz"
                write_atomically(splits, self._ask(self._files.read, job.splits))
                self._splits[job.splits] = splits
            self._home = job.folder
            self._here.mkdir()
            if isinstance(job, Job):
                for name, content in self._ask(self._files.checkpoints, job.folder).items():
                    write_atomically(self._here / name, content)
            self._known = self._stamps()
            yield replace(job, folder=self._here, splits=self._splits[job.splits])
        except AtHome:
            raise
        except OSError as error:
            why = errno.errorcode.get(error.errno or 0, type(error).__name__)
            raise Undelivered(
                f"{socket.gethostname()} cannot keep files in {self._folder.parent} ({why})"
            ) from None
        finally:
            shutil.rmtree(self._here, ignore_errors=True)

    def bring(self) -> None:
        """Makes the job's folder on the driver's disk what it is here; returns when it is.

        Raises:
            AtHome: It cannot be written.
            Undelivered: It does not get there.
        """
        now = self._stamps()
        changed = {
            name: (self._here / name).read_bytes()
            for name, stamp in sorted(now.items(), key=lambda item: as_written(item[0]))
            if self._known.get(name) != stamp
        }
        gone = [name for name in self._known if name not in now]
        if changed or gone:
            self._ask(self._files.write, self._home, changed, gone)
        self._known = now

    def _ask(self, method: Any, *arguments: Any) -> Any:
        try:
            return ray.get(method.remote(*arguments))
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, OSError):
                raise AtHome(cause.errno, cause.strerror, cause.filename) from None
            told = first_line(cause or error)
        raise Undelivered(f"files between {socket.gethostname()} and the driver: {told}")

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """The size and the time of each file."""
        found = {}
        for path in self._here.rglob("*"):
            if path.is_file():
                about = path.stat()
                found[str(path.relative_to(self._here))] = about.st_size, about.st_mtime_ns
        return found
