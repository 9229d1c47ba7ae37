"""What several tests train on: a slice of the real images where they are prepared."""

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings
from searches import QUICK, cifartune, kill_what_was_started, started_count

from cifartune.config import Recipe
from cifartune.data import LabelledImages, default_root, load_train
from cifartune.data.prepared import MARKER, is_prepared
from cifartune.errors import UserError

if TYPE_CHECKING:  # tests without torch stay fast
    from cifartune.training import SplitImages

# The same examples at every run, however slow the machine is at the moment.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")


def pytest_collection() -> None:
    """Nothing of what is imported is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Small tensors gain nothing by threads, and lose much where others use the cores too."""
    gc.enable()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_search_goes_on() -> Iterator[None]:
    """A test that fails leaves no search behind, which would slow down all that come after."""
    before = started_count()  # by a fixture of several tests
    yield
    kill_what_was_started(before)


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """What is there before a module stays, and the garbage collector goes through it no more.

    Each job calls the collector, and of all that the tests import and keep, two million objects, it
    would take a second and more.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def cifar() -> LabelledImages:
    """A thousand training images; without the real ones, generated images of the same form."""
    try:
        train = load_train()
    except UserError:
        return _generated(1000)
    return LabelledImages(np.array(train.images[:1000]), np.array(train.labels[:1000]))


@pytest.fixture(scope="session")
def split(cifar: LabelledImages) -> "SplitImages":
    """300 images to train on and 100 to validate on, of `cifar`."""
    import torch

    from cifartune.training import SplitImages

    return SplitImages(
        images=torch.from_numpy(cifar.images),
        labels=torch.from_numpy(cifar.labels).long(),
        train=torch.arange(300),
        validation=torch.arange(300, 400),
    )


@pytest.fixture
def recipe() -> Recipe:
    """A recipe that trains in a second: a small network on small images."""
    return Recipe().with_values(
        {
            "model.name": "speednet_small",
            "model.resolution": 16,
            "epochs": 2,
            "batch_size": 64,
            "precision": "fp32",
            "memory_format": "channels_last",
            "compile": "never",
        }
    )


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared training images for whole commands, without the test images beside them.

    What runs on them proves that it can do without the test set.
    """
    root = tmp_path_factory.mktemp("train-only")
    if is_prepared(default_root()):
        for name in ("train_images.npy", "train_labels.npy", MARKER):
            (root / name).symlink_to(default_root() / name)
    else:
        train = _generated(50_000)
        np.save(root / "train_images.npy", train.images)
        np.save(root / "train_labels.npy", train.labels)
        marker = {"source": "generated", "fetched": "2026-01-01T00:00:00+00:00", "sha1": {}}
        (root / MARKER).write_text(json.dumps(marker))
    return root


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """The folder of a finished smoke search; output.txt and errors.txt have what it printed."""
    folder = tmp_path_factory.mktemp("smoke")
    # MLflow keeps in the environment what other tests had it log to.
    environment = {"CIFARTUNE_DATA": str(data_root), "MLFLOW_TRACKING_URI": ""}
    result = cifartune("search", QUICK, "--smoke", cwd=folder, timeout=280, **environment)
    assert result.returncode == 0, result.stderr
    run = folder / "runs" / "quick-smoke"
    (run / "output.txt").write_text(result.stdout)
    (run / "errors.txt").write_text(result.stderr)
    return run


def _generated(count: int) -> LabelledImages:
    """Noise over a colour and a stripe direction for each class: easy to learn, but not at once."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, count).astype(np.uint8)
    y, x = np.mgrid[:32, :32] / 32
    angle = np.arange(10)[:, None, None] * np.pi / 10
    waves = 40 * np.sin(12 * (x * np.cos(angle) + y * np.sin(angle)))
    colours = random.uniform(90, 170, (10, 3))
    means = (colours[:, :, None, None] + waves[:, None]).astype(np.float32)
    pixels = random.standard_normal((count, 3, 32, 32), dtype=np.float32)
    pixels *= 25
    pixels += means[labels]
    return LabelledImages(pixels.clip(0, 255, out=pixels).astype(np.uint8), labels)
