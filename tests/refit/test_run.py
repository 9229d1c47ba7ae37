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
from cifartune.data.splits import ALL_IMAGES, Splits, make_splits
from cifartune.errors import UserError
from cifartune.events import Observer
from cifartune.outputs import LOGITS, PLAIN_LOGITS, SNAPSHOTS, WEIGHTS
from cifartune.refit import Candidate, OutOfFold, Refit, refit_recipe, verdicts
from cifartune.runs import RunFolder
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
        self.stopped: set[str] = set()

    def stop(self, job: Job) -> None:
        self.stopped.add(job.id)

    def run(
        self, jobs: list[Job], *, stop: threading.Event | None = None
    ) -> Iterator[tuple[Job, Message]]:
        self.stopped.clear()
        for job in jobs:
            if job.id in self.stopped:
                continue
            self.jobs.append(job)
            if self.breaks(job):
                yield job, Failed(self.kind, "it broke")
                continue
            about = {"run": json.dumps({"epochs": job.recipe.last_epoch})}
            job.folder.mkdir(parents=True, exist_ok=True)
            save_file({"weight": np.zeros(1)}, job.folder / WEIGHTS, about)
            held_out = self.splits.of_run(job.fold)[1]
            if len(held_out):
                logits = self.logits(job, held_out)
                np.save(job.folder / LOGITS, logits)
                if job.recipe.tta != "none":
                    np.save(job.folder / PLAIN_LOGITS, -logits)
            yield job, Finished({"weights_sha256": job.id})

    def breaks(self, job: Job) -> bool:
        return job.id.startswith(self.broken or "none")

    def logits(self, job: Job, held_out: Any) -> Any:
        labels = self.labels[held_out]
        # Which images are right depends on the seed, and how many on the rate alone.
        order = np.random.default_rng(job.recipe.seed).permutation(len(labels))
        right = order < job.recipe.optimizer.lr * len(labels)
        logits = np.zeros((len(labels), 10), np.float32)
        logits[np.arange(len(labels)), np.where(right, labels, (labels + 1) % 10)] = 2
        return logits


@pytest.fixture
def labels() -> Any:
    return (np.arange(IMAGES) % 10).astype(np.uint8)


@pytest.fixture
def splits(labels: Any) -> Splits:
    return make_splits(labels, validation=50, train_subset=None, folds=FOLDS, seed=0)


def search(tmp_path: Path, **sections: Any) -> tuple[TrialStudy, RunFolder]:
    """A study of eight trials, the later the better, with learning rates near 0.2 to 0.8."""
    refit = {"top_k": 2, "folds": FOLDS, "epochs": 5, "baseline": False}
    made = SearchSpace.model_validate(
        {
            "name": "toy",
            "base": {"epochs": 3, "optimizer": {"lr": 0.2}},
            "parameters": {"optimizer.lr": {"min": 0.2, "max": 0.8}},
            "search": {"num_trials": 4, "sampler": "random"},
            **sections,
            "refit": refit | sections.get("refit", {}),
        }
    )
    run = RunFolder.create(tmp_path, made)
    study = TrialStudy(made, url=sqlite_url(run.study), name=run.name)
    for number in range(8):
        recipe = study.propose().recipe
        study.record(number, 3, recipe.optimizer.lr + number / 1000)
        study.complete(number)
    return study, run


class Listener(Observer):
    """What an observer hears of a refit."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[float | None, Any]] = {}
        self.ends: dict[int, tuple[dict[str, float], str]] = {}
        self.notes: list[str] = []

    def noted(self, text: str, label: str = "note") -> None:
        self.notes.append(text)

    def part_ended(
        self, number: int, part: str, accuracy: float | None, facts: dict[str, Any]
    ) -> None:
        self.parts[f"{number} {part}"] = accuracy, facts

    def refit_ended(self, number: int, metrics: dict[str, float], dropped: str = "") -> None:
        self.ends[number] = metrics, dropped


def refit_of(
    study: TrialStudy, run: RunFolder, pool: FakePool | None, **known: Any
) -> tuple[Refit, Listener]:
    listener = Listener()
    given = {"splits": pool.splits, "labels": pool.labels} if pool else known
    trains: Any = pool
    made = Refit(study, trains, run=run, data_root=Path(), observers=[listener], **given)
    return made, listener


def refit(study: TrialStudy, run: RunFolder, pool: FakePool) -> list[Candidate]:
    return refit_of(study, run, pool)[0].cross_validate()


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
    kept = OutOfFold.load(run.out_of_fold(winner.number))
    [logits] = kept.logits
    assert not np.isnan(logits).any()
    np.testing.assert_array_equal(kept.indices, np.arange(IMAGES))
    np.testing.assert_array_equal(kept.fold, splits.fold)
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
    space = {"base": base, "refit": {"top_k": 1, "epochs": None}}
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
    study, run = search(tmp_path, base=base, refit={"top_k": 1})

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
    study, run = search(tmp_path, refit={"top_k": 1})

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


def test_several_seeds_train_each_fold_as_often(
    tmp_path: Path, splits: Splits, labels: Any
) -> None:
    study, run = search(tmp_path, refit={"top_k": 1, "seeds": 3})
    pool = FakePool(splits, labels)
    [candidate] = refit(study, run, pool)
    assert len({job.recipe.seed for job in pool.jobs}) == len(pool.jobs) == 3 * FOLDS
    assert candidate.predictions.logits.shape == (3, IMAGES, 10)
    right = candidate.predictions.right(labels)
    assert candidate.accuracy.value == pytest.approx(right.mean())
    assert len(candidate.fold_accuracies) == len(set(candidate.weights)) == 3 * FOLDS
    # The first seed's folds are those of a search with one.
    alone = FakePool(splits, labels)
    [one] = refit(*search(tmp_path, refit={"top_k": 1}), alone)
    assert (one.predictions.logits[0] == candidate.predictions.logits[0]).all()


def test_more_seeds_train_only_what_is_new(tmp_path: Path, splits: Splits, labels: Any) -> None:
    study, run = search(tmp_path, refit={"top_k": 1})
    refit(study, run, FakePool(splits, labels))
    spec = study.space.refit.model_copy(update={"seeds": 2})
    study.space = study.space.model_copy(update={"refit": spec})
    pool = FakePool(splits, labels)
    refit(study, run, pool)
    assert [job.id.split("-")[-2:] for job in pool.jobs] == [["seed", "1"]] * FOLDS


@pytest.mark.parametrize(("wanted", "count"), [(True, 3), (False, 2)])
def test_the_baseline_is_refit_too(
    tmp_path: Path, splits: Splits, labels: Any, wanted: bool, count: int
) -> None:
    study, run = search(tmp_path, refit={"baseline": wanted})
    candidates = refit(study, run, FakePool(splits, labels))
    assert len(candidates) == count
    assert (0 in [candidate.number for candidate in candidates]) is wanted


def test_a_baseline_that_is_among_the_best_is_refit_once(
    tmp_path: Path, splits: Splits, labels: Any
) -> None:
    study, run = search(tmp_path, refit={"top_k": 8, "baseline": True})
    numbers = [candidate.number for candidate in refit(study, run, FakePool(splits, labels))]
    assert sorted(numbers) == list(range(8))


@pytest.fixture
def many(request: pytest.FixtureRequest) -> tuple[Splits, Any]:
    """4,000 images: enough to see who is behind."""
    labels = (np.arange(4000) % 10).astype(np.uint8)
    return make_splits(labels, validation=500, train_subset=None, folds=FOLDS, seed=0), labels


def test_who_is_clearly_behind_is_trained_no_further(
    tmp_path: Path, many: tuple[Splits, Any]
) -> None:
    splits, labels = many
    study, run = search(tmp_path, refit={"top_k": 2, "baseline": True})
    pool = FakePool(splits, labels)
    made, listener = refit_of(study, run, pool)
    candidates = made.cross_validate()
    folds = {number: 0 for number in (c.number for c in candidates)}
    for job in pool.jobs:
        folds[int(job.id.split("-")[1])] += 1
    *_, last = candidates
    assert last.number == 0 and last.dropped is not None
    assert folds[0] == last.dropped.folds < FOLDS
    assert folds[candidates[0].number] == FOLDS
    assert len(last.predictions.indices) == 4000 * folds[0] / FOLDS
    assert listener.ends[0][1] == str(last.dropped)
    assert f"behind trial {last.dropped.rival}" in listener.ends[0][1]
    # What was decided follows from the files: nothing is trained again, nothing else comes out.
    again = FakePool(splits, labels)
    assert refit(study, run, again) == candidates
    assert again.jobs == []
    read, _ = refit_of(study, run, None, splits=splits, labels=labels)
    assert read.candidates() == candidates


def test_the_verdicts_are_on_the_folds_that_both_have(
    tmp_path: Path, many: tuple[Splits, Any]
) -> None:
    splits, labels = many
    study, run = search(tmp_path, refit={"top_k": 2, "baseline": True})
    candidates = refit(study, run, FakePool(splits, labels))
    found = verdicts(candidates, labels)
    assert [verdict.rival for verdict in found] == [c.number for c in candidates[1:]]
    baseline = found[-1]
    assert baseline.comparison.verdict == "better"
    assert baseline.images == len(candidates[-1].predictions.indices)
    gap = candidates[0].recipe.optimizer.lr - 0.2
    assert baseline.comparison.images.difference.value == pytest.approx(gap, abs=0.01)
    assert baseline.as_dict()["compared_images"] == baseline.images
    assert verdicts(candidates[:1], labels) == []


def test_accuracies_are_told_apart_by_what_the_images_chose(
    tmp_path: Path, splits: Splits, labels: Any
) -> None:
    base = {"epochs": 3, "optimizer": {"lr": 0.2}, "tta": "flip"}
    study, run = search(tmp_path, base=base)
    candidate = refit(study, run, FakePool(splits, labels))[0]
    right = candidate.predictions.right(labels)[0]
    plain = candidate.predictions.right(labels, plain=True)[0]
    assert not np.array_equal(right, plain)  # the pool's plain logits are upside down
    chose = np.isin(np.arange(IMAGES), splits.validation)
    assert candidate.unchosen and candidate.unchosen.value == right[~chose].mean()
    assert candidate.chosen and candidate.chosen.value == plain[chose].mean()
    by_class = [right[labels == label].mean() for label in range(10)]
    assert [accuracy.value for accuracy in candidate.classes] == pytest.approx(by_class)
    assert candidate.folds.low <= candidate.folds.value <= candidate.folds.high
    assert candidate.folds.value == pytest.approx(np.mean(candidate.fold_accuracies))
    told = json.loads(json.dumps(candidate.as_dict()))
    assert told["cv_accuracy"]["value"] == candidate.accuracy.value


def test_the_winner_is_trained_on_all_images(tmp_path: Path, splits: Splits, labels: Any) -> None:
    study, run = search(tmp_path)
    pool = FakePool(splits, labels)
    made, listener = refit_of(study, run, pool)
    winner = made.cross_validate()[0]
    weights = made.train_on_all(winner)
    assert weights == run.all_images(winner.number) / WEIGHTS and weights.exists()
    assert [job.fold for job in pool.jobs].count(ALL_IMAGES) == 1
    accuracy, facts = listener.parts[f"{winner.number} all-images"]
    assert accuracy is None and facts["weights_sha256"] == f"refit-{winner.number}-all-images"
    count = len(pool.jobs)
    made.train_on_all(winner)
    assert len(pool.jobs) == count, "it is there"
    again, listener = refit_of(study, run, pool)
    again.train_on_all(winner)
    assert listener.parts == {f"{winner.number} all-images": (None, {})}


def test_a_winner_that_fails_on_all_images_stands_by_its_folds(
    tmp_path: Path, splits: Splits, labels: Any
) -> None:
    study, run = search(tmp_path)
    best = study.best()[0].number
    pool = FakePool(splits, labels, broken=f"refit-{best}-all")
    made, listener = refit_of(study, run, pool)
    winner = made.cross_validate()[0]
    assert winner.number == best
    assert made.train_on_all(winner) is None
    accuracy, told = listener.parts[f"{best} all-images"]
    assert accuracy is None and told["message"] == "it broke"
    assert listener.notes == ["it broke; the models of its folds stand"]


def test_a_recipe_that_failed_is_not_tried_again(
    tmp_path: Path, splits: Splits, labels: Any
) -> None:
    study, run = search(tmp_path)
    best = study.best()[0].number
    made, listener = refit_of(study, run, FakePool(splits, labels, broken=f"refit-{best}-fold-1"))
    before = made.cross_validate()
    assert listener.ends[best][0] == {} and "fold-1: it broke" in listener.ends[best][1]
    again = FakePool(splits, labels)
    assert refit(study, run, again) == before
    assert again.jobs == []


def test_what_an_earlier_process_trained_is_told_again(
    tmp_path: Path, splits: Splits, labels: Any
) -> None:
    study, run = search(tmp_path)
    refit(study, run, FakePool(splits, labels))
    made, listener = refit_of(study, run, FakePool(splits, labels))
    made.cross_validate()
    assert len(listener.parts) == 2 * FOLDS
    assert all(accuracy is not None for accuracy, _ in listener.parts.values())


class FailsLate(FakePool):
    """Everybody but trial 0 fails in the fourth fold, when trial 0 has been dropped."""

    def breaks(self, job: Job) -> bool:
        return job.fold == 3 and not job.id.startswith("refit-0-")


def test_who_was_beaten_by_one_that_failed_is_trained_on(
    tmp_path: Path, many: tuple[Splits, Any]
) -> None:
    splits, labels = many
    study, run = search(tmp_path, refit={"top_k": 2, "baseline": True})
    pool = FailsLate(splits, labels)
    made, _ = refit_of(study, run, pool)
    [winner] = made.cross_validate()
    assert winner.number == 0 and winner.dropped is None
    assert len(winner.predictions.indices) == 4000
    assert [job.id for job in pool.jobs].count("refit-0-fold-3") == 1
    read, _ = refit_of(study, run, None, splits=splits, labels=labels)
    assert read.candidates() == [winner]
    again = FakePool(splits, labels)
    assert refit(study, run, again) == [winner]
    assert again.jobs == []


@pytest.mark.parametrize("name", [WEIGHTS, PLAIN_LOGITS])
def test_folds_without_one_of_their_files_are_trained_again(
    name: str, tmp_path: Path, splits: Splits, labels: Any
) -> None:
    """An earlier version kept no plain logits; a copy may have ended before the weights."""
    base = {"epochs": 3, "optimizer": {"lr": 0.2}, "tta": "flip"}
    study, run = search(tmp_path, base=base, refit={"top_k": 1})
    first = FakePool(splits, labels)
    refit(study, run, first)
    (first.jobs[2].folder / name).unlink()
    again = FakePool(splits, labels)
    refit(study, run, again)
    assert again.jobs == [first.jobs[2]]


def test_an_extended_search_keeps_the_candidates_that_it_had(
    tmp_path: Path, splits: Splits, labels: Any
) -> None:
    study, run = search(tmp_path, refit={"top_k": 1})
    [before] = refit(study, run, FakePool(splits, labels))
    number = study.propose().number
    study.record(number, 3, 0.99)
    study.complete(number)
    candidates = refit(study, run, FakePool(splits, labels))
    assert {candidate.number for candidate in candidates} == {before.number, number}
