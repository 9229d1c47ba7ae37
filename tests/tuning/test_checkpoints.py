"""Checkpoints: whole or not there, and the one before where the disk has damaged the newest."""

import logging
from pathlib import Path

import pytest
import torch

from cifartune.tuning.checkpoints import Checkpoints

CPU = torch.device("cpu")


def state(epoch: int) -> dict[str, object]:
    return {"epoch": epoch, "weights": torch.full((100,), float(epoch))}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "trial")


def test_the_newest_is_gone_on_from(checkpoints: Checkpoints) -> None:
    assert checkpoints.epoch == 0 and checkpoints.load() is None
    for epoch in (1, 2, 9, 10):
        checkpoints.save(epoch, state(epoch))
    loaded = checkpoints.load()
    assert loaded is not None and torch.equal(loaded["weights"], torch.full((100,), 10.0))
    assert checkpoints.epoch == 10


def test_two_are_kept_until_all_are_deleted(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for epoch in range(1, 5):
        path = checkpoints.save(epoch, state(epoch))
    folder = tmp_path / "trial"
    assert sorted(file.name for file in folder.iterdir()) == [
        "epoch-3.checkpoint",
        "epoch-4.checkpoint",
    ]
    assert path.parent == folder
    (folder / "weights.safetensors").touch()
    checkpoints.clear()
    assert [file.name for file in folder.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize("damage", ["empty", "half", "digest", "byte", "none of its kind"])
def test_a_damaged_one_is_named_and_the_one_before_used(
    checkpoints: Checkpoints, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints.save(3, state(3))
    path = checkpoints.save(4, state(4))
    content = bytearray(path.read_bytes())
    if damage in ("digest", "byte"):
        content[3 if damage == "digest" else -200] ^= 1
    half = bytes(content[: len(content) // 2])
    cut = {"empty": b"", "half": half, "none of its kind": b"{}"}
    path.write_bytes(cut.get(damage, bytes(content)))
    with caplog.at_level(logging.WARNING):
        loaded = checkpoints.load()
    assert loaded is not None and loaded["epoch"] == 3
    assert str(path) in caplog.text and "damaged" in caplog.text
    # The epoch is trained again, and its checkpoint takes the place of the damaged one.
    checkpoints.save(4, state(4))
    again = checkpoints.load()
    assert again is not None and again["epoch"] == 4


def test_where_all_are_damaged_a_run_begins_anew(checkpoints: Checkpoints) -> None:
    for epoch in (1, 2):
        checkpoints.save(epoch, state(epoch)).write_bytes(b"nothing")
    assert checkpoints.load() is None
    # What it saves then is not taken for older than the damaged ones.
    checkpoints.save(1, state(1))
    again = checkpoints.load()
    assert again is not None and again["epoch"] == 1
