"""How a network is computed: what is measured, what is kept, and what follows from it."""

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifartune.config import Recipe
from cifartune.training import compiling
from cifartune.tuning import modes
from cifartune.tuning.modes import Mode, Speed, fastest, measure

CPU = torch.device("cpu")


class Machine:
    """A made-up machine: the rate of each mode, and what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **rates: float) -> None:
        self.rates = rates
        self.compiled = self.graphs = Speed(0.0, 0.0)
        self.asked: list[Mode] = []
        self.fits = 10**9
        monkeypatch.setattr(modes, "measure", self._measure)
        monkeypatch.setattr(modes, "choose_precision", lambda wanted, device: self._native(wanted))

    @staticmethod
    def _native(wanted: str) -> str:
        return "bf16" if wanted == "auto" else wanted

    def _measure(
        self, recipe: Recipe, asked: Sequence[Mode], device: torch.device
    ) -> Sequence[Speed]:
        self.asked += asked
        if modes._batch(recipe, device) > self.fits:
            return [Speed(0.0, 0.0)] * len(asked)
        return [
            {"always": self.compiled, "graphs": self.graphs}[mode.compile]
            if mode.compile != "never"
            else Speed(self.rates[f"{mode.precision}_{mode.memory_format}"], 0.1)
            for mode in asked
        ]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(
        monkeypatch,
        bf16_channels_last=90.0,
        bf16_contiguous=40.0,
        fp32_channels_last=100.0,
        fp32_contiguous=60.0,
    )


def computed(recipe: Recipe) -> tuple[str, str, str]:
    return recipe.precision, recipe.memory_format, recipe.compile


def test_the_fastest_is_taken(machine: Machine, tmp_path: Path) -> None:
    recipe = fastest(Recipe(), 1000, device=CPU, folder=tmp_path)
    assert computed(recipe) == ("fp32", "channels_last", "never")
    assert len(machine.asked) == 4


def test_the_usual_is_taken_where_another_is_hardly_faster(
    machine: Machine, tmp_path: Path
) -> None:
    """Chance decides between such, and would another time decide otherwise."""
    machine.rates["bf16_channels_last"] = 96.0
    recipe = fastest(Recipe(), 1000, device=CPU, folder=tmp_path)
    assert computed(recipe) == ("bf16", "channels_last", "never")


def test_it_is_measured_once_for_each_network(machine: Machine, tmp_path: Path) -> None:
    for values in ({}, {"optimizer.lr": 0.5}, {"model.dropout": 0.1, "batch_size": 64}):
        fastest(Recipe().with_values(values), 1000, device=CPU, folder=tmp_path)
    assert len(machine.asked) == 4
    fastest(Recipe().with_values({"model.resolution": 48}), 1000, device=CPU, folder=tmp_path)
    assert len(machine.asked) == 8
    machine.rates = dict.fromkeys(machine.rates, 1.0)  # what is remembered counts
    recipe = fastest(Recipe(), 1000, device=CPU, folder=tmp_path)
    assert computed(recipe) == ("fp32", "channels_last", "never")


def test_what_the_recipe_says_is_done(machine: Machine, tmp_path: Path) -> None:
    fixed = Recipe().with_values(
        {"precision": "bf16", "memory_format": "contiguous", "compile": "never"}
    )
    assert fastest(fixed, 10**9, device=CPU, folder=tmp_path) == fixed
    assert machine.asked == []
    bf16 = fastest(Recipe().with_values({"precision": "bf16"}), 1000, device=CPU, folder=tmp_path)
    assert computed(bf16) == ("bf16", "channels_last", "never")
    always = fastest(Recipe().with_values({"compile": "always"}), 1, device=CPU, folder=tmp_path)
    assert computed(always) == ("fp32", "channels_last", "always")
    assert all(mode.compile == "never" for mode in machine.asked)


@pytest.mark.parametrize(
    ("rate", "first_seconds", "images", "compiles"),
    [
        (150.0, 60.0, 100_000, "always"),  # 1000 s, or 667 and a minute
        (150.0, 400.0, 100_000, "never"),  # its compiler takes longer than it saves
        (99.0, 0.0, 100_000, "never"),
        (0.0, 0.0, 100_000, "never"),  # there is no compiler
        (900.0, 0.0, 50_000, "never"),  # too short to try
    ],
)
def test_compiling_must_earn_its_cost(
    machine: Machine,
    tmp_path: Path,
    rate: float,
    first_seconds: float,
    images: int,
    compiles: str,
) -> None:
    machine.compiled = Speed(rate, first_seconds)
    recipe = fastest(Recipe(), images, device=CPU, folder=tmp_path)
    assert computed(recipe) == ("fp32", "channels_last", compiles)
    tried = [mode for mode in machine.asked if mode.compile == "always"]
    assert tried == [Mode("fp32", "channels_last", "always")] * (images == 100_000)


SMALL_FIRST = {"data.small_side": 16, "data.small_share": 0.5}


@pytest.mark.parametrize(
    ("values", "first_seconds", "compiles"),
    [
        ({}, 300.0, "always"),  # 1000 s, or 667 and 300
        (SMALL_FIRST, 150.0, "never"),  # 625, or 417 and twice 150
        (SMALL_FIRST, 100.0, "always"),
        ({"optimizer.sam_rho": 0.05}, 340.0, "never"),  # 2000, or 1333 and twice 340
        ({"optimizer.sam_rho": 0.05}, 330.0, "always"),
    ],
)
def test_each_kind_of_step_is_compiled(
    machine: Machine, tmp_path: Path, values: dict[str, Any], first_seconds: float, compiles: str
) -> None:
    machine.compiled = Speed(150.0, first_seconds)
    recipe = Recipe().with_values({"model.resolution": 32, **values})
    assert fastest(recipe, 100_000, device=CPU, folder=tmp_path).compile == compiles


@pytest.mark.parametrize(
    ("graphs", "micro_batch", "chosen"),
    [
        (Speed(300.0, 60.0), 0, "graphs"),
        (Speed(140.0, 60.0), 0, "always"),
        (Speed(0.0, 0.0), 0, "always"),  # they do not work, or compute something else
        (Speed(300.0, 60.0), 64, "always"),
    ],
)
def test_a_gpu_replays_graphs_where_that_is_faster(
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    graphs: Speed,
    micro_batch: int,
    chosen: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    machine.compiled, machine.graphs = Speed(150.0, 50.0), graphs
    recipe = Recipe().with_values({"micro_batch": micro_batch})
    found = fastest(recipe, 100_000, device=torch.device("cuda"), folder=tmp_path)
    assert computed(found) == ("bf16", "channels_last", chosen)


def test_gradients_of_graphs_are_held_against_others(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        def __init__(self, network: nn.Module, *, graphs: bool) -> None:
            self.network = network

        def __call__(self, x: Tensor) -> Tensor:
            logits: Tensor = self.network(x)
            return logits * self.factor

        factor = 1.0

    monkeypatch.setattr(compiling, "CompiledNetwork", Wrong)
    recipe = recipe.with_values({"model.dropout": 0.5})
    mode = Mode("fp32", "contiguous", "graphs")
    assert measure(recipe, [mode], CPU)[0].rate > 0
    monkeypatch.setattr(Wrong, "factor", 1.1)
    assert measure(recipe, [mode], CPU)[0].rate == 0


def test_a_folder_that_cannot_be_written_is_no_harm(machine: Machine, tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    for _ in range(2):
        recipe = fastest(Recipe(), 1000, device=CPU, folder=nowhere)
        assert computed(recipe) == ("fp32", "channels_last", "never")
    assert len(machine.asked) == 4  # this process remembers


def test_what_remains_of_a_frozen_network_is_not_compiled(machine: Machine, tmp_path: Path) -> None:
    machine.compiled = Speed(150.0, 60.0)
    head = Recipe().with_values({"model.trainable": "head", "augment.strength": 0.0})
    for recipe, compiles in ((head, "never"), (Recipe(), "always")):
        found = fastest(recipe, 100_000, device=CPU, folder=tmp_path)
        assert computed(found) == ("fp32", "channels_last", compiles)


def test_real_steps_are_timed(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The random numbers of others are left alone, and no weights are fetched."""
    asked = [Mode("bf16", "channels_last"), Mode("fp32", "contiguous")]
    before = torch.get_rng_state()
    pretrained = recipe.with_values({"model.weights": "nowhere.safetensors"})
    speeds = measure(pretrained, asked, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(1 < speed.rate < 1e6 and speed.first_seconds >= 0 for speed in speeds)


def test_a_mode_that_fails_has_no_rate(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory(mode: Mode) -> None:
        if mode.precision == "bf16":
            raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(modes, "_step", lambda r, mode, d: lambda: without_memory(mode))
    asked = [Mode("bf16", "channels_last"), Mode("fp32", "channels_last")]
    failed, worked = measure(recipe, asked, CPU)
    assert failed == Speed(0.0, 0.0) and worked.rate > 0
    assert failed.seconds(1) == float("inf")


def test_a_mode_that_fails_holds_no_memory(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what its step was at, nor its network, while others are timed."""
    left = list[weakref.ref[Tensor]]()
    alive = list[bool]()

    def made(recipe: Recipe, mode: Mode, device: torch.device) -> Callable[[], None]:
        weight = torch.zeros(4)

        def step() -> None:
            if mode.precision == "fp32":
                alive.append(any(ref() is not None for ref in left))
                return
            activation = weight + 1
            left.extend((weakref.ref(weight), weakref.ref(activation)))
            try:
                raise ValueError("the cause")
            except ValueError as error:
                raise torch.OutOfMemoryError("too large") from error

        return step

    monkeypatch.setattr(modes, "_step", made)
    speeds = measure(recipe, [Mode("bf16", "contiguous"), Mode("fp32", "contiguous")], CPU)
    assert [speed.rate > 0 for speed in speeds] == [False, True]
    assert len(left) == 2 and alive and not any(alive)


def test_what_fails_in_every_mode_is_told(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for a lack of memory, which smaller parts of a step would mend."""

    def fails() -> None:
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(modes, "_step", lambda r, mode, d: fails)
    asked = [Mode("bf16", "channels_last"), Mode("fp32", "channels_last")]
    with pytest.raises(NotImplementedError, match="no such kernel") as told:
        measure(recipe, asked, CPU)
    assert "in fails" in told.value.__notes__[0]
    compiled = [Mode("fp32", "channels_last", "always")]
    assert measure(recipe, compiled, CPU) == [Speed(0.0, 0.0)]


def test_a_step_that_does_not_fit_is_made_of_parts(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a small GPU")
    monkeypatch.setattr(machine, "fits", 130)
    gpu = torch.device("cuda")
    recipe = fastest(Recipe(), 1000, device=gpu, folder=tmp_path)
    assert (recipe.batch_size, recipe.micro_batch) == (512, 128)
    assert computed(recipe) == ("bf16", "channels_last", "never")
    machine.fits = 10
    hopeless = Recipe().with_values({"model.resolution": 64})
    assert fastest(hopeless, 1000, device=gpu, folder=tmp_path).micro_batch == 16


def test_a_damaged_file_is_measured_anew(machine: Machine, tmp_path: Path) -> None:
    fastest(Recipe(), 1000, device=CPU, folder=tmp_path)
    [path] = (tmp_path / "modes").glob("*.json")
    for damaged in ("", "[]", '{"speeds": {"fp32": 3}}', '{"speeds": 1}'):
        path.write_text(damaged)
        machine.asked.clear()
        fastest(Recipe(), 1000, device=CPU, folder=tmp_path)
        assert len(machine.asked) == 4


def test_what_failed_is_tried_again(machine: Machine, tmp_path: Path) -> None:
    machine.rates |= {"fp32_channels_last": 0.0}
    recipe = fastest(Recipe(), 1000, device=CPU, folder=tmp_path)
    assert computed(recipe) == ("bf16", "channels_last", "never")
    machine.rates |= {"fp32_channels_last": 100.0}
    recipe = fastest(Recipe(), 1000, device=CPU, folder=tmp_path)
    assert computed(recipe) == ("fp32", "channels_last", "never")
    assert len(machine.asked) == 5
