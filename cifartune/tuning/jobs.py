"""What a slot runs: one recipe on one split, from its last checkpoint, with its files."""

import gc
import io
import json
import logging
import platform
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifartune.commit import commit_of_source
from cifartune.data import load_train
from cifartune.data.splits import ALL_IMAGES, Splits
from cifartune.errors import first_line
from cifartune.files import write_atomically
from cifartune.outputs import LOGITS, PLAIN_LOGITS, SNAPSHOTS, WEIGHTS
from cifartune.report.machine import processor, versions
from cifartune.schedule import restart_epochs
from cifartune.training import EpochResult, SplitImages, Trainer
from cifartune.training.classifier import predict_views, save_classifier, weights_digest
from cifartune.training.device import AUTOMATIC, choose_device, most_memory, settle
from cifartune.training.failures import OutOfMemory, is_out_of_memory
from cifartune.training.memory import release_memory
from cifartune.training.workers import Workers
from cifartune.tuning.checkpoints import Checkpoints
from cifartune.tuning.messages import Job, Verdict
from cifartune.tuning.modes import SMALLEST, fastest

logger = logging.getLogger(__name__)

Report = Callable[[EpochResult, bool], Verdict]


def run_job(
    job: Job,
    report: Report,
    *,
    device: torch.device | None = None,
    workers: Workers | None = None,
    saved: Callable[[], None] = lambda: None,
) -> dict[str, Any] | None:
    """Trains `job`, from its checkpoint where there is one.

    A step that does not fit the memory is made again in parts of half its size, if the recipe
    leaves their size open: from the last checkpoint on, and so to the smallest.

    Args:
        job: The recipe, its split and its folder.
        report: Gets each epoch's result and whether it is the last, and says how to go on.
        device: Default: the GPU where there is one.
        workers: The processes that train it together: each calls this, and the first writes the
            files. They do not compile, and give up where the memory of one is too small. Default:
            this one alone.
        saved: Called after each checkpoint.

    Returns:
        Facts about the run: parameters, how they were computed, threads and memory, the epoch that
        counts and its metrics, and what it takes to train it again; None if `report` ended it
        early. A trial's last checkpoint is left until it is recorded how the trial ended; it is of
        this epoch if the verdict was to leave.

    Raises:
        TrainingFailure: The recipe failed.
    """
    device = device or choose_device()
    parts = 0
    while True:
        try:
            return _run(job, report, device, parts, workers or Workers(), saved)
        except OutOfMemory as failure:
            parts = failure.images // 2
            is_together = workers is not None and not workers.is_alone
            if job.recipe.micro_batch or parts < SMALLEST or is_together:
                raise
            logger.warning("%s: %s; now %d images at a time", job.id, str(failure), parts)
        finally:
            give_back(device)


def _run(
    job: Job,
    report: Report,
    device: torch.device,
    parts: int,
    workers: Workers,
    saved: Callable[[], None],
) -> dict[str, Any] | None:
    """`run_job` with `parts` images at a time; 0: what the recipe says, or what is found to fit."""
    split = load_split(job.splits, job.data_root, fold=job.fold, device=device)
    recipe = None
    try:
        state = Checkpoints(job.folder).load()
        if state is not None:
            state["recipe"]["micro_batch"] = parts or state["recipe"]["micro_batch"]
            recipe = settle(job.recipe, {name: state["recipe"][name] for name in AUTOMATIC})
        else:
            images = job.recipe.last_epoch * len(split.train)
            recipe = job.recipe.with_values({"micro_batch": parts or job.recipe.micro_batch})
            if not workers.is_alone:
                recipe = recipe.with_values({"compile": "never"})
            choose = partial(fastest, recipe, images, device=device, folder=job.data_root)
            recipe = workers.agree(choose)
        trainer = Trainer(recipe, split, device=device, workers=workers)
        if state is not None:
            trainer.load_state_dict(state)
            state = None
        return _train(trainer, job, report, saved)
    except Exception as error:
        if is_out_of_memory(error):
            recipe = recipe or job.recipe
            whole = recipe.batch_size * (1 + recipe.augment.copies)
            raise OutOfMemory(first_line(error), min(recipe.micro_batch or whole, whole)) from None
        raise


def _train(
    trainer: Trainer, job: Job, report: Report, saved: Callable[[], None]
) -> dict[str, Any] | None:
    """The rest of `run_job`: epochs, checkpoints, outputs."""
    checkpoints = Checkpoints(job.folder)
    restarts = restart_epochs(job.recipe) if job.fold not in (None, ALL_IMAGES) else []
    is_first = trainer.workers.rank == 0
    for result in trainer:
        verdict = report(result, trainer.is_over)
        if verdict is Verdict.STOP:
            return None
        if trainer.is_over:
            break
        if is_first and result.epoch in restarts:
            _save_outputs(trainer, job.folder / SNAPSHOTS / str(result.epoch))
        if is_first:
            checkpoints.save(result.epoch, trainer.state_dict())
            saved()
        if verdict is Verdict.LEAVE:
            return None
    if not is_first:
        return None
    if job.fold is not None or job.keeps_weights:
        _save_outputs(trainer, job.folder)
    if job.fold is not None:
        checkpoints.clear()
    kept = trainer.history[trainer.kept_epoch - 1]
    metrics = kept.metrics()
    del metrics["seconds"]  # the trial's are those of all its epochs
    return {
        **metrics,
        "kept_epoch": kept.epoch,
        **_origin(trainer, job),
        "params": sum(p.numel() for p in trainer.network.parameters()),
        **{f"resolved_{name}": getattr(trainer.recipe, name) for name in AUTOMATIC},
        "device": trainer.device.type,
        "threads": torch.get_num_threads(),
        "memory_bytes": most_memory(trainer.device),
    }


def _origin(trainer: Trainer, job: Job) -> dict[str, Any]:
    """What it takes, beside threads and split, to train a run again, and to tell if it is the same.

    As texts and numbers, which every store of them takes.
    """
    return {
        **({} if job.fold is None else {"fold": job.fold}),
        "recipe": trainer.recipe.model_dump_json(),
        "environment": json.dumps(environment(trainer.device)),
        "workers": trainer.workers.count,
        "weights_sha256": weights_digest(trainer.classifier),
    }


@cache
def environment(device: torch.device) -> dict[str, str]:
    """Versions, commit and hardware: the last bits of a run's weights depend on them."""
    return {
        **versions(),
        "commit": commit_of_source(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
    }


def give_back(device: torch.device) -> None:
    """Returns the memory that nothing uses any more, of the device and of the process."""
    gc.collect()
    release_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def load_split(
    path: Path, data_root: Path, *, fold: int | None, device: torch.device
) -> SplitImages:
    """The images of a search's trials, or of one run of its refit, on `device`."""
    splits = _splits(path)
    train, validation = splits.of_run(fold)
    images, labels = _images(data_root, device)
    return SplitImages(images, labels, torch.from_numpy(train), torch.from_numpy(validation))


@cache
def _splits(path: Path) -> Splits:
    """A search's splits, read once a process: they are drawn once."""
    return Splits.load(path)


@cache
def _images(root: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    """The training images on `device`, loaded once a process; on the CPU a shared memory map."""
    data = load_train(root)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels).long()
    return images.to(device), labels.to(device)


def _save_outputs(trainer: Trainer, folder: Path) -> None:
    """The run's weights, and its logits for the images that it held out."""
    save_classifier(trainer.classifier, folder / WEIGHTS, epochs=trainer.epoch)
    if not len(trainer.split.validation):
        return
    held_out = trainer.split.images[trainer.split.validation]
    recipe = trainer.recipe
    logits, plain = predict_views(trainer.classifier, held_out, precision=recipe.precision)
    if recipe.tta != "none":
        _save_array(folder / PLAIN_LOGITS, plain)
    _save_array(folder / LOGITS, logits)  # the last: where it is, all is


def _save_array(path: Path, values: Tensor) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values.cpu().numpy())
    write_atomically(path, buffer.getvalue())
