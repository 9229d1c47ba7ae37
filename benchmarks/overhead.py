"""What a trial costs beyond its training: in a slot, by the documented pattern, in a plain loop.

    python benchmarks/overhead.py [--trials N] [--nested N]

The recipe is a toy: one epoch on a few images. A search of it runs through the study, Ray Tune and
one slot; then trials run as Ray documents it, a Tune function that starts a TorchTrainer for each;
then a loop trains the same recipe in this process. Beyond training is what is left of a trial's
time, from the end of the one before, when the trainer's own epochs are taken off. Memory and
processor time are those of the driver and all processes that it started.
"""

import argparse
import logging
import os
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import psutil
import torch
from measured import RESULTS, keep
from optuna.trial import FrozenTrial

from cifartune.config import Recipe, SearchSpace
from cifartune.data import default_root, load_train
from cifartune.data.splits import splits_of
from cifartune.events import Observer
from cifartune.logs import log_to
from cifartune.training import SplitImages, Trainer
from cifartune.tuning.cluster import cluster, load_ray
from cifartune.tuning.study import TrialStudy, attributes, sqlite_url

IMAGES = 200
ENDS = 50
"""So many trials at the start and at the end are compared."""


def main(options: argparse.Namespace) -> None:
    """Times all three."""
    load_ray()
    space = toy(options.trials)
    with tempfile.TemporaryDirectory() as folder, log_to(Path(folder) / "ray.log"), cluster():
        watcher = in_a_slot(space, Path(folder))
        nested = as_documented(space.base, options.nested, Path(folder) / "nested")
    loop = in_a_loop(space.base, options.trials)
    beyond = watcher.beyond_training()[1:]  # the first trial's waits for the slot
    slot = {"first": watcher.beyond_training()[0], "mean": fmean(beyond), "median": median(beyond)}
    keep(
        RESULTS / "overhead.json",
        f"python benchmarks/overhead.py --trials {options.trials} --nested {options.nested}",
        device="cpu",
        trials=options.trials,
        seconds_beyond_training={
            "slot": {name: round(seconds, 4) for name, seconds in slot.items()},
            "documented": [round(seconds, 2) for seconds in nested],
            "loop": round(median(loop), 4),
        },
        times_less=round(median(nested) / slot["median"], 1),
        growth=watcher.growth(),
    )


def toy(trials: int) -> SearchSpace:
    """A search of one-epoch trials that takes no time."""
    base = {
        "model": {"name": "speednet_small", "resolution": 16},
        "epochs": 1,
        "batch_size": 100,
        # Nothing is measured first.
        **{"precision": "fp32", "memory_format": "channels_last", "compile": "never"},
    }
    return SearchSpace.model_validate(
        {
            "name": "toy",
            "base": base,
            "parameters": {"optimizer.lr": {"min": 0.01, "max": 0.2, "log": True}},
            "data": {"validation": IMAGES, "train_subset": IMAGES},
            "search": {"num_trials": trials},
            "scheduler": {"name": "none"},
        }
    )


class Watcher(Observer):
    """Notes when trials end, what they trained, and what all processes used by then."""

    def __init__(self) -> None:
        self.trained: list[float] = []
        self.memory: list[int] = []
        self.cpu = [self._used()[1]]
        self.ends: list[float] = []
        self.starts = [time.perf_counter()]

    def trial_ended(self, trial: FrozenTrial) -> None:
        """Called by the search after each trial."""
        self.ends.append(time.perf_counter())
        self.trained.append(attributes(trial)["seconds"])
        memory, cpu = self._used()
        self.memory.append(memory)
        self.cpu.append(cpu)
        self.starts.append(time.perf_counter())  # what was noted took time, and is not the trial's

    def beyond_training(self) -> list[float]:
        """Seconds of each trial."""
        rows = zip(self.starts, self.ends, self.trained, strict=False)
        return [end - start - trained for start, end, trained in rows]

    def growth(self) -> dict[str, float]:
        """From the first trials after a warm-up to the last, as a share."""
        cpu = [after - before for before, after in zip(self.cpu, self.cpu[1:], strict=False)]
        shares = {}
        for name, values in (("memory", self.memory), ("processor_time", cpu)):
            first, last = fmean(values[1 : ENDS + 1]), fmean(values[-ENDS:])
            shares[name] = round(last / first - 1, 4)
            shares[f"{name}_first"] = round(first, 4)
        return shares

    @staticmethod
    def _used() -> tuple[int, float]:
        """Bytes and seconds of this process and all below it."""
        memory, cpu = 0, 0.0
        this = psutil.Process()
        for process in [this, *this.children(recursive=True)]:
            try:
                memory += process.memory_info().rss
                cpu += sum(process.cpu_times()[:2])
            except psutil.Error:
                continue
        return memory, cpu


def in_a_slot(space: SearchSpace, folder: Path) -> Watcher:
    """The search through study, Tune and slot."""
    from cifartune.tuning.search import run_trials
    from cifartune.tuning.shape import SlotShape
    from cifartune.tuning.slots import SlotPool

    splits = folder / "splits.npz"
    splits_of(space, load_train().labels).save(splits)
    study = TrialStudy(space, url=sqlite_url(folder / "study.db"), name="toy")
    watcher = Watcher()
    shape = SlotShape(1, 2.0, 0.0)
    with SlotPool(shape, name="overhead", storage=folder / "ray", owns_cluster=True) as pool:
        run_trials(
            study,
            pool,
            folder=folder / "trials",
            data_root=default_root(),
            splits=splits,
            observers=[watcher],
        )
    return watcher


def as_documented(recipe: Recipe, trials: int, folder: Path) -> list[float]:
    """Seconds beyond training of trials that each start a TorchTrainer of their own.

    https://docs.ray.io/en/latest/train/user-guides/hyperparameter-optimization.html
    """
    import ray
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    values = recipe.model_dump()

    def train(config: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        seconds = [r.seconds for r in Trainer(Recipe.model_validate(config), few_images())]
        ray.train.report({"seconds": sum(seconds)})

    def trial(config: dict[str, Any]) -> None:
        TorchTrainer(
            train,
            train_loop_config=values,
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(
                name=f"trial-{tune.get_context().get_trial_id()}",
                storage_path=str(folder),
                # mypy sees the callbacks of Train V1.
                callbacks=[TuneReportCallback()],  # type: ignore[list-item, no-untyped-call]
            ),
        ).fit()

    ends: list[float] = []

    class Ends(tune.Callback):
        def on_trial_complete(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    start = time.perf_counter()
    results = tune.Tuner(
        tune.with_resources(trial, {"CPU": 0.5}),
        param_space={"number": tune.grid_search(list(range(trials)))},
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(
            name="documented", storage_path=str(folder), callbacks=[Ends()], verbose=0
        ),
    ).fit()
    trained = [(results[number].metrics or {})["seconds"] for number in range(len(results))]
    starts = [start, *ends]
    return [end - begin - t for begin, end, t in zip(starts, ends, trained, strict=False)]


def in_a_loop(recipe: Recipe, trials: int) -> list[float]:
    """Seconds beyond training of the same in a loop: what building the network takes."""
    found = []
    split = few_images()
    for seed in range(trials):
        start = time.perf_counter()
        trainer = Trainer(recipe.with_values({"seed": seed}), split)
        trained = sum(result.seconds for result in trainer)
        found.append(time.perf_counter() - start - trained)
    return found


def few_images() -> SplitImages:
    """What the toy recipe trains on."""
    data = load_train()
    return SplitImages(
        torch.from_numpy(data.images),
        torch.from_numpy(data.labels).long(),
        torch.arange(IMAGES),
        torch.arange(IMAGES, 2 * IMAGES),
    )


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--nested", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parent))
    logging.getLogger("ray").setLevel(logging.ERROR)
    main(arguments())
