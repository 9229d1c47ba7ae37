"""What a slot runs, in this process: small networks on a slice of the images."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from sparse_data import write_splits, write_train
from torch import Tensor

from cifartune.config import Recipe
from cifartune.data import LabelledImages
from cifartune.outputs import LOGITS, SNAPSHOTS, WEIGHTS
from cifartune.training import EpochResult, NonFiniteLoss, SplitImages, Trainer
from cifartune.training.classifier import load_classifier, predict, trained_epochs
from cifartune.training.device import settle
from cifartune.training.failures import OutOfMemory
from cifartune.tuning import jobs
from cifartune.tuning.checkpoints import Checkpoints
from cifartune.tuning.jobs import run_job
from cifartune.tuning.messages import Job, Verdict

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="bit for bit is promised on the CPU"
)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory, cifar: LabelledImages) -> Path:
    return write_train(tmp_path_factory.mktemp("data"), cifar)


@pytest.fixture
def job(tmp_path: Path, data_root: Path, recipe: Recipe) -> Job:
    """A trial of three epochs with everything random in it."""
    recipe = recipe.with_values({"epochs": 3, "model.dropout": 0.2, "augment.cutout": 8, "seed": 5})
    return Job(
        id="trial-0",
        recipe=recipe,
        folder=tmp_path / "trial",
        data_root=data_root,
        splits=write_splits(tmp_path / "splits.npz"),
    )


class Killed(BaseException):
    """The process ends here."""


class Listener:
    """Gets results; stops the job, or dies, after some of them."""

    def __init__(
        self,
        job: Job,
        *,
        stop_after: int | None = None,
        leave_after: int | None = None,
        die_after: int | None = None,
    ) -> None:
        self.results: list[EpochResult] = []
        self.checkpoints: list[int] = []
        self.last: list[bool] = []
        self.kept = Checkpoints(job.folder)
        self._stop_after, self._die_after = stop_after, die_after
        self._leave_after = leave_after

    def __call__(self, result: EpochResult, is_last: bool) -> Verdict:
        self.results.append(result)
        self.last.append(is_last)
        self.checkpoints.append(self.kept.epoch)
        if result.epoch == self._die_after:
            raise Killed
        if result.epoch == self._leave_after:
            return Verdict.LEAVE
        return Verdict.STOP if result.epoch == self._stop_after else Verdict.GO_ON

    @property
    def learned(self) -> list[tuple[int, float, float, float]]:
        """What training brought, without the time that it took."""
        return [(r.epoch, r.train_loss, r.val_loss, r.val_accuracy) for r in self.results]


def test_a_trial_trains_on_the_searchs_own_split(
    job: Job, split: SplitImages, cifar: LabelledImages
) -> None:
    listener = Listener(job)
    facts = run_job(job, listener)
    trainer = Trainer(job.recipe, split)
    expected = [(r.epoch, r.train_loss, r.val_loss, r.val_accuracy) for r in trainer]
    assert listener.learned == expected
    assert facts is not None
    assert facts["params"] == sum(p.numel() for p in trainer.network.parameters())
    assert (facts["resolved_precision"], facts["device"]) == ("fp32", "cpu")
    assert (facts["resolved_memory_format"], facts["resolved_compile"]) == (
        "channels_last",
        "never",
    )
    assert facts["threads"] == torch.get_num_threads()
    assert {path.name for path in job.folder.iterdir()} == {
        "epoch-1.checkpoint",
        "epoch-2.checkpoint",
    }


def test_every_epoch_but_the_last_leaves_a_checkpoint(job: Job) -> None:
    listener = Listener(job)
    run_job(job, listener)
    # Before an epoch begins, that of the one before is there.
    assert listener.checkpoints == [0, 1, 2]


def test_a_stopped_job_says_nothing_more(job: Job) -> None:
    listener = Listener(job, stop_after=2)
    assert run_job(job, listener) is None
    assert len(listener.results) == 2
    state = Checkpoints(job.folder).load()
    assert state is not None and state["history"][-1]["epoch"] == 1


def test_a_damaged_checkpoint_costs_an_epoch_and_nothing_else(job: Job) -> None:
    unbroken = replace(job, folder=job.folder / "unbroken")
    whole, first, second = Listener(unbroken), Listener(job, leave_after=2), Listener(job)
    run_job(unbroken, whole)
    run_job(job, first)
    (job.folder / "epoch-2.checkpoint").write_bytes(b"the disk was here")
    run_job(job, second)
    assert [result.epoch for result in second.results] == [2, 3]
    assert [*first.learned[:1], *second.learned] == whole.learned


@pytest.mark.parametrize(
    ("end", "epoch"),
    [
        pytest.param(end, epoch, marks=[] if epoch == quick else pytest.mark.slow)
        for end, quick in {"stopped": 1, "left": 2, "killed": 3}.items()
        for epoch in (1, 2, 3)
    ],
)
def test_a_fold_that_goes_on_ends_like_its_unbroken_twin(job: Job, epoch: int, end: str) -> None:
    unbroken = replace(job, fold=1, folder=job.folder / "unbroken")
    whole = Listener(unbroken)
    run_job(unbroken, whole)

    broken = replace(job, fold=1, folder=job.folder / "broken")
    if end == "stopped":
        first = Listener(broken, stop_after=epoch)
        assert run_job(broken, first) is None
    elif end == "left":
        first = Listener(broken, leave_after=epoch)
        assert (run_job(broken, first) is None) == (epoch < 3)
    else:
        first = Listener(broken, die_after=epoch)
        with pytest.raises(Killed):
            run_job(broken, first)
    if (end, epoch) == ("left", 3):  # there is nothing to leave for another time
        assert (broken.folder / LOGITS).exists()
        return
    assert not (broken.folder / LOGITS).exists()
    torch.randn(7)  # whatever the process did in between
    second = Listener(broken)
    run_job(broken, second)
    assert first.learned == whole.learned[:epoch]
    # Only where the job was left in order, the epoch under way is not done again.
    assert second.learned == whole.learned[epoch - (end != "left") :]
    for name in (WEIGHTS, LOGITS):
        assert (broken.folder / name).read_bytes() == (unbroken.folder / name).read_bytes()


def test_a_run_that_goes_on_is_computed_as_it_began(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is fastest by then: another precision would be another run."""
    automatic = job.recipe.with_values({"precision": "auto", "memory_format": "auto"})
    job = replace(job, recipe=automatic)
    fast = {"precision": "bf16", "memory_format": "contiguous"}

    def fastest(recipe: Recipe, images: int, **_: Any) -> Recipe:
        assert images == 3 * 300
        return settle(recipe, fast)

    monkeypatch.setattr(jobs, "fastest", fastest)
    run_job(job, Listener(job, stop_after=2))
    fast = {"precision": "fp32", "memory_format": "channels_last"}
    facts = run_job(job, Listener(job))
    assert facts is not None
    assert (facts["resolved_precision"], facts["resolved_memory_format"]) == ("bf16", "contiguous")


def test_a_fold_keeps_weights_and_logits_of_what_it_held_out(
    job: Job, cifar: LabelledImages
) -> None:
    recipe = job.recipe.with_values({"tta": "flip"})
    job = replace(job, fold=1, recipe=recipe)
    listener = Listener(job)
    run_job(job, listener)
    logits = np.load(job.folder / LOGITS)
    assert (logits.dtype, logits.shape) == (np.float32, (200, 10))
    held_out = torch.from_numpy(cifar.images[1:400:2])
    classifier = load_classifier(job.folder / WEIGHTS)
    assert classifier.recipe == recipe
    np.testing.assert_allclose(predict(classifier, held_out).numpy(), logits, atol=1e-5)
    # It never trained on them: a fold's own statistics are those of the other images.
    means = cifar.images[0:400:2].mean((0, 2, 3)) / 255
    np.testing.assert_allclose(classifier.mean.flatten().numpy(), means, atol=1e-4)


def test_a_fold_keeps_the_ends_of_its_cycles(job: Job) -> None:
    values = {"schedule.name": "restarts", "schedule.warmup": 0.0, "epochs": 3}
    recipe = job.recipe.with_values(values)
    job = replace(job, fold=0, recipe=recipe)
    run_job(job, Listener(job))
    folders = [job.folder / SNAPSHOTS / "1", job.folder / SNAPSHOTS / "2", job.folder]
    logits = [np.load(folder / LOGITS) for folder in folders]
    assert sorted((job.folder / SNAPSHOTS).iterdir()) == folders[:2]
    shorter = replace(
        job, recipe=recipe.with_values({"stopping.epoch": 2}), folder=job.folder / "shorter"
    )
    run_job(shorter, Listener(shorter))
    np.testing.assert_array_equal(np.load(shorter.folder / LOGITS), logits[1])
    assert not np.allclose(logits[1], logits[2])
    assert load_classifier(folders[0] / WEIGHTS).recipe == recipe
    assert [trained_epochs(folder / WEIGHTS) for folder in folders] == [1, 2, 3]


def test_a_trial_keeps_no_snapshots(job: Job) -> None:
    job = replace(job, recipe=job.recipe.with_values({"schedule.name": "restarts"}))
    run_job(job, Listener(job))
    assert not (job.folder / SNAPSHOTS).exists()


def test_the_end_of_a_run_is_told_with_its_last_epoch(job: Job) -> None:
    """Also where it ends early; what counts in the end is the epoch that is kept."""
    values = {"stopping.epoch": 2, "stopping.keep": "best", "optimizer.lr": 1e-9}
    job = replace(job, recipe=job.recipe.with_values(values))
    listener = Listener(job)
    facts = run_job(job, listener)
    assert listener.last == [False, True]
    assert facts is not None
    best = max(listener.results, key=lambda result: result.val_accuracy)
    assert (facts["kept_epoch"], facts["val_loss"]) == (best.epoch, best.val_loss)
    assert "seconds" not in facts
    assert Checkpoints(job.folder).epoch == 1  # until it is recorded that the trial has ended


def test_the_folds_differ(job: Job) -> None:
    logits = []
    for fold in (0, 1):
        folded = replace(job, fold=fold, folder=job.folder / str(fold))
        run_job(folded, Listener(folded))
        logits.append(np.load(folded.folder / LOGITS))
    assert not np.allclose(*logits)


def living(kind: type) -> int:
    gc.collect()
    # Not isinstance: some of torch's objects warn when they are asked for their class.
    return sum(type(thing) is kind for thing in gc.get_objects())


@pytest.mark.parametrize(
    ("values", "epoch"),
    [({}, 2), ({"batch_size": 8, "optimizer.momentum": 0.999}, 1)],
)
def test_a_failing_recipe_is_named_and_leaves_nothing_behind(
    job: Job, values: dict[str, float], epoch: int
) -> None:
    before = living(Trainer)
    diverges = {"optimizer.lr": 10.0, "optimizer.weight_decay": 1.0, "schedule.warmup": 0.0}
    job = replace(job, fold=0, recipe=job.recipe.with_values({**diverges, **values}))
    listener = Listener(job)
    with pytest.raises(NonFiniteLoss, match=f"in epoch {epoch}$"):
        run_job(job, listener)
    assert len(listener.results) == epoch - 1
    assert not (job.folder / LOGITS).exists() and not (job.folder / WEIGHTS).exists()
    assert living(Trainer) == before


@pytest.mark.parametrize("stop", [1, None])
def test_a_job_leaves_nothing_in_memory(job: Job, stop: int | None) -> None:
    before = living(Trainer)
    run_job(job, Listener(job, stop_after=stop))
    assert living(Trainer) == before


def test_a_checkpoint_of_another_recipe_is_refused(job: Job) -> None:
    run_job(job, Listener(job, stop_after=2))
    other = replace(job, recipe=job.recipe.with_values({"optimizer.lr": 0.05}))
    with pytest.raises(ValueError, match="another recipe"):
        run_job(other, Listener(other))


class LittleMemory(Trainer):
    """Cannot take more than `fits` images at a time in training."""

    fits = 64
    epoch_of_failure = 0

    def _forward(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        short = self.epoch >= self.epoch_of_failure and len(x) > self.fits
        if short and self.network.training:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return super()._forward(network, x)


@pytest.mark.parametrize(
    "epoch", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)]
)
def test_what_does_not_fit_is_made_of_smaller_parts(
    job: Job, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first epoch on, or once the memory has become short, in which it goes on."""
    job = replace(job, recipe=job.recipe.with_values({"batch_size": 300}))
    monkeypatch.setattr(jobs, "Trainer", LittleMemory)
    monkeypatch.setattr(LittleMemory, "epoch_of_failure", epoch)
    before = living(LittleMemory)
    listener = Listener(job)
    facts = run_job(job, listener)
    assert facts is not None and facts["resolved_micro_batch"] == 37
    assert [result.epoch for result in listener.results] == [1, 2, 3]
    assert living(LittleMemory) == before


@pytest.mark.parametrize("values", [{"micro_batch": 300}, {"micro_batch": 0}])
def test_what_fits_in_no_way_is_the_recipes_failure(
    job: Job, values: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a size changed that the recipe fixes."""
    job = replace(job, recipe=job.recipe.with_values({"batch_size": 300, **values}))
    monkeypatch.setattr(jobs, "Trainer", LittleMemory)
    monkeypatch.setattr(LittleMemory, "fits", 5)
    tried = []
    monkeypatch.setattr(jobs.logger, "warning", lambda *args: tried.append(args[-1]))
    with pytest.raises(OutOfMemory, match="can't allocate memory"):
        run_job(job, Listener(job))
    assert tried == ([] if values["micro_batch"] else [150, 75, 37, 18])


def test_a_recipe_may_ask_for_more_memory_than_there_is(job: Job) -> None:
    """For real: the stem's output alone would take 161 GB."""
    if psutil.virtual_memory().total > 150e9:
        pytest.skip("there is as much memory here")
    model = {"model.name": "resnet_channels", "model.channels": "512/8/8/16"}
    values = {"model.resolution": 512, "batch_size": 300, "micro_batch": 300, **model}
    job = replace(job, recipe=job.recipe.with_values(values))
    with pytest.raises(OutOfMemory):
        run_job(job, Listener(job))
