"""What a batch is to learn, and from which of its images it does."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Targets:
    """The labels of a batch, each perhaps mixed with another one.

    Attributes:
        labels: int64 (N,).
        others: The labels of the partners, int64 (N,); None where nothing is mixed.
        shares: How much of each image is its own, float32 (N,); None where nothing is mixed.
    """

    labels: Tensor
    others: Tensor | None = None
    shares: Tensor | None = None

    def losses(self, logits: Tensor, label_smoothing: float) -> Tensor:
        """Each image's cross-entropy, float32 (N,), in which both its labels have their share."""

        def to(labels: Tensor) -> Tensor:
            return F.cross_entropy(
                logits, labels, label_smoothing=label_smoothing, reduction="none"
            )

        if self.others is None or self.shares is None:
            return to(self.labels)
        return torch.lerp(to(self.others), to(self.labels), self.shares)

    def correct(self, logits: Tensor) -> Tensor:
        """How many images are classified as what they have most of."""
        labels = self.labels
        if self.others is not None and self.shares is not None:
            labels = torch.where(self.shares >= 0.5, labels, self.others)
        return (logits.argmax(1) == labels).sum()

    def split(self, sizes: list[int]) -> "list[Targets]":
        """The targets of parts of so many images."""
        labels = self.labels.split(sizes)
        if self.others is None or self.shares is None:
            return [Targets(part) for part in labels]
        return list(map(Targets, labels, self.others.split(sizes), self.shares.split(sizes)))

    def part(self, images: slice) -> "Targets":
        """The targets of some of the images."""
        if self.others is None or self.shares is None:
            return Targets(self.labels[images])
        return Targets(self.labels[images], self.others[images], self.shares[images])

    def after(self, labels: Tensor) -> "Targets":
        """The targets of a batch that begins with unmixed images of `labels`."""
        joined = torch.cat([labels, self.labels])
        if self.others is None or self.shares is None:
            return Targets(joined)
        whole = torch.ones(len(labels), device=labels.device)
        return Targets(joined, torch.cat([labels, self.others]), torch.cat([whole, self.shares]))


def hardest(losses: Tensor, share: float) -> Tensor:
    """The largest of `losses`, (N,): the given share of them, at least one."""
    return losses.topk(max(1, round(share * len(losses)))).values if share < 1 else losses
