"""A data folder with a few images in it, for what opens the data by itself."""

import json
from pathlib import Path

import numpy as np

from cifartune.data import LabelledImages, cifar10
from cifartune.data.splits import Splits


def write_train(root: Path, images: LabelledImages) -> Path:
    """Writes training arrays of the official size, zero but for `images` at their start.

    The files are sparse: they take the room of `images` alone. There are no test images.
    """
    root.mkdir(parents=True, exist_ok=True)
    total = 5 * cifar10.BATCH_SIZE
    for part, few in (("images", images.images), ("labels", images.labels)):
        path, shape = root / f"train_{part}.npy", (total, *few.shape[1:])
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        array[: len(few)] = few
        array.flush()
        del array
    marker = {"source": "a test", "fetched": "2026-01-01T00:00:00+00:00", "sha1": {}}
    (root / "prepared.json").write_text(json.dumps(marker))
    return root


def write_splits(path: Path, *, train: int = 300, validation: int = 100, folds: int = 2) -> Path:
    """Writes splits of the first images alone, in their order; every `folds`-th is held out."""
    used = train + validation
    fold = np.full(5 * cifar10.BATCH_SIZE, -1, dtype=np.int8)
    fold[:used] = np.arange(used) % folds
    Splits(
        train=np.arange(train),
        validation=np.arange(train, used),
        fold=fold,
        stand_in=np.arange(used, used + 100),
    ).save(path)
    return path
