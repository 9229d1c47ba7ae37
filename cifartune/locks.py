"""Files that one process at a time holds; its end lets go, however it ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cifartune.errors import UserError


@contextmanager
def file_lock(path: Path) -> Iterator[Callable[[float], bool]]:
    """Yields what tries to lock a file for so many seconds; lets go at the end of the block."""
    lock = FileLock(path)

    def acquire(seconds: float) -> bool:
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            return False
        except OSError as error:
            raise UserError(f"{path}: cannot be locked: {error.strerror}") from None
        return True

    try:
        yield acquire
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether another process holds a file; makes none, and whoever wants it waits for an instant.

    Raises:
        UserError: It cannot be looked at.
    """
    import fcntl  # not on Windows, where nothing else needs it

    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise UserError(f"{path}: cannot be looked at: {error.strerror}") from None
    return False
