import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cifartune.files import leftovers, write_atomically


def test_text_and_bytes_are_written_with_their_folders(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b.txt", "é")
    write_atomically(tmp_path / "a" / "c.bin", b"\0")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "é".encode()
    assert (tmp_path / "a" / "c.bin").read_bytes() == b"\0"


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """As root, /dev/stdout could be: for all programs, until the machine starts anew."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    write_atomically(link, "text")
    assert link.is_symlink() and (tmp_path / "file").read_text() == "text"
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, "text")
    assert pipe.is_fifo() and os.read(reader, 9) == b"text"
    os.close(reader)


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


def test_what_a_killed_process_left_is_known(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_atomically(path, "old")
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from cifartune.files import write_atomically\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), 'new')\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)])
    assert killed.returncode == -signal.SIGKILL
    (path.parent / ".lock").touch()
    [left] = leftovers(tmp_path)
    assert (path.read_text(), left.read_text(), left.parent) == ("old", "new", path.parent)


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    os.umask(umask := os.umask(0o022))
    write_atomically(tmp_path / "file", "text")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask
