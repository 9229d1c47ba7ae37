"""The search itself: Ray Tune drives the trials, the study proposes, ASHA stops."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from optuna.trial import TrialState
from ray import tune
from ray.tune.search import Searcher
from ray.util.placement_group import NODE_ID_LABEL_KEY

from cifartune.errors import UserError, first_line
from cifartune.events import Observer
from cifartune.tuning.board import RETRIES
from cifartune.tuning.checkpoints import Checkpoints
from cifartune.tuning.disk import TrialFolders
from cifartune.tuning.groups import this_machine
from cifartune.tuning.messages import Failed
from cifartune.tuning.schedulers import Unpickled, make_scheduler, tune_metric
from cifartune.tuning.slots import SlotPool
from cifartune.tuning.study import (
    Proposal,
    SpaceExhausted,
    TrialStudy,
    attributes,
    measured_epoch,
)
from cifartune.tuning.trainable import Trial

FEW = 10
"""So many trials have to fail before the search may be given up."""

FALSE_STARTS = 10
"""So many processes may die under a trial before it begins, beside the usual retries."""

NEARLY_ALL = 0.9
"""The share of failures among the trials that ended, from which on it is."""


def run_trials(
    study: TrialStudy,
    pool: SlotPool,
    *,
    folder: Path,
    data_root: Path,
    splits: Path,
    observers: Sequence[Observer] = (),
    stop: threading.Event | None = None,
    seconds: float | None = None,
) -> None:
    """Runs the study's trials to their number, until the time is up, or until `stop`.

    Trials that the study holds as RUNNING go on first, from their last checkpoints. What `stop`
    interrupts ends with the epoch under way and stays RUNNING; what `seconds` cut off is PRUNED.

    Args:
        study: Proposes, and records every result before it is acted on.
        pool: The slots that train.
        folder: Each trial gets a folder below it, for its checkpoint.
        data_root: The prepared images.
        splits: The search's splits.
        observers: Told of every event, after it is recorded.
        stop: Set from elsewhere, ends the search.
        seconds: What is left of the time budget; None: no limit.

    Raises:
        UserError: No slot is left, nearly all trials failed, none can be proposed, or the disk is
            full. What was under way stays RUNNING.
    """
    stop = stop or threading.Event()
    ray.get(pool.board.reopen.remote())
    parameters = {"board": pool.board, "folder": folder, "data_root": data_root, "splits": splits}
    parameters["keeps_weights"] = study.space.checkpoints.keep > 0
    # On this machine, which may have no core to give, so that no other's end takes a trial with it.
    here = [{NODE_ID_LABEL_KEY: this_machine()}]
    trainable = tune.with_resources(
        tune.with_parameters(Trial, **parameters),
        tune.PlacementGroupFactory([{"memory": 1}], bundle_label_selector=here),
    )
    proposals = _Proposals(study, stop, seconds)
    folders = TrialFolders(folder, study, study.space.checkpoints)
    ledger = _Ledger(study, pool, observers, folders, stop, again=proposals.again)
    stopper = _Stopper(pool, ledger, stop, seconds)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=proposals,
            scheduler=make_scheduler(study, went_on=_went_on(folder)),
            num_samples=-1,
            max_concurrent_trials=pool.shape.count,
            reuse_actors=True,
            trial_dirname_creator=_dirname,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(pool.storage),
            stop=stopper,
            callbacks=[ledger],
            # Of a trial's process that is killed: another asks for the rest of its epochs.
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            # The slots write the checkpoints of the trials.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    tuner.fit()
    # A trial that was just starting may have put its job there after all were stopped.
    with suppress(ray.exceptions.RayActorError):
        ray.get(pool.board.stop_all.remote())
    if pool.lost:
        raise UserError(f"no slot is left to train on: {pool.lost}")
    if ledger.disk_full:
        raise UserError(ledger.disk_full)
    if error := ledger.error or proposals.error:
        raise error
    if ledger.hopeless:
        raise UserError(ledger.hopeless)
    if stopper.out_of_time or not stop.is_set():
        _end_what_is_open(study, pool, ledger, out_of_time=stopper.out_of_time)


def _end_what_is_open(
    study: TrialStudy, pool: SlotPool, ledger: "_Ledger", *, out_of_time: bool
) -> None:
    """Ends trials that will not go on: time is up, or none asked for one whose process died."""
    unfinished = [trial.number for trial in study.trials if trial.state is TrialState.RUNNING]
    if unfinished:
        # A slot that was told to go on just before still writes a checkpoint into their folders.
        with suppress(ray.exceptions.RayActorError):
            ray.get(pool.board.vacated.remote())
    for number in unfinished:
        if out_of_time:
            study.prune(number)
        else:
            study.fail(number, "worker_killed", "the trial's process died as the search ended")
        ledger.close(number)


def _went_on(folder: Path) -> Callable[[int], float]:
    """The epoch after which a trial was last allowed to go on: only then is it checkpointed."""
    return lambda number: Checkpoints(folder / str(number)).epoch


class _Proposals(Unpickled, Searcher):
    """Hands the study's unfinished trials to Tune, then its proposals."""

    def __init__(self, study: TrialStudy, stop: threading.Event, seconds: float | None) -> None:
        super().__init__(metric=tune_metric(study), mode=study.space.target.mode)
        self._study = study
        self._stop = stop
        self._deadline = time.monotonic() + (math.inf if seconds is None else seconds)
        self.error: UserError | None = None
        """Why no further trial could be proposed."""
        self._is_exhausted = False
        self._open: set[str] = set()  # Tune's names of the trials that have not ended
        self._unfinished = [
            Proposal(trial.number, study.recipe(trial))
            for trial in study.trials
            if trial.state is TrialState.RUNNING
        ]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if self._stop.is_set() or time.monotonic() >= self._deadline:
            return Searcher.FINISHED
        proposal = self._next()
        if proposal is None:  # a trial under way may die, and is then to be handed out again
            return None if self._open else Searcher.FINISHED
        self._open.add(trial_id)
        # As one text: Tune copies, flattens and formats what it is given, field by field.
        return {"number": proposal.number, "recipe": proposal.recipe.model_dump_json()}

    def _next(self) -> Proposal | None:
        if self._unfinished:
            return self._unfinished.pop(0)
        if self._is_exhausted or self._study.trials_left <= 0:
            return None
        try:
            return self._study.propose()
        except SpaceExhausted:
            pass
        except UserError as error:  # trials under way still end in order
            self.error = error
        self._is_exhausted = True
        return None

    def again(self, number: int) -> None:
        """Hands out once more an unfinished trial that Tune has given up."""
        self._unfinished.append(Proposal(number, self._study.recipe(self._study.trials[number])))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Remembers that it ended: the ledger has written how."""
        self._open.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is the state."""


class _Ledger(Unpickled, tune.Callback):
    """Writes each event to the study before Tune acts on it, then tells the observers."""

    def __init__(
        self,
        study: TrialStudy,
        pool: SlotPool,
        observers: Sequence[Observer],
        folders: TrialFolders,
        stop: threading.Event,
        *,
        again: Callable[[int], None],
    ) -> None:
        self._study = study
        self._pool = pool
        self._observers = observers
        self._folders = folders
        self._stop = stop
        self._again = again
        self._deaths: Counter[int] = Counter()
        self._false_starts: Counter[int] = Counter()  # processes that died before the trial began
        self._begun: set[int] = set()
        self._metric = study.space.target.metric
        self._ended = 0
        self._failed: list[int] = []
        self.hopeless = ""
        """Why the search is given up; empty while it is not."""
        self.disk_full = ""
        """Why it pauses; empty while there is room."""
        self.error: Exception | None = None
        """What kept it from writing the end of a trial."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        self._begun.add(number)
        recipe = self._study.recipe(self._study.trials[number])
        for observer in self._observers:
            observer.trial_started(number, recipe)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        number, failure = trial.config["number"], result.get("failure")
        if isinstance(failure, Failed) and failure.kind == "disk_full":
            self.disk_full = failure.message
            self._stop.set()  # what is under way ends with its epoch, and can go on
        if isinstance(failure, Failed) and self._is_no_end(failure):
            return
        if isinstance(failure, Failed):
            end = self._study.reject if failure.blames_recipe else self._study.fail
            end(number, failure.kind, failure.message)
            return
        epoch, recorded = result["epoch"], self._study.trials[number]
        metrics = result["metrics"]
        # An epoch that is trained again, after its slot died, keeps the value that was acted on.
        values = {epoch: metrics[self._metric], **recorded.intermediate_values}
        metrics = {**metrics, self._metric: values[epoch]}
        if facts := result.get("facts"):
            facts = {**facts, self._metric: values[facts.get("kept_epoch", epoch)]}
        seconds = attributes(recorded).get("seconds", 0.0)
        if epoch > measured_epoch(recorded):  # each counts once
            seconds += metrics["seconds"]
        all_epochs = {**metrics, "seconds": seconds}
        self._study.record(number, epoch, values[epoch], all_epochs, facts)
        for observer in self._observers:
            observer.epoch_ended(number, epoch, metrics)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Whatever it raises ends the search: Tune would keep it, and run the ended trial again."""
        if self.error:
            return  # what is under way can go on another time
        try:
            self._complete(trial)
        except Exception as error:
            self.error = error

    def _complete(self, trial: Any) -> None:
        number, result = trial.config["number"], trial.last_result
        failure = result.get("failure")
        if isinstance(failure, Failed) and self._is_no_end(failure):
            return  # by the end of the search: it stays RUNNING, and can go on
        if failure is None:
            if "facts" in result:
                self._study.complete(number)
            else:
                self._study.prune(number)
                self._free(number)
        self.close(number)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial's process died, and Tune starts another, which puts the job there anew."""
        self._lose(trial.config["number"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It died too often, or before it began, where Tune starts no other."""
        number = trial.config["number"]
        self._lose(number)
        if self._pool.lost:
            return  # it can go on another time
        deaths = max(self._deaths[number], self._false_starts[number] - FALSE_STARTS)
        if deaths <= RETRIES:
            self._again(number)
            return
        told = f"the trial's process died {deaths} times"
        self._study.fail(number, "worker_killed", told)
        self.close(number)

    def _lose(self, number: int) -> None:
        """Counts a death once: Tune tells of one process as often as it had asked it for something.

        It also gives a trial a process that died while it waited for one.
        """
        (self._deaths if number in self._begun else self._false_starts)[number] += 1
        self._begun.discard(number)
        self._free(number)

    def _free(self, number: int) -> None:
        """Nobody will ask for the trial's next epoch: its slot must not wait for that.

        The trial's process says so itself only when Tune has another trial for it.
        """
        try:
            ray.get(self._pool.board.stop.remote(f"trial-{number}"))
        except ray.exceptions.RayActorError as error:
            self._pool.lost = self._pool.lost or f"the board died: {first_line(error)}"

    def close(self, number: int) -> None:
        """A trial is over: frees what it does not need, and tells the observers."""
        trial = self._study.trials[number]
        self._folders.trial_ended(trial)
        self._ended += 1
        if "failure" in attributes(trial):
            self._failed.append(number)
            self._look_for_hope()
        for observer in self._observers:
            observer.trial_ended(trial)

    def _is_no_end(self, failure: Failed) -> bool:
        """Whether a trial can go on another time."""
        return failure.stopped or failure.kind == "disk_full" or bool(self._pool.lost)

    def _look_for_hope(self) -> None:
        if len(self._failed) < max(FEW, NEARLY_ALL * self._ended):
            return
        known = [attributes(self._study.trials[number]) for number in self._failed]
        kinds = Counter(facts["failure"].replace("_", " ") for facts in known)
        told = ", ".join(f"{count} by {kind}" for kind, count in kinds.most_common())
        self.hopeless = (
            f"{len(self._failed)} of {self._ended} trials failed ({told}), so the search is given "
            f"up; the first, trial {self._failed[0]}: {known[0]['message']}"
        )


class _Stopper(Unpickled, tune.Stopper):
    """Ends the search when asked to, when its time is up, or when nearly all trials fail."""

    def __init__(
        self, pool: SlotPool, ledger: _Ledger, stop: threading.Event, seconds: float | None
    ) -> None:
        self._pool = pool
        self._ledger = ledger
        self._stop = stop
        self._winding_down = False
        self._deadline = time.monotonic() + seconds if seconds is not None else float("inf")
        self._stopped = False
        self.out_of_time = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._stop.is_set() and not self._winding_down:
            # No trial begins any more; Tune ends when those of now have ended with their epoch.
            self._pool.board.wind_down.remote()
            self._winding_down = True
        self.out_of_time = time.monotonic() > self._deadline
        is_given_up = self._ledger.hopeless or self._ledger.error
        if (self.out_of_time or is_given_up) and not self._stopped:
            # Tune waits for a step under way, which would be an epoch: let it return now.
            self._pool.board.stop_all.remote()
            self._stopped = True
        return self._stopped or bool(self._pool.lost)


def _dirname(trial: Any) -> str:
    return f"trial-{trial.config['number']}-{trial.trial_id}"
