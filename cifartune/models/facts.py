"""What is known of a network before it trains: its size and its cost."""

from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from cifartune.config.recipe import ModelRecipe
from cifartune.models.build import build_model


class UnfitNetwork(ValueError):
    """A network that cannot take images of the recipe's size."""


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


def network_facts(recipe: ModelRecipe) -> NetworkFacts:
    """Builds the network of `recipe` without memory for its weights, and counts.

    Raises:
        UnfitNetwork: The network cannot take images of that size.
    """
    # What does not change the shape of the network is not asked for anew.
    plain = {"dropout": 0.0, "init": "default", "weights": "none"}
    return _network_facts(recipe.model_copy(update=plain))


@cache
def _network_facts(recipe: ModelRecipe) -> NetworkFacts:
    side = recipe.resolution
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            network = build_model(recipe).eval()
            images = torch.empty(1, 3, side, side)
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                network(images)
    except Exception as error:  # each network has its own way of refusing
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnfitNetwork(
            f"{recipe.name} cannot take images of {side} x {side} pixels ({reason}); set "
            "model.resolution to what it was made for, often 224"
        ) from error
    return NetworkFacts(sum(p.numel() for p in network.parameters()), counter.get_total_flops())
