"""Run a program that downloads, and tell how far it is by the size of what it writes."""

import subprocess
import tempfile
import time
from pathlib import Path

from cifartune.data.cifar10 import Progress

_POLL_SECONDS = 0.1
# Longer than the programs' own timeouts, and than a cold start of torchvision.
_STALL_SECONDS = 60.0


class CommandFailed(Exception):
    """The program ended in error, or stalled and was killed.

    Attributes:
        output: what it wrote to stderr, or that it stalled.
    """

    def __init__(self, output: str) -> None:
        super().__init__(output)
        self.output = output


def run_and_watch(
    command: list[str],
    folder: Path,
    task: tuple[str, int],
    progress: Progress,
    *,
    cwd: Path | None = None,
) -> None:
    """Run a command to its end; kill it when interrupted or when its folder stops growing.

    Args:
        command: the program and its arguments.
        folder: where it writes; its size is the progress.
        task: the description and the total bytes to report.
        progress: told the bytes, ten times a second.
        cwd: where to run it, by default in `folder`.

    Raises:
        CommandFailed: it returned an error or stalled.
    """
    description, total = task
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            command,
            cwd=cwd or folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        ) as process,
    ):
        try:
            size, grown = 0, time.monotonic()
            while not _has_ended(process):
                if (now_size := _size(folder)) != size:
                    size, grown = now_size, time.monotonic()
                elif time.monotonic() - grown > _STALL_SECONDS:
                    raise CommandFailed(f"nothing arrived for {_STALL_SECONDS:.0f} seconds")
                progress(description, min(size, total), total)
        finally:
            process.kill()
        if process.returncode != 0:
            stderr.seek(0)
            output = stderr.read().decode(errors="replace").strip()
            raise CommandFailed(output or f"{command[0]} ended with code {process.returncode}")


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # renamed since it was listed
            continue
    return total
