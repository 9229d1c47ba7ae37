"""A job's files on a machine that does not see the driver's disk: fetched, and brought back."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from cifartune.files import write_atomically
from cifartune.tuning.messages import Job, Work


class Files:
    """The driver's disk, for those who do not see it; the body of a Ray actor beside the driver."""

    def read(self, folder: Path) -> dict[str, bytes]:
        """All files in `folder` and below, by their paths in it; none if there is no such folder.

        `folder` may also be a single file, whose path is then empty.
        """
        if folder.is_file():
            return {"": folder.read_bytes()}
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    def write(self, folder: Path, changed: dict[str, bytes], gone: list[str]) -> None:
        """Writes files of `folder`, each whole or not at all, and then deletes others of it."""
        for name, content in changed.items():
            write_atomically(folder / name, content)
        for name in gone:
            (folder / name).unlink(missing_ok=True)


class Courier:
    """Carries a slot's files between the driver's disk and a folder on the slot's machine.

    Args:
        files: The driver's `Files`.
        folder: The slot's own; it is there for the `with` block. What a slot of before left in it
            when it was killed goes.
    """

    def __init__(self, files: Any, folder: Path) -> None:
        self._files = files
        self._folder = folder
        self._splits = folder / "splits.npz"
        self._here = folder / "job"
        self._home = Path()
        self._known: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(0o700)

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def carrying(self, job: Work) -> Iterator[Work]:
        """`job` with its splits and what its folder has on this machine, for the `with` block."""
        if not self._splits.exists():
            self._splits.write_bytes(ray.get(self._files.read.remote(job.splits))[""])
        self._home = job.folder
        self._here.mkdir()
        try:
            if isinstance(job, Job):
                for name, content in ray.get(self._files.read.remote(job.folder)).items():
                    write_atomically(self._here / name, content)
            self._known = self._stamps()
            yield replace(job, folder=self._here, splits=self._splits)
        finally:
            shutil.rmtree(self._here, ignore_errors=True)

    def bring(self) -> None:
        """Makes the job's folder on the driver's disk what it is here; returns when it is."""
        now = self._stamps()
        changed = {
            name: (self._here / name).read_bytes()
            for name, stamp in now.items()
            if self._known.get(name) != stamp
        }
        gone = [name for name in self._known if name not in now]
        if changed or gone:
            ray.get(self._files.write.remote(self._home, changed, gone))
        self._known = now

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """The size and the time of each file."""
        found = {}
        for path in self._here.rglob("*"):
            if path.is_file():
                about = path.stat()
                found[str(path.relative_to(self._here))] = about.st_size, about.st_mtime_ns
        return found
