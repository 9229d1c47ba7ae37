"""Searches with a thousand slots that only pretend to train: what deciding costs.

    python benchmarks/simulated_search.py [FILE] [--slots N] [--trials N] [--length short|full]

The study, the sampler and the scheduler are those of a real search, and the study is a file. The
trainer is a table of made-up learning curves (those of a plan's rehearsal), the clock a queue of
ends of epochs. What is timed: each proposal, with the question whether there is to be one; and each
result, that is the record of an epoch, the scheduler's decision, and where it ends the trial, its
end in the study, which is also given by itself. --length short has a tenth of the slots and trials.
"""

import argparse
import heapq
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from measured import RESULTS, ROOT, keep

from cifartune.config import SearchSpace, load_space
from cifartune.planning.rehearsal import Curves
from cifartune.tuning.cluster import load_ray
from cifartune.tuning.study import SpaceExhausted, TrialStudy, sqlite_url

PARTS = 10
"""In so many equal parts of the search the figures are given."""

METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "images_per_second")


@dataclass
class Timer:
    """Seconds of what was done, one by one."""

    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def time(self) -> Iterator[None]:
        """Times the `with` block."""
        start = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - start)

    def parts(self) -> list[dict[str, float]]:
        """Mean and median in milliseconds of each part of the search."""
        return [
            {"mean_ms": round(1000 * fmean(part), 3), "median_ms": round(1000 * median(part), 3)}
            for part in np.array_split(self.seconds, PARTS)
        ]


def main(options: argparse.Namespace) -> None:
    """Runs the search and keeps what it cost."""
    scale = 10 if options.length == "short" else 1
    slots, trials = options.slots // scale, options.trials // scale
    space = load_space(options.file)
    search = space.search.model_copy(update={"num_trials": trials})
    space = space.model_copy(update={"search": search})
    proposals, results, trial_ends = Timer(), Timer(), Timer()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.db"
        study = TrialStudy(space, url=sqlite_url(path), name="simulated")
        run(space, study, slots, proposals, results, trial_ends)
        size = path.stat().st_size
    states = [trial.state.name for trial in study.trials]
    keep(
        RESULTS / ("simulated_search" + "-short" * (options.length == "short") + ".json"),
        f"python benchmarks/simulated_search.py {options.file.name} --slots {options.slots} "
        f"--trials {options.trials} --length {options.length}",
        file=options.file.name,
        slots=slots,
        trials={name: states.count(name) for name in sorted(set(states))},
        results=len(results.seconds),
        seconds=round(time.perf_counter() - start, 1),
        study_bytes=size,
        proposal=proposals.parts(),
        result=results.parts(),
        trial_end=trial_ends.parts(),
    )


def run(
    space: SearchSpace,
    study: TrialStudy,
    slots: int,
    proposals: Timer,
    results: Timer,
    trial_ends: Timer,
) -> None:
    """The search, an epoch after the other in the order of their ends; the timers are filled."""
    load_ray()  # the schedulers are Tune's
    from ray.tune.schedulers import TrialScheduler

    from cifartune.tuning.schedulers import Handle, make_scheduler, tune_metric

    scheduler: Any = make_scheduler(study)
    metric = tune_metric(study)
    curves, random = Curves(space, seed=0), np.random.default_rng(0)
    ends: list[tuple[float, int]] = []
    handles: dict[int, Handle] = {}

    def begin(now: float) -> None:
        with proposals.time():
            number = proposed(study)
        if number is None:  # the search has them all, which takes no time
            proposals.seconds.pop()
            return
        handles[number] = Handle(number)
        scheduler.on_trial_add(None, handles[number])
        heapq.heappush(ends, (now + random.lognormal(), number))

    for _ in range(slots):
        begin(0.0)
    while ends:
        now, number = heapq.heappop(ends)
        trial = study.trials[number]
        recipe = study.recipe(trial)
        epoch = len(trial.intermediate_values) + 1
        value = curves.value(number, trial.params, epoch / recipe.epochs)
        told = dict.fromkeys(METRICS, value) | {"seconds": 1.0}
        result = {"epoch": epoch, metric: value, "facts": {}}
        is_last = epoch == recipe.last_epoch
        with results.time():
            study.record(number, epoch, value, told)
            if is_last:
                scheduler.on_trial_complete(None, handles[number], result | {"facts": {"kept": 1}})
            else:
                decision = scheduler.on_trial_result(None, handles[number], result)
            goes_on = not is_last and decision == TrialScheduler.CONTINUE
            if not goes_on:
                with trial_ends.time():
                    (study.complete if is_last else study.prune)(number)
        if goes_on:
            heapq.heappush(ends, (now + random.lognormal(), number))
            continue
        begin(now)
        if number % 100 == 0:
            print(json.dumps({"trial": number, "now": round(now), "running": len(ends)}))


def proposed(study: TrialStudy) -> int | None:
    """The number of the next trial; None if there is to be none."""
    if study.trials_left <= 0:
        return None
    try:
        return study.propose().number
    except SpaceExhausted:
        return None


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "file", nargs="?", type=Path, default=ROOT / "search_spaces" / "resnet.yaml"
    )
    parser.add_argument("--slots", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--length", choices=["short", "full"], default="full")
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
