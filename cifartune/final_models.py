"""The final models of a search: from the files of its refit to what classifies images."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cifartune.config import Recipe
from cifartune.errors import UserError, first_line
from cifartune.files import write_atomically
from cifartune.outputs import LOGITS, SNAPSHOTS, WEIGHTS
from cifartune.runs import RunFolder
from cifartune.training.classifier import Classifier, Ensemble, load_classifier, predict

IMAGE = (32, 32, 3)
"""The shape of an image as files and cameras give it."""


def model_files(run: RunFolder, trial: int) -> dict[str, list[Path]]:
    """The files of what the refit of a trial left for use, by name, where it is there.

    `folds`: the ensemble of all fold models, of the seeds that all folds were trained with;
    `all_images`: the one model trained on all images; `snapshots`: the ensemble of the snapshots of
    the folds' first seed.
    """
    refit = run.out_of_fold(trial).parent
    done = sorted(path.parent for path in refit.glob(f"fold-*/{LOGITS}"))
    seeds = [folder.name.partition("-seed-")[2] for folder in done]
    folds = Counter(seeds)
    # A seed that some folds have and others not is of an extension that was interrupted.
    whole_seeds = {seed for seed in folds if folds[seed] == max(folds.values())}
    folders = [folder for folder, seed in zip(done, seeds, strict=True) if seed in whole_seeds]
    first = [folder for folder in folders if "-seed-" not in folder.name]
    snapshots = [path for folder in first for path in sorted((folder / SNAPSHOTS).glob("*"))]
    whole = run.all_images(trial)
    parts = {
        "folds": folders,
        "all_images": [whole] if (whole / WEIGHTS).exists() else [],
        "snapshots": [*snapshots, *first] if snapshots else [],
    }
    return {name: [part / WEIGHTS for part in own] for name, own in parts.items() if own}


class FinalModel(nn.Module):
    """A trained model with all that belongs to it: resizing, normalisation, test-time augmentation.

    A module that maps uint8 images (N, 32, 32, 3), RGB, to class probabilities, float32 (N, 10),
    the mean over its networks. Its classes are `cifartune.data.CLASSES`, in that order.

    Args:
        ensemble: Of one network or several.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    @classmethod
    def load(cls, weights: Sequence[str | Path]) -> "FinalModel":
        """The mean of the networks in files that `save_classifier` wrote, on the CPU.

        Raises:
            UserError: One of them is missing or cannot be read.
        """
        return cls(Ensemble([_load(Path(path)) for path in weights]).eval())

    @property
    def recipe(self) -> Recipe:
        """That of its first network; the others differ from it in their seeds."""
        return self.ensemble.recipe

    def forward(self, images: Tensor) -> Tensor:
        probabilities: Tensor = self.ensemble(images.permute(0, 3, 1, 2))
        return probabilities

    def predict(self, images: npt.NDArray[np.uint8] | Tensor) -> npt.NDArray[np.float32]:
        """Class probabilities, float32 (N, 10), in batches, and without gradients.

        Args:
            images: uint8 (N, 32, 32, 3), RGB.

        Raises:
            ValueError: They are something else.
        """
        pixels = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != IMAGE:
            raise ValueError(
                f"images must be uint8 (N, 32, 32, 3), got {str(pixels.dtype).rpartition('.')[2]} "
                f"{tuple(pixels.shape)}"
            )
        if not len(pixels):
            return np.empty((0, 10), np.float32)
        probabilities = predict(self.ensemble, pixels.permute(0, 3, 1, 2))
        found: npt.NDArray[np.float32] = probabilities.cpu().numpy()
        return found


def _load(path: Path) -> Classifier:
    try:
        return load_classifier(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: no weights of this cifartune: {first_line(error)}") from None


def export_program(model: FinalModel, path: Path) -> None:
    """Writes `model` as an exported program, which needs torch alone to run.

    It maps uint8 images (N, 32, 32, 3) to class probabilities, float32 (N, 10).
    """
    write_atomically(path, program_of(model, {}))


def program_of(model: FinalModel, extra_files: dict[str, str]) -> bytes:
    """The content of such a file, with texts beside the program."""
    arguments, shapes = example()
    program = torch.export.export(contiguous(model), arguments, dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=extra_files)
    return buffer.getvalue()


def contiguous(model: FinalModel) -> FinalModel:
    """`model` itself on the CPU, ready to be traced: its weights in torch's usual order."""
    return model.cpu().to(memory_format=torch.contiguous_format).eval()


def example() -> tuple[tuple[Tensor], tuple[dict[int, Any]]]:
    """What to trace a model with: images, of which there may be any number."""
    images = torch.zeros(2, *IMAGE, dtype=torch.uint8)
    return (images,), ({0: torch.export.Dim("images", min=1)},)
