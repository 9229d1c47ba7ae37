"""A training run in people's own hands: a loop over its epochs, and the model that it leaves."""

from collections.abc import Iterator
from pathlib import Path

import torch

from cifartune.config import Recipe
from cifartune.data import load_train
from cifartune.data.splits import make_splits
from cifartune.errors import UserError, first_line
from cifartune.final_models import FinalModel
from cifartune.models.errors import UnfitNetwork
from cifartune.training import EpochResult, SplitImages, Trainer
from cifartune.training.classifier import Ensemble, save_classifier
from cifartune.training.failures import is_out_of_memory


class TrainingRun:
    """One recipe in training; an iterator over its epochs. To stop, ask for no further one.

    A second loop goes on where the first one was left.

    Args:
        recipe: What to train.
        images: Training images; None: all that do not validate.
        validation: Validation images; 0: none.
        seed: Draws the split, as a search's `search.seed` does: the same images train and validate.
        data_root: The prepared images.
        device: Default: the GPU where there is one.

    Raises:
        UserError: There are not as many images, or the device or the network cannot be had.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        images: int | None,
        validation: int,
        seed: int,
        data_root: Path,
        device: str | torch.device | None,
    ) -> None:
        data = load_train(data_root)
        count = len(data.labels)
        least = 2 if images is None else images
        if validation < 0 or least < 2 or least + validation > count:
            raise UserError(
                f"train: images={images}, validation={validation}: two training images are needed "
                f"at least, and there are {count:,} images for both"
            )
        if not 0 <= seed < 2**32:
            raise UserError(f"train: seed={seed}: must be between 0 and 2**32 - 1")
        where = None if device is None else _device(device)
        splits = make_splits(
            data.labels, validation=validation, train_subset=images, folds=2, seed=seed
        )
        split = SplitImages(
            images=torch.from_numpy(data.images),
            labels=torch.from_numpy(data.labels).long(),
            train=torch.from_numpy(splits.train),
            validation=torch.from_numpy(splits.validation),
        )
        try:
            self._trainer = Trainer(recipe, split, device=where)
        except UnfitNetwork as error:
            raise UserError(f"train: {error}") from None
        except ValueError:
            raise UserError(
                "train: the recipe's stopping listens to validation images, and validation is 0"
            ) from None

    def __iter__(self) -> Iterator[EpochResult]:
        """Trains an epoch for each result.

        Raises:
            NonFiniteLoss: The loss became infinite or not a number.
            UserError: It does not fit the memory.
        """
        try:
            yield from self._trainer
        except Exception as error:
            if is_out_of_memory(error):
                raise UserError(
                    f"train: does not fit the memory: {first_line(error)}; a smaller micro_batch "
                    "needs less"
                ) from None
            raise

    @property
    def recipe(self) -> Recipe:
        """What is trained, with nothing left to `auto`."""
        return self._trainer.recipe

    @property
    def history(self) -> list[EpochResult]:
        """The results of all epochs so far."""
        return self._trainer.history

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left."""
        return self._trainer.is_over

    @property
    def model(self) -> FinalModel:
        """The model as of the last epoch, or in the end of the one that the recipe keeps.

        It shares its weights with the training: the next epoch changes it.
        """
        return FinalModel(Ensemble([self._trainer.classifier])).eval()

    def save(self, path: str | Path) -> None:
        """Writes the model to a safetensors file, whole or not at all; `FinalModel.load` reads it.

        Raises:
            OSError: It cannot be written.
        """
        save_classifier(self._trainer.classifier, Path(path), epochs=self._trainer.epoch)


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise UserError(f"train: device={name}: {first_line(error)}") from None
    return device
