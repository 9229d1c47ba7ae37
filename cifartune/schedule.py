"""The learning-rate schedule, as a function of time."""

import math
from itertools import pairwise

from cifartune.config.recipe import Recipe, ScheduleRecipe

LOW = 0.1
"""The share of the peak learning rate at which a network counts as settled."""

WARMUP_START = 0.2
"""The share of the peak learning rate at which a warm-up starts."""


def lr_factor(recipe: ScheduleRecipe, progress: float, plateaus: int = 0) -> float:
    """The share of the peak learning rate at a point of the run.

    Args:
        recipe: The schedule.
        progress: The share of the steps done, in [0, 1).
        plateaus: How often the training loss has stopped falling.
    """
    if progress < recipe.warmup:
        return WARMUP_START + (1 - WARMUP_START) * progress / recipe.warmup
    rest = (progress - recipe.warmup) / (1 - recipe.warmup)
    if recipe.name == "constant":
        return 1.0
    if recipe.name == "plateau":
        return float(recipe.gamma**plateaus)
    if recipe.name == "step":
        return float(recipe.gamma ** int(rest * (recipe.drops + 1)))
    if recipe.name == "one_cycle":
        return 1 - rest
    if recipe.name == "restarts":
        start, end = next((a, b) for a, b in pairwise([0.0, *_cycle_ends(recipe)]) if rest < b)
        rest = (rest - start) / (end - start)
    return (1 + math.cos(math.pi * rest)) / 2


def restart_epochs(recipe: Recipe) -> list[int]:
    """The epochs before the rate is restarted, where the schedule is `restarts`.

    Where a cycle ends within an epoch, the one before it, if the rate has fallen to `LOW` by then.
    """
    if recipe.schedule.name != "restarts":
        return []
    warmup = recipe.schedule.warmup
    ends = [warmup + (1 - warmup) * end for end in _cycle_ends(recipe.schedule)[:-1]]
    # A rounding error must not cost a whole epoch.
    epochs = dict.fromkeys(int(recipe.epochs * end + 1e-6) for end in ends)
    return [e for e in epochs if e and lr_factor(recipe.schedule, e / recipe.epochs - 1e-6) <= LOW]


def _cycle_ends(recipe: ScheduleRecipe) -> list[float]:
    """The ends of the cycles, each `cycle_growth` times the last, as shares of all of them."""
    lengths = [recipe.cycle_growth**cycle for cycle in range(recipe.cycles)]
    return [*(sum(lengths[:cycle]) / sum(lengths) for cycle in range(1, recipe.cycles)), 1.0]
