"""Files between two folders of this machine, as if they were on two disks."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from filelock import FileLock

from cifartune.config import Recipe
from cifartune.outputs import LOGITS, PLAIN_LOGITS, WEIGHTS
from cifartune.tuning.courier import SCRATCH, AtHome, Courier, Files, Undelivered
from cifartune.tuning.messages import Job


class Remote:
    """An actor's method, called here; what it raises comes as Ray brings it."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def remote(self, *arguments: Any) -> Any:
        try:
            return self._method(*arguments)
        except Exception as error:
            raised: Any = ray.exceptions.RayTaskError
            return raised(self._method.__name__, "its traceback", error)


class Here:
    """The body of the actor, without Ray."""

    def __init__(self) -> None:
        files = Files()
        self.read, self.checkpoints = Remote(files.read), Remote(files.checkpoints)
        self.write = Remote(files.write)


def get(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.setattr(ray, "get", get)
    return Here()


@pytest.fixture
def courier(files: Here, tmp_path: Path) -> Iterator[Courier]:
    courier = Courier(files, tmp_path / f"{SCRATCH}a")
    with courier:
        yield courier


@pytest.fixture
def job(tmp_path: Path) -> Job:
    home = tmp_path / "home"
    (home / "trial").mkdir(parents=True)
    (home / "splits.npz").write_bytes(b"splits")
    (home / "trial" / "epoch-1.checkpoint").write_bytes(b"one")
    return Job("trial-0", Recipe(), home / "trial", home / "data", home / "splits.npz")


def test_a_job_has_its_files_here_and_leaves_them_at_home(courier: Courier, job: Job) -> None:
    (job.folder / "weights").write_bytes(b"of no use here")
    with courier.carrying(job) as there:
        assert isinstance(there, Job) and there.folder != job.folder
        assert there.splits.read_bytes() == b"splits"
        assert [path.name for path in there.folder.iterdir()] == ["epoch-1.checkpoint"]
        (there.folder / "epoch-1.checkpoint").unlink()
        (there.folder / "snapshots" / "2").mkdir(parents=True)
        (there.folder / "snapshots" / "2" / "logits").write_bytes(b"two")
        courier.bring()
        assert not (job.folder / "epoch-1.checkpoint").exists()
        assert (job.folder / "snapshots" / "2" / "logits").read_bytes() == b"two"
        assert (job.folder / "weights").read_bytes() == b"of no use here"
        (there.folder / "lost").touch()
    assert not there.folder.exists()
    assert not (job.folder / "lost").exists()


def test_the_logits_come_last(courier: Courier, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in between must not leave a fold that looks done."""
    names = ["snapshots/2/weights.safetensors", "snapshots/2/logits.npy", "epoch-2.checkpoint"]
    names += [WEIGHTS, PLAIN_LOGITS, LOGITS]
    written: list[str] = []

    def write(path: Path, content: bytes) -> None:
        written.append(str(path.relative_to(job.folder)))

    with courier.carrying(job) as there:
        for name in reversed(names):
            (there.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (there.folder / name).write_bytes(b"new")
        monkeypatch.setattr("cifartune.tuning.courier.write_atomically", write)
        courier.bring()
    assert written == names


def test_what_comes_after_the_end_of_its_trial_is_dropped(courier: Courier, job: Job) -> None:
    with courier.carrying(job) as there:
        (there.folder / "epoch-2.checkpoint").write_bytes(b"two")
        for path in job.folder.iterdir():
            path.unlink()
        job.folder.rmdir()
        courier.bring()
    assert not job.folder.exists()


def test_a_fault_at_home_is_not_one_here(
    courier: Courier, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/home")

    with courier.carrying(job) as there:
        (there.folder / "epoch-2.checkpoint").touch()
        monkeypatch.setattr("cifartune.tuning.courier.write_atomically", full)
        with pytest.raises(AtHome, match="No space left on device: '/home'"):
            courier.bring()


def test_a_full_disk_here_is_this_machines_fault(courier: Courier, job: Job) -> None:
    with (
        pytest.raises(Undelivered, match=r"cannot keep files in .* \(ENOSPC\)$") as told,
        courier.carrying(job),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.strerror(errno.ENOSPC) not in str(told.value)  # which would be the driver's disk


def test_other_faults_on_the_way_blame_nobody(courier: Courier, job: Job, files: Here) -> None:
    def short(*arguments: object) -> None:
        raise MemoryError("no memory for that")

    files.checkpoints = Remote(short)
    with pytest.raises(Undelivered, match="no memory for that"), courier.carrying(job):
        pass


def test_what_killed_slots_left_is_deleted(files: Here, tmp_path: Path) -> None:
    left, held = (tmp_path / f"{SCRATCH}{name}" for name in ("left", "held"))
    for folder in (left, held):
        folder.mkdir()
        (folder / "splits.npz").touch()
    with FileLock(held / ".lock"), Courier(files, tmp_path / f"{SCRATCH}new"):
        assert {path.name for path in tmp_path.iterdir()} == {f"{SCRATCH}held", f"{SCRATCH}new"}
    assert [path.name for path in tmp_path.iterdir()] == [f"{SCRATCH}held"]
