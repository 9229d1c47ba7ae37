"""Probes that were made before: the same space on the same machine is not probed again."""

import json
import os
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import ray

import cifartune
from cifartune.config import SearchSpace
from cifartune.files import write_atomically
from cifartune.report.machine import processor, versions
from cifartune.tuning.messages import Cost, Probed
from cifartune.tuning.shape import SlotShape

FOLDER = "probes"


def probe_file(folder: Path, space: SearchSpace, shape: SlotShape) -> Path:
    """The file in `folder` of a probe of `space` in a slot of `shape`.

    Its name says what a probe depends on: the recipes and their ranges, the images, the slot, the
    machine, the versions of all that computes, and this package's own source.
    """
    return _file(folder, space, [shape.cpus, shape.gpus, shape.workers])


def packing_file(folder: Path, space: SearchSpace) -> Path:
    """The file in `folder` of what was found out about slots that share a GPU."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    room = [space.resources.cpus, have.get("CPU"), have.get("GPU")]
    return _file(folder, space, ["shares a GPU", *room])


def _file(folder: Path, space: SearchSpace, slot: list[Any]) -> Path:
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    source = Path(cifartune.__file__).parent
    about = {
        "space": space.model_dump(include={"base", "parameters", "data", "search", "stand_in"}),
        "slot": slot,
        "machine": [processor(), os.cpu_count(), sorted(n for n in have if "accelerator" in n)],
        "versions": versions(),
        "source": [
            [file.name, sha256(file.read_bytes()).hexdigest()]
            for file in sorted(source.rglob("*.py"))
        ],
    }
    return folder / FOLDER / f"{sha256(json.dumps(about).encode()).hexdigest()[:16]}.json"


def recall(path: Path) -> Probed | None:
    """What a probe found; None if it was not made, or its file is damaged."""
    try:
        found = json.loads(path.read_text())
        costs = [Cost(**cost) for cost in found["costs"]]
        return Probed({}, costs, int(found["memory_bytes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(path: Path, probed: Probed) -> None:
    """Keeps what a probe found, if the folder can be written. No parameter may be idle."""
    with suppress(OSError):
        write_atomically(path, json.dumps(asdict(probed), indent=2) + "\n")
