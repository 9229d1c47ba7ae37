"""How many slots share a GPU: tried before the first trial, with recipes of the space."""

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cifartune.config import Recipe, SearchSpace
from cifartune.data import root_here
from cifartune.errors import Interrupted, first_line
from cifartune.files import write_atomically

if TYPE_CHECKING:  # torch is loaded in the slots alone
    from cifartune.training import Trainer

logger = logging.getLogger(__name__)

COUNTS = (1, 2, 4, 8)
"""Slots that a GPU may be given."""

GAIN = 1.1
"""What more slots must train in all, by what fewer do: each of them is slower, and so ASHA hears
later which trials are bad."""

SECONDS = 3.0
"""How long slots are timed together."""

START_SECONDS = 300.0
"""How long a GPU may take to become free."""

ANSWER_SECONDS = 900.0
"""How long one answer may take: PyTorch is imported, or ways to compute a network are tried."""

LOOK_SECONDS = 0.5
"""How often it is seen meanwhile whether all this is wanted no more."""

STEPS = 16
"""Steps between two looks at the clock: a GPU that is waited for after each is not busy."""

EVALUATED = 2000


@dataclass(frozen=True)
class Packing:
    """What was tried on one GPU.

    Attributes:
        slots: How many share it best.
        rates: Training images a second of all slots together, by recipe and number of slots; 0
            where the memory does not hold them.
    """

    slots: int
    rates: dict[str, dict[int, float]]

    def __str__(self) -> str:
        if self.slots == 1:
            return "one trial a GPU at a time"
        gains = ", ".join(
            f"{name} {by[self.slots] / by[1]:.1f} times" for name, by in self.rates.items()
        )
        return f"{self.slots} trials share a GPU, and train what one would: {gains}"


def pack(
    space: SearchSpace,
    recipes: Sequence[Recipe],
    *,
    folder: Path,
    file: Path,
    stop: threading.Event | None = None,
) -> Packing:
    """Tries slots on a GPU that is free, with the cheapest and the dearest of some recipes.

    Each is a process that trains and evaluates made-up images. There are no more of them than the
    search has trials for, and the GPU's machine cores. Where none can be tried, it is one.

    Args:
        space: The search.
        recipes: Of the kinds that cost something else.
        folder: The prepared images, and the modes of computing a network.
        file: What was found is kept there, and read from there the next time.
        stop: Set from elsewhere, ends it.

    Raises:
        Interrupted: `stop` was set.
    """
    known = _recall(file)
    if known is not None:
        return known
    cores, gpus = _machine()
    wanted = space.search.num_trials
    if isinstance(space.search.max_concurrent, int):
        wanted = min(wanted, space.search.max_concurrent)
    a_slot = 1.0 if space.resources.cpus == "auto" else space.resources.cpus
    counts = [n for n in COUNTS if n <= min(cores / a_slot, wanted // gpus)]
    if len(counts) < 2:
        return Packing(1, {})
    group = placement_group([{"GPU": 1, "CPU": cores}])
    try:
        _all([group.ready()], stop, START_SECONDS)
        packing = choose(_rates(group, counts, cores, recipes, folder, stop))
    except (ray.exceptions.RayError, TimeoutError) as error:
        logger.warning("how many slots share a GPU was not found out: %s", first_line(error))
        return Packing(1, {})
    finally:
        remove_placement_group(group)
    with suppress(OSError):
        write_atomically(file, json.dumps(asdict(packing), indent=2) + "\n")
    return packing


def choose(rates: Mapping[str, Mapping[int, float]]) -> Packing:
    """The most slots that were worth it: for all recipes on average, and slower for none."""
    best, *more = sorted(set[int].intersection(*(set(by) for by in rates.values())))
    for count in more:
        if any(not by[count] or by[count] < by[best] for by in rates.values()):
            break
        if prod(by[count] / by[best] for by in rates.values()) < GAIN ** len(rates):
            break
        best = count
    return Packing(best, {name: dict(by) for name, by in rates.items()})


def _rates(
    group: PlacementGroup,
    counts: Sequence[int],
    cores: int,
    recipes: Sequence[Recipe],
    folder: Path,
    stop: threading.Event | None,
) -> dict[str, dict[int, float]]:
    """What `Packing.rates` says, tried out."""
    most = max(counts)
    tenant = ray.remote(Tenant).options(
        num_gpus=1 / most,
        num_cpus=cores / most,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group),
    )
    tenants: list[Any] = [tenant.remote(folder) for _ in range(most)]
    found: dict[str, dict[int, float]] = {}
    [extremes] = _all([tenants[0].extremes.remote(recipes)], stop)
    for name, recipe in extremes.items():
        _all([other.leave.remote() for other in tenants], stop)
        rates = found[name] = dict.fromkeys(counts, 0.0)
        ready = 0
        for count in counts:
            # One by one: the first finds out how the network is computed fastest.
            more = tenants[ready:count]
            if not all(_all([other.prepare.remote(recipe)], stop)[0] for other in more):
                break
            ready = count
            threads = max(1, cores // count)
            together = [other.train.remote(threads, SECONDS) for other in tenants[:count]]
            rates[count] = sum(_all(together, stop))
    return found


def _all(
    answers: list[Any], stop: threading.Event | None, seconds: float = ANSWER_SECONDS
) -> list[Any]:
    """Waits for all answers.

    Raises:
        Interrupted: `stop` was set meanwhile.
        TimeoutError: They take longer than so many seconds.
    """
    deadline = time.monotonic() + seconds
    while len(ray.wait(answers, num_returns=len(answers), timeout=LOOK_SECONDS)[0]) < len(answers):
        if stop is not None and stop.is_set():
            raise Interrupted
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer in {seconds:.0f} s")
    return list(ray.get(answers))


class Tenant:
    """One of the processes that share a GPU; the body of a Ray actor."""

    def __init__(self, data_root: Path) -> None:
        from cifartune.training.device import choose_device

        self._device = choose_device()
        self._data_root = root_here(data_root)
        self._trainer: Trainer | None = None

    def extremes(self, recipes: Sequence[Recipe]) -> dict[str, Recipe]:
        """The recipe with the cheapest step and the one with the dearest, by a name for each."""
        from cifartune.models.facts import network_facts

        def cost(recipe: Recipe) -> float:
            images = recipe.batch_size * (1 + recipe.augment.copies)
            return images * network_facts(recipe.model).flops

        ends = min(recipes, key=cost), max(recipes, key=cost)
        return {f"{recipe.model.name} in batches of {recipe.batch_size}": recipe for recipe in ends}

    def leave(self) -> None:
        """Gives back all memory of the GPU."""
        from cifartune.tuning.jobs import give_back

        self._trainer = None
        give_back(self._device)

    def prepare(self, recipe: Recipe) -> bool:
        """Trains a step and evaluates, so that all memory is taken; False: it is not enough."""
        import torch

        from cifartune.training import SplitImages, Trainer
        from cifartune.training.device import settle
        from cifartune.training.failures import is_out_of_memory
        from cifartune.tuning.modes import fastest

        count = max(STEPS * recipe.batch_size, EVALUATED)
        split = SplitImages(
            images=torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8),
            labels=torch.arange(count) % 10,
            train=torch.arange(count),
            validation=torch.arange(EVALUATED),
        )
        try:
            # Whether compiling pays is left to the first run.
            recipe = settle(recipe, {"compile": "never"})
            recipe = fastest(recipe, count, device=self._device, folder=self._data_root)
            self._trainer = Trainer(recipe, split, device=self._device)
            self._train()
            self._trainer.evaluate(split.validation.to(self._device))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.leave()
            return False
        return True

    def train(self, threads: int, seconds: float) -> float:
        """Training images a second, over some seconds."""
        import torch

        torch.set_num_threads(threads)
        start, images = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            images += self._train()
        return images / (time.perf_counter() - start)

    def _train(self) -> int:
        """Trains some steps to their end, and returns how many images that were."""
        from cifartune.training.failures import TrainingFailure

        assert self._trainer is not None
        batches = self._trainer.batches()[:STEPS]
        with suppress(TrainingFailure):  # a wild recipe costs what a tame one does
            self._trainer.train_on(batches)
        return sum(map(len, batches))


def _machine() -> tuple[int, int]:
    """The cores there are for each GPU, on the machine that has the fewest, and all GPUs."""
    having = [
        (node["Resources"].get("CPU", 0.0), node["Resources"]["GPU"])
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"] and node["Resources"].get("GPU")
    ]
    return min(int(cores // gpus) for cores, gpus in having), int(sum(g for _, g in having))


def _recall(file: Path) -> Packing | None:
    """What was found before; None if nothing was, or the file is damaged."""
    try:
        found = json.loads(file.read_text())
        rates = {
            name: {int(count): float(rate) for count, rate in by.items()}
            for name, by in found["rates"].items()
        }
        return Packing(int(found["slots"]), rates)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
