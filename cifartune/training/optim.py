"""The optimiser, through timm's factory, and the learning-rate schedule, as a function of time."""

import math

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from cifartune.config.recipe import OptimizerRecipe, ScheduleRecipe

WARMUP_START = 0.2
"""The share of the peak learning rate at which a warm-up starts."""


def build_optimizer(network: nn.Module, recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    """The optimiser over the trainable weights; norms and biases get no weight decay.

    `sgd` is timm's: Nesterov momentum. Adam, AdamW and Adamax are torch's, RMSprop is torch's with
    a smoothing of 0.9; Lion (https://arxiv.org/abs/2302.06675) is timm's. `muon` orthogonalises the
    momentum of matrices and convolutions (https://kellerjordan.github.io/posts/muon/) and scales
    its update to AdamW's size, so that both can share a learning rate; the rest is trained by
    AdamW.
    """
    # Nesterov's momentum of 0 is plain SGD, which torch wants to be asked for.
    name = "momentum" if recipe.name == "sgd" and recipe.momentum == 0 else recipe.name
    return create_optimizer_v2(
        network,
        opt=name,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
    )


def lr_factor(recipe: ScheduleRecipe, progress: float) -> float:
    """The share of the peak learning rate at `progress`, the share of the steps done, in [0, 1)."""
    if progress < recipe.warmup:
        return WARMUP_START + (1 - WARMUP_START) * progress / recipe.warmup
    rest = (progress - recipe.warmup) / (1 - recipe.warmup)
    if recipe.name == "constant":
        return 1.0
    if recipe.name == "step":
        return float(recipe.gamma ** int(rest * (recipe.drops + 1)))
    if recipe.name == "one_cycle":
        return 1 - rest
    if recipe.name == "restarts":
        rest = _share_of_cycle(rest, recipe.cycles, recipe.cycle_growth)
    return (1 + math.cos(math.pi * rest)) / 2


def _share_of_cycle(rest: float, cycles: int, growth: float) -> float:
    """How much of its cycle is over at `rest`, where each cycle is `growth` times the last."""
    lengths = [growth**cycle for cycle in range(cycles)]
    position = rest * sum(lengths)
    for length in lengths[:-1]:
        if position < length:
            return position / length
        position -= length
    return position / lengths[-1]
