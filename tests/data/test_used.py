"""What is told of the images that a search uses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifartune.data import LabelledImages
from cifartune.data.prepared import MARKER
from cifartune.data.splits import Splits
from cifartune.data.used import used_images

NONE = np.empty(0, dtype=np.int64)
TRAIN = LabelledImages(np.empty((6, 0), np.uint8), np.array([0, 0, 1, 9, 9, 9], np.uint8))


def splits(*train: int) -> Splits:
    return Splits(np.array(train), np.array([3]), np.full(6, -1, np.int8), NONE)


def marked(folder: Path, sha1: dict[str, str]) -> Path:
    told = {"source": "a copy", "fetched": "2026-01-01T00:00:00+00:00", "sha1": sha1}
    (folder / MARKER).write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize("sha1", [{"train_images.npy": "abc"}, {}])
def test_equal_digests_are_equal_images(tmp_path: Path, sha1: dict[str, str]) -> None:
    root = marked(tmp_path, sha1)
    training, validation = used_images(root, TRAIN, splits(0, 2, 4))
    assert [training["context"], validation["context"]] == ["training", "validation"]
    assert {training["name"], validation["name"]} == {"CIFAR-10" if sha1 else "a copy"}
    profile: dict[str, Any] = json.loads(training["profile"])
    assert profile["num_rows"] == 3
    counts = {name: count for name, count in profile["classes"].items() if count}
    assert counts == {"airplane": 1, "automobile": 1, "truck": 1}
    again, other = (used_images(root, TRAIN, splits(*some))[0] for some in ((0, 2, 4), (0, 2, 5)))
    assert again == training
    assert len({one["digest"] for one in (training, validation, other)}) == 3


def test_whose_images_they_are_is_part_of_the_digest(tmp_path: Path) -> None:
    mine = used_images(marked(tmp_path, {}), TRAIN, splits(0))
    published = used_images(marked(tmp_path, {"train_images.npy": "abc"}), TRAIN, splits(0))
    assert mine[0]["digest"] != published[0]["digest"]
    assert json.loads(published[0]["source"])["url"].startswith("https://")
