"""Warm slots: Ray Train worker groups that are started once and train job after job."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cifartune.config.space import ResourceSpec
from cifartune.errors import Interrupted, UserError, first_line
from cifartune.tuning.board import Board
from cifartune.tuning.guard import SHARE
from cifartune.tuning.messages import (
    Failed,
    Finished,
    Message,
    Probe,
    Probed,
    Progress,
    Seat,
    Work,
)
from cifartune.tuning.worker import slot_loop

logger = logging.getLogger(__name__)

RESTARTS = 3
"""How often in a row a slot may die without an epoch in between, and be started again."""

CLOSE_SECONDS = 30.0
"""How long a closing pool waits for its slots to leave in order."""

WATCH_SECONDS = 2.0
"""How often the pool looks for slots that hang."""


@dataclass(frozen=True)
class SlotShape:
    """How many slots there are, and what each holds.

    Attributes:
        count: Slots, that is jobs at a time.
        cpus: Cores of each.
        gpus: GPUs, or the share of one, of each.
        workers: Processes of each, which share its cores and GPUs alike.
        isolation: Whether its processes train one job after the other, or one each.
    """

    count: int
    cpus: float
    gpus: float
    workers: int = 1
    isolation: Literal["slot", "process"] = "slot"

    def __str__(self) -> str:
        text = f"{self.cpus:g} CPU core{'' if self.cpus == 1 else 's'}"
        text += f" and {self.gpus:g} GPU" if self.gpus else ""
        return text + (f", with {self.workers} workers" if self.workers > 1 else "")

    @classmethod
    def choose(cls, wanted: ResourceSpec, max_concurrent: int | str) -> "SlotShape":
        """Fills in `auto` from what the machines of the Ray cluster have.

        With GPUs: one for each worker of a slot, with an equal share of its machine's cores.
        Without: two cores a slot, for a convolution on two cores is nearly twice as fast as on one,
        and a search with fewer slots stops bad trials sooner; or one for each worker.

        Raises:
            UserError: One slot wants more than there is.
        """
        machines = [
            (node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
        ]
        workers = wanted.workers
        devices = sum(gpus for _, gpus in machines)
        gpus = wanted.gpus if wanted.gpus != "auto" else min(devices, float(workers))
        all_cores = sum(cores for cores, _ in machines)
        if wanted.cpus != "auto":
            cpus = wanted.cpus
        elif gpus:
            each = [
                cores // _gpu_shares(there, gpus / workers)
                for cores, there in machines
                if _gpu_shares(there, gpus / workers) and cores
            ]
            cpus = workers * max(1.0, min(each, default=1.0))
        else:
            cpus = max(1.0, min(2.0, max(cores for cores, _ in machines)), float(workers))

        def room(machine: tuple[float, float]) -> int:
            """How many workers fit on a machine."""
            by_cores = _shares(machine[0], cpus / workers)
            return min(by_cores, _gpu_shares(machine[1], gpus / workers)) if gpus else by_cores

        count = sum(map(room, machines)) // workers
        if not gpus:
            count = min(count, max(1, int(all_cores)))
        if not count:
            for key, want, there in (("cpus", cpus, all_cores), ("gpus", gpus, devices)):
                if want > there:
                    raise UserError(
                        f"resources.{key}: {want:g} wanted for a trial, but Ray has {there:g} "
                        "here; lower it, or leave it out"
                    )
            share = cls(1, cpus / workers, gpus / workers)
            raise UserError(
                f"resources: no machine has {share} for a worker; lower cpus and gpus, or leave "
                "them out"
            )
        if isinstance(max_concurrent, int):
            count = min(count, max_concurrent)
        return cls(count, cpus, gpus, workers, wanted.isolation)


class SlotPool:
    """A board and the slots that work on it, for as long as the `with` block lasts.

    Each slot is a TorchTrainer whose training loop takes job after job; or one job, where processes
    are isolated, after which another TorchTrainer is started. It is held by a thread of the driver;
    when the driver ends, however it ends, Ray ends the slot.

    Args:
        shape: The number of slots and their resources.
        name: Names the Train runs, as the Ray dashboard shows them.
        storage: Where Ray Train keeps its own working files.
    """

    def __init__(self, shape: SlotShape, *, name: str, storage: Path) -> None:
        self.shape = shape
        self.name = name
        self.storage = storage
        # So many calls may wait on it at a time: one for every slot and every job.
        actor = ray.remote(num_cpus=0)(Board).options(
            max_concurrency=100_000, scheduling_strategy=only_on(this_machine())
        )
        self.board: Any = actor.remote()
        self.lost = ""
        """Why no slot is left; empty while one is."""
        self.memory_share = SHARE
        """The share of the memory in use from which on the largest slot's job is ended."""
        self.patience = float("inf")
        """Seconds that an epoch may take before its slot is taken to hang, and killed."""
        self._closing = threading.Event()
        self._alive = shape.count
        self._restarting: set[int] = set()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._keep, args=(slot,), name=f"slot-{slot}", daemon=True)
            for slot in range(shape.count)
        ]
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def __enter__(self) -> "SlotPool":
        for thread in [*self._threads, self._watcher]:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        if kind is KeyboardInterrupt:
            return  # at once: what still runs ends with Ray
        with suppress(ray.exceptions.RayError):
            ray.get(self.board.close.remote())
        deadline = time.monotonic() + CLOSE_SECONDS
        for slot, thread in enumerate(self._threads):
            if not self._is_gone(slot):
                thread.join(max(0.0, deadline - time.monotonic()))

    def _is_gone(self, slot: int) -> bool:
        """Whether a slot died and has not come again, as where its machine is lost."""
        if slot not in self._restarting:
            return False
        try:
            return ray.get(self.board.seat.remote(slot)) is None
        except ray.exceptions.RayError:
            return True

    def probe(self, probe: Probe, *, stop: threading.Event | None = None) -> Probed:
        """Runs a probe on one slot.

        Raises:
            Interrupted: `stop` was set.
            UserError: The slot was lost, or a network of the space cannot be built.
        """
        [(_, message)] = self.run([probe], stop=stop)
        if isinstance(message, Failed):
            raise UserError(message.message)
        assert isinstance(message, Finished)
        probed: Probed = message.facts["probed"]
        return probed

    def run(
        self, jobs: Iterable[Work], *, stop: threading.Event | None = None
    ) -> Iterator[tuple[Work, Message]]:
        """Runs all jobs to their end, as many at a time as there are slots.

        Yields every message of every job as it comes; the last of a job is no `Progress`.

        Raises:
            Interrupted: `stop` was set. The epochs that were under way are done, and kept.
            UserError: The board died.
        """
        pending: dict[ray.ObjectRef[Message], Work] = {}

        def ask(job: Work) -> None:
            pending[self.board.next.remote(job.id)] = job

        ray.get(self.board.reopen.remote())
        for job in jobs:
            ray.get(self.board.submit.remote(job))
            ask(job)
        is_stopping = False
        while pending:
            if stop is not None and stop.is_set() and not is_stopping:
                ray.get(self.board.wind_down.remote())
                is_stopping = True
                for job in pending.values():
                    if isinstance(job, Probe):  # it has no epochs, and nothing to keep
                        ray.get(self.board.stop.remote(job.id))
            ready, _ = ray.wait(list(pending), timeout=0.5)
            for reference in ready:
                job = pending.pop(reference)
                try:
                    message = ray.get(reference)
                except ray.exceptions.RayActorError as error:
                    raise UserError(f"the board died: {first_line(error)}") from None
                if isinstance(message, Progress):
                    ask(job)
                if not (isinstance(message, Failed) and message.stopped):
                    yield job, message
        if is_stopping:
            raise Interrupted

    def _keep(self, slot: int) -> None:
        """Keeps one slot running until the pool closes, or it dies too often in a row."""
        start = deaths = 0
        while deaths <= RESTARTS:
            try:
                self._trainer(slot, start).fit()
                if self._closing.is_set() or self.shape.isolation == "slot":
                    return
                start, deaths = start + 1, 0
                continue
            except Exception as error:  # whatever ended the worker group, its job must hear of it
                reason = f"slot {slot} died: {cause_of(error)}"
                if _found_no_room(error) and not self._closing.is_set():
                    logger.warning("slot %d finds no room on the cluster; it looks again", slot)
                    start += 1
                    continue
            if self._closing.is_set():
                return
            logger.warning("%s; starting it again", reason)
            try:
                failure = Failed(self._cause(slot), reason)
                self._restarting.add(slot)
                progress = ray.get(self.board.lose.remote(slot, failure))
            except ray.exceptions.RayError as error:
                reason = f"the board died: {first_line(error)}"
                break
            start, deaths = start + 1, 1 if progress else deaths + 1
        with self._lock:
            self._alive -= 1
            if not self._alive:
                self.lost = reason
                with suppress(ray.exceptions.RayError):
                    ray.get(self.board.abandon.remote(reason))

    def _cause(self, slot: int) -> str:
        """What a slot died of: its process was killed, or its machine is gone."""
        seat: Seat | None = ray.get(self.board.seat.remote(slot))
        nodes = {node["NodeID"]: node["Alive"] for node in ray.nodes()}  # type: ignore[no-untyped-call]
        is_gone = seat is not None and not nodes.get(seat.node, False)
        return "node_lost" if is_gone else "worker_killed"

    def _watch(self) -> None:
        """Kills slots that hang; they are started again."""
        while not self._closing.wait(WATCH_SECONDS):
            try:
                for slot, seat, job_id in ray.get(self.board.overdue.remote(self.patience)):
                    reason = f"{job_id} was at one epoch for more than {self.patience:.0f} s"
                    logger.warning("%s; its slot is killed", reason)
                    ray.get(self.board.fail.remote(slot, Failed("timeout", reason)))
                    _kill(seat)
            except ray.exceptions.RayActorError as error:
                self.lost = self.lost or f"the board died: {first_line(error)}"
                return
            except Exception as error:  # it must go on watching
                logger.warning("the watcher: %s", cause_of(error))

    def _trainer(self, slot: int, attempt: int) -> TorchTrainer:
        shape = self.shape
        resources = {"CPU": shape.cpus / shape.workers}
        if shape.gpus:
            resources["GPU"] = shape.gpus / shape.workers
        # NCCL wants a GPU for each worker.
        is_shared = shape.gpus < shape.workers
        name = f"{self.name}-slot-{slot}" + (f"-restart-{attempt}" if attempt else "")
        return TorchTrainer(
            slot_loop,
            train_loop_config={
                "board": self.board,
                "slot": slot,
                "threads": max(1, int(shape.cpus / shape.workers)),
                "device": "cuda" if shape.gpus else "cpu",
                "memory_share": self.memory_share,
                "home": this_machine(),
                "shares_device": shape.gpus / shape.workers < 1,  # also where that is the memory
                "one_job": shape.isolation == "process",
            },
            torch_config=TorchConfig(backend="gloo" if is_shared else None),
            scaling_config=ScalingConfig(
                num_workers=shape.workers,
                use_gpu=bool(shape.gpus),
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(self.storage),
                # mypy sees the configuration of Train V1.
                failure_config=FailureConfig(
                    max_failures=0,
                    controller_failure_limit=2,  # type: ignore[call-arg]
                ),
            ),
        )


def _kill(seat: Seat) -> None:
    """Ends a slot's process, wherever it runs and however it hangs."""
    if seat.node == this_machine():
        return _end_process(seat.pid)
    there = ray.remote(num_cpus=0)(_end_process).options(scheduling_strategy=only_on(seat.node))
    with suppress(ray.exceptions.RayError):  # the machine is gone, and the process with it
        ray.get(there.remote(seat.pid), timeout=CLOSE_SECONDS)


def _end_process(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def this_machine() -> str:
    """Ray's name of the machine that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def only_on(node: str) -> NodeAffinitySchedulingStrategy:
    """Makes Ray run something on one machine and on no other."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


def cause_of(error: BaseException) -> str:
    """What Ray wrapped in an error of its own, in one line."""
    inner = getattr(error, "controller_failure", None) or getattr(error, "cause", None)
    inner = inner or next(iter(getattr(error, "worker_failures", {}).values()), None)
    return cause_of(inner) if isinstance(inner, BaseException) else first_line(error)


def _found_no_room(error: Exception) -> bool:
    """Whether a slot did not start because others hold what it needs, or its machine is gone."""
    failure = getattr(error, "controller_failure", None)
    return isinstance(failure, WorkerGroupStartupTimeoutError)


def _gpu_shares(there: float, share: float) -> int:
    """How many such shares some GPUs have: Ray takes one below 1 from a single GPU."""
    return int(there) * _shares(1.0, share) if share < 1 else _shares(there, share)


def _shares(there: float, share: float) -> int:
    """How often `share` fits into `there`: five times 0.2 into 1, which `//` denies."""
    return int(there / share + 1e-9)
