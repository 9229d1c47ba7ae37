"""A run's folder on another file system: kept up to date, and brought back."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow import fs
from searches import QUICK, cifartune

from cifartune import copies
from cifartune.copies import Copy, check_copy_uri, copied, restore
from cifartune.errors import UserError
from cifartune.outputs import LOGITS
from cifartune.runs import RunFolder
from cifartune.tuning.recorded import recorded_trials


@pytest.fixture
def run(smoke_run: Path, tmp_path: Path) -> RunFolder:
    """A finished search, as on a machine that will go away."""
    folder = tmp_path / "machine" / "runs" / smoke_run.name
    shutil.copytree(smoke_run, folder)
    return RunFolder(folder)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"{(tmp_path / 'else where').as_uri()}/copies"


def files_of(folder: Path) -> dict[str, bytes]:
    """What a run's folder holds, but for Ray's files, locks and the study."""
    run = RunFolder(folder)
    return {
        str(path.relative_to(run.path)): path.read_bytes()
        for path in run.path.rglob("*")
        if path.is_file()
        and run.ray not in path.parents
        and path not in (run.lock, run.tidying)
        and not path.name.startswith(run.study.name)
    }


def test_a_search_is_brought_back_from_its_copy(run: RunFolder, uri: str, tmp_path: Path) -> None:
    Copy(run, uri).update()
    trials = recorded_trials(run)
    back = restore(f"{uri}/{run.name}", tmp_path / "other" / "runs")
    assert files_of(back.path) == files_of(run.path)
    assert not back.ray.exists()
    assert recorded_trials(back) == trials
    assert back.identity.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match=r"quick-smoke exists; choose another folder with --runs"):
        restore(f"{uri}/{run.name}", tmp_path / "other" / "runs")


def test_only_what_changed_is_written(
    run: RunFolder, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Copy(run, uri)
    copy.update()
    written: list[str] = []
    write = copy._write

    def noted(path: Path, name: str) -> None:
        written.append(name)
        write(path, name)

    monkeypatch.setattr(copy, "_write", noted)
    copy.update()
    assert written == [run.study.name]
    (run.trials / "trial-0").mkdir(exist_ok=True)
    checkpoint = run.trials / "trial-0" / "epoch-1.checkpoint"
    checkpoint.write_bytes(b"state")
    run.trials_csv.unlink()
    (run.path / f".{'0' * 32}").write_bytes(b"half of a file")
    copy.update()
    assert written[1:] == ["trials/trial-0/epoch-1.checkpoint", run.study.name]
    root = tmp_path / "else where" / "copies" / run.name
    assert (root / "trials/trial-0/epoch-1.checkpoint").read_bytes() == b"state"
    assert not (root / run.trials_csv.name).exists()
    assert not list(root.rglob(".*"))


def test_another_search_of_that_name_keeps_its_copy(run: RunFolder, uri: str) -> None:
    Copy(run, uri).update()
    Copy(run, uri)  # the same search, which goes on
    run.identity.write_text(run.identity.read_text().replace(run.id, "0" * 32))
    with pytest.raises(UserError, match="another search is there as quick-smoke; choose another"):
        Copy(run, uri)


@pytest.mark.parametrize("place", ["..", ".", "trials"])
def test_a_run_is_not_copied_into_itself(run: RunFolder, place: str) -> None:
    before = files_of(run.path)
    with pytest.raises(UserError, match="is where the run itself is; name another folder"):
        Copy(run, (run.path / place).resolve().as_uri())
    assert files_of(run.path) == before


def test_what_cannot_be_written_is_told_and_tried_again(
    run: RunFolder, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "SECONDS", 0.01)
    identity = run.identity.read_text()
    run.identity.write_text(identity.replace("}", f', "copy_uri": "{uri}"}}'))
    told: list[str] = []
    update, fails = Copy.update, threading.Event()

    def failing(copy: Copy) -> None:
        if fails.is_set():
            raise OSError("the bucket is gone")
        update(copy)

    monkeypatch.setattr(Copy, "update", failing)
    root = tmp_path / "else where" / "copies" / run.name
    with copied(run, told.append):
        fails.set()
        wait_for(lambda: bool(told))
        assert told == ["the copy is not up to date (the bucket is gone); it is tried again"]
        fails.clear()
        wait_for((root / run.result.name).exists)
        fails.set()
    assert told[-1] == f"the copy at {uri} is behind: the bucket is gone"


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("runs", "runs: must be an address, such as s3://bucket/runs"),
        ("nothing://bucket/runs", r"nothing://bucket/runs: no such file system: Unrecognized"),
        ("file:///proc/none/runs", r"--copy-to file:///proc/none/runs: .*[Cc]annot create dir"),
        ("s3://user:secret@/", r"s3://user:\*\*\*@/: no such file system"),
    ],
)
def test_an_address_that_cannot_be_used(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_copy_uri(uri)


def test_what_is_no_copy_is_not_restored(run: RunFolder, uri: str, tmp_path: Path) -> None:
    copy, runs = Copy(run, uri), tmp_path / "runs"
    with pytest.raises(UserError, match="quick-smoke: there is no copy of a run"):
        restore(f"{uri}/{run.name}", runs)
    with pytest.raises(UserError, match="none: there is no copy of a run"):
        restore(f"{uri}/none", runs)
    with pytest.raises(UserError, match="file:///: must end in the name of a run"):
        restore("file:///", runs)
    copy.update()
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize("key", ["../../profile", "a/../../profile", "/etc/profile"])
def test_a_copy_that_leads_elsewhere_is_not_restored(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(selector: fs.FileSelector) -> list[fs.FileInfo]:
        names = ("space.yaml", "run.json", key)
        return [fs.FileInfo(f"bucket/run/{name}", fs.FileType.File) for name in names]

    bucket = SimpleNamespace(get_file_info=listed)  # a disk has no such names
    monkeypatch.setattr(copies, "_file_system", lambda uri: (bucket, "bucket/run"))
    with pytest.raises(UserError, match=f"s3://bucket/run: {key} does not lie in it; nothing"):
        restore("s3://bucket/run", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_object_store(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3's protocol, by a server of this machine."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        where = f"scheme=http&endpoint_override={host}:{port}&region=us-east-1"
        store = fs.S3FileSystem(
            scheme="http",
            endpoint_override=f"{host}:{port}",
            region="us-east-1",
            allow_bucket_creation=True,
        )
        store.create_dir("bucket")
        check_copy_uri(f"s3://bucket/runs?{where}")
        copy = Copy(run, f"s3://bucket/runs?{where}")
        copy.update()
        run.trials_csv.unlink()
        copy.update()
        back = restore(f"s3://bucket/runs/{run.name}?{where}", tmp_path / "runs")
        assert files_of(back.path) == files_of(run.path)
        assert recorded_trials(back) == recorded_trials(run)
    finally:
        server.stop()


OFTEN = """
from cifartune import cli, copies

copies.SECONDS = 0.5
cli.main()
"""


@pytest.mark.slow
def test_a_search_goes_on_where_its_machine_was_lost(
    tmp_path: Path, data_root: Path, uri: str
) -> None:
    environment = {"CIFARTUNE_DATA": str(data_root), "MLFLOW_TRACKING_URI": ""}
    lost, new = tmp_path / "lost", tmp_path / "new"
    lost.mkdir()
    new.mkdir()
    command = [sys.executable, "-c", OFTEN, "search", str(QUICK), "--smoke", "--copy-to", uri]
    with subprocess.Popen(
        command, cwd=lost, env=os.environ | environment, stdout=subprocess.DEVNULL
    ) as process:
        try:
            # A fold is done: its logits are written last. The rest is not.
            done = tmp_path / "else where" / "copies" / "quick-smoke" / "refit"
            wait_for(lambda: any(done.rglob(LOGITS)), 250.0)
        finally:
            process.kill()
    shutil.rmtree(lost)
    restored = cifartune("restore", f"{uri}/quick-smoke", cwd=new)
    assert restored.returncode == 0, restored.stderr
    run = RunFolder(new / "runs" / "quick-smoke")
    kept, folds = recorded_trials(run), sorted(run.refit.rglob(LOGITS))
    written = [path.stat().st_mtime_ns for path in folds]
    assert [trial.state.is_finished() for trial in kept] == [True, True]
    resumed = cifartune("resume", "quick-smoke", cwd=new, timeout=280, **environment)
    assert resumed.returncode == 0, resumed.stderr
    assert recorded_trials(run) == kept
    assert [path.stat().st_mtime_ns for path in folds] == written
    assert run.result.exists()
    again = restore(f"{uri}/quick-smoke", tmp_path / "again")  # it was copied as it went on
    assert files_of(again.path) == files_of(run.path)
