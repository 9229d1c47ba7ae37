"""Warm slots on a real Ray cluster of this machine, which all tests of this file share."""

import json
import re
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from optuna.trial import FrozenTrial, TrialState
from ray.train import ControllerError, RunConfig, ScalingConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.tune import FailureConfig
from ray.util import placement_group_table
from sparse_data import write_splits, write_train

from cifartune.config import Recipe, SearchSpace
from cifartune.config.specs import ResourceSpec
from cifartune.data import LabelledImages
from cifartune.errors import Interrupted, UserError
from cifartune.events import Observer
from cifartune.logs import log_to
from cifartune.outputs import LOGITS, WEIGHTS
from cifartune.planning import Plan
from cifartune.planning.ahead import look_ahead
from cifartune.training import SplitImages, Trainer
from cifartune.tuning import slots as slots_module
from cifartune.tuning.checkpoints import Checkpoints
from cifartune.tuning.cluster import cluster
from cifartune.tuning.courier import SCRATCH
from cifartune.tuning.groups import SlotTrainer
from cifartune.tuning.jobs import run_job
from cifartune.tuning.messages import Failed, Finished, Job, Message, Progress, Verdict
from cifartune.tuning.search import run_trials
from cifartune.tuning.shape import SlotShape
from cifartune.tuning.slots import SlotPool
from cifartune.tuning.study import (
    TrialStudy,
    attributes,
    sqlite_url,
)

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="bit for bit on the CPU")

DIVERGES = {
    "batch_size": 8,
    "optimizer.lr": 10.0,
    "optimizer.momentum": 0.999,
    "optimizer.weight_decay": 1.0,
    "schedule.warmup": 0.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slots")


@pytest.fixture(scope="module")
def data_root(folder: Path, cifar: LabelledImages) -> Path:
    write_splits(folder / "splits.npz")
    return write_train(folder / "data", cifar)


@pytest.fixture(scope="module")
def ray_cluster(folder: Path) -> Iterator[str]:
    with log_to(folder / "ray.log"), cluster() as dashboard:
        yield dashboard


@pytest.fixture(scope="module")
def slots(folder: Path, ray_cluster: str) -> Iterator[tuple[SlotPool, ExitStack]]:
    """Two slots of one thread each, and what closes them."""
    with ExitStack() as stack:
        shape = SlotShape(count=2, cpus=0.5, gpus=0)
        pool = SlotPool(shape, name="test", storage=folder / "ray", owns_cluster=True)
        yield stack.enter_context(pool), stack


@pytest.fixture
def pool(slots: tuple[SlotPool, ExitStack]) -> SlotPool:
    return slots[0]


@pytest.fixture
def job(tmp_path: Path, folder: Path, data_root: Path, recipe: Recipe) -> Job:
    recipe = recipe.with_values({"model.dropout": 0.1})
    return Job("a", recipe, tmp_path / "a", data_root, folder / "splits.npz")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as a slot has: sums depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def vary(job: Job, name: str, fold: int | None = None, **values: Any) -> Job:
    recipe = job.recipe.with_values({key.replace("__", "."): v for key, v in values.items()})
    return replace(job, id=name, folder=job.folder.with_name(name), recipe=recipe, fold=fold)


def collect(pool: SlotPool, jobs: list[Job]) -> dict[str, list[Message]]:
    messages: dict[str, list[Message]] = {job.id: [] for job in jobs}
    for job, message in pool.run(jobs):
        messages[job.id].append(message)
    return messages


def processes(name: str) -> list[psutil.Process]:
    """Those of this process's own cluster, not of any other on the machine."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def workers() -> list[psutil.Process]:
    """The slots' processes."""
    return processes("RayTrainWorker")


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not (is_met := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return is_met  # and not asked again: a process has no name while Ray gives it another


def learned(message: Message) -> tuple[float, float]:
    assert isinstance(message, Progress)
    return message.metrics["train_loss"], message.metrics["val_loss"]


@on_cpu
def test_jobs_train_as_they_do_without_ray(
    pool: SlotPool, job: Job, split: SplitImages, one_thread: None
) -> None:
    jobs = [
        vary(job, "first", seed=1),
        vary(job, "second", seed=2, optimizer__name="adamw", optimizer__lr=0.01),
        vary(job, "third", seed=1, epochs=1),
        vary(job, "fold", fold=1, seed=1),
    ]
    messages = collect(pool, jobs)
    for one in jobs[:3]:
        *epochs, end = messages[one.id]
        expected = [(r.train_loss, r.val_loss) for r in Trainer(one.recipe, split)]
        assert isinstance(end, Finished), end
        assert [learned(message) for message in epochs] == expected
        assert isinstance(end, Finished)
        assert (end.facts["threads"], end.facts["device"]) == (1, "cpu")
    twin = replace(jobs[3], folder=job.folder.with_name("twin"))
    run_job(twin, lambda result, is_last: Verdict.GO_ON)
    for name in (WEIGHTS, LOGITS):
        assert (jobs[3].folder / name).read_bytes() == (twin.folder / name).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told what to keep")
def test_a_worker_keeps_large_blocks(ray_cluster: str) -> None:
    """Also in a thread of a process that has many, as Ray's have."""

    def count_faults() -> list[int]:
        from cifartune.training.memory import run_keeping_memory

        counts = []

        def work() -> None:
            for _ in range(4):
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                blocks = [torch.zeros(2**25) for _ in range(2)]  # of 128 MiB
                counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
                del blocks

        outer = threading.Thread(target=run_keeping_memory, args=(work,))
        outer.start()
        outer.join()
        return counts

    first, *_, last = ray.get(ray.remote(num_cpus=0)(count_faults).remote())
    assert first > 10_000
    assert last < 100


def test_a_failing_recipe_ends_alone(pool: SlotPool, job: Job, split: SplitImages) -> None:
    bad = [replace(vary(job, f"bad-{i}"), recipe=job.recipe.with_values(DIVERGES)) for i in "123"]
    broken = replace(vary(job, "broken"), data_root=job.folder / "nowhere")
    unread = vary(job, "unread", None, model__weights="/nowhere.safetensors")
    small: dict[str, Any] = {"model__name": "resnet_channels", "model__channels": "8/8"}
    unfit = vary(job, "unfit", None, model__trainable="last_3", **small)
    odd = vary(job, "odd", None)  # fails by an exception that no kind of failure has as its own
    another = job.recipe.with_values({"model.name": "mlp"})
    Checkpoints(odd.folder).save(1, Trainer(another, split).state_dict())
    good = [vary(job, f"good-{i}", seed=i) for i in (1, 2)]
    collect(pool, good)  # both slots have started
    processes = {process.pid for process in workers()}
    messages = collect(pool, [*bad, broken, unread, unfit, odd, *good])
    for one in bad:
        (end,) = messages[one.id]
        assert end == Failed("non_finite_loss", "the loss was not finite in epoch 1", 1)
    (end,) = messages["broken"]
    assert isinstance(end, Failed) and end.kind == "files"
    assert "not prepared in" in end.message
    [end] = messages["unread"]
    assert end == Failed("files", "model.weights: there is no file /nowhere.safetensors")
    [end] = messages["unfit"]
    assert isinstance(end, Failed) and (end.kind, end.blames_recipe) == ("unfit_network", True)
    assert end.message == "model.trainable is last_3, but ResNetChannels has 2 stages"
    [end] = messages["odd"]
    assert end == Failed("error", "ValueError: the checkpoint belongs to another recipe")
    assert end.blames_recipe
    for one in good:
        assert isinstance(messages[one.id][-1], Finished)
    assert len(processes) == 2
    assert {process.pid for process in workers()} == processes


def test_a_job_survives_its_slots_process(pool: SlotPool, job: Job, one_thread: None) -> None:
    collect(pool, [vary(job, "warm-up-1"), vary(job, "warm-up-2")])
    job = vary(job, "killed", fold=0, epochs=4)
    epochs, end, killed = [], None, None
    for _, message in pool.run([job]):
        if isinstance(message, Progress):
            epochs.append(message.epoch)
            if message.epoch == 2 and killed is None:  # so that there is a checkpoint, of epoch 1
                killed = at_work_on(job, pool)
                killed.kill()
        else:
            end = message
    assert isinstance(end, Finished)
    # It goes on from its checkpoint: the first epoch is not trained again.
    assert epochs in ([1, 2, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 3, 4])
    if not torch.cuda.is_available():
        twin = vary(job, "twin", fold=0, epochs=4)
        run_job(twin, lambda result, is_last: Verdict.GO_ON)
        assert (job.folder / LOGITS).read_bytes() == (twin.folder / LOGITS).read_bytes()
    assert killed is not None and not killed.is_running()
    # Meanwhile the other slot has done the job; its own comes back for those that follow.
    assert wait_until(lambda: len(workers()) == 2)


def at_work_on(job: Job, pool: SlotPool) -> psutil.Process:
    """The process of the slot that is at an epoch of `job`."""
    pids: list[int] = []

    def is_at_work() -> bool:
        busy = ray.get(pool.board.overdue.remote(0))
        pids.extend(seat.pid for _, seat, name in busy if name == job.id)
        return bool(pids)

    assert wait_until(is_at_work)  # as soon as the pool's thread has asked for the epoch
    return psutil.Process(pids[0])


def test_a_slot_that_hangs_is_started_anew(pool: SlotPool, job: Job) -> None:
    collect(pool, [vary(job, "warm-up-1"), vary(job, "warm-up-2")])
    job = vary(job, "hangs", epochs=4)
    epochs, hung = [], None
    try:
        for _, message in pool.run([job]):
            if isinstance(message, Progress):
                epochs.append(message.epoch)
                if message.epoch == 2 and hung is None:
                    hung = at_work_on(job, pool)
                    hung.suspend()
                    pool.patience = 6.0
    finally:
        pool.patience = float("inf")
    assert isinstance(message, Finished)
    assert epochs in ([1, 2, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 3, 4])
    assert hung is not None and wait_until(lambda: not hung.is_running())
    assert wait_until(lambda: len(workers()) == 2)


def is_kept(folder: Path, epoch: int) -> bool:
    return Checkpoints(folder).epoch == epoch


def test_a_run_can_be_interrupted(pool: SlotPool, job: Job) -> None:
    stop = threading.Event()
    jobs = [vary(job, f"long-{i}", epochs=10_000) for i in range(3)]
    told: dict[Path, int] = {}
    with pytest.raises(Interrupted):
        for one, message in pool.run(jobs, stop=stop):
            assert isinstance(one, Job) and isinstance(message, Progress)
            told[one.folder] = message.epoch
            stop.set()
    assert 1 <= len(told) <= 2  # the third waited
    for folder, epoch in told.items():
        assert wait_until(partial(is_kept, folder, epoch))
    assert isinstance(collect(pool, [vary(job, "next")])["next"][-1], Finished)


class Watcher(Observer):
    """Keeps what it hears, and sets `stop` after some epochs."""

    def __init__(self, stop: threading.Event | None = None, after: int = 0) -> None:
        self.heard: list[tuple[str, int]] = []
        self.epochs: list[tuple[int, int]] = []
        self._stop, self._after = stop, after

    def trial_started(self, number: int, recipe: Recipe) -> None:
        self.heard.append(("start", number))

    def epoch_ended(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        self.epochs.append((number, epoch))
        if self._stop and len(self.epochs) == self._after:
            self._stop.set()

    def trial_ended(self, trial: FrozenTrial) -> None:
        assert trial.state.is_finished()
        self.heard.append(("end", trial.number))


@pytest.mark.parametrize("crop", [1, 8])
def test_the_look_ahead_plans_a_search_or_stops_it(
    crop: int,
    pool: SlotPool,
    tmp_path: Path,
    folder: Path,
    data_root: Path,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a crop of one pixel, a strength of 0.4 leaves none."""
    base = recipe.with_values({"augment.strength": 0.4, "augment.crop": 0, "seed": 0})
    space = SearchSpace.model_validate(
        {
            "name": "toy",
            "base": base.model_dump(),
            "parameters": {"augment.crop": {"min": 0, "max": crop}},
            "search": {"num_trials": 2},
        }
    )

    def look() -> Plan:
        return look_ahead(
            space,
            pool,
            folder=tmp_path,
            data_root=data_root,
            splits=folder / "splits.npz",
            started=time.monotonic(),
        )

    if crop == 1:
        with pytest.raises(UserError, match=r"parameters\.augment\.crop: changes nothing: with 0"):
            look()
    else:
        plan = look()
        assert (plan.trials, plan.slots, plan.reaching) == (2, 2, {1: 2, 2: plan.reaching[2]})
        assert plan.rates["speednet_small"] > 0 and plan.memory > 10**8
        # Another time what was found is known, if its file is whole.
        with monkeypatch.context() as patched:
            patched.setattr(pool, "probe", lambda *_, **__: pytest.fail("probed again"))
            again = look()
        assert replace(again, start=0, device_hours=0) == replace(plan, start=0, device_hours=0)
        [file] = (data_root / "probes").iterdir()
        file.write_text(file.read_text()[:-9])
        assert look().rates != plan.rates
        assert json.loads(file.read_text())["costs"][0]["train_rate"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_search_can_be_stopped_and_resumed(
    pool: SlotPool, tmp_path: Path, folder: Path, data_root: Path, recipe: Recipe
) -> None:
    """Recipes of a high rate fail; the others train, and ASHA stops some."""
    base = recipe.with_values({**DIVERGES, "optimizer.lr": 0.01, "epochs": 3, "seed": 0})
    space = SearchSpace.model_validate(
        {
            "name": "toy",
            "base": base.model_dump(),
            "parameters": {"optimizer.lr": {"values": [0.01, 0.02, 0.03, 0.04, 9.8, 9.9, 10.0]}},
            "search": {"num_trials": 7, "sampler": "random", "seed": 2},
            "scheduler": {"grace_period": 1, "reduction_factor": 3},
        }
    )

    def run(watcher: Watcher, stop: threading.Event) -> list[FrozenTrial]:
        study = TrialStudy(space, url=sqlite_url(tmp_path / "study.db"), name="toy")
        run_trials(
            study,
            pool,
            folder=tmp_path / "trials",
            data_root=data_root,
            splits=folder / "splits.npz",
            observers=[watcher],
            stop=stop,
        )
        return TrialStudy(space, url=sqlite_url(tmp_path / "study.db"), name="toy").trials

    stop = threading.Event()
    first = Watcher(stop, after=1)  # ASHA lets the first go on, which has no rival yet
    stopped = run(first, stop)
    unfinished = {t.number for t in stopped if t.state is TrialState.RUNNING}
    assert len(stopped) < 7 and unfinished
    assert {n for what, n in first.heard if what == "end"} == {
        t.number for t in stopped if t.state.is_finished()
    }
    assert not any(trial.state is TrialState.FAIL for trial in stopped)

    # In one process, the trials' actors of before may still take their jobs off the board.
    assert wait_until(lambda: not processes("Trainable"))
    second = Watcher()
    trials = run(second, threading.Event())
    assert len(trials) == 7
    for trial in trials:
        assert trial.state is not TrialState.FAIL, attributes(trial)
        epochs = sorted(trial.intermediate_values)
        assert epochs == list(range(1, len(epochs) + 1))
        if trial.params["optimizer.lr"] > 9:
            assert trial.state is TrialState.PRUNED and trial.constraints == {"failed": 1.0}
            assert attributes(trial)["failure"] == "non_finite_loss"
        elif trial.state is TrialState.COMPLETE:
            assert len(epochs) == 3 and attributes(trial)["threads"] == 1
        else:
            assert trial.state is TrialState.PRUNED and 0 < len(epochs) < 3
        if "failure" not in attributes(trial):
            assert attributes(trial)["val_accuracy"] == trial.value
    states = [trial.state for trial in trials]
    assert states.count(TrialState.COMPLETE) and states.count(TrialState.PRUNED)
    assert sum(bool(trial.constraints) for trial in trials) > 0
    # What was decided stays decided; what was under way is started again, and only that.
    for before, after in zip(stopped, trials, strict=False):
        if before.state.is_finished():
            assert (before.state, before.value) == (after.state, after.value)
    assert {n for what, n in second.heard if what == "start"} == unfinished | set(
        range(len(stopped), 7)
    )
    # No epoch is trained again: those that were under way were kept.
    assert not set(first.epochs) & set(second.epochs)
    assert sorted(first.epochs + second.epochs) == sorted(
        (trial.number, epoch) for trial in trials for epoch in trial.intermediate_values
    )
    # Of all that they wrote, the weights of the best are left.
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    best = sorted(complete, key=lambda trial: -(trial.value or 0))[: space.checkpoints.keep]
    left = {path.relative_to(tmp_path / "trials") for path in tmp_path.glob("trials/*/*")}
    files = (WEIGHTS, LOGITS)
    assert left == {Path(str(trial.number), file) for trial in best for file in files}


class Killer(Watcher):
    """Kills the processes of the trials, which hold no slot, when it hears what it waits for."""

    def __init__(self, *moments: tuple[str, int]) -> None:
        super().__init__()
        self._moments = list(moments)

    def epoch_ended(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        super().epoch_ended(number, epoch, metrics)
        self._kill("epoch", number)

    def trial_ended(self, trial: FrozenTrial) -> None:
        super().trial_ended(trial)
        self._kill("end", trial.number)

    def _kill(self, what: str, number: int) -> None:
        if (what, number) in self._moments:
            self._moments.remove((what, number))
            for process in processes("ray::Trial"):
                process.kill()


def search_with_kills(
    killer: Killer, trials: int, pool: SlotPool, folder: Path, job: Job
) -> list[FrozenTrial]:
    space = SearchSpace.model_validate(
        {
            "name": "toy",
            "base": job.recipe.with_values({"epochs": 3, "seed": 0}).model_dump(),
            "parameters": {"optimizer.lr": {"min": 0.01, "max": 0.1}},
            "search": {"num_trials": trials, "sampler": "random"},
            "scheduler": {"name": "none"},
        }
    )
    study = TrialStudy(space, url="sqlite://", name="toy")
    run_trials(
        study,
        pool,
        folder=folder / "trials",
        data_root=job.data_root,
        splits=job.splits,
        observers=[killer],
    )
    return study.trials


@pytest.mark.parametrize("moment", [("epoch", 0), ("end", 1)])
def test_a_trial_goes_on_when_its_process_is_killed(
    moment: tuple[str, int], pool: SlotPool, tmp_path: Path, job: Job
) -> None:
    """In an epoch, and while the process waits for its next trial."""
    killer = Killer(moment)
    trials = search_with_kills(killer, 3, pool, tmp_path, job)
    assert killer._moments == []
    for trial in trials:
        assert trial.state is TrialState.COMPLETE, attributes(trial)
        assert sorted(trial.intermediate_values) == [1, 2, 3]
    # The epochs that were under way are trained again, and no others.
    assert len(killer.epochs) <= 3 * 3 + pool.shape.count
    assert sorted(n for what, n in killer.heard if what == "end") == [0, 1, 2]


def test_the_last_trial_goes_on_though_tune_gives_it_up(
    pool: SlotPool, tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where the process dies before the trial begins: here, whenever it dies."""
    never = FailureConfig(max_failures=0)
    monkeypatch.setattr("cifartune.tuning.search.tune.FailureConfig", lambda **_: never)
    killer = Killer(("epoch", 2))
    trials = search_with_kills(killer, 3, pool, tmp_path, job)
    assert killer._moments == []
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3, trials
    assert sorted(n for what, n in killer.heard if what == "end") == [0, 1, 2]


def test_a_run_that_waits_for_room_can_be_ended(ray_cluster: str, tmp_path: Path) -> None:
    """Or else its thread waits for Ray still when that is shut down, which ends the process."""

    def waiting() -> SlotTrainer:
        return SlotTrainer(
            lambda config: None,
            owns_cluster=False,
            train_loop_config={},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1000}),
            run_config=RunConfig(name="room", storage_path=str(tmp_path)),
        )

    trainer = waiting()
    with ThreadPoolExecutor() as threads:
        run = threads.submit(trainer.fit)
        assert wait_until(lambda: bool(processes("TrainController")))
        assert not run.done()
        trainer.end()
        assert isinstance(run.exception(timeout=20), ray.exceptions.RayActorError)
    late = waiting()
    late.end()
    with pytest.raises(ray.exceptions.RayActorError):
        late.fit()


def test_a_trial_whose_process_is_killed_again_and_again_fails(
    pool: SlotPool, tmp_path: Path, job: Job
) -> None:
    [trial] = search_with_kills(Killer(*[("epoch", 0)] * 3), 1, pool, tmp_path, job)
    facts = attributes(trial)
    assert (trial.state, facts["failure"]) == (TrialState.FAIL, "worker_killed")
    assert facts["message"] == "the trial's process died 3 times"
    assert not list((tmp_path / "trials").glob("*/*"))
    assert isinstance(collect(pool, [vary(job, "next")])["next"][-1], Finished)


def test_a_search_is_given_up_when_nearly_all_trials_fail(
    pool: SlotPool, tmp_path: Path, folder: Path, data_root: Path, recipe: Recipe
) -> None:
    base = recipe.with_values({**DIVERGES, "seed": 0})
    space = SearchSpace.model_validate(
        {
            "name": "toy",
            "base": base.model_dump(),
            "parameters": {"optimizer.lr": {"min": 9.0, "max": 10.0}},
            "search": {"num_trials": 40, "sampler": "random"},
        }
    )
    study = TrialStudy(space, url="sqlite://", name="toy")
    message = (
        r"1\d of 1\d trials failed \(1\d by non finite loss\), so the search is given up; "
        r"the first, trial \d: the loss was not finite in epoch 1"
    )
    with pytest.raises(UserError, match=message):
        run_trials(
            study,
            pool,
            folder=tmp_path / "trials",
            data_root=data_root,
            splits=folder / "splits.npz",
        )
    assert 10 <= len(study.trials) <= 14


def test_a_search_ends_when_its_time_is_up(
    pool: SlotPool, tmp_path: Path, folder: Path, data_root: Path, recipe: Recipe
) -> None:
    space = SearchSpace.model_validate(
        {
            "name": "toy",
            "base": recipe.with_values({"epochs": 10_000}).model_dump(),
            "search": {"num_trials": 9},
            "scheduler": {"name": "none"},
        }
    )
    study = TrialStudy(space, url="sqlite://", name="toy")
    watcher = Watcher()
    run_trials(
        study,
        pool,
        folder=tmp_path / "trials",
        data_root=data_root,
        splits=folder / "splits.npz",
        observers=[watcher],
        seconds=3.0,
    )
    assert not list((tmp_path / "trials").glob("*/*"))
    assert 0 < len(study.trials) <= 2
    for trial in study.trials:
        assert trial.state is TrialState.PRUNED
        assert ("end", trial.number) in watcher.heard


@pytest.mark.slow  # tests/tuning/test_courier.py has the sending without Ray
def test_a_slot_that_does_not_see_the_drivers_disk_has_files_sent(
    ray_cluster: str, tmp_path: Path, job: Job, one_thread: None
) -> None:
    """It goes on from what it sent, even where its machine has lost everything."""

    def scratch() -> set[Path]:
        return set(Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"))

    fold = vary(job, "fold", fold=0, epochs=3)
    trial = replace(vary(job, "trial", epochs=1), keeps_weights=True)
    deaf = replace(vary(job, "deaf"), splits=tmp_path / "nowhere.npz")
    before, at_home, used = scratch(), list[set[str]](), set[Path]()
    pool = SlotPool(SlotShape(count=1, cpus=0.5, gpus=0), name="away", storage=tmp_path / "ray")
    with pool:
        [mark] = (tmp_path / "ray").glob("driver-*")
        mark.unlink()
        killed = None
        for _, message in pool.run([fold]):
            if not isinstance(message, Progress):
                break
            at_home.append({path.name for path in fold.folder.glob("epoch-*")})
            used |= scratch() - before
            if message.epoch == 2 and killed is None:
                killed = at_work_on(fold, pool)
                killed.kill()
        messages = collect(pool, [deaf, trial])
    assert isinstance(message, Finished) and killed, message
    assert "epoch-1.checkpoint" in at_home[1]
    assert len(at_home) in (3, 4)  # of the first epoch nothing is trained again
    assert len(used) == 2  # one of each process
    assert scratch() <= before  # which may hold folders of slots that were killed, now deleted
    assert sorted(path.name for path in fold.folder.iterdir()) == [LOGITS, WEIGHTS]
    twin = vary(job, "twin", fold=0, epochs=3)
    run_job(twin, lambda result, is_last: Verdict.GO_ON)
    assert (fold.folder / LOGITS).read_bytes() == (twin.folder / LOGITS).read_bytes()
    [missing] = messages[deaf.id]
    assert isinstance(missing, Failed) and missing.kind == "files"
    assert "nowhere.npz" in missing.message
    assert isinstance(messages[trial.id][-1], Finished)
    assert sorted(path.name for path in trial.folder.iterdir()) == [LOGITS, WEIGHTS]


@pytest.mark.slow  # tests/training/test_workers.py has them without Ray
def test_two_workers_train_a_job_together(
    ray_cluster: str, tmp_path: Path, job: Job, split: SplitImages
) -> None:
    """As one does, but for rounding; what one of them dies of, the other does not survive."""
    shape = SlotShape(count=1, cpus=1.0, gpus=0, workers=2)
    plain = {"model__dropout": 0.0, "seed": 3}
    with SlotPool(shape, name="two", storage=tmp_path, owns_cluster=True) as pool:
        trial, fold = vary(job, "trial", None, **plain), vary(job, "fold", 1, epochs=4, **plain)
        bad = replace(vary(job, "bad"), recipe=job.recipe.with_values(DIVERGES))
        broken = replace(vary(job, "broken"), data_root=job.folder / "nowhere")
        messages = collect(pool, [trial, bad, broken])
        epochs, killed = [], False
        for _, message in pool.run([fold]):
            if isinstance(message, Progress):
                epochs.append(message.epoch)
                if message.epoch == 2 and not killed:
                    killed = True
                    workers()[-1].kill()
            else:
                end = message
    *progress, done = messages["trial"]
    assert isinstance(done, Finished), done
    assert done.facts["threads"] == 1
    expected = [(r.train_loss, r.val_loss) for r in Trainer(trial.recipe, split)]
    for epoch, losses in zip(progress, expected, strict=True):
        assert learned(epoch) == pytest.approx(losses, rel=2e-3)
    assert messages["bad"] == [Failed("non_finite_loss", "the loss was not finite in epoch 1", 1)]
    [lost] = messages["broken"]
    assert isinstance(lost, Failed) and lost.kind == "files"
    assert isinstance(end, Finished) and killed
    assert epochs in ([1, 2, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 3, 4])
    assert np.load(fold.folder / LOGITS).shape == (200, 10)


@pytest.mark.slow
def test_isolated_jobs_have_processes_of_their_own(
    ray_cluster: str, tmp_path: Path, job: Job, split: SplitImages, one_thread: None
) -> None:
    shape = SlotShape(count=1, cpus=0.5, gpus=0, isolation="process")
    others = {process.pid for process in workers()}
    bad = replace(vary(job, "bad"), recipe=job.recipe.with_values(DIVERGES))
    with SlotPool(shape, name="isolated", storage=tmp_path, owns_cluster=True) as pool:
        trainers: dict[str, int] = {}
        for one, message in pool.run([vary(job, "good"), bad, vary(job, "next", seed=5)]):
            if isinstance(message, Progress):
                trainers[one.id] = ray.get(pool.board.seat.remote(0)).pid
        assert isinstance(message, Finished)
    assert set(trainers) == {"good", "next"}
    assert len({*trainers.values()} - others) == 2
    assert wait_until(lambda: {process.pid for process in workers()} == others)


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().total > 40e9, reason="as much can be had here")
def test_a_job_that_fills_the_memory_is_ended(ray_cluster: str, tmp_path: Path, job: Job) -> None:
    """Ten GiB at once, which are there; but of the memory that it has in the end it is told."""
    shape = SlotShape(count=1, cpus=0.5, gpus=0)
    pool = SlotPool(shape, name="full", storage=tmp_path, owns_cluster=True)
    pool.memory_share = 0.15
    model: dict[str, Any] = {
        "model__name": "resnet_channels",
        "model__channels": "512/8/8/16",
    }
    size = {"model__resolution": 128, "batch_size": 300, "micro_batch": 300}
    greedy = vary(job, "greedy", None, **size, **model)
    with pool:
        messages = collect(pool, [greedy, vary(job, "next")])
    (end,) = messages["greedy"]
    assert isinstance(end, Failed) and end.kind == "out_of_memory"
    assert re.match(r"[\d.]+ GiB, when \d+% of the memory were in use", end.message)
    assert isinstance(messages["next"][-1], Finished)  # the slot was started again


class DeadSlots(SlotPool):
    """Slots that die as soon as they start."""

    starts = 0

    def _trainer(self, slot: int, attempt: int) -> Any:
        self.starts += 1
        raise RuntimeError("no such device\nand a long story")


def test_without_slots_jobs_fail_instead_of_waiting(
    ray_cluster: str, tmp_path: Path, job: Job
) -> None:
    shape = SlotShape(count=2, cpus=1, gpus=0)
    pool = DeadSlots(shape, name="dead", storage=tmp_path)
    with pool:
        messages = collect(pool, [job, vary(job, "b")])
    for name in ("a", "b"):
        (end,) = messages[name]
        assert isinstance(end, Failed) and end.kind == "no_slots"
        assert end.message.endswith("died: no such device")
    assert pool.starts == 2 * 4


def test_a_defect_in_a_slots_thread_leaves_no_job_waiting(
    ray_cluster: str, tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = DeadSlots(SlotShape(count=1, cpus=1, gpus=0), name="dead", storage=tmp_path)

    def broken(slot: int) -> str:
        raise TypeError("nobody thought of this")

    monkeypatch.setattr(pool, "_cause", broken)
    with pool:
        [end] = collect(pool, [job])["a"]
    reason = "slot 0 is given up: nobody thought of this"
    assert end == Failed("no_slots", reason) and pool.lost == reason


class NoRoom(SlotPool):
    """Slots that look for room until they are ended."""

    looks = 0
    is_ended = threading.Event()

    def _trainer(self, slot: int, attempt: int) -> Any:
        return self

    def fit(self) -> None:
        self.looks += 1
        if self.looks < 3:
            raise ControllerError(WorkerGroupStartupTimeoutError(1))
        self.is_ended.wait(60)

    def end(self) -> None:
        self.is_ended.set()


def test_a_pool_closes_at_once_where_a_slot_finds_no_room(ray_cluster: str, tmp_path: Path) -> None:
    told: list[str] = []
    shape = SlotShape(count=1, cpus=2, gpus=0)
    pool = NoRoom(shape, name="full", storage=tmp_path, tell=told.append)
    with pool:
        assert wait_until(lambda: pool.looks == 3)
        start = time.monotonic()
    assert time.monotonic() - start < 10
    assert not any(thread.is_alive() for thread in pool._threads)  # Ray may be shut down
    assert told == [
        "slot 0 finds no room on the cluster for 2 CPU cores: others hold it, or its machine is "
        "gone; it goes on looking"
    ]


def test_a_machine_is_lost_when_it_does_not_answer(
    pool: SlotPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray still has it among those that are alive, for some seconds."""
    assert wait_until(lambda: ray.get(pool.board.seat.remote(0)) is not None)
    assert pool._cause(0) == "worker_killed"  # the driver's own machine is there
    monkeypatch.setattr(slots_module, "this_machine", lambda: "elsewhere")
    assert pool._cause(0) == "worker_killed"  # this one answers
    assert not slots_module._answers("0" * 56)
    monkeypatch.setattr(slots_module, "_answers", lambda node: False)
    assert pool._cause(0) == "node_lost"


def test_a_probe_has_its_time(pool: SlotPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watcher kills a slot that takes longer than the pool's patience."""
    probe: Any = None

    def run(jobs: list[Any], *, stop: Any) -> list[tuple[Any, Message]]:
        return [(probe, Finished({"probed": pool.patience}))]

    monkeypatch.setattr(pool, "run", run)
    patience: Any = pool.probe(probe)
    assert patience == slots_module.PROBE_SECONDS
    assert pool.patience == float("inf")


def test_the_pool_leaves_nothing_behind(slots: tuple[SlotPool, ExitStack], job: Job) -> None:
    pool, stack = slots
    collect(pool, [vary(job, "last")])
    assert workers()
    stack.close()
    assert wait_until(lambda: not workers() and not held())


def held() -> list[str]:
    """Placement groups that are not given back."""
    groups = placement_group_table()
    return [name for name, group in groups.items() if group["state"] != "REMOVED"]


@pytest.mark.parametrize(
    ("have", "wanted", "concurrent", "shape"),
    [
        ({"CPU": 2.0}, {}, "auto", (1, 2, 0)),
        ({"CPU": 8.0}, {}, "auto", (4, 2, 0)),
        ({"CPU": 8.0}, {}, 3, (3, 2, 0)),
        ({"CPU": 1.0}, {}, "auto", (1, 1, 0)),
        ({"CPU": 8.0}, {"cpus": 1.0}, "auto", (8, 1, 0)),
        ({"CPU": 2.0}, {"cpus": 0.1}, "auto", (2, 0.1, 0)),
        ({"CPU": 8.0}, {"workers": 4}, "auto", (2, 4, 0, 4)),
        ({"CPU": 16.0, "GPU": 4.0}, {"workers": 2}, "auto", (2, 8, 2, 2)),
        ({"CPU": 16.0, "GPU": 1.0}, {"workers": 2}, "auto", (1, 16, 1, 2)),
        ({"CPU": 16.0, "GPU": 1.0}, {}, "auto", (1, 16, 1)),
        ({"CPU": 16.0, "GPU": 4.0}, {}, "auto", (4, 4, 1)),
        ({"CPU": 16.0, "GPU": 1.0}, {"gpus": 0.25}, "auto", (4, 4, 0.25)),
        ({"CPU": 20.0, "GPU": 1.0}, {"gpus": 0.2}, "auto", (5, 4, 0.2)),
        ({"CPU": 20.0, "GPU": 1.0}, {"gpus": 0.1}, "auto", (10, 2, 0.1)),
        ({"CPU": 2.0, "GPU": 4.0}, {}, "auto", (2, 1, 1)),
        ({"CPU": 8.0, "GPU": 1.0}, {"gpus": 0.0}, "auto", (4, 2, 0)),
        ([{"CPU": 1.0}, {"CPU": 1.0}], {}, "auto", (2, 1, 0)),
        ([{"CPU": 3.0}, {"CPU": 3.0}], {}, "auto", (2, 2, 0)),
        ([{"CPU": 1.0}, {"CPU": 2.0}], {"workers": 3}, "auto", (1, 3, 0, 3)),
        ([{}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}], {}, "auto", (2, 8, 1)),
        ([{"CPU": 64.0}, {"CPU": 8.0, "GPU": 2.0}], {}, "auto", (2, 4, 1)),
        ([{"CPU": 4.0, "GPU": 1.0}] * 2, {"workers": 2}, "auto", (1, 8, 2, 2)),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}], {}, "auto", (2, 4, 1)),
        ({"CPU": 16.0, "GPU": 4.0}, {"gpus": 0.3}, "auto", (12, 1, 0.3)),
        ({"CPU": 16.0, "GPU": 4.0}, {"gpus": 0.6}, "auto", (4, 4, 0.6)),
        ({"CPU": 2.0}, {"workers": 4, "cpus": 2.0}, "auto", (1, 2, 0, 4)),
    ],
)
def test_slots_share_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
    have: dict[str, float] | list[dict[str, float]],
    wanted: dict[str, float],
    concurrent: int | str,
    shape: tuple[int, float, float] | tuple[int, float, float, int],
) -> None:
    set_machines(monkeypatch, have if isinstance(have, list) else [have])
    assert SlotShape.choose(ResourceSpec.model_validate(wanted), concurrent) == SlotShape(*shape)


def set_machines(monkeypatch: pytest.MonkeyPatch, machines: list[dict[str, float]]) -> None:
    gone = {"Alive": False, "Resources": {"CPU": 100.0, "GPU": 100.0}}
    nodes = [gone, *({"Alive": True, "Resources": has} for has in machines)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"cpus": 5.0}, r"resources\.cpus: 5 wanted for a trial, but Ray has 4 here; lower it"),
        ({"gpus": 1.0}, r"resources\.gpus: 1 wanted for a trial, but Ray has 0 here; lower it"),
        ({"gpus": 1.0, "cpus": 9.0}, r"resources\.cpus: 9 wanted"),
        ({"cpus": 3.0}, r"resources: no machine has 3 CPU cores for a worker; lower cpus and gpus"),
    ],
)
def test_more_than_there_is_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, wanted: dict[str, float], message: str
) -> None:
    set_machines(monkeypatch, [{"CPU": 2.0}, {"CPU": 2.0}])
    with pytest.raises(UserError, match=message):
        SlotShape.choose(ResourceSpec.model_validate(wanted), "auto")
