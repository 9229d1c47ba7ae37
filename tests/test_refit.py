"""Cross-validation: which jobs it makes, and what it makes of their outputs."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.special import log_softmax

from cifartune.config import SearchSpace
from cifartune.data.splits import Splits, make_splits
from cifartune.errors import UserError
from cifartune.refit import out_of_fold_logits, refit_recipe, run_refit
from cifartune.runs import RunFolder
from cifartune.tuning.jobs import LOGITS, SNAPSHOTS, WEIGHTS
from cifartune.tuning.messages import Failed, Finished, Job, Message
from cifartune.tuning.study import TrialStudy, sqlite_url

IMAGES, FOLDS = 200, 4


class FakePool:
    """Trains nothing: a recipe of learning rate r classifies a share r of its images rightly."""

    def __init__(
        self, splits: Splits, labels: Any, broken: str = "", kind: str = "non_finite_loss"
    ) -> None:
        self.splits, self.labels, self.broken, self.kind = splits, labels, broken, kind
        self.jobs: list[Job] = []

    def run(
        self, jobs: list[Job], *, stop: threading.Event | None = None
    ) -> Iterator[tuple[Job, Message]]:
        for job in jobs:
            self.jobs.append(job)
            if job.id.startswith(self.broken or "none"):
                yield job, Failed(self.kind, "it broke")
                continue
            assert job.fold is not None
            labels = self.labels[self.splits.held_out(job.fold)[1]]
            right = np.arange(len(labels)) < job.recipe.optimizer.lr * len(labels)
            logits = np.zeros((len(labels), 10), np.float32)
            logits[np.arange(len(labels)), np.where(right, labels, (labels + 1) % 10)] = 2
            job.folder.mkdir(parents=True)
            np.save(job.folder / LOGITS, logits)
            about = {"run": json.dumps({"epochs": job.recipe.last_epoch})}
            save_file({"weight": np.zeros(1)}, job.folder / WEIGHTS, about)
            yield job, Finished()


@pytest.fixture
def labels() -> Any:
    return (np.arange(IMAGES) % 10).astype(np.uint8)


@pytest.fixture
def splits(labels: Any) -> Splits:
    return make_splits(labels, validation=50, train_subset=None, folds=FOLDS, seed=0)


def search(tmp_path: Path, **space: Any) -> tuple[TrialStudy, RunFolder]:
    """A study of four trials, the later the better, with learning rates near 0.2 to 0.8."""
    made = SearchSpace.model_validate(
        {
            "name": "toy",
            "base": {"epochs": 3, "optimizer": {"lr": 0.2}},
            "parameters": {"optimizer.lr": {"min": 0.2, "max": 0.8}},
            "search": {"num_trials": 4, "sampler": "random"},
            "refit": {"top_k": 2, "folds": FOLDS, "epochs": 5},
            **space,
        }
    )
    run = RunFolder.create(tmp_path, made)
    study = TrialStudy(made, url=sqlite_url(run.study), name=run.name)
    for number in range(8):
        recipe = study.propose().recipe
        study.record(number, 3, recipe.optimizer.lr + number / 1000)
        study.complete(number)
    return study, run


def refit(study: TrialStudy, run: RunFolder, pool: FakePool) -> Any:
    return run_refit(
        study,
        pool,  # type: ignore[arg-type]
        run=run,
        splits=pool.splits,
        labels=pool.labels,
        data_root=Path(),
    )


def test_the_best_are_refit_on_the_same_folds(tmp_path: Path, splits: Splits, labels: Any) -> None:
    study, run = search(tmp_path)
    pool = FakePool(splits, labels)
    candidates = refit(study, run, pool)
    assert {c.number for c in candidates} == {t.number for t in study.best(2)}
    assert sorted(job.fold for job in pool.jobs if job.fold is not None) == sorted(
        [*range(FOLDS)] * 2
    )
    assert len({job.recipe.seed for job in pool.jobs}) == len(pool.jobs)
    assert {job.recipe.epochs for job in pool.jobs} == {5}
    assert [candidate.epochs for candidate in candidates] == [5 * FOLDS] * 2
    accuracies = [c.accuracy.value for c in candidates]
    assert accuracies == sorted(accuracies, reverse=True)


def test_each_image_is_judged_once(tmp_path: Path, splits: Splits, labels: Any) -> None:
    study, run = search(tmp_path)
    winner = refit(study, run, FakePool(splits, labels))[0]
    logits = out_of_fold_logits(run, splits, winner.number, FOLDS)
    assert not np.isnan(logits).any()
    assert winner.accuracy.value == np.mean(logits.argmax(1) == labels)
    assert winner.loss == pytest.approx(-log_softmax(logits, 1)[range(IMAGES), labels].mean())
    assert np.mean(winner.fold_accuracies) == pytest.approx(winner.accuracy.value, abs=0.01)


def test_folds_that_are_done_are_kept(tmp_path: Path, splits: Splits, labels: Any) -> None:
    study, run = search(tmp_path)
    first = FakePool(splits, labels)
    before = refit(study, run, first)
    again = FakePool(splits, labels)
    shutil.rmtree(first.jobs[3].folder)
    assert refit(study, run, again) == before
    assert again.jobs == [first.jobs[3]]


def test_a_fold_that_is_lost_is_named(tmp_path: Path, splits: Splits, labels: Any) -> None:
    study, run = search(tmp_path)
    best = study.best()[0].number
    pool = FakePool(splits, labels, broken=f"refit-{best}-fold-2", kind="node_lost")
    with pytest.raises(UserError, match=rf"refit of trial {best} failed in fold 2.*resume toy"):
        refit(study, run, pool)


def test_a_recipe_that_fails_is_no_candidate(tmp_path: Path, splits: Splits, labels: Any) -> None:
    """It would fail again, however often the search is resumed; the others are not lost by it."""
    study, run = search(tmp_path)
    best, second = (trial.number for trial in study.best(2))
    pool = FakePool(splits, labels, broken=f"refit-{best}-fold-2")
    assert [c.number for c in refit(study, run, pool)] == [second]

    study, run = search(tmp_path)
    with pytest.raises(UserError, match=r"every refit failed.*it broke"):
        refit(study, run, FakePool(splits, labels, broken="refit-"))


def test_a_search_for_the_least_loss_chooses_by_loss(
    tmp_path: Path, splits: Splits, labels: Any
) -> None:
    study, run = search(tmp_path, objective={"metric": "val_loss"})
    candidates = refit(study, run, FakePool(splits, labels))
    losses = [c.loss for c in candidates]
    assert losses == sorted(losses)


@pytest.mark.parametrize(
    ("stopping", "attributes", "expected"),
    [
        ({"metric": "val_loss"}, {"kept_epoch": 2}, ("none", "last", 2)),
        ({"keep": "best"}, {"kept_epoch": 1}, ("none", "last", 1)),
        ({"metric": "train_accuracy"}, {"kept_epoch": 2}, ("train_accuracy", "last", 0)),
        (
            {"metric": "train_accuracy", "keep": "best"},
            {"kept_epoch": 2},
            ("train_accuracy", "last", 2),
        ),
        ({}, {"kept_epoch": 3}, ("none", "last", 0)),
    ],
)
def test_held_out_images_do_not_choose_when_a_refit_stops(
    tmp_path: Path,
    stopping: dict[str, str],
    attributes: dict[str, int],
    expected: tuple[str, str, int],
) -> None:
    base = {"epochs": 3, "optimizer": {"lr": 0.2}, "stopping": stopping}
    space = {"base": base, "refit": {"top_k": 1, "folds": FOLDS}}
    study, _ = search(tmp_path, **space)
    study.propose()
    study.record(8, 3, 0.9)
    study.annotate(8, attributes)
    study.record(8, attributes["kept_epoch"], 0.9)
    study.complete(8)
    recipe = refit_recipe(study, study.trials[8])
    assert recipe.epochs == 3
    rules = recipe.stopping
    assert (rules.metric, rules.keep, rules.epoch) == expected


def test_epochs_that_the_refit_has_of_its_own_are_all_trained(tmp_path: Path) -> None:
    base = {"epochs": 3, "optimizer": {"lr": 0.2}, "stopping": {"metric": "val_loss"}}
    study, _ = search(tmp_path, base=base)
    recipe = refit_recipe(study, study.trials[0])
    assert (recipe.last_epoch, recipe.stopping.metric) == (5, "none")
    study, _ = search(tmp_path, base={**base, "stopping": {"epoch": 2}})
    assert refit_recipe(study, study.trials[0]).last_epoch == 5


def test_the_ends_of_all_cycles_make_an_ensemble(
    tmp_path: Path, splits: Splits, labels: Any
) -> None:
    """Two snapshots outvote a last epoch that is wrong about all."""
    schedule = {"name": "restarts", "cycles": 3, "warmup": 0.0}
    base = {"epochs": 6, "optimizer": {"lr": 0.2}, "schedule": schedule}
    study, run = search(tmp_path, base=base, refit={"top_k": 1, "folds": FOLDS})

    class WithSnapshots(FakePool):
        def run(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Job, Message]]:
            for job, message in super().run(*args, **kwargs):
                assert job.fold is not None
                right = labels[splits.held_out(job.fold)[1]]
                for classes, place in ((right, "2"), (right, "4"), ((right + 1) % 10, "")):
                    folder = job.folder / SNAPSHOTS / place if place else job.folder
                    folder.mkdir(parents=True, exist_ok=True)
                    np.save(folder / LOGITS, 2 * np.eye(10, dtype=np.float32)[classes])
                yield job, message

    candidate = refit(study, run, WithSnapshots(splits, labels))[0]
    assert candidate.accuracy.value == 0
    assert candidate.snapshots is not None
    assert candidate.snapshots.accuracy.value == 1
    assert len(set(candidate.snapshots.weights)) == 3 * FOLDS
    assert set(candidate.weights) < set(candidate.snapshots.weights)


def test_a_fold_that_ended_before_a_restart_has_fewer_snapshots(
    tmp_path: Path, splits: Splits, labels: Any
) -> None:
    """Training accuracy may level off in one fold and not in another."""
    study, run = search(tmp_path, refit={"top_k": 1, "folds": FOLDS})

    class Uneven(FakePool):
        def run(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Job, Message]]:
            for job, message in super().run(*args, **kwargs):
                if job.fold:
                    folder = job.folder / SNAPSHOTS / "1"
                    folder.mkdir(parents=True)
                    shutil.copy(job.folder / LOGITS, folder)
                yield job, message

    candidate = refit(study, run, Uneven(splits, labels))[0]
    assert candidate.snapshots is not None
    assert candidate.snapshots.accuracy == candidate.accuracy
    assert len(candidate.snapshots.weights) == FOLDS + FOLDS - 1


def test_without_restarts_there_are_no_snapshots(
    tmp_path: Path, splits: Splits, labels: Any
) -> None:
    study, run = search(tmp_path)
    assert refit(study, run, FakePool(splits, labels))[0].snapshots is None
