"""The canary: which searched parameters change nothing, found out before the first trial.

A wire that is cut somewhere between the search space and the trainer makes no trial fail: the
search goes on, and one of its parameters is noise. So each parameter is moved alone between two of
its values, and what the trainer builds and computes must differ.
"""

import hashlib
import random
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from cifartune.config.parameters import Choice, Range
from cifartune.config.recipe import Recipe, recipe_fields
from cifartune.config.space import SearchSpace
from cifartune.seeds import derive_seed
from cifartune.training.failures import TrainingFailure
from cifartune.training.history import EpochResult
from cifartune.training.images import SplitImages
from cifartune.training.trainer import Trainer

CPU = torch.device("cpu")
"""Where everything is computed: a GPU rounds differently from run to run."""

FURTHER_POINTS = 4
"""Random points of the space at which a parameter is tried that does nothing at the baseline."""

STEPS = 2
"""Steps that are made, as far as an epoch has as many."""

STEP_IMAGES = 32
"""Images a step; as many are predicted after the last."""

LATE = 1_000_000
"""A step by which no average remembers the start."""

LONG = 1000.0
"""A gradient of a weight that no recipe leaves as long as that, if it limits gradients at all."""

METRICS = ("val_accuracy", "val_loss", "train_accuracy", "train_loss")
"""What a run may listen to."""

TRAIN_IMAGES = 512
"""Training images that are used at least; they cost little beside the steps."""

TRAIN_BATCHES = 3
"""Steps an epoch, by the largest batch: in two, a line and half a cosine are the same schedule."""


def idle_parameters(space: SearchSpace, split: SplitImages) -> dict[str, tuple[Any, Any]]:
    """The searched parameters that change nothing about the training.

    A range is moved between its bounds; a choice from its first value to the others, until one
    makes a difference. That happens at the baseline, changed no more than needed for the parameter
    to exist, and if nothing shows there, at a few random points of the space: a crop does nothing
    while the strength of all augmentation is 0. What can take only one value is left out.

    Everything is computed on the CPU, on a few images; the precision `auto` is the CPU's.

    Args:
        space: The search.
        split: The images of its trials; on any device.

    Returns:
        Two of the values that were tried, by the parameter's name.
    """
    few = _few_images(space, split)
    computed = cache(lambda recipe: fingerprint(recipe, few))
    idle = {}
    for name, parameter in space.parameters.items():
        first, *others = _values(name, parameter)
        is_idle = all(
            computed(space.with_value(point, name, first))
            == computed(space.with_value(point, name, other))
            for point in _points(space, name)
            for other in others
        )
        if is_idle and others:
            idle[name] = first, others[0]
    return idle


@torch.enable_grad()
def fingerprint(recipe: Recipe, split: SplitImages) -> str:
    """A hash over what a trainer builds from `recipe` and computes in its first steps.

    Over that alone, never over the recipe: the initial weights, the sizes of an epoch's batches,
    the optimiser's settings in the course of the run, what enters the network, the loss, and the
    weights and predictions after two small steps and one along made-up gradients. A failure of
    the recipe in these steps is a result like any other.
    """
    trainer = Trainer(recipe.with_values({"compile": "never"}), split, device=CPU)
    network, groups = trainer.network, trainer.optimizer.param_groups
    batches, steps = trainer.batches(), trainer.total_steps
    seen = [_hash(network.state_dict()), _hash([steps, *map(len, batches)])]
    for quarter in range(5):
        trainer.set_lr(min(steps * quarter // 4, steps - 1))
        seen.append(_hash([_numbers(group) for group in groups]))
    sides = [trainer.small_side(steps * percent // 100) for percent in range(100)]
    seen.append(_hash([sides, *map(trainer.part_sizes, map(len, batches))]))
    for history in _made_up(steps // trainer.steps_per_epoch):
        seen.append(_hash(_course(trainer, history)))
    trainer.history = []

    hook = network.register_forward_pre_hook(lambda _, inputs: seen.append(_hash(inputs)))
    start = trainer.state_dict()
    # Each step draws the same random numbers: one that drew more or fewer and made nothing of
    # them would still change what the next one draws.
    draws = {key: start[key] for key in ("generator", "random_state")}
    try:
        for batch in batches[:STEPS]:
            trainer.load_state_dict(trainer.state_dict() | draws)
            seen.append(_hash(trainer.train_on([batch[:STEP_IMAGES]])))
    except TrainingFailure as failure:
        return _hash([*seen, failure.kind])
    hook.remove()
    seen.append(_hash(network.state_dict()))
    seen.append(_hash(trainer.predict(split.images[split.validation[:STEP_IMAGES]])))
    long = LONG * trainer.scaler.get_scale()
    for weight in network.parameters():  # later gradients may be longer than those of these steps
        weight.grad = torch.full_like(weight, long) if weight.requires_grad else None
    trainer.apply_gradients(LATE)  # an average's first steps look alike, whatever its decay
    seen.append(_hash(trainer.classifier.state_dict()))
    return _hash(seen)


def _course(trainer: Trainer, history: list[EpochResult]) -> list[Any]:
    """What `history` leads to: where the run ends, what it keeps, the rate in its last step."""

    def is_over(epochs: int) -> bool:
        trainer.history = history[:epochs]
        return trainer.is_over

    end = bisect_left(range(1, len(history)), True, key=is_over)
    trainer.history = history
    trainer.set_lr(trainer.total_steps - 1)
    return [end, trainer.kept_epoch, [group["lr"] for group in trainer.optimizer.param_groups]]


@cache
def _made_up(epochs: int) -> list[list[EpochResult]]:
    """The results of runs, for what acts on them later than in the first steps.

    In each run one metric gets better by ever smaller steps, to an epoch from which on it gets
    worse, while the others get better by far in each epoch. The steps fall from 1 to a millionth.
    """
    runs = []
    for peak in {0, epochs // 4, epochs // 2, epochs - 2, epochs - 1}:
        for shift in (0.0, 0.5):
            changes = [
                10 ** (-6 * (epoch + shift) / epochs) if epoch < peak else -1.0
                for epoch in range(epochs - 1)
            ]
            curve = [0.0, *accumulate(changes)]
            runs += [_run(metric, curve) for metric in METRICS]
    return runs


def _run(metric: str, curve: list[float]) -> list[EpochResult]:
    """A run in which `metric` follows `curve`, up being better."""
    results = []
    for epoch, value in enumerate(curve):
        good = {name: float(epoch) for name in METRICS} | {metric: value}
        metrics = {
            name: value if name.endswith("accuracy") else 2 * len(curve) - value
            for name, value in good.items()
        }
        results.append(
            EpochResult(epoch + 1, lr=0.0, images_per_second=0.0, seconds=0.0, **metrics)
        )
    return results


def _few_images(space: SearchSpace, split: SplitImages) -> SplitImages:
    """The first images of `split`, enough for a few batches of every size of the space."""
    sizes = [space.base.batch_size]
    if searched := space.parameters.get("batch_size"):
        sizes += _values("batch_size", searched)
    count = max(TRAIN_IMAGES, TRAIN_BATCHES * max(sizes))
    few = SplitImages(
        split.images, split.labels, split.train[:count], split.validation[:STEP_IMAGES]
    )
    return few.to(CPU)


def _values(name: str, parameter: Range | Choice) -> list[Any]:
    if isinstance(parameter, Choice):
        return list(parameter.values)
    kind = recipe_fields()[name]
    return [kind(parameter.min), kind(parameter.max)]


def _points(space: SearchSpace, name: str) -> Iterator[Recipe]:
    """The baseline, then random points, each changed so that the parameter `name` exists there."""
    conditions = _conditions(space, name)
    for number in range(1 + FURTHER_POINTS):
        values = space.base.flat()
        if number:
            values |= _sample(space, number)
        for other, allowed in conditions.items():
            if values[other] not in allowed:
                values[other] = allowed[0]
        yield space.base.with_values(values)


def _conditions(space: SearchSpace, name: str) -> dict[str, list[Any]]:
    """What others must be for a parameter to exist: its own conditions and all of theirs."""
    found: dict[str, list[Any]] = {}
    waiting = [name]
    while waiting:
        for other, allowed in space.parameters[waiting.pop()].when.items():
            found[other] = [value for value in found.get(other, allowed) if value in allowed]
            waiting.append(other)
    return found


def _sample(space: SearchSpace, number: int) -> dict[str, Any]:
    """Random point `number` of the space."""
    source = random.Random(derive_seed(space.search.seed, "canary", number))
    point: dict[str, Any] = {}
    for name, parameter in space.ordered_parameters().items():
        if parameter.applies(point):
            point[name] = parameter.at(source.random(), is_int=recipe_fields()[name] is int)
    return point


def _hash(value: Any) -> str:
    """Of a tree of tensors and plain values, each with its place, shape and type."""
    if isinstance(value, Tensor):
        data = value.detach().contiguous().view(-1).view(torch.uint8).numpy().data
        text = f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(data).hexdigest()}"
    elif isinstance(value, Mapping):
        text = _hash(list(value.items()))
    elif isinstance(value, list | tuple):
        text = repr([_hash(item) for item in value])
    else:
        text = repr(value)
    return hashlib.sha256(text.encode()).hexdigest()


def _numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an optimiser's group that are numbers, or tuples of them."""

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float)

    return {
        key: value
        for key, value in group.items()
        if is_number(value) or (isinstance(value, tuple) and all(map(is_number, value)))
    }
