"""The documents that are made from measurements, and the loop that the trainer is held against."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifartune.config import Recipe
from cifartune.data import LabelledImages
from cifartune.training import SplitImages, Trainer

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])


def test_the_documents_say_what_was_measured() -> None:
    from performance import HEAD, sections
    from sources import table

    performance = "\n".join([HEAD, *sections(), ""])
    assert (ROOT / "docs" / "PERFORMANCE.md").read_text() == performance
    assert (ROOT / "docs" / "SOURCES.md").read_text() == table()


def test_the_best_schedule_of_jobs_is_found() -> None:
    from quick_search import best_end

    assert best_end([3, 3, 2, 2, 2], 2) == 6  # the longest first would end at 7
    assert best_end([5.0] * 15, 2) == 40
    assert best_end([9, 1, 1], 3) == 9
    assert best_end([9, 1, 1], 4) == 9 and best_end([1] * 8, 4) == 2


def test_the_bare_loop_learns(recipe: Recipe, split: SplitImages) -> None:
    from bare_loop import BareLoop

    loop = BareLoop(recipe.with_values({"epochs": 4}), split, torch.device("cpu"))
    losses = [loop.epoch() for _ in range(4)]
    assert loop.steps == loop.total_steps == 20
    assert losses[-1] < losses[0] < 3


def test_a_bare_crop_shows_parts_of_the_image_or_its_mirror_image() -> None:
    from bare_loop import crop_and_flip

    image = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(1, 3, 8, 8).expand(200, -1, -1, -1)
    torch.manual_seed(0)
    found = crop_and_flip(image, 1)
    assert (found.shape, found.dtype) == (image.shape, torch.uint8)
    padded = torch.nn.functional.pad(image[:1].float(), (1,) * 4, "reflect").to(torch.uint8)[0]
    windows = [padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    seen = [
        index
        for one in found
        for index, window in enumerate([*windows, *(w.flip(2) for w in windows)])
        if torch.equal(one, window)
    ]
    assert len(seen) == 200 and len(set(seen)) == 18


@pytest.mark.parametrize(("way", "mode"), [("always", None), ("graphs", "reduce-overhead")])
def test_the_bare_loop_is_compiled_as_the_trainer(
    recipe: Recipe, split: SplitImages, monkeypatch: pytest.MonkeyPatch, way: str, mode: str | None
) -> None:
    from bare_loop import BareLoop

    asked: list[str | None] = []
    sizes: list[int] = []
    marked: list[bool] = []

    def compile_nothing(network: nn.Module, *, dynamic: bool, mode: str | None) -> Any:
        asked.append(mode)

        def call(x: Tensor) -> Any:
            sizes.append(len(x))
            return network(x)

        return call

    recipe = recipe.with_values({"compile": way, "epochs": 1})
    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marked.append(True))
    loop = BareLoop(recipe, split, torch.device("cpu"))
    assert asked == [mode, mode]  # its trainer's and its own
    loop.epoch()
    assert sizes == [64] * 4  # and not the last batch, which is smaller
    assert len(marked) == (5 if way == "graphs" else 0)


def test_what_was_measured_otherwise_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import measured

    path = tmp_path / "figures.json"
    assert measured.kept(path) == {}
    measured.keep(path, "a command", length="full", threads=torch.get_num_threads(), figure=3)
    assert measured.kept(path, length="full")["figure"] == 3
    assert measured.kept(path, length="short") == {}
    before = json.loads(path.read_text())
    for name in ("hardware", "versions", "threads"):
        path.write_text(json.dumps(before | {name: "another"}))
        assert measured.kept(path, length="full") == {}


def test_rounds_are_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the network, and however short the round."""
    import throughput

    taken: list[int] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(20):
            taken.append(number)
            yield torch.randn(2, 3, 32, 32), torch.tensor([1, 2])

    assert throughput.plain_rate("lenet", batches(), 0.0, torch.device("cpu")) > 0
    assert len(taken) == throughput.WARM_UP + 4
    steps: list[int] = []

    class Slow:
        def __init__(self, *args: Any, **more: Any) -> None: ...

        def batches(self) -> list[list[int]]:
            return [[0]] * 50

    def train(trainer: Slow, batches: list[list[int]]) -> None:
        steps.append(len(batches))
        time.sleep(0.01 * len(batches))

    monkeypatch.setattr(throughput, "Trainer", Slow)
    monkeypatch.setattr(throughput, "train", train)
    monkeypatch.setattr(Slow, "train_on", lambda self, batches: None, raising=False)
    monkeypatch.setattr(throughput, "real_images", lambda *args: None)
    monkeypatch.setattr(throughput, "fastest", lambda recipe, *args, **more: recipe)
    monkeypatch.setattr(throughput, "matrix_peak", lambda *args: 1e9)
    monkeypatch.setattr(throughput, "SECONDS", {"short": 0.001})
    options = argparse.Namespace(batch=64, length="short")

    class Output:
        stdout = "5.0"

    monkeypatch.setattr(subprocess, "run", lambda *args, **more: Output)
    row = throughput.measure("lenet", options, torch.device("cpu"))
    assert steps == [1, 2] and row["steps"] == 2 and row["plain_images_per_second"] == 5.0


def test_a_gpu_is_waited_for_once_in_many_products(monkeypatch: pytest.MonkeyPatch) -> None:
    import throughput

    products, waits = [], []

    class Matrix:
        def __matmul__(self, other: "Matrix") -> "Matrix":
            products.append(1)
            return self

    monkeypatch.setattr(throughput, "SIZES", (8,))
    monkeypatch.setattr(torch, "randn", lambda *args, **more: Matrix())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    throughput.matrix_peak("bf16", torch.device("cuda"))
    assert 0 < 10 * len(waits) <= len(products)


def test_networks_without_a_row_are_not_measured() -> None:
    import performance
    import throughput

    row = {
        **{"images_per_second": 1000.0, "plain_images_per_second": 200.0, "ratio": 5.0},
        **{"share_of_peak": 0.5, "precision": "bf16", "memory_format": "channels_last"},
        **{"compile": "never", "date": "2026-01-01", "steps": 2},
    }
    result = {
        "batch_size": 512,
        "hardware": {"cores": 2, "processor": "processor"},
        "networks": {"lenet": {**row, "fields": {}}, "wideresnet": {**row, "fields": {"a.b": 3}}},
    }
    lines = {line.split(" |")[0]: line for line in performance.throughput(result)}
    assert len(lines) == 3 + len(throughput.MODELS)
    assert "5.0" in lines["| lenet"]
    wide = next(line for name, line in lines.items() if name.startswith("| wideresnet"))
    assert "width 8" in wide  # the sources', and no other's figures
    for name, line in lines.items():
        if name.startswith("| ") and name not in ("| lenet", "| network"):
            assert performance.NOT_MEASURED in line


def test_bare_steps_are_timed_before_and_after(
    cifar: LabelledImages, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time_to_accuracy

    rates = iter([100.0, 300.0])
    monkeypatch.setattr(time_to_accuracy, "load_train", lambda: cifar)
    monkeypatch.setattr(time_to_accuracy, "bare_rate", lambda *args: next(rates))
    options = argparse.Namespace(length="short")
    recipe = recipe.with_values({"epochs": 1, "model.name": "lenet", "batch_size": 500})
    run = time_to_accuracy.measure(recipe, options, torch.device("cpu"))
    assert run["bare_before_and_after"] == [100.0, 300.0]
    assert run["bare_images_per_second"] == 200.0
    expected = run["train_seconds"] * 200 / 1000
    assert run["by_bare_step"] == pytest.approx(expected, abs=0.005 * 200 / 1000 + 0.001)
    assert run["compile_seconds"] < 0.1


def test_augmentation_is_measured_as_in_a_slot(
    split: SplitImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    import augmentation

    recipes: list[Recipe] = []
    figures: dict[str, Any] = {}

    def fastest(recipe: Recipe, images: int, *, device: torch.device, folder: Path) -> Recipe:
        recipes.append(recipe)
        return recipe.with_values(
            {"precision": "fp32", "memory_format": "contiguous", "compile": "never"}
        )

    class Noted(Trainer):
        def __init__(self, recipe: Recipe, *args: Any, **more: Any) -> None:
            assert recipe.memory_format == "contiguous"
            super().__init__(recipe, *args, **more)

    monkeypatch.setattr(augmentation, "CASES", {"a case": ("lenet", augmentation.DEFAULT, 0.05)})
    monkeypatch.setattr(augmentation, "Trainer", Noted)
    monkeypatch.setattr(augmentation, "fastest", fastest)
    monkeypatch.setattr(augmentation, "real_images", lambda *counts: split)
    monkeypatch.setattr(augmentation, "keep", lambda *args, **more: figures.update(more))
    augmentation.main(argparse.Namespace(length="short", device="cpu"))
    assert len(recipes) == 1 and figures["length"] == "short"
    assert figures["cases"]["a case"]["share_of_training"] > 0


AIRBENCH = """
import time
print("|  run     |  epoch  |  val_acc  |  tta_val_acc  |  time_seconds  |")
for run in range(4):
    print(f"|  {run:>6}  |      8  |   0.9300  |               |        9.0000  |")
    print(f"|          |   eval  |   0.9300  |      0.94{run:02}   |  {3 - run / 10:.4f}  |")
time.sleep(600)
"""
"""Prints as the scripts of cifar10-airbench do, made up."""


def test_the_other_script_is_run_as_it_is(
    tmp_path: Path,
) -> None:
    """The first run compiles, and what comes behind those that are asked for is not waited for."""
    import airbench
    import performance

    script = tmp_path / "airbench94_muon.py"
    script.write_text(AIRBENCH)
    found = airbench.run(script, 2)
    assert found["seconds"] == (2.9, 2.8)
    assert (found["n"], found["mean_seconds"], found["mean_accuracy"]) == (2, 2.85, 0.94015)
    script.write_text("raise SystemExit('no GPU')")
    with pytest.raises(RuntimeError, match="made 0 runs: two are needed"):
        airbench.run(script, 2)
    cell = performance.beside_other({"mean_train_seconds": 3.1, "against": found})
    assert cell == "3.10 s; airbench94_muon.py 2.85 s"
