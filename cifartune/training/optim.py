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

    `sgd` is timm's: Nesterov momentum. `muon` orthogonalises the momentum of matrices and
    convolutions (https://kellerjordan.github.io/posts/muon/) and scales its update to AdamW's
    size, so that both can share a learning rate; the rest is trained by AdamW.
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
    if recipe.name == "cosine":
        return (1 + math.cos(math.pi * rest)) / 2
    return 1 - rest
