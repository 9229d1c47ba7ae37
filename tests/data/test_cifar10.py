import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_cifar
import torch

from cifartune.data import (
    CLASSES,
    LabelledImages,
    default_root,
    fetch,
    info,
    load_train,
    verify,
)
from cifartune.data.cifar10 import Bytes
from cifartune.data.prepared import MARKER, digest, is_prepared, load_split
from cifartune.errors import UserError


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[str, Bytes]:
    return small_cifar.shrink(monkeypatch)


@pytest.fixture
def root(batches: dict[str, Bytes], tmp_path: Path) -> Path:
    """A folder of small prepared arrays."""
    small_cifar.write_binary(tmp_path)
    return fetch(tmp_path / "root", data_dir=tmp_path)


def load_test(root: Path | None = None) -> LabelledImages:
    """The test images, without counting that as a look: no model is judged by them."""
    return load_split(root, "test")


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.skipif(not is_prepared(default_root()), reason="CIFAR-10 is not in the cache")
def test_the_real_data_is_whole() -> None:
    verify()
    assert info().class_counts == dict.fromkeys(CLASSES, 5000)
    train, test = load_train(), load_test()
    assert train.images.shape == (50000, 3, 32, 32)
    assert test.images.shape == (10000, 3, 32, 32)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    # The channel means that everybody knows: they tell RGB from BGR, and CHW from HWC.
    means = train.images.mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-4)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, cifartune.data; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_default_root_is_set_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CIFARTUNE_DATA", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("CIFARTUNE_DATA")
    assert default_root().name == "cifartune"


def test_images_and_labels_are_those_of_the_batches(root: Path, batches: dict[str, Bytes]) -> None:
    *train, test = batches.values()
    expected = np.concatenate(train)
    np.testing.assert_array_equal(load_train(root).labels, expected[:, 0])
    np.testing.assert_array_equal(load_train(root).images, expected[:, 1:].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(load_test(root).labels, test[:, 0])
    np.testing.assert_array_equal(load_test(root).images, test[:, 1:].reshape(-1, 3, 32, 32))


def test_writing_to_the_images_changes_nobody_elses(root: Path) -> None:
    first, second = load_train(root), load_train(root)
    before = int(second.images[0, 0, 0, 0])
    torch.from_numpy(first.images)[0, 0, 0, 0] = (before + 1) % 256  # warns if it is read-only
    assert first.images[0, 0, 0, 0] != before
    assert second.images[0, 0, 0, 0] == load_train(root).images[0, 0, 0, 0] == before


def test_training_images_load_without_the_test_files(root: Path) -> None:
    (root / "test_images.npy").unlink()
    (root / "test_labels.npy").unlink()
    assert len(load_train(root).labels) == 100
    with pytest.raises(UserError, match=r"test_images\.npy is missing: run `cifartune data fetch`"):
        load_test(root)


@pytest.mark.parametrize("function", [load_train, load_test, info, verify])
def test_nothing_prepared_is_said_with_the_remedy(function, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="run `cifartune data fetch`"):
        function(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_without_a_whole_marker_nothing_loads(root: Path, content: str) -> None:
    (root / MARKER).write_text(content)
    with pytest.raises(UserError, match="not prepared"):
        load_train(root)
    assert not is_prepared(root)


@pytest.mark.parametrize("size", [0, 50, 5000])
def test_a_truncated_file_is_named_and_mended_by_fetch(root: Path, size: int) -> None:
    path = root / "train_images.npy"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"train_images\.npy cannot be read .*delete it"):
        load_train(root)
    fetch(root, data_dir=root.parent)
    verify(root)


def test_an_array_of_another_shape_is_named(root: Path) -> None:
    np.save(root / "train_labels.npy", np.zeros(7))
    with pytest.raises(UserError, match=r"train_labels\.npy holds float64 \(7,\), expected uint8"):
        load_train(root)


@pytest.mark.parametrize("name", ["train_images", "train_labels", "test_images", "test_labels"])
def test_verify_names_the_file_of_a_single_wrong_byte(root: Path, name: str) -> None:
    verify(root)
    flip_last_byte(root / f"{name}.npy")
    with pytest.raises(UserError, match=rf"{name}\.npy is not what was fetched: delete it"):
        verify(root)


def test_verify_does_not_trust_the_marker(root: Path) -> None:
    flip_last_byte(root / "train_images.npy")
    marker = json.loads((root / MARKER).read_text())
    marker["sha1"]["train_images.npy"] = digest(root / "train_images.npy")
    (root / MARKER).write_text(json.dumps(marker))
    with pytest.raises(UserError, match=r"data_batch_5 of train_images\.npy or "):
        verify(root)


def test_info_tells_source_size_and_classes(root: Path, batches: dict[str, Bytes]) -> None:
    result = info(root)
    assert result.path == root
    assert (result.train_images, result.test_images) == (100, 20)
    assert result.bytes == 120 * 3073 + 4 * 128
    assert "cifar-10-batches-bin" in result.source
    assert result.fetched.tzinfo is not None
    labels = np.concatenate([batches[f"data_batch_{i}"][:, 0] for i in range(1, 6)])
    assert list(result.class_counts) == list(CLASSES)
    assert list(result.class_counts.values()) == np.bincount(labels, minlength=10).tolist()
