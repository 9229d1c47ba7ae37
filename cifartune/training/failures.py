"""Failures that belong to a recipe, by name: the sampler learns to avoid what causes them."""

from typing import ClassVar


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
