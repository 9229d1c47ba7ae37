"""Failures that belong to a recipe, by name: the sampler learns to avoid what causes them."""

from typing import ClassVar

import torch


class TrainingFailure(Exception):
    """A run that ended because of its recipe; `kind` names the cause."""

    kind: ClassVar[str] = "failure"


class NonFiniteLoss(TrainingFailure):
    """The loss became infinite or not a number."""

    kind = "non_finite_loss"

    def __init__(self, epoch: int) -> None:
        super().__init__(f"the loss was not finite in epoch {epoch}")
        self.epoch = epoch

    def __reduce__(self) -> tuple[type["NonFiniteLoss"], tuple[int]]:
        return type(self), (self.epoch,)


class OutOfMemory(TrainingFailure):
    """A step did not fit the memory, of the device or of the machine.

    Attributes:
        images: How many it took at a time.
    """

    kind = "out_of_memory"

    def __init__(self, message: str, images: int) -> None:
        super().__init__(message)
        self.images = images

    def __reduce__(self) -> tuple[type["OutOfMemory"], tuple[str, int]]:
        return type(self), (str(self), self.images)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory could not be had: torch and its libraries each say it in their own way."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "ALLOC_FAILED", "bad_alloc")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
