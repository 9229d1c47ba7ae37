"""What a slot runs: one recipe on one split, from its last checkpoint, with its files."""

import gc
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifartune.data import load_train
from cifartune.data.splits import Splits
from cifartune.files import write_atomically
from cifartune.training import EpochResult, SplitImages, Trainer
from cifartune.training.classifier import save_classifier
from cifartune.training.device import AUTOMATIC, choose_device, most_memory, settle
from cifartune.training.memory import release_memory
from cifartune.training.optim import restart_epochs
from cifartune.tuning.messages import Job
from cifartune.tuning.modes import fastest

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "weights.safetensors"
LOGITS = "logits.npy"
SNAPSHOTS = "snapshots"
"""The folder for weights and logits of the epochs before each restart of the rate."""


def run_job(
    job: Job, report: Callable[[EpochResult, bool], bool], *, device: torch.device | None = None
) -> dict[str, Any] | None:
    """Trains `job`, from its checkpoint where there is one.

    Args:
        job: The recipe, its split and its folder.
        report: Gets each epoch's result and whether it is the last, and says whether to go on. If
            so, the epoch's checkpoint is written and the next epoch begins.
        device: Default: the GPU where there is one.

    Returns:
        Facts about the run: parameters, how they were computed, threads and memory, the epoch that
        counts and its metrics; None if `report` ended it early, in which case its last checkpoint
        is left.

    Raises:
        TrainingFailure: The recipe failed.
    """
    device = device or choose_device()
    split = load_split(job.splits, job.data_root, fold=job.fold, device=device)
    checkpoint = job.folder / CHECKPOINT
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        began = {name: state["recipe"][name] for name in AUTOMATIC}
        trainer = Trainer(settle(job.recipe, began), split, device=device)
        trainer.load_state_dict(state)
        del state
    else:
        images = job.recipe.last_epoch * len(split.train)
        recipe = fastest(job.recipe, images, device=device, folder=job.data_root)
        trainer = Trainer(recipe, split, device=device)
    restarts = restart_epochs(job.recipe) if job.fold is not None else []
    try:
        for result in trainer:
            if not report(result, trainer.is_over):
                return None
            if trainer.is_over:
                break
            if result.epoch in restarts:
                _save_outputs(trainer, job.folder / SNAPSHOTS / str(result.epoch))
            save_checkpoint(trainer, checkpoint)
        if job.fold is not None:
            _save_outputs(trainer, job.folder)
        checkpoint.unlink(missing_ok=True)
        kept = trainer.history[trainer.kept_epoch - 1]
        metrics = kept.metrics()
        del metrics["seconds"]  # the trial's are those of all its epochs
        return {
            **metrics,
            "kept_epoch": kept.epoch,
            "params": sum(p.numel() for p in trainer.network.parameters()),
            **{f"resolved_{name}": getattr(trainer.recipe, name) for name in AUTOMATIC},
            "device": device.type,
            "threads": torch.get_num_threads(),
            "memory_bytes": most_memory(device),
        }
    finally:
        del trainer
        give_back(device)


def give_back(device: torch.device) -> None:
    """Returns the memory that nothing uses any more, of the device and of the process."""
    gc.collect()
    release_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def load_split(
    path: Path, data_root: Path, *, fold: int | None, device: torch.device
) -> SplitImages:
    """The images of a search's trials, or of one fold of its refit, on `device`."""
    splits = Splits.load(path)
    train, validation = (splits.train, splits.validation) if fold is None else splits.held_out(fold)
    images, labels = _images(data_root, device)
    return SplitImages(images, labels, torch.from_numpy(train), torch.from_numpy(validation))


@cache
def _images(root: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    """The training images on `device`, loaded once a process; on the CPU a shared memory map."""
    data = load_train(root)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels).long()
    return images.to(device), labels.to(device)


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Writes all that is needed to go on, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(trainer.state_dict(), buffer)
    write_atomically(path, buffer.getvalue())


def _save_outputs(trainer: Trainer, folder: Path) -> None:
    """The fold's weights, and its logits for the images that it held out."""
    save_classifier(trainer.classifier, folder / WEIGHTS, epochs=trainer.epoch)
    held_out = trainer.split.images[trainer.split.validation]
    buffer = io.BytesIO()
    np.save(buffer, trainer.predict(held_out).cpu().numpy())
    write_atomically(folder / LOGITS, buffer.getvalue())
