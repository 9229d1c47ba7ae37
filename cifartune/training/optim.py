"""The optimiser, through timm's factory."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.amp import GradScaler

from cifartune.config.recipe import OptimizerRecipe

FUSED = ("sgd", "momentum", "adam", "adamw")
"""Those of which torch has a fused step, one pass over each weight, on CPUs and GPUs alike."""


def build_optimizer(
    network: nn.Module, recipe: OptimizerRecipe, scaler: GradScaler | None = None
) -> torch.optim.Optimizer:
    """The optimiser over the trainable weights; norms and biases get no weight decay.

    `sgd` is timm's: Nesterov momentum. Adam, AdamW, Adamax and RMSprop are torch's; Lion
    (https://arxiv.org/abs/2302.06675) is timm's. `muon` orthogonalises the momentum of matrices and
    convolutions (https://kellerjordan.github.io/posts/muon/) and scales its update to AdamW's
    size, so that both can share a learning rate; the rest is trained by AdamW.

    Steps are fused where torch can; else a GPU takes all weights at once, but for Muon's.

    Args:
        network: On the device that trains it.
        recipe: The optimiser's section.
        scaler: Scales losses, if it is enabled. Steps are not fused then: where one is left out
            for an overflow, torch's fused SGD has changed its momentum.
    """
    # Nesterov's momentum of 0 is plain SGD, which torch wants to be asked for.
    name = "momentum" if recipe.name == "sgd" and recipe.momentum == 0 else recipe.name
    # torch's own, where timm would have 0.9.
    more: dict[str, Any] = {"alpha": 0.99} if name == "rmsprop" else {}
    if name in FUSED and not (scaler and scaler.is_enabled()):
        more["fused"] = True
    optimizer = create_optimizer_v2(
        network,
        opt=name,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        **more,
    )
    if recipe.bias_lr_scale != 1:
        _scale_bias_rates(optimizer, recipe.bias_lr_scale)
    return optimizer


def _scale_bias_rates(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Gives biases, and the weights of norms, groups of their own, behind the others."""
    for group in list(optimizer.param_groups):
        vectors = [weight for weight in group["params"] if weight.ndim < 2]
        if not vectors:
            continue
        others = [weight for weight in group["params"] if weight.ndim >= 2]
        optimizer.param_groups.remove(group)
        if others:
            optimizer.add_param_group({**group, "params": others})
        optimizer.add_param_group({**group, "params": vectors, "lr": scale * group["lr"]})
    optimizer.param_groups.sort(key=lambda group: group["params"][0].ndim < 2)
