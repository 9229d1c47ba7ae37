"""A run's folder on another file system, kept up to date while the search runs.

For machines whose disk may go away with them, such as a pod's. Any file system that pyarrow knows
will do (https://arrow.apache.org/docs/python/filesystems.html): `s3://`, `gs://`, `abfs://`,
`hdfs://`, `file://`.
"""

import json
import logging
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow
from pyarrow import fs

from cifartune.errors import UserError, first_line
from cifartune.files import PRIVATE, is_leftover
from cifartune.outputs import as_written
from cifartune.passwords import hidden_in, without_password
from cifartune.runs import RunFolder
from cifartune.tuning.recorded import copy_database

logger = logging.getLogger(__name__)

SECONDS = 60.0
"""From the end of one update to the next."""

WHOLE = {"s3", "gcs", "abfs"}
"""Stores in which a file is there when it was written to its end, and not before."""

Stamps = dict[str, tuple[int, int]]


class Copy:
    """The copy of a run's folder, in a folder of the same name.

    The study there is never newer than the other files: what it says is finished is there. A search
    that goes on from the copy redoes what the copy had not got.

    Args:
        run: The folder.
        uri: The file system and a folder of it, where the copies of all runs are.

    Raises:
        UserError: There is no such file system, it cannot be written, or the run itself or another
            search's copy is there.
    """

    def __init__(self, run: RunFolder, uri: str) -> None:
        self.trouble = ""
        """Why the copy could not be brought up to date; empty where it could."""
        self._run = run
        self._uri = uri
        self._known: Stamps = {}
        self._system, root = _file_system(uri)
        self._root = f"{root}/{run.name}"
        if self._system.type_name == "local":
            target = Path(self._root).resolve()
            if run.path in (target, *target.parents):
                raise UserError(
                    f"--copy-to {without_password(uri)}: is where the run itself is; name another "
                    "folder"
                )
        try:
            self._check_owner()
            self._system.create_dir(self._root)
            self._write(run.identity, run.identity.name)
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"--copy-to {without_password(uri)}: {_told(error, uri)}") from None

    def update(self) -> None:
        """Brings what is new or changed, and deletes there what is gone here.

        Raises:
            OSError: It cannot be written there; what was brought is there.
        """
        with TemporaryDirectory() as folder:
            study = self._snapshot(Path(folder))
            now = self._stamps()
            for name, stamp in sorted(now.items(), key=lambda item: as_written(item[0])):
                if self._known.get(name) != stamp:
                    with suppress(FileNotFoundError):  # a checkpoint that was dropped meanwhile
                        self._write(self._run.path / name, name)
                    self._known[name] = stamp
            if study:
                self._write(study, self._run.study.name)
        for name in set(self._known) - set(now):
            with suppress(FileNotFoundError):
                self._system.delete_file(f"{self._root}/{name}")
            del self._known[name]

    def keep_up(self, stop: threading.Event, tell: Callable[[str], Any]) -> None:
        """Updates again and again until `stop` is set, and once more; `tell`s of each new trouble.

        Never raises: a search goes on without its copy.
        """
        is_over = False
        while True:
            try:
                self.update()
                self.trouble = ""
            except Exception as error:  # of the network, the file system or the disk, as it comes
                before, self.trouble = self.trouble, _told(error, self._uri)
                logger.warning("the copy of %s: %s", self._run.name, self.trouble)
                if not before and not is_over:
                    tell(f"the copy is not up to date ({self.trouble}); it is tried again")
            if is_over:
                return
            is_over = stop.wait(SECONDS)

    def _check_owner(self) -> None:
        path = f"{self._root}/{self._run.identity.name}"
        if self._system.get_file_info(path).type == fs.FileType.NotFound:
            return
        with self._system.open_input_stream(path) as file:
            owner = json.loads(file.read()).get("id")
        if owner != self._run.id:
            raise UserError(
                f"--copy-to {without_password(self._uri)}: the copy of another search is there as "
                f"{self._run.name}; choose another --name"
            )

    def _snapshot(self, folder: Path) -> Path | None:
        """The study as of one moment; None where it is in another database, or not there yet."""
        if not (self._run.has_own_study and self._run.study.exists()):
            return None
        copy_database(self._run.study, folder / self._run.study.name)
        return folder / self._run.study.name

    def _stamps(self) -> Stamps:
        """Size and time of each file that is copied as it is."""
        root, run, found = self._run.path, self._run, {}
        left_out = {run.lock, run.tidying, *run.path.glob(f"{run.study.name}*")}
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if Path(folder, name) != run.ray]
            for path in (Path(folder, name) for name in names):
                if path not in left_out and not is_leftover(path):
                    with suppress(FileNotFoundError):
                        about = path.stat()
                        stamp = about.st_size, about.st_mtime_ns
                        found[path.relative_to(root).as_posix()] = stamp
        return found

    def _write(self, path: Path, name: str) -> None:
        """Copies a file, whole or not at all."""
        target = f"{self._root}/{name}"
        parent = target.rpartition("/")[0]
        is_whole = self._system.type_name in WHOLE
        written = target if is_whole else f"{parent}/.{uuid.uuid4().hex}"
        with path.open("rb") as source:
            if not is_whole:
                self._system.create_dir(parent)
            try:
                with self._system.open_output_stream(written) as copy:
                    shutil.copyfileobj(source, copy, 2**20)
                if not is_whole:
                    if self._system.type_name == "local":  # some are for their owner alone
                        Path(written).chmod(path.stat().st_mode)
                    self._system.move(written, target)
            except BaseException:
                if not is_whole:
                    with suppress(OSError):
                        self._system.delete_file(written)
                raise


@contextmanager
def copied(run: RunFolder, tell: Callable[[str], Any]) -> Iterator[None]:
    """Keeps the copy of a run up to date for the `with` block, and at its end, if it has one.

    Args:
        run: Its folder, in which is noted where the copy is.
        tell: Called with a line for the user where the copy cannot be written.

    Raises:
        UserError: As `Copy` does, before the block begins.
    """
    if not run.copy_uri:
        yield
        return
    copy, stop = Copy(run, run.copy_uri), threading.Event()
    thread = threading.Thread(target=copy.keep_up, args=(stop, tell), name="copy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if copy.trouble:
            tell(f"the copy at {without_password(run.copy_uri)} is behind: {copy.trouble}")


def check_copy_uri(uri: str) -> None:
    """Makes sure that a file system is there, and can be written.

    Raises:
        UserError: Says what is wrong with it.
    """
    system, root = _file_system(uri)
    probe = f"{root}/.{uuid.uuid4().hex}"
    try:
        system.create_dir(root)
        with system.open_output_stream(probe) as file:
            file.write(b"cifartune")
        system.delete_file(probe)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"--copy-to {without_password(uri)}: {_told(error, uri)}") from None


def restore(uri: str, runs: Path) -> RunFolder:
    """Brings a run's folder back from its copy, whole or not at all.

    Args:
        uri: The copy of one run: where `Copy` wrote to, and the run's name.
        runs: The folder of all runs on this machine.

    Returns:
        The folder, which can be resumed.

    Raises:
        UserError: There is no copy, it cannot be read, or there is a run of that name.
    """
    shown = without_password(uri)
    system, root = _file_system(uri)
    name = root.rpartition("/")[2]
    if not name:
        raise UserError(f"{shown}: must end in the name of a run, such as s3://bucket/runs/quick")
    if (runs / name).exists():
        raise UserError(f"{runs / name} exists; choose another folder with --runs")
    temporary = runs / f".{uuid.uuid4().hex}"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        infos = system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
        files = [info for info in infos if info.type == fs.FileType.File]
        names = {info.path.removeprefix(f"{root}/"): info.path for info in files}
        partial = RunFolder(temporary)
        if not {partial.space_file.name, partial.identity.name} <= set(names):
            raise UserError(f"{shown}: there is no copy of a run")
        # A bucket's keys may be anything.
        if outside := [n for n in names if n.startswith("/") or ".." in Path(n).parts]:
            raise UserError(f"{shown}: {outside[0]} does not lie in it; nothing is restored")
        for relative, path in names.items():
            if is_leftover(Path(relative)):
                continue
            target = temporary / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            if target in (partial.identity, partial.tracking, partial.refused):
                target.touch(PRIVATE)
            with system.open_input_stream(path) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, 2**20)
        temporary.rename(runs / name)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{shown}: cannot be restored: {_told(error, uri)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return RunFolder(runs / name)


def _file_system(uri: str) -> tuple[Any, str]:
    """pyarrow's file system for an address, and the folder in it."""
    shown = without_password(uri)
    if not re.match(r"[\w+]+://", uri):
        raise UserError(f"{shown}: must be an address, such as s3://bucket/runs")
    try:
        system, root = fs.FileSystem.from_uri(uri)
    except (OSError, pyarrow.ArrowException, ValueError, ImportError) as error:
        raise UserError(f"{shown}: no such file system: {_told(error, uri)}") from None
    return system, root.rstrip("/")


def _told(error: BaseException, uri: str) -> str:
    return hidden_in(first_line(error), uri)
