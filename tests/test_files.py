import os
from pathlib import Path

import pytest

from cifartune.files import write_atomically


def test_text_and_bytes_are_written_with_their_folders(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b.txt", "é")
    write_atomically(tmp_path / "a" / "c.bin", b"\0")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "é".encode()
    assert (tmp_path / "a" / "c.bin").read_bytes() == b"\0"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    os.umask(umask := os.umask(0o022))
    write_atomically(tmp_path / "file", "text")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask
