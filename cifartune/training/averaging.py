"""A moving average of the weights, which is evaluated in place of the weights themselves."""

import copy

import torch
from torch import nn


class WeightAverage:
    """Follows the weights and statistics of a network, step by step.

    Early in a run it forgets faster, so that it does not hold on to the random weights of the
    start: after n steps the decay is at most (1 + n) / (10 + n), as in TensorFlow's
    ExponentialMovingAverage.

    Args:
        network: What it follows; its tensors must stay where they are.
        decay: The share of the average that stays in a step, at the most.

    Attributes:
        network: A copy of the network that holds the average.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._decay = decay
        own, followed = self.network.state_dict(), network.state_dict()
        self._floats = [(own[k], v) for k, v in followed.items() if v.is_floating_point()]
        self._counters = [(own[k], v) for k, v in followed.items() if not v.is_floating_point()]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Moves towards the network, which has made `steps` steps."""
        share = 1 - min(self._decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_([a for a, _ in self._floats], [b for _, b in self._floats], share)
        for own, followed in self._counters:
            own.copy_(followed)
