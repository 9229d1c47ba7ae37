"""Sharpness-aware minimisation: the gradient where the loss nearby is worst."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def climb(network: nn.Module, rho: float, backward: Callable[[], object]) -> None:
    """Replaces the gradients of `network` by those at the point `rho` up the slope.

    Foret et al., https://arxiv.org/abs/2010.01412. Weights and running statistics are left as
    they were.

    Args:
        network: With gradients.
        rho: The distance, in the Euclidean norm over all weights.
        backward: Computes the loss anew and adds its gradients to those of the weights.
    """
    moved: list[Tensor] = [weight for weight in network.parameters() if weight.grad is not None]
    slopes = [weight.grad for weight in moved if weight.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(slopes)))
    before = [weight.clone() for weight in moved]
    torch._foreach_add_(moved, list(torch._foreach_mul(slopes, rho / (norm + 1e-12))))
    for weight in moved:
        weight.grad = None
    with torch.enable_grad(), _statistics_kept(network):
        backward()
    # Copied back: to subtract the same again would leave a rounding error behind.
    torch._foreach_copy_(moved, before)


@contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    """The same batch must not count twice in the running statistics."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
