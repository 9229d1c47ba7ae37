"""The refit: the best recipes, cross-validated from scratch on all training images."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial

from cifartune.data.splits import ALL_IMAGES, Splits
from cifartune.errors import UserError
from cifartune.events import Observer
from cifartune.files import write_atomically
from cifartune.outputs import LOGITS, PLAIN_LOGITS, WEIGHTS
from cifartune.refit.candidates import Candidate, Labels, make_candidate, refit_recipe
from cifartune.refit.out_of_fold import OutOfFold
from cifartune.refit.race import FIRST_LOOK, Dropped, drop
from cifartune.runs import RunFolder
from cifartune.seeds import derive_seed
from cifartune.tuning.messages import Failed, Finished, Job, Progress
from cifartune.tuning.slots import SlotPool
from cifartune.tuning.study import TrialStudy, is_feasible


@dataclass(frozen=True)
class Part:
    """One training run of a refit.

    Attributes:
        trial: Whose recipe.
        fold: Which fold; `ALL_IMAGES`: all images train.
        seed: The how-manieth run of that fold, from 0.
    """

    trial: int
    fold: int
    seed: int = 0

    @property
    def name(self) -> str:
        """Unique among the parts of a refit: `fold-0`, `fold-0-seed-1`, `all-images`."""
        name = "all-images" if self.fold == ALL_IMAGES else f"fold-{self.fold}"
        return name + (f"-seed-{self.seed}" if self.seed else "")


class Refit:
    """Cross-validates recipes as one pool of jobs; what is done is kept.

    Each fold trains from scratch, and all candidates have the same folds. A recipe that is clearly
    behind another after some folds is trained on no more of them; see `race`.

    Args:
        study: Its best trials are refit, and its baseline, if the space wants that.
        pool: Trains. None: nothing is trained, and what is there is read.
        run: Where everything is kept.
        splits: Of the search.
        labels: Of all training images.
        data_root: Where the prepared images are.
        observers: Are told.
        stop: Ends it when set.
    """

    def __init__(
        self,
        study: TrialStudy,
        pool: SlotPool | None,
        *,
        run: RunFolder,
        splits: Splits,
        labels: Labels,
        data_root: Path,
        observers: Sequence[Observer] = (),
        stop: threading.Event | None = None,
    ) -> None:
        self._space = study.space
        self._pool, self._run, self._splits = pool, run, splits
        self._labels, self._data_root = labels, data_root
        self._observers, self._stop = observers, stop
        self._recipes = {t.number: refit_recipe(study, t) for t in refit_trials(study, run)}
        self._by_loss = "loss" in study.space.target.metric
        self._failures = run.refit / "failed.json"
        self._failed: dict[int, str] = {}
        if self._failures.exists():
            told = json.loads(self._failures.read_text())
            self._failed = {int(number): reason for number, reason in told.items()}
        self._dropped: dict[int, Dropped] = {}
        self._looked = FIRST_LOOK - 1  # folds after which was looked who is behind

    def cross_validate(self) -> list[Candidate]:
        """Trains the folds of all candidates.

        Returns:
            The candidates of which no fold failed, the best first: by out-of-fold loss where the
            search minimises a loss, else by out-of-fold accuracy; those that were dropped last.

        Raises:
            Interrupted: The refit was told to stop.
            UserError: A slot was lost or a defect was met in a fold, or no recipe could be refit.
        """
        for number, recipe in self._recipes.items():
            for observer in self._observers:
                observer.refit_started(number, recipe)
        # All candidates' first folds, then all second ones: so it shows early who is behind.
        parts = sorted(
            (part for number in self._recipes for part in self._parts(number)),
            key=lambda part: part.fold,
        )
        for part in filter(self._is_done, parts):
            self._tell_end(part, {})
        self._race()
        while self._train(parts):
            pass  # where a recipe failed, those that it had beaten are trained on
        candidates = self.candidates()
        for number, reason in self._failed.items():
            for observer in self._observers:
                observer.refit_ended(number, {}, reason)
        if not candidates:
            self._failures.unlink(missing_ok=True)  # another machine may do better
            raise UserError("every refit failed: " + "; ".join(self._failed.values()))
        for candidate in candidates:
            candidate.predictions.save(self._run.out_of_fold(candidate.number))
            dropped = str(candidate.dropped or "")
            for observer in self._observers:
                observer.refit_ended(candidate.number, candidate.metrics(), dropped)
        return candidates

    def candidates(self) -> list[Candidate]:
        """Those of which all folds are there, the best first; then those that were dropped."""
        self._race()
        found = [
            self._candidate(number)
            for number in self._recipes
            if number in self._dropped
            or (number not in self._failed and all(map(self._is_done, self._parts(number))))
        ]

        def rank(candidate: Candidate) -> tuple[bool, float]:
            quality = candidate.loss if self._by_loss else -candidate.accuracy.value
            return candidate.dropped is not None, quality

        return sorted(found, key=rank)

    def train_on_all(self, winner: Candidate) -> Path | None:
        """Trains the winner's recipe on all images, and returns the model's file.

        None if the recipe failed there: the fold models stand.
        """
        part = Part(winner.number, ALL_IMAGES)
        if self._is_done(part):
            self._tell_end(part, {})
        self._train([part])
        weights = self._folder(part) / WEIGHTS
        return weights if weights.exists() else None

    def _train(self, parts: Sequence[Part]) -> bool:
        """Trains what is not there yet, in this order, and drops who falls behind.

        Returns:
            Whether anything came to its end.
        """
        jobs = {
            job.id: (part, job)
            for part, job in ((part, self._job(part)) for part in parts)
            if part.trial not in self._out and not self._is_done(part)
        }
        if not jobs or self._pool is None:
            return False
        came_to_an_end = False
        for work, message in self._pool.run([job for _, job in jobs.values()], stop=self._stop):
            part, _ = jobs[work.id]
            came_to_an_end |= not isinstance(message, Progress)
            if isinstance(message, Progress):
                for observer in self._observers:
                    observer.part_epoch_ended(part.trial, part.name, message.epoch, message.metrics)
            elif isinstance(message, Finished):
                self._tell_end(part, message.facts)
                self._race()
            elif message.blames_recipe:  # it would fail again: it is no candidate
                self._fail(part, message)
            else:
                raise UserError(
                    f"the refit of trial {part.trial} failed in {part.name.replace('-', ' ')}: "
                    f"{message.message}; go on with: {self._run.resume_command}"
                )
            for other, job in jobs.values():
                if other.trial in self._out and not self._is_done(other):
                    self._pool.stop(job)
        return came_to_an_end

    def _fail(self, part: Part, failure: Failed) -> None:
        """A recipe that failed is no candidate; the race is run again as if it had never been."""
        if part.fold == ALL_IMAGES:  # the folds' models stand
            about = {"failure": failure.kind, "message": failure.message}
            for observer in self._observers:
                observer.part_ended(part.trial, part.name, None, about)
                observer.noted(f"{failure.message}; the models of its folds stand", "all images")
            return
        if part.trial in self._dropped:
            return
        self._failed[part.trial] = f"trial {part.trial}, {part.name}: {failure.message}"
        write_atomically(self._failures, json.dumps(self._failed))
        self._dropped, self._looked = {}, FIRST_LOOK - 1
        self._race()

    @property
    def _out(self) -> set[int]:
        return {*self._failed, *self._dropped}

    def _race(self) -> None:
        """Drops who is clearly behind after folds that all who are left have done.

        It follows from the folds alone, not from the order in which slots came to their ends.
        """
        spec = self._space.refit
        while self._looked < spec.folds - 1:
            done = self._looked + 1
            left = [number for number in self._recipes if number not in self._out]
            parts = [p for n in left for p in self._parts(n) if p.fold < done]
            if len(left) < 2 or not all(map(self._is_done, parts)):
                return
            self._looked = done
            predictions = {number: self._predictions(number, done) for number in left}
            self._dropped |= drop(
                {number: self._scores(found) for number, found in predictions.items()},
                next(iter(predictions.values())).fold,
                folds=spec.folds,
                candidates=len(self._recipes),
            )

    def _scores(self, predictions: OutOfFold) -> npt.NDArray[np.float64]:
        """How good each prediction is, (S, N), as the search chooses; the higher, the better."""
        if self._by_loss:
            return -predictions.losses(self._labels)
        return predictions.right(self._labels).astype(np.float64)

    def _parts(self, number: int) -> list[Part]:
        spec = self._space.refit
        return [
            Part(number, fold, seed) for fold in range(spec.folds) for seed in range(spec.seeds)
        ]

    def _predictions(self, number: int, folds: int) -> OutOfFold:
        return OutOfFold.gather(self._splits, self._folders(number, folds))

    def _folders(self, number: int, folds: int) -> list[list[Path]]:
        return fold_folders(self._run, number, folds, self._space.refit.seeds)

    def _candidate(self, number: int) -> Candidate:
        dropped = self._dropped.get(number)
        folds = dropped.folds if dropped else self._space.refit.folds
        return make_candidate(
            number,
            self._recipes[number],
            self._folders(number, folds),
            splits=self._splits,
            labels=self._labels,
            dropped=dropped,
        )

    def _folder(self, part: Part) -> Path:
        return self._run.part(part.trial, part.name)

    def _is_done(self, part: Part) -> bool:
        """Whether all of its files are there."""
        names = [WEIGHTS] if part.fold == ALL_IMAGES else [WEIGHTS, LOGITS]
        if part.fold != ALL_IMAGES and self._recipes[part.trial].tta != "none":
            names.append(PLAIN_LOGITS)
        return all((self._folder(part) / name).exists() for name in names)

    def _tell_end(self, part: Part, facts: dict[str, Any]) -> None:
        accuracy = None
        if part.fold != ALL_IMAGES:
            logits = np.load(self._folder(part) / LOGITS)
            labels = self._labels[self._splits.held_out(part.fold)[1]]
            accuracy = float((logits.argmax(1) == labels).mean())
        for observer in self._observers:
            observer.part_ended(part.trial, part.name, accuracy, facts)

    def _job(self, part: Part) -> Job:
        path = [part.trial, part.fold, *([part.seed] if part.seed else [])]
        seed = derive_seed(self._space.search.seed, "refit", *path)
        return Job(
            id=f"refit-{part.trial}-{part.name}",
            recipe=self._recipes[part.trial].with_values({"seed": seed}),
            folder=self._folder(part),
            data_root=self._data_root,
            splits=self._run.splits,
            fold=part.fold,
        )


def refit_trials(study: TrialStudy, run: RunFolder) -> list[FrozenTrial]:
    """The trials whose recipes are refit: the best, the baseline if it is wanted, and who was.

    A search that is extended has other best trials, and keeps the candidates that it had.
    """
    spec, chosen = study.space.refit, study.best(study.space.refit.top_k)
    baseline = study.trials[0]
    others = [baseline] if spec.baseline and is_feasible(baseline) else []
    others += [trial for trial in study.trials if run.out_of_fold(trial.number).exists()]
    numbers = dict.fromkeys(trial.number for trial in [*chosen, *others])
    return [study.trials[number] for number in numbers]


def fold_folders(run: RunFolder, number: int, folds: int, seeds: int) -> list[list[Path]]:
    """Where the refit of a trial keeps the files of each fold, for each seed."""
    return [
        [run.part(number, Part(number, fold, seed).name) for fold in range(folds)]
        for seed in range(seeds)
    ]
