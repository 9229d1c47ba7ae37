"""Random numbers for a batch: one for each image, from a generator of one's own."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Draws:
    """Draws for `count` images.

    Attributes:
        count: Images of the batch, N.
        generator: The source of randomness.
    """

    count: int
    generator: Generator

    def uniform(self, low: float = 0.0, high: float = 1.0, *shape: int) -> Tensor:
        """float32 (N, *shape), uniform between `low` and `high`."""
        device = self.generator.device
        values = torch.rand(self.count, *shape, generator=self.generator, device=device)
        return values.mul_(high - low).add_(low)

    def coin(self, probability: float) -> Tensor:
        """bool (N,), each true with `probability`."""
        return self.uniform() < probability

    def integer(self, bound: int) -> Tensor:
        """int64 (N,), uniform over 0 to `bound` - 1."""
        device = self.generator.device
        return torch.randint(bound, (self.count,), generator=self.generator, device=device)

    def beta(self, alpha: float) -> Tensor:
        """float32 (N,) from Beta(`alpha`, `alpha`)."""
        shape = torch.full(
            (2, self.count), alpha, dtype=torch.float64, device=self.generator.device
        )
        # What torch.distributions calls, which takes no generator; in doubles, since gammas of
        # a small alpha are so near to 0 that their sum could be 0 in floats.
        first, second = torch._standard_gamma(shape, generator=self.generator)
        share: Tensor = first / (first + second)
        return share.float()
