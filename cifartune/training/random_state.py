"""torch's global random numbers, lent to one run at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Leaves torch's global generators as they were, whatever happens inside."""
    outer = get_random_state(device)
    try:
        yield
    finally:
        set_random_state(outer, device)


def get_random_state(device: torch.device) -> list[Tensor]:
    """The states of the CPU's generator and, if it is another, of the device's: uint8 (N,)."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(states: list[Tensor], device: torch.device) -> None:
    """Puts back what `get_random_state` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
