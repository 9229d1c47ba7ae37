"""The shared trainer: plain PyTorch that knows neither Ray nor MLflow."""

from cifartune.training.failures import NonFiniteLoss, TrainingFailure
from cifartune.training.history import EpochResult
from cifartune.training.images import SplitImages
from cifartune.training.trainer import Trainer, train

__all__ = [
    "EpochResult",
    "NonFiniteLoss",
    "SplitImages",
    "Trainer",
    "TrainingFailure",
    "train",
]
