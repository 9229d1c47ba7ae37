"""The prepared arrays on disk: four `.npy` files and a marker that says they are complete."""

import hashlib
import json
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from cifartune.data import cifar10
from cifartune.data.cifar10 import (
    CLASSES,
    SPLITS,
    Bytes,
    LabelledImages,
    Split,
    is_authentic,
    resolve_root,
    to_records,
)
from cifartune.errors import UserError

MARKER = "prepared.json"
_FETCH = "run `cifartune data fetch`"
# What numpy writes before the data, for every shape here.
_HEADER_BYTES = 128


@dataclass(frozen=True)
class Info:
    """What is prepared.

    Attributes:
        path: the folder.
        train_images: number of training images.
        test_images: number of test images.
        bytes: size of the four files together.
        source: where the data came from.
        fetched: when, in UTC.
        class_counts: number of training images of each class.
    """

    path: Path
    train_images: int
    test_images: int
    bytes: int
    source: str
    fetched: datetime
    class_counts: dict[str, int]


def load_train(root: str | Path | None = None) -> LabelledImages:
    """Open the 50,000 training images as a copy-on-write memory map, in milliseconds.

    The processes of a node share the pages of one copy as long as they do not write to them.

    Args:
        root: folder of the prepared arrays; by default `$CIFARTUNE_DATA` or the user's cache.

    Raises:
        UserError: they are not there; `cifartune data fetch` gets them.
    """
    return load_split(root, "train")


def load_split(root: str | Path | None, split: Split) -> LabelledImages:
    """Open one split; see `load_train` and `cifartune.data.test_set.look_at_test`."""
    folder = resolve_root(root)
    read_marker(folder)
    return LabelledImages(
        images=_open(folder / f"{split}_images.npy"),
        labels=_open(folder / f"{split}_labels.npy"),
    )


def file_shapes() -> dict[str, tuple[int, ...]]:
    """The names of the four files and the shapes of their uint8 arrays."""
    shapes: dict[str, tuple[int, ...]] = {}
    for split, batches in SPLITS.items():
        count = len(batches) * cifar10.BATCH_SIZE
        shapes[f"{split}_images.npy"] = (count, *cifar10.IMAGE_SHAPE)
        shapes[f"{split}_labels.npy"] = (count,)
    return shapes


def is_prepared(folder: Path) -> bool:
    """Whether all four files are there in full, by marker and size: costs no reading."""
    try:
        read_marker(folder)
        return all(
            (folder / name).stat().st_size == _HEADER_BYTES + math.prod(shape)
            for name, shape in file_shapes().items()
        )
    except (UserError, OSError):
        return False


def verify(root: str | Path | None = None) -> None:
    """Read every prepared byte, the test set's too, and compare with the published hashes.

    Raises:
        UserError: names the file that is missing or broken and says how to replace it.
    """
    folder = resolve_root(root)
    digests = read_marker(folder)["sha1"]
    for split, batches in SPLITS.items():
        data = load_split(folder, split)
        for part in ("images", "labels"):
            path = folder / f"{split}_{part}.npy"
            if digest(path) != digests.get(path.name):
                raise UserError(f"{path} is not what was fetched: delete it and {_FETCH}")
        for i, batch in enumerate(batches):
            rows = slice(i * cifar10.BATCH_SIZE, (i + 1) * cifar10.BATCH_SIZE)
            if not is_authentic(batch, to_records(data.labels[rows], data.images[rows])):
                files = f"{split}_images.npy or {split}_labels.npy in {folder}"
                raise UserError(f"{batch} of {files} is not CIFAR-10's: delete both and {_FETCH}")


def info(root: str | Path | None = None) -> Info:
    """Describe what is prepared; of the arrays, reads the training labels only.

    Raises:
        UserError: nothing is prepared.
    """
    folder = resolve_root(root)
    if not is_prepared(folder):
        raise UserError(f"CIFAR-10 is not complete in {folder}: {_FETCH}")
    marker = read_marker(folder)
    counts = np.bincount(load_train(folder).labels, minlength=len(CLASSES))
    return Info(
        path=folder,
        train_images=file_shapes()["train_labels.npy"][0],
        test_images=file_shapes()["test_labels.npy"][0],
        bytes=sum((folder / name).stat().st_size for name in file_shapes()),
        source=marker["source"],
        fetched=datetime.fromisoformat(marker["fetched"]),
        class_counts=dict(zip(CLASSES, counts.tolist(), strict=True)),
    )


def _open(path: Path) -> Bytes:
    shape = file_shapes()[path.name]
    try:
        # Mode "c", copy-on-write: torch.from_numpy warns about arrays that are read-only.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {_FETCH}") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it and {_FETCH}") from error
    if array.dtype != np.uint8 or array.shape != shape:
        raise UserError(
            f"{path} holds {array.dtype} {array.shape}, expected uint8 {shape}: "
            f"delete it and {_FETCH}"
        )
    return np.asarray(array)


def read_marker(folder: Path) -> dict[str, Any]:
    """What is said of the prepared arrays: `source`, `fetched`, and `sha1` of the files.

    Raises:
        UserError: Nothing is prepared there.
    """
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if {"source", "fetched", "sha1"} <= marker.keys():
            return dict(marker)
    except (OSError, ValueError, AttributeError):
        pass
    raise UserError(f"CIFAR-10 is not prepared in {folder}: {_FETCH}")


def digest(path: Path) -> str:
    """SHA-1 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()
