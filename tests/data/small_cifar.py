"""CIFAR-10 in small: the same six batches and layouts, of 20 made-up images each.

Run as a program it fetches from a folder, slowly: `small_cifar.py ROOT FOLDER LOG SECONDS`.
"""

import hashlib
import json
import pickle
import re
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifartune.data import cifar10, fetch, sources
from cifartune.data.cifar10 import Bytes, Progress

BATCH_SIZE = 20


def make() -> dict[str, Bytes]:
    """The records of each batch, (20, 3073); the same at every call."""
    generator = np.random.default_rng(0)
    records = {}
    for batch in cifar10.SHA1:
        records[batch] = generator.integers(0, 256, (BATCH_SIZE, 3073), dtype=np.uint8)
        records[batch][:, 0] %= 10
    return records


def shrink(patch: pytest.MonkeyPatch) -> dict[str, Bytes]:
    """Make these batches the ones that cifartune expects, and return them."""
    batches = make()
    patch.setattr(cifar10, "BATCH_SIZE", BATCH_SIZE)
    for batch, records in batches.items():
        patch.setitem(cifar10.SHA1, batch, hashlib.sha1(records.tobytes()).hexdigest())
    return batches


def write_binary(parent: Path) -> Path:
    folder = parent / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for batch, records in make().items():
        (folder / f"{batch}.bin").write_bytes(records.tobytes())
    return folder


def write_python(parent: Path, patch: pytest.MonkeyPatch) -> Path:
    """Write the pickled layout as Python 2 did, and make its MD5s the published ones."""
    from torchvision.datasets import CIFAR10

    folder = parent / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    md5s = []
    for batch, records in make().items():
        data = {b"labels": records[:, 0].tolist(), b"data": records[:, 1:].copy()}
        content = pickle.dumps(data, protocol=2)
        # dtype('u1', 0, 1), not dtype('u1', False, True): what the published files say.
        dtype = re.search(rb"u1.{0,4}(\x89\x88)\x87", content, re.DOTALL)
        assert dtype is not None, "pickle writes dtypes otherwise than this helper expects"
        old = content[: dtype.start(1)] + b"K\x00K\x01" + content[dtype.end(1) :]
        (folder / batch).write_bytes(old)
        md5s.append([batch, hashlib.md5(old).hexdigest()])
    patch.setattr(CIFAR10, "train_list", md5s[:5])
    patch.setattr(CIFAR10, "test_list", md5s[5:])
    return folder


def write_npm_tarball(path: Path) -> None:
    """Write the npm package's layout: sprites of a row an image, and labels as JSON."""
    folder = path.with_suffix(".d") / "package"
    folder.mkdir(parents=True)
    batches = make()
    for batch, records in batches.items():
        pixels = records[:, 1:].reshape(-1, 3, 1024).transpose(0, 2, 1)
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{batch}.png")
    labels = np.concatenate([records[:, 0] for records in batches.values()]).tolist()
    (folder / "train_lables.json").write_text(json.dumps(labels[: 5 * BATCH_SIZE]))
    (folder / "test_lables.json").write_text(json.dumps(labels[5 * BATCH_SIZE :]))
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, "package")


def main(root: str, folder: str, log: str, seconds: str) -> None:
    read = sources.official

    def slowly(folder: Path, workspace: Path, progress: Progress) -> sources.Batches:
        with open(log, "a") as file:
            file.write("read\n")
        for batch in read(folder, workspace, progress):
            time.sleep(float(seconds) / 6)
            yield batch

    shrink(pytest.MonkeyPatch())
    sources.official = slowly
    fetch(root, data_dir=folder, progress=lambda text, done, total: print(text, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
