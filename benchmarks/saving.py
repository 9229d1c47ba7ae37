"""What saving its state costs a search: checkpoints, weights, study, and what MLflow is to get.

    python benchmarks/saving.py [FILE] [--trials N]

Trains FILE's baseline N times in this process, as a slot does it, and writes after each epoch what
the driver writes: the study, and the file of events for MLflow. What is timed is every one of
those writes, as a share of the whole.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from measured import RESULTS, ROOT, keep

from cifartune.config import load_space
from cifartune.data import default_root, load_train
from cifartune.data.splits import splits_of
from cifartune.runs import RunFolder
from cifartune.tracking import MlflowTracker, default_uri
from cifartune.training import EpochResult
from cifartune.training.memory import run_keeping_memory
from cifartune.tuning import jobs
from cifartune.tuning.checkpoints import Checkpoints
from cifartune.tuning.messages import Job, Verdict
from cifartune.tuning.study import TrialStudy

P = ParamSpec("P")
R = TypeVar("R")


class Timer:
    """Adds up the seconds of calls by what they save."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, call: Callable[P, R]) -> Callable[P, R]:
        """`call`, with its time added to `name`."""

        def timed(*arguments: P.args, **options: P.kwargs) -> R:
            start = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return timed


def main(options: argparse.Namespace) -> None:
    """Trains, and keeps the shares."""
    timer, space = Timer(), load_space(options.file)
    Checkpoints.save = timer.timed("checkpoints", Checkpoints.save)  # type: ignore[method-assign]
    in_jobs: Any = jobs  # which saves by these names
    in_jobs.save_classifier = timer.timed("weights", in_jobs.save_classifier)
    with tempfile.TemporaryDirectory() as temporary:
        uri = default_uri(Path(temporary))
        run = RunFolder.create(Path(temporary), space, tracking_uri=uri)
        splits_of(space, load_train().labels).save(run.splits)
        study = TrialStudy(space, url=run.study_url, name=run.study_name)
        tracker = MlflowTracker(uri, run, {})
        tracker.check()
        start = time.perf_counter()
        for number in range(options.trials):
            train(space.base.with_values({"seed": number}), run, study, tracker, timer)
        whole = time.perf_counter() - start
        tracker.close()
    keep(
        RESULTS / "saving.json",
        f"python benchmarks/saving.py search_spaces/{options.file.name} --trials {options.trials}",
        file=options.file.name,
        trials=options.trials,
        threads=torch.get_num_threads(),
        seconds=round(whole, 1),
        share={name: round(spent / whole, 5) for name, spent in timer.seconds.items()},
        share_of_all=round(sum(timer.seconds.values()) / whole, 5),
    )


def train(
    recipe: Any, run: RunFolder, study: TrialStudy, tracker: MlflowTracker, timer: Timer
) -> None:
    """One trial, with all that is written about it."""
    number = timer.timed("study", study.propose)().number
    timer.timed("events", tracker.trial_started)(number, recipe)

    def report(result: EpochResult, is_last: bool) -> Verdict:
        metrics = result.metrics()
        told = result.epoch, metrics["val_accuracy"], metrics
        if is_last:
            last.append(told)  # it is recorded together with the facts
        else:
            timer.timed("study", study.record)(number, *told)
        timer.timed("events", tracker.epoch_ended)(number, result.epoch, metrics)
        return Verdict.GO_ON

    last: list[tuple[int, float, dict[str, float]]] = []
    job = Job(
        id=f"trial-{number}",
        recipe=recipe,
        folder=run.trials / str(number),
        data_root=default_root(),
        splits=run.splits,
        keeps_weights=True,
    )
    facts = jobs.run_job(job, report)
    epoch, value, metrics = last[0]
    timer.timed("study", study.record)(number, epoch, value, metrics, facts)
    timer.timed("study", study.complete)(number)
    timer.timed("events", tracker.trial_ended)(study.trials[number])


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    quick = ROOT / "search_spaces" / "quick.yaml"
    parser.add_argument("file", nargs="?", type=Path, default=quick)
    parser.add_argument("--trials", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    run_keeping_memory(partial(main, arguments()))
