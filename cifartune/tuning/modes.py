"""How a network is computed fastest on this machine: measured once, and remembered."""

import json
import math
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional as F

from cifartune.config import Recipe
from cifartune.config.effects import repeats_inputs
from cifartune.files import write_atomically
from cifartune.models import build_model
from cifartune.models.freezing import set_training
from cifartune.report.machine import processor
from cifartune.training.device import MEMORY_FORMATS, autocast, choose_precision, settle
from cifartune.training.failures import is_out_of_memory
from cifartune.training.random_state import own_random_state

FOLDER = "modes"

CPU_BATCH = 64
"""Images a step where a CPU is measured: what is fastest for them is so for more, not for fewer."""

ROUNDS = 3
"""How often a mode that may be the fastest is timed; the best time counts."""

CLEARLY = 1.05
"""How many times faster than the usual another mode has to be: less is chance."""

SMALLEST = 16
"""Images that a step is not divided any further than."""

HOPELESS = 1.5
"""A mode that takes so many times the best one's time is not timed again."""

REPLAYS = 4
"""Steps before the gradients of CUDA graphs are believed: the first two record."""

TOLERANCE = 0.05
"""How far they may be from those of a step that is not compiled, by these."""

WORTH_TRYING = {"cpu": 600.0, "cuda": 120.0}
"""Seconds of training from which on it is tried whether compiling pays: it takes a minute."""


_unwritten: dict[Path, dict[str, "Speed"]] = {}
"""What could not be written: this process, at least, computes all its runs alike."""


@dataclass(frozen=True)
class Mode:
    """A way to compute a network, by the recipe's fields of these names."""

    precision: str
    memory_format: str
    compile: str = "never"

    def __str__(self) -> str:
        return f"{self.precision} {self.memory_format} {self.compile}"


@dataclass(frozen=True)
class Speed:
    """What a mode achieves.

    Attributes:
        rate: Images a second through forward and backward pass; 0 where it does not work.
        first_seconds: What the first step takes beyond a usual one.
    """

    rate: float
    first_seconds: float

    def seconds(self, images: float, kinds: int = 1) -> float:
        """How long a run over so many images takes, with steps of so many kinds."""
        return images / self.rate + kinds * self.first_seconds if self.rate else math.inf


def fastest(
    recipe: Recipe, images: int, *, device: torch.device, folder: Path, is_part: bool = False
) -> Recipe:
    """`recipe` with the fastest way to compute its network where it says `auto`.

    Precision and memory format are those of the highest rate, or bf16 and channels last where no
    other is clearly faster. The step is compiled where that
    saves more time than it takes. Where a GPU's memory does not hold a step, it is made of parts,
    half, a quarter and so on of the batch. What was measured is kept by network, device, threads
    and version of torch, so that all runs of a search are computed alike. Where the frozen part's
    features are kept, what is left is too little to try whether compiling it pays.

    Args:
        recipe: What will be trained.
        images: Training images of the whole run, those of each epoch counted anew.
        device: Where it is trained.
        folder: Of the prepared data; measurements are kept in `modes` there if it can be written.
        is_part: Whether `micro_batch` was lowered because the memory did not hold a step.
    """
    modes = [Mode(*pair) for pair in product(_precisions(recipe, device), _memory_formats(recipe))]
    may_not_fit = device.type == "cuda" and (not recipe.micro_batch or is_part)
    if len(modes) == 1 and recipe.compile != "auto" and not may_not_fit:
        return settle(recipe, asdict(modes[0]))
    speeds = _speeds(recipe, modes, device, folder / FOLDER)
    speed, best = max(zip(speeds, modes, strict=True), key=lambda pair: pair[0].rate)
    if speed.rate < CLEARLY * speeds[0].rate:
        speed, best = speeds[0], modes[0]
    if may_not_fit and not speed.rate and _batch(recipe, device) > SMALLEST:
        half = recipe.with_values({"micro_batch": -(-_batch(recipe, device) // 2)})
        return fastest(half, images, device=device, folder=folder, is_part=True)
    passes, kinds = _work(recipe, images)
    usual = speed.seconds(passes)
    may_pay = usual >= WORTH_TRYING[device.type] and not repeats_inputs(recipe)
    if recipe.compile == "auto" and may_pay:
        ways = ["always"]
        if device.type == "cuda" and not recipe.micro_batch:
            ways.append("graphs")
        compiled = [Mode(best.precision, best.memory_format, way) for way in ways]
        for speed, mode in zip(
            _speeds(recipe, compiled, device, folder / FOLDER), compiled, strict=True
        ):
            if speed.seconds(passes, kinds) < usual:
                usual, best = speed.seconds(passes, kinds), mode
    return settle(recipe, asdict(best))


def _work(recipe: Recipe, images: int) -> tuple[float, int]:
    """What a run over so many images computes: passes of images of full size, and kinds of steps.

    Each kind is compiled by itself: small images are, and so is the second pass of sharpness-aware
    steps, whose batch norms leave their statistics alone.
    """
    side, share = recipe.data.small_side, recipe.data.small_share
    has_small = 0 < side < recipe.model.resolution and share > 0
    saved = share * (1 - (side / recipe.model.resolution) ** 2) if has_small else 0.0
    twice = 1 + (recipe.optimizer.sam_rho > 0)
    return images * (1 - saved) * twice, (1 + has_small) * twice


def measure(recipe: Recipe, modes: Sequence[Mode], device: torch.device) -> list[Speed]:
    """Times steps of the recipe's network in each mode, turn and turn about.

    Raises:
        Exception: Where none of them works without compiling, and not for lack of memory: a run
            would fail of the same.
    """
    failures = list[Exception]()
    with own_random_state(device):
        # Built when first called: what does not fit the memory then fails like any step.
        built = [cache(partial(_step, recipe, mode, device)) for mode in modes]
        steps = [lambda step=step: step()() for step in built]
        first = list[float]()
        for make, step in zip(built, steps, strict=True):
            first.append(_time(step, device, failures))
            if first[-1] == math.inf:
                make.cache_clear()  # what does not work leaves its memory to the others
        times = [
            _time(step, device, failures) if begin < math.inf else begin
            for step, begin in zip(steps, first, strict=True)
        ]
        for _ in range(ROUNDS - 1):
            bound = HOPELESS * min(times)
            for index, step in enumerate(steps):
                if times[index] < bound:
                    times[index] = min(times[index], _time(step, device, failures))
    if min(times) == math.inf and all(mode.compile == "never" for mode in modes):
        for failure in failures:
            if not is_out_of_memory(failure):
                raise failure
    batch = _batch(recipe, device)
    return [
        Speed(batch / usual, max(0.0, begin - usual)) if usual < math.inf else Speed(0.0, 0.0)
        for begin, usual in zip(first, times, strict=True)
    ]


def _speeds(
    recipe: Recipe, modes: Sequence[Mode], device: torch.device, folder: Path
) -> list[Speed]:
    """The speeds of `modes`: those in `folder`, and where one is missing measured now."""
    about = _about(recipe, device)
    path = folder / (sha256(json.dumps(about).encode()).hexdigest()[:16] + ".json")
    with ExitStack() as stack:
        # Without a lock where nothing can be kept, or, filelock's other error, on a disk without.
        with suppress(OSError, NotImplementedError):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock")))
        kept = _unwritten.get(path, {}) | _read(path)
        missing = [mode for mode in modes if str(mode) not in kept]
        measured = measure(recipe, missing, device) if missing else []
        found = kept | {str(m): s for m, s in zip(missing, measured, strict=True)}
        if missing:
            # What failed may work another time, when a GPU has more room; compiling is too dear
            # to try in each run.
            worked = {
                mode: speed
                for mode, speed in found.items()
                if speed.rate or not mode.endswith(" never")
            }
            speeds = {mode: asdict(speed) for mode, speed in worked.items()}
            text = json.dumps({"about": about, "speeds": speeds}, indent=2) + "\n"
            try:
                write_atomically(path, text)
            except OSError:
                _unwritten[path] = worked
    return [found[str(mode)] for mode in modes]


def _read(path: Path) -> dict[str, Speed]:
    """The speeds in a file by mode; none if there is no such file, or it is damaged."""
    try:
        speeds = json.loads(path.read_text())["speeds"]
        return {mode: Speed(**speed) for mode, speed in speeds.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _about(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """What a measurement depends on."""
    names = (
        "name",
        "depth",
        "width",
        "squeeze_excite",
        "channels",
        "stem",
        "activation",
        "resolution",
    )
    return {
        "network": recipe.model.model_dump(include={*names, "trainable"}),
        "batch": _batch(recipe, device),
        "device": f"{processor()} {torch.backends.cpu.get_cpu_capability()}"
        if device.type == "cpu"
        else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _precisions(recipe: Recipe, device: torch.device) -> list[str]:
    best = choose_precision(recipe.precision, device)
    # A GPU that has bf16 is never faster without.
    is_open = recipe.precision == "auto" and best == "bf16" and device.type == "cpu"
    return ["bf16", "fp32"] if is_open else [best]


def _memory_formats(recipe: Recipe) -> list[str]:
    return [*MEMORY_FORMATS] if recipe.memory_format == "auto" else [recipe.memory_format]


def _batch(recipe: Recipe, device: torch.device) -> int:
    if device.type == "cpu":
        return CPU_BATCH
    whole = recipe.batch_size * (1 + recipe.augment.copies)
    return min(recipe.micro_batch or whole, whole)


def _step(recipe: Recipe, mode: Mode, device: torch.device) -> Callable[[], None]:
    """A forward and backward pass over made-up images."""
    # What the weights are does not matter: none are fetched.
    model = recipe.model.model_copy(update={"weights": "none"})
    if mode.compile == "graphs":  # its gradients are compared: they must not be of chance
        model = model.model_copy(update={"dropout": 0.0, "block_dropout": 0.0, "drop_path": 0.0})
    network = build_model(model).to(device).to(memory_format=MEMORY_FORMATS[mode.memory_format])
    set_training(network)
    side, batch = recipe.model.resolution, _batch(recipe, device)
    x = torch.randn(batch, 3, side, side, device=device)
    x = x.to(memory_format=MEMORY_FORMATS[mode.memory_format])
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    call: nn.Module | Callable[[Tensor], Tensor] = network
    if mode.compile != "never":
        from cifartune.training.compiling import CompiledNetwork  # two seconds to import

        call = CompiledNetwork(network, graphs=mode.compile == "graphs")

    def step(call: Callable[[Tensor], Tensor] = call) -> None:
        network.zero_grad(set_to_none=True)
        with autocast(device, mode.precision):
            logits = call(x)
        F.cross_entropy(logits.float(), labels).backward()

    def gradients() -> Tensor:
        grads = (weight.grad for weight in network.parameters() if weight.grad is not None)
        return torch.cat([grad.float().flatten() for grad in grads])

    if mode.compile == "graphs":
        step(network)
        expected = gradients()
        for _ in range(REPLAYS):
            step()
        if (gradients() - expected).norm() > TOLERANCE * expected.norm():
            raise RuntimeError("CUDA graphs compute other gradients")
    return step


def _time(step: Callable[[], None], device: torch.device, failures: list[Exception]) -> float:
    """Seconds of one step; infinite where it cannot be computed, which is added to `failures`.

    What such a step has allocated is given up.
    """
    start = time.perf_counter()
    try:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:  # out of memory, or without a compiler: each fails in its own way
        failures.append(error)
        error.add_note("".join(traceback.format_tb(error.__traceback__)))
        cause: BaseException | None = error
        while cause:  # as text alone: frames hold on to networks and activations
            cause.__traceback__ = None
            cause = cause.__context__
        return math.inf
    return time.perf_counter() - start
