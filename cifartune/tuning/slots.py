"""Warm slots: Ray Train worker groups that are started once and train job after job."""

import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from cifartune.errors import Interrupted, UserError, first_line
from cifartune.files import write_atomically
from cifartune.tuning.board import Board
from cifartune.tuning.courier import Files
from cifartune.tuning.groups import (
    SlotTrainer,
    backend,
    only_on,
    start_what_runs_share,
    this_machine,
)
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
from cifartune.tuning.shape import SlotShape
from cifartune.tuning.worker import slot_loop

logger = logging.getLogger(__name__)

RESTARTS = 3
"""How often in a row a slot may die without an epoch in between, and be started again."""

CLOSE_SECONDS = 30.0
"""How long a closing pool waits for its slots to leave in order."""

SEND_SECONDS = 300.0
"""The same where other machines may still send what they have."""

PROBE_SECONDS = 3600.0
"""How long a probe may take before its slot is taken to hang; it is to take a minute."""

ANSWER_SECONDS = 60.0
"""How long a machine may take to answer: Ray misses one that is lost after up to as long."""

AT_ONCE = 5.0
"""How long a pool that is to end at once waits for its threads."""

WATCH_SECONDS = 2.0
"""How often the pool looks for slots that hang."""


class SlotPool:
    """A board and the slots that work on it, for as long as the `with` block lasts.

    Each slot is a Ray Train run whose training loop takes job after job; or one job, where its
    processes are isolated, after which another run is started. It is held by a thread of the
    driver; when the driver ends, however it ends, Ray ends the slot.

    Args:
        shape: The number of slots and their resources.
        name: Names the Train runs, as the Ray dashboard shows them.
        storage: Where Ray Train keeps its own working files.
        owns_cluster: Whether the Ray cluster is this driver's own.
        tell: Called with a line for the user where a slot has to wait for room on the cluster.
    """

    def __init__(
        self,
        shape: SlotShape,
        *,
        name: str,
        storage: Path,
        owns_cluster: bool = False,
        tell: Callable[[str], Any] = logger.info,
    ) -> None:
        self.shape = shape
        self.name = name
        self.storage = storage
        self.owns_cluster = owns_cluster
        self._tell = tell
        start_what_runs_share()
        # So many calls may wait on it at a time: one for every slot and every job.
        actor = ray.remote(num_cpus=0)(Board).options(
            max_concurrency=100_000, scheduling_strategy=only_on(this_machine())
        )
        self.board: Any = actor.remote(name)
        self._mark: Path | None = None
        self._files: Any = None
        if not owns_cluster:
            self._mark = storage / f"driver-{uuid.uuid4().hex}"
            keeper: Any = ray.remote(Files)
            self._files = keeper.options(
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                max_concurrency=8,
                scheduling_strategy=only_on(this_machine()),
            ).remote()
        self.lost = ""
        """Why no slot is left; empty while one is."""
        self.memory_share = SHARE
        """The share of the memory in use from which on the largest slot's job is ended."""
        self.patience = float("inf")
        """Seconds that an epoch may take before its slot is taken to hang, and killed."""
        self._closing = threading.Event()
        self._alive = shape.count
        self._trainers: dict[int, SlotTrainer] = {}
        self._absent: set[int] = set()  # slots that died or found no room, and may have come again
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._keep, args=(slot,), name=f"slot-{slot}", daemon=True)
            for slot in range(shape.count)
        ]
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def __enter__(self) -> "SlotPool":
        for left_by_a_kill in self.storage.glob("driver-*"):
            left_by_a_kill.unlink(missing_ok=True)
        if self._mark:  # which other machines see, or else not this one's disk
            write_atomically(self._mark, "")
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
        if kind is not KeyboardInterrupt:  # or else at once
            with suppress(ray.exceptions.RayError):
                ray.get(self.board.close.remote())
            closing = time.monotonic()
            for slot, thread in enumerate(self._threads):
                thread.join(max(0.0, closing + self._grace(slot) - time.monotonic()))
        # A thread that still waits for Ray when it is shut down would end the whole process.
        for slot, trainer in list(self._trainers.items()):
            if self._threads[slot].is_alive():
                trainer.end()
        until = time.monotonic() + (AT_ONCE if kind is KeyboardInterrupt else ANSWER_SECONDS)
        for thread in [*self._threads, self._watcher]:
            thread.join(max(0.0, until - time.monotonic()))
        if self._mark:
            with suppress(OSError):
                self._mark.unlink()

    def _grace(self, slot: int) -> float:
        """Seconds until a slot has left that the closing pool waits for; 0: it is not there."""
        seat = None
        with suppress(ray.exceptions.RayError):
            seat = ray.get(self.board.seat.remote(slot))
        if seat is None:  # it may be just starting
            return 0.0 if slot in self._absent else CLOSE_SECONDS
        return CLOSE_SECONDS if self.owns_cluster else SEND_SECONDS

    def probe(self, probe: Probe, *, stop: threading.Event | None = None) -> Probed:
        """Runs a probe on one slot.

        Raises:
            Interrupted: `stop` was set.
            UserError: The slot was lost or hung, or a network of the space cannot be built.
        """
        patience, self.patience = self.patience, PROBE_SECONDS
        try:
            [(_, message)] = self.run([probe], stop=stop)
        finally:
            self.patience = patience
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

    def stop(self, job: Work) -> None:
        """Ends a job of `run`, which yields no further message of it."""
        ray.get(self.board.stop.remote(job.id))

    def _keep(self, slot: int) -> None:
        """A slot's thread: when the last of them gives up, nobody waits for a slot any more."""
        try:
            reason = self._run_until_closed(slot)
        except Exception as error:  # a defect
            logger.exception("slot %d is given up", slot)
            reason = f"slot {slot} is given up: {cause_of(error)}"
            with suppress(ray.exceptions.RayError):
                ray.get(self.board.lose.remote(slot, Failed("worker_killed", reason)))
        if not reason:
            return
        with self._lock:
            self._alive -= 1
            if not self._alive:
                self.lost = reason
                with suppress(ray.exceptions.RayError):
                    ray.get(self.board.abandon.remote(reason))

    def _run_until_closed(self, slot: int) -> str:
        """Keeps one slot running until the pool closes, or says why it is given up."""
        start = deaths = 0
        waits = False
        while deaths <= RESTARTS:
            try:
                trainer = self._trainers[slot] = self._trainer(slot, start)
                if self._closing.is_set():  # who closes later finds this run, and ends it
                    return ""
                trainer.fit()
                if self._closing.is_set() or self.shape.isolation == "slot":
                    return ""
                start, deaths = start + 1, 0
                continue
            except Exception as error:  # whatever ended the worker group, its job must hear of it
                reason = f"slot {slot} died: {cause_of(error)}"
                # On a cluster of our own, nobody else holds what it needs.
                no_room = not self.owns_cluster and _found_no_room(error)
            if self._closing.is_set():
                return ""
            self._absent.add(slot)
            start += 1
            if no_room:
                if not waits:
                    self._tell(
                        f"slot {slot} finds no room on the cluster for {self.shape}: others hold "
                        "it, or its machine is gone; it goes on looking"
                    )
                waits = True
                continue
            logger.warning("%s; starting it again", reason)
            try:
                progress = ray.get(self.board.lose.remote(slot, Failed(self._cause(slot), reason)))
            except ray.exceptions.RayError as error:
                return f"the board died: {first_line(error)}"
            deaths = 1 if progress else deaths + 1
        return reason

    def _cause(self, slot: int) -> str:
        """What a slot died of: its process was killed, or its machine is gone."""
        seat: Seat | None = ray.get(self.board.seat.remote(slot))
        is_away = seat is not None and seat.node != this_machine()
        return "node_lost" if seat and is_away and not _answers(seat.node) else "worker_killed"

    def _watch(self) -> None:
        """Kills slots that hang; they are started again."""
        while not self._closing.wait(WATCH_SECONDS):
            try:
                for slot, seat, job_id in ray.get(self.board.overdue.remote(self.patience)):
                    reason = f"{job_id} gave no sign of life for {self.patience:.0f} s"
                    logger.warning("%s; its slot is killed", reason)
                    ray.get(self.board.fail.remote(slot, Failed("timeout", reason)))
                    _kill(seat)
            except ray.exceptions.RayActorError as error:
                self.lost = self.lost or f"the board died: {first_line(error)}"
                return
            except Exception as error:  # it must go on watching
                logger.warning("the watcher: %s", cause_of(error))

    def _trainer(self, slot: int, attempt: int) -> SlotTrainer:
        shape = self.shape
        resources = {"CPU": shape.cpus / shape.workers}
        if shape.gpus:
            resources["GPU"] = shape.gpus / shape.workers
        name = f"{self.name}-slot-{slot}" + (f"-restart-{attempt}" if attempt else "")
        return SlotTrainer(
            slot_loop,
            owns_cluster=self.owns_cluster,
            train_loop_config={
                "board": self.board,
                "slot": slot,
                "threads": max(1, int(shape.cpus / shape.workers)),
                "device": "cuda" if shape.gpus else "cpu",
                "memory_share": self.memory_share,
                "home": this_machine(),
                "mark": self._mark,
                "files": self._files,
                "shares_device": shape.gpus / shape.workers < 1,  # also where that is the memory
                "one_job": shape.isolation == "process",
            },
            backend_config=backend(shape.workers, shape.gpus),
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


def _answers(node: str) -> bool:
    """Whether a machine still does what it is told."""
    there = ray.remote(num_cpus=0, max_retries=0)(lambda: True)
    try:
        there = there.options(scheduling_strategy=only_on(node))
        return bool(ray.get(there.remote(), timeout=ANSWER_SECONDS))
    except ray.exceptions.RayError:
        return False


def cause_of(error: BaseException) -> str:
    """What Ray wrapped in an error of its own, in one line."""
    inner = getattr(error, "controller_failure", None) or getattr(error, "cause", None)
    inner = inner or next(iter(getattr(error, "worker_failures", {}).values()), None)
    return cause_of(inner) if isinstance(inner, BaseException) else first_line(error)


def _found_no_room(error: Exception) -> bool:
    """Whether a slot did not start because others hold what it needs, or its machine is gone."""
    failure = getattr(error, "controller_failure", None)
    return isinstance(failure, WorkerGroupStartupTimeoutError)
