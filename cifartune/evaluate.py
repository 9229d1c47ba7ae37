"""The one look at the test set, by the winner's fold ensemble."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cifartune.data.cifar10 import LabelledImages
from cifartune.files import write_atomically
from cifartune.statistics import Accuracy
from cifartune.training.classifier import Ensemble, load_classifier, predict
from cifartune.training.device import choose_device, resolve


def load_ensemble(weights: Sequence[Path]) -> Ensemble:
    """The ensemble of the fold models in `weights`, on the CPU."""
    return Ensemble([load_classifier(path) for path in weights])


def evaluate(ensemble: Ensemble, images: LabelledImages) -> Accuracy:
    """The accuracy of `ensemble` on `images`, with its interval."""
    device = choose_device()
    precision = resolve(ensemble.recipe, device).precision
    pixels = torch.from_numpy(images.images)
    probabilities = predict(ensemble.to(device), pixels, precision=precision)
    right = probabilities.argmax(1).cpu().numpy() == images.labels
    return Accuracy.of(int(right.sum()), len(right))


def stand_in(train: LabelledImages, indices: npt.NDArray[np.int64]) -> LabelledImages:
    """The training images that stand in for the test set of a smoke run."""
    return LabelledImages(train.images[indices], train.labels[indices])


def export_ensemble(ensemble: Ensemble, path: Path) -> None:
    """Writes `ensemble` as an exported program, which needs torch alone to run.

    It maps uint8 images (N, 32, 32, 3) to class probabilities, float32 (N, 10).
    """
    program = torch.export.export(
        _ChannelsLast(ensemble.cpu().to(memory_format=torch.contiguous_format)).eval(),
        (torch.zeros(2, 32, 32, 3, dtype=torch.uint8),),
        dynamic_shapes=({0: torch.export.Dim("images", min=1)},),
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_atomically(path, buffer.getvalue())


class _ChannelsLast(torch.nn.Module):
    """Takes images as files and cameras give them: (N, 32, 32, 3)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        probabilities: Tensor = self.model(images.permute(0, 3, 1, 2))
        return probabilities
