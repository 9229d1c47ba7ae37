"""A search in a made-up world, which can be killed at any of its durable writes and gone on with.

    python simulated.py FOLDER ADDRESS [--kill-at MOMENT] [--trials N] [--slots N]

Everything is real but the slots: Ray Tune, the study, the scheduler, MLflow. The world has a clock:
of all trials under way, that whose epoch ends first reports first, and the next does when all that
followed from it is done. So the end depends on nothing but the space, its seed and the slots. A
search that is there is gone on with, and extended where it is to have more trials.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cifartune.config import SearchSpace
from cifartune.files import write_atomically
from cifartune.runs import RunFolder
from cifartune.tuning.checkpoints import Checkpoints
from cifartune.tuning.messages import Failed, Finished, Job, Message, Progress

SLOTS = 3
TRIALS = 14
FAILS = 2, 1
"""A trial, and the epoch after which it does."""

SPACE = SearchSpace.model_validate(
    {
        "name": "simulated",
        "base": {"model": {"name": "mlp"}, "epochs": 8},
        "parameters": {
            "optimizer.lr": {"min": 1e-3, "max": 1.0, "log": True},
            "optimizer.momentum": {"min": 0.5, "max": 0.99},
        },
        "search": {"num_trials": TRIALS, "sampler": "tpe", "seed": 1},
        "scheduler": {"name": "asha", "grace_period": 1, "reduction_factor": 2},
    }
)


def duration(number: int, epoch: int) -> float:
    """How long an epoch of a trial takes."""
    return random.Random(f"{number} {epoch}").lognormvariate(0, 1)


def metrics_of(job: Job, number: int, epoch: int) -> dict[str, float]:
    """What an epoch brings: rates near 0.1 are good, and luck is part of it."""
    optimizer = job.recipe.optimizer
    skill = 0.7 - 0.1 * abs(optimizer.lr - 0.1) - 0.2 * abs(optimizer.momentum - 0.9)
    luck = random.Random(f"luck {number} {epoch}").gauss(0, 0.03)
    accuracy = skill * (1 - 0.6 ** (epoch + 1)) + luck
    names = ("train_loss", "val_loss", "train_accuracy", "lr", "images_per_second", "seconds")
    return {**dict.fromkeys(names, 1.0), "val_accuracy": accuracy}


@dataclass(eq=False)
class Run:
    """A trial that is under way.

    Attributes:
        job: What it is.
        number: The trial's.
        epoch: Epochs done.
        end: When the next one is.
        asker: Whoever waits for that.
    """

    job: Job
    number: int
    epoch: int
    end: float
    asker: asyncio.Future[Message] | None = None


class World:
    """A board on which jobs are done by nobody, in no time, and in a fixed order.

    Args:
        file: What a trial's slot knows of the time, which does not end with the driver.
        slots: How many trials are under way at once.
        open_trials: Trials that the search has not ended yet.
    """

    def __init__(self, file: Path, slots: int, open_trials: int) -> None:
        self._file = file
        self._slots = slots
        self._open = open_trials
        self._runs: dict[str, Run] = {}
        self._trained, self._now, self._begun = 0, 0.0, dict[str, float]()
        if file.exists():
            self._trained, self._now, self._begun = json.loads(file.read_text())

    async def submit(self, job: Job) -> None:
        """A trial takes a slot; one that was under way goes on behind its checkpoint."""
        number = int(job.id.removeprefix("trial-"))
        begun = self._begun.setdefault(job.id, self._now)
        epoch = Checkpoints(job.folder).epoch
        end = begun + sum(duration(number, e) for e in range(1, epoch + 2))
        self._runs[job.id] = Run(job, number, epoch, end)
        self._save()

    async def next(self, job_id: str) -> Message:
        """As the board's."""
        run = self._runs.get(job_id)
        if run is None:
            return Failed("stopped", "nobody wants it")
        if run.epoch == run.job.recipe.epochs:
            self._close(job_id)
            return Finished({"params": 1, "kept_epoch": run.epoch})
        if run.epoch:
            write_atomically(run.job.folder / f"epoch-{run.epoch}.checkpoint", b"")
        run.asker = asyncio.get_running_loop().create_future()
        self._turn()
        return await run.asker

    async def stop(self, job_id: str) -> None:
        """As the board's."""
        if job_id in self._runs:
            self._close(job_id)

    async def stop_all(self) -> None:
        """As the board's."""
        for job_id in list(self._runs):
            self._close(job_id)

    async def reopen(self) -> None:
        """As the board's: nothing to do."""

    def _close(self, job_id: str) -> None:
        run = self._runs.pop(job_id)
        if run.asker and not run.asker.done():
            run.asker.set_result(Failed("stopped", "nobody wants it"))
        self._open -= 1
        self._turn()

    def _turn(self) -> None:
        """Lets the first epoch end, when all slots wait for one."""
        waiting = [run for run in self._runs.values() if run.asker and not run.asker.done()]
        if not waiting or len(waiting) < min(self._slots, self._open):
            return
        run = min(waiting, key=lambda run: (run.end, run.number))
        assert run.asker
        if (run.number, run.epoch) == FAILS:
            self._now = run.end
            self._save()
            run.asker.set_result(Failed("non_finite_loss", "the loss was not finite", 2))
            self._close(run.job.id)
            return
        self._trained, self._now = self._trained + 1, run.end
        self._save()
        run.epoch += 1
        run.end += duration(run.number, run.epoch + 1)
        metrics = metrics_of(run.job, run.number, run.epoch)
        run.asker.set_result(Progress(run.epoch, metrics, run.epoch == run.job.recipe.epochs))

    def _save(self) -> None:
        write_atomically(self._file, json.dumps([self._trained, self._now, self._begun]))


class Writes:
    """Counts the moments before, in and after durable writes, and ends the process at one."""

    def __init__(self, kill_at: int) -> None:
        self.count = 0
        self._kill_at = kill_at

    def __call__(self, *arguments: Any) -> None:
        self.count += 1
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """From now on every transaction of a database and every atomic file counts."""
        from sqlalchemy import Engine, event

        from cifartune.tracking.outbox import Outbox

        event.listen(Engine, "begin", self)  # before it, and after the one before
        event.listen(Engine, "commit", self)  # written, and not yet committed
        for owner, name in ((os, "fsync"), (os, "replace"), (Outbox, "put"), (Outbox, "sent")):
            setattr(owner, name, self._around(getattr(owner, name)))

    def _around(self, write: Any) -> Any:
        def watched(*arguments: Any) -> Any:
            self()
            result = write(*arguments)
            self()
            return result

        return watched


def main(folder: Path, address: str, *, kill_at: int, trials: int, slots: int) -> None:
    """The search, from where it is to its end, or to the process's."""
    import ray
    from optuna.trial import TrialState

    from cifartune.extend import space_to_resume
    from cifartune.tracking import MlflowTracker
    from cifartune.tuning.cluster import cluster
    from cifartune.tuning.gone import database_gone
    from cifartune.tuning.search import run_trials
    from cifartune.tuning.study import TrialStudy

    runs = folder / "runs"
    writes = Writes(kill_at)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    if (runs / SPACE.name).exists():
        run = RunFolder.open(runs, SPACE.name)
        space = space_to_resume(run, [f"search.num_trials={trials}"])
    else:
        search = SPACE.search.model_copy(update={"num_trials": trials})
        space = SPACE.model_copy(update={"search": search})
        storage = os.environ.get("STUDY_STORAGE", "")
        run = RunFolder.create(runs, space, space.name, tracking_uri=uri, storage=storage)
    tracker = MlflowTracker(uri, run, {})
    tracker.check()  # the store's tables are MLflow's affair
    with cluster(address):
        writes.watch()
        study = TrialStudy(space, url=run.study_url, name=run.study_name)
        tracker.catch_up(study)
        ended = sum(trial.state.is_finished() for trial in study.trials)
        world: Any = ray.remote(num_cpus=0)(World)
        pool: Any = SimpleNamespace(
            board=world.remote(folder / "world.json", slots, trials - ended),
            shape=SimpleNamespace(count=slots),
            storage=run.ray,
            lost="",
        )
        try:
            run_trials(
                study, pool, folder=run.trials, data_root=folder, splits=folder, observers=[tracker]
            )
        except Exception as error:
            if lost := database_gone(error):
                tracker.close("FAILED")
                sys.exit(f"gone: {lost}")
            raise
    tracker.close()
    assert not tracker.failures, tracker.failures
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in study.trials)
    print(json.dumps({"moments": writes.count, "best": study.best()[0].number}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("address")
    parser.add_argument("--kill-at", type=int, default=0)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--slots", type=int, default=SLOTS)
    main(**vars(parser.parse_args()))
