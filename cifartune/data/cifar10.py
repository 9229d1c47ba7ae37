"""What CIFAR-10 is: its classes, its six batches with their hashes, and where it is kept."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from platformdirs import user_cache_dir

Split = Literal["train", "test"]
Bytes = npt.NDArray[np.uint8]
Progress = Callable[[str, int, int | None], None]
"""Called as `progress(description, done, total)`, in bytes; `total` is None where unknown."""

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    "test": ("test_batch",),
}
BATCH_SIZE = 10_000
IMAGE_SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32

# SHA-1 of a batch's records as in the binary distribution: the label, then 3,072 bytes in CHW
# order. Whatever a source's file format, its content has to come to these.
SHA1 = {
    "data_batch_1": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "data_batch_2": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "data_batch_3": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "data_batch_4": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "data_batch_5": "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "test_batch": "67eb016db431130d61cd03c7ad570b013799c88c",
}


@dataclass(frozen=True)
class LabelledImages:
    """Images and their labels, in the order of the official batches.

    Attributes:
        images: uint8, (N, 3, 32, 32), RGB.
        labels: uint8, (N,), indices into `CLASSES`.
    """

    images: Bytes
    labels: Bytes


def default_root() -> Path:
    """The folder of the prepared arrays: `$CIFARTUNE_DATA`, or the user's cache folder."""
    return Path(os.path.expanduser(os.environ.get("CIFARTUNE_DATA") or user_cache_dir("cifartune")))


def resolve_root(root: str | Path | None) -> Path:
    """The given folder, or the default one where none is given."""
    return default_root() if root is None else Path(os.path.expanduser(root))


def to_records(labels: Bytes, images: Bytes) -> Bytes:
    """Join labels (N,) and images (N, 3, 32, 32) to records (N, 3073) of label and pixels."""
    return np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1)


def is_authentic(batch: str, records: Bytes) -> bool:
    """Whether records (10,000, 3073) are, byte for byte, the named batch."""
    digest = hashlib.sha1(np.ascontiguousarray(records).data, usedforsecurity=False)
    return records.shape == (BATCH_SIZE, RECORD_BYTES) and digest.hexdigest() == SHA1[batch]
