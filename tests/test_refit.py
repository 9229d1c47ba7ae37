"""Cross-validation: which jobs it makes, and what it makes of their outputs."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from cifartune.config import SearchSpace
from cifartune.data.splits import Splits, make_splits
from cifartune.errors import UserError
from cifartune.refit import out_of_fold_logits, run_refit
from cifartune.runs import RunFolder
from cifartune.tuning.jobs import LOGITS
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
    (first.jobs[3].folder / LOGITS).unlink()
    first.jobs[3].folder.rmdir()
    assert refit(study, run, again) == before
    assert again.jobs == [first.jobs[3]]


def test_a_fold_that_is_lost_is_named(tmp_path: Path, splits: Splits, labels: Any) -> None:
    study, run = search(tmp_path)
    best = study.best()[0].number
    pool = FakePool(splits, labels, broken=f"refit-{best}-fold-2", kind="slot_lost")
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
