"""What spares augmentation the waits for a GPU: which images are chosen, and constants."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chosen:
    """The images of a batch to which something is done.

    On a CPU an operation gets these alone, and costs nothing for the others. On a GPU it gets all,
    and what comes out for the others is dropped: to find out how many are chosen, the host would
    wait for all that the GPU has been given to do.

    Attributes:
        mask: bool (N,).
        indices: int64 (M,), those that `mask` chooses; None where all are computed.
    """

    mask: Tensor
    indices: Tensor | None

    @classmethod
    def by(cls, mask: Tensor) -> "Chosen":
        """The images that `mask`, bool (N,), chooses."""
        return cls(mask, mask.nonzero().squeeze(1) if picks_out(mask.device) else None)

    @property
    def count(self) -> int:
        """How many an operation gets."""
        return len(self.mask if self.indices is None else self.indices)

    def of(self, values: Tensor) -> Tensor:
        """What an operation gets of `values`, (N, ...)."""
        return values if self.indices is None else values[self.indices]

    def put_(self, images: Tensor, changed: Tensor) -> Tensor:
        """Puts the chosen of what came out of an operation into `images`, (N, C, H, W)."""
        if self.indices is not None:
            return images.index_copy_(0, self.indices, changed)
        return torch.where(self.mask.view(-1, 1, 1, 1), changed, images, out=images)


def picks_out(device: torch.device) -> bool:
    """Whether images are picked out of a batch on `device`."""
    return device.type == "cpu"


@cache
def constant(values: Any, device: torch.device) -> Tensor:
    """A float32 tensor of `values`, a tuple, perhaps of tuples: sent to `device` only once."""
    return torch.tensor(values, dtype=torch.float32, device=device)
