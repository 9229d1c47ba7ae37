"""Which images a search uses, told so that others can see whether theirs are the same."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from cifartune.data.cifar10 import CLASSES, IMAGE_SHAPE, SHA1, SPLITS, LabelledImages
from cifartune.data.prepared import read_marker
from cifartune.data.splits import Indices, Splits

HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
"""Where the images are described, and come from in the end."""


def used_images(root: Path, train: LabelledImages, splits: Splits) -> list[dict[str, str]]:
    """The images that train and validate the trials of a search, as MLflow has datasets.

    A dataset's digest is that of the published hashes of the batches and of the indices: the same
    images have the same one on every machine.

    Args:
        root: The prepared images.
        train: All training images.
        splits: The search's.

    Returns:
        For each of the two: name, digest, source, schema and profile, and the context in which it
        is used.

    Raises:
        UserError: They are not there.
    """
    marker = read_marker(root)
    contexts = {"training": splits.train, "validation": splits.validation}
    return [
        {"context": context, **_dataset(root, marker, train, indices)}
        for context, indices in contexts.items()
    ]


def _dataset(
    root: Path, marker: dict[str, Any], train: LabelledImages, indices: Indices
) -> dict[str, str]:
    is_published = "train_images.npy" in marker["sha1"]  # all that is fetched is checked
    digest = hashlib.sha256(indices.astype("<i8").tobytes())
    if is_published:
        source = {"source_type": "http", "source": json.dumps({"url": HOME})}
        for batch in SPLITS["train"]:
            digest.update(SHA1[batch].encode())
    else:
        source = {"source_type": "local", "source": json.dumps({"uri": str(root)})}
        digest.update(train.labels.tobytes())
    counts = np.bincount(train.labels[indices], minlength=len(CLASSES)).tolist()
    profile = {
        "num_rows": len(indices),
        "features_shape": [len(indices), *IMAGE_SHAPE],
        "classes": dict(zip(CLASSES, counts, strict=True)),
        "fetched_from": marker["source"],
    }
    schema = {
        "mlflow_tensorspec": {
            "features": _tensors(IMAGE_SHAPE),
            "targets": _tensors(()),
        }
    }
    return {
        "name": "CIFAR-10" if is_published else marker["source"],
        "digest": digest.hexdigest()[:8],
        **source,
        "schema": json.dumps(schema),
        "profile": json.dumps(profile),
    }


def _tensors(shape: tuple[int, ...]) -> str:
    """A schema of MLflow's: arrays of uint8 of any number of rows of a shape."""
    spec = {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, *shape]}}
    return json.dumps([spec])
