"""The test set: opened on purpose alone, and every time counted."""

import json
from pathlib import Path

import numpy as np
import pytest

from cifartune.data.looks import FILE, looks, record_look
from cifartune.data.prepared import MARKER
from cifartune.data.test_set import look_at_test, why_not
from cifartune.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Test images that take no room on the disk, and no others."""
    for name, shape in (("images", (10_000, 3, 32, 32)), ("labels", (10_000,))):
        np.lib.format.open_memmap(tmp_path / f"test_{name}.npy", "w+", np.uint8, shape)
    marker = {"source": "made up", "fetched": "2026-01-01T00:00:00+00:00", "sha1": {}}
    (tmp_path / MARKER).write_text(json.dumps(marker))
    return tmp_path


def test_each_look_is_counted_with_who_looked(root: Path) -> None:
    assert looks(root) == []
    for trial in (3, 5):
        assert len(look_at_test(root, name="mine", trial=trial).labels) == 10_000
    first, second = looks(root)
    assert (first["name"], first["trial"], second["trial"]) == ("mine", 3, 5)
    assert first["time"] <= second["time"]


def test_what_cannot_be_counted_is_not_looked_at(root: Path) -> None:
    (root / FILE).mkdir()
    with pytest.raises(UserError, match=r"test_looks\.jsonl: looks at the test set are counted"):
        look_at_test(root)


def test_images_that_are_not_there_count_for_nothing(root: Path) -> None:
    (root / "test_images.npy").unlink()
    with pytest.raises(UserError, match=r"test_images\.npy is missing"):
        look_at_test(root)
    assert looks(root) == []


def test_a_line_that_a_power_cut_tore_is_a_look_all_the_same(root: Path) -> None:
    record_look(root, {"trial": 1})
    with (root / FILE).open("a") as file:
        file.write('\n{"trial": 2')
    assert [look.get("trial") for look in looks(root)] == [1, None]
    record_look(root, {"trial": 3})
    assert [look.get("trial") for look in looks(root)] == [1, None, 3]


def test_why_not_opens_nothing(root: Path) -> None:
    assert why_not(root) is None
    (root / "test_labels.npy").unlink()
    assert "test_labels.npy is missing" in str(why_not(root))
    assert looks(root) == []
