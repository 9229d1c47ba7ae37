"""What is known of a network before it trains: its size and its cost."""

from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from cifartune.config.recipe import ModelRecipe
from cifartune.models.build import build_model
from cifartune.models.errors import UnfitNetwork
from cifartune.models.weights import find_weights

__all__ = ["NetworkFacts", "UnfitNetwork", "network_facts"]


@dataclass(frozen=True)
class NetworkFacts:
    """Properties of a network.

    Attributes:
        params: Weights, trainable and frozen.
        flops: Floating-point operations of one image's forward pass, as torch counts them: two
            for each multiplication with addition in convolutions and matrix products.
    """

    params: int
    flops: int


COSTLESS = (
    "weights",
    "dropout",
    "block_dropout",
    "drop_path",
    "init",
    "init_gain",
    "head_std",
    "norm_momentum",
    "whitening",
)
"""Fields that leave a network's size and cost as they are: it is not counted anew for them."""


def network_facts(recipe: ModelRecipe, side: int | None = None) -> NetworkFacts:
    """Builds the network of `recipe` without memory for its weights, and counts.

    Args:
        recipe: The network.
        side: Of the images, in pixels; default: the recipe's resolution.

    Raises:
        UnfitNetwork: The network cannot take images of that size, or cannot be built as asked
            for, or there is no file of its weights.
    """
    if recipe.weights not in ("none", "imagenet"):
        find_weights(recipe.weights)
    plain = {name: ModelRecipe.model_fields[name].default for name in COSTLESS}
    return _network_facts(recipe.model_copy(update=plain), side or recipe.resolution)


@cache
def _network_facts(recipe: ModelRecipe, side: int) -> NetworkFacts:
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            network = build_model(recipe).eval()
            images = torch.empty(1, 3, side, side)
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                network(images)
    except UnfitNetwork:
        raise
    except Exception as error:  # each network has its own way of refusing
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "set model.resolution to what it was made for, often 224"
        if side != recipe.resolution:
            remedy = f"it is made for {recipe.resolution}: set data.small_side to 0"
        raise UnfitNetwork(
            f"{recipe.name} cannot take images of {side} x {side} pixels ({reason}); {remedy}"
        ) from error
    return NetworkFacts(sum(p.numel() for p in network.parameters()), counter.get_total_flops())
