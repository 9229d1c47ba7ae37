"""Slots that share a GPU: how many, and how that is found out."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from cifartune.config import SearchSpace
from cifartune.errors import Interrupted
from cifartune.planning import ahead, recipes_to_measure
from cifartune.tuning import packing
from cifartune.tuning.cluster import load_ray
from cifartune.tuning.packing import Packing, Tenant, choose, pack
from cifartune.tuning.shape import SlotShape

SPACE = SearchSpace.model_validate(
    {
        "name": "packed",
        "base": {"model": {"name": "mlp", "resolution": 16}, "batch_size": 32},
        "parameters": {
            "optimizer.lr": {"min": 0.01, "max": 1.0, "log": True},
            "batch_size": {"values": [32, 128]},
        },
        "search": {"num_trials": 2},
    }
)


@pytest.mark.parametrize(
    ("rates", "slots"),
    [
        ({"a": {1: 100.0}}, 1),
        ({"a": {1: 100.0, 2: 190.0, 4: 350.0, 8: 380.0}}, 4),
        ({"a": {1: 100.0, 2: 105.0, 4: 400.0}}, 1),  # a doubling that is not worth it ends it
        ({"a": {1: 100.0, 2: 180.0, 4: 300.0}, "b": {1: 50.0, 2: 52.0, 4: 49.0}}, 2),
        ({"a": {1: 100.0, 2: 180.0, 4: 0.0}}, 2),  # four do not fit the memory
        ({"a": {1: 100.0, 2: 200.0}, "b": {1: 50.0, 2: 0.0}}, 1),
        ({"a": {1: 0.0, 2: 0.0}}, 1),  # nor does one
    ],
)
def test_slots_share_a_gpu_where_that_trains_more(
    rates: dict[str, dict[int, float]], slots: int
) -> None:
    assert choose(rates) == Packing(slots, rates)


@pytest.fixture(scope="module")
def one_gpu() -> Iterator[None]:
    """A Ray cluster that says that it has one."""
    load_ray()
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def free_gpus() -> float:
    have: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return have.get("GPU", 0.0)


def test_packing_is_tried_with_the_recipes_of_the_space(
    one_gpu: None, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SECONDS", 0.2)
    file = tmp_path / "packing.json"
    recipes = recipes_to_measure(SPACE)
    found = pack(SPACE, recipes, folder=data_root, file=file)
    assert set(found.rates) == {"mlp in batches of 32", "mlp in batches of 128"}
    assert all(set(by) == {1, 2} and min(by.values()) > 0 for by in found.rates.values())
    assert found == choose(found.rates)
    # All is free again, in a moment, and what was found is not looked for again.
    deadline = time.monotonic() + 30
    while free_gpus() != 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert free_gpus() == 1
    monkeypatch.setattr(packing, "_machine", lambda: pytest.fail("measured again"))
    assert pack(SPACE, recipes, folder=data_root, file=file) == found


def test_a_search_of_one_trial_at_a_time_tries_nothing(one_gpu: None, tmp_path: Path) -> None:
    alone = SPACE.model_copy(update={"search": SPACE.search.model_copy(update={"num_trials": 1})})
    file = tmp_path / "packing.json"
    assert pack(alone, [alone.base], folder=tmp_path, file=file) == Packing(1, {})
    assert not file.exists()


@pytest.mark.parametrize("ends", ["asked to stop", "too long"])
def test_a_trial_of_packing_that_hangs_is_ended(
    ends: str,
    one_gpu: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With Ctrl-C, or after its time; the GPU is free again."""

    class Hanging(Tenant):
        def __init__(self, data_root: Path) -> None:
            pass

        def extremes(self, recipes: object) -> Any:
            threading.Event().wait()

    stop, file, start = threading.Event(), tmp_path / "packing.json", time.monotonic()
    monkeypatch.setattr(packing, "Tenant", Hanging)
    try_it = partial(pack, SPACE, [SPACE.base], folder=tmp_path, file=file, stop=stop)
    if ends == "too long":
        monkeypatch.setattr(packing._all, "__defaults__", (1.0,))
        assert try_it() == Packing(1, {})
        assert "was not found out: no answer in 1 s" in caplog.text
    else:
        threading.Timer(2.0, stop.set).start()
        with pytest.raises(Interrupted):
            try_it()
    assert time.monotonic() - start < 60
    assert not file.exists()
    deadline = time.monotonic() + 30
    while free_gpus() != 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert free_gpus() == 1


def test_what_does_not_fit_the_memory_is_no_choice(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = Tenant(data_root)
    recipe = SPACE.base
    assert tenant.prepare(recipe)

    def full(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("cifartune.training.Trainer", full)
    assert not tenant.prepare(recipe)


def test_the_shape_follows_what_was_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [machine])
    rates = {"mlp": {1: 100.0, 2: 180.0, 4: 300.0}}
    monkeypatch.setattr(ahead, "pack", lambda *_, **__: Packing(4, rates))
    words = "4 trials share a GPU, and train what one would: mlp 3.0 times"
    assert ahead.slots_for(SPACE, tmp_path) == (SlotShape(8, 2, 0.25), words)
    whole = SPACE.resources.model_copy(update={"gpus": 1.0})
    asked = SPACE.model_copy(update={"resources": whole})
    assert ahead.slots_for(asked, tmp_path) == (SlotShape(2, 8, 1), "")
