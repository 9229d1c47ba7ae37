"""What a slot runs before the first trial: the canary, and what recipes cost on this machine."""

import time
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from cifartune.config import Choice, Recipe
from cifartune.models.facts import network_facts
from cifartune.training import SplitImages, Trainer
from cifartune.training.canary import idle_parameters
from cifartune.training.device import most_memory
from cifartune.training.failures import TrainingFailure
from cifartune.tuning.checkpoints import Checkpoints
from cifartune.tuning.jobs import load_split
from cifartune.tuning.messages import Cost, Probe, Probed
from cifartune.tuning.modes import fastest

SECONDS = 0.5
"""How long the steps of a recipe are timed, at the least."""

MOST_STEPS = 50
EVAL_IMAGES = 500


def run_probe(probe: Probe, *, device: torch.device, workers: int = 1) -> Probed:
    """Looks for parameters that do nothing, then times each recipe's first steps.

    The first step, which allocates and compiles, counts as building. Of several workers one is
    timed, and its rates are taken so many times.

    Raises:
        UnfitNetwork: A network of the space cannot be built for its images.
    """
    space, recipes = probe.space, list(probe.recipes)
    if isinstance(searched := space.parameters.get("model.name"), Choice):
        recipes += [space.with_value(space.base, "model.name", name) for name in searched.values]
    for recipe in [space.base, *recipes]:
        small = recipe.data.small_side
        network_facts(recipe.model, small if 0 < small < recipe.model.resolution else None)
    split = load_split(probe.splits, probe.data_root, fold=None, device=device)
    idle = idle_parameters(probe.space, split)
    costs = [_measure(recipe, split, probe, device, workers) for recipe in probe.recipes]
    return Probed(idle, costs, most_memory(device))


def _measure(
    recipe: Recipe, split: SplitImages, probe: Probe, device: torch.device, workers: int
) -> Cost:
    images = recipe.last_epoch * len(split.train)
    if recipe.compile == "auto":  # a minute or two to try: that is left to the first run
        recipe = recipe.with_values({"compile": "never"})
    recipe = fastest(recipe, images, device=device, folder=probe.data_root)
    start = time.perf_counter()
    trainer = Trainer(recipe, split, device=device)
    batches = trainer.batches()
    _step(trainer, batches[0], device)
    built = time.perf_counter() - start
    rate = _rate(trainer, batches[1:MOST_STEPS] or batches, device)
    if recipe.data.small_side:  # those were the first steps; later ones cost more
        large = Trainer(recipe.with_values({"data.small_side": 0}), split, device=device)
        _step(large, batches[0], device)
        large_rate = _rate(large, batches[1:MOST_STEPS] or batches, device)
        share = recipe.data.small_share
        rate = 1 / (share / rate + (1 - share) / large_rate)
    later_rate = predict_rate = None
    if trainer.keeps_features:
        later_rate = _rate(trainer, batches[:1], device)  # known since the first step
        start = time.perf_counter()
        trainer.predict(split.images[batches[0]])
        predict_rate = recipe.views * len(batches[0]) / (time.perf_counter() - start)
    few = split.validation[:EVAL_IMAGES]
    trainer.evaluate(few)
    start = time.perf_counter()
    trainer.evaluate(few)
    eval_seconds = time.perf_counter() - start
    checkpoints = Checkpoints(probe.folder)
    start = time.perf_counter()
    checkpoint = checkpoints.save(0, trainer.state_dict())
    saved = time.perf_counter() - start
    cost = Cost(
        train_rate=rate * workers,
        eval_rate=len(few) / eval_seconds * workers,
        build_seconds=built,
        checkpoint_seconds=saved,
        checkpoint_bytes=checkpoint.stat().st_size,
        weights_bytes=sum(t.nbytes for t in trainer.network.state_dict().values()),
        later_rate=later_rate and later_rate * workers,
        predict_rate=predict_rate,
    )
    checkpoints.clear()
    return cost


def _rate(trainer: Trainer, batches: Sequence[Tensor], device: torch.device) -> float:
    """Training images a second."""
    images, seconds = 0, 0.0
    for batch in batches:
        seconds += _step(trainer, batch, device)
        images += len(batch)
        if seconds > SECONDS:
            break
    return images / seconds


def _step(trainer: Trainer, batch: Tensor, device: torch.device) -> float:
    start = time.perf_counter()
    with suppress(TrainingFailure):  # a wild recipe costs what a tame one does
        trainer.train_on([batch])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
