"""What runs in a slot: its Ray Train workers take jobs from the board, one after the other."""

import gc
import os
import uuid
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from cifartune.data import root_here
from cifartune.errors import UserError, first_line
from cifartune.tuning.courier import SCRATCH, Courier, Undelivered
from cifartune.tuning.disk import no_room
from cifartune.tuning.guard import MemoryGuard
from cifartune.tuning.messages import (
    Failed,
    Finished,
    Message,
    Probe,
    Progress,
    Seat,
    Verdict,
    Work,
)

if TYPE_CHECKING:  # torch is loaded in the slots alone
    import torch

    from cifartune.training import EpochResult
    from cifartune.training.workers import Workers

TELL_SECONDS = 30.0
"""How long a worker that is about to end waits for the board to hear why."""


def slot_loop(config: dict[str, Any]) -> None:
    """The training loop of a slot's Ray Train workers: takes jobs until the board is closed."""
    from cifartune.training.memory import run_keeping_memory

    courier, mark = None, config["mark"]
    if mark and not os.path.exists(mark):  # this machine does not see the driver's disk
        courier = Courier(config["files"], Path(gettempdir()) / f"{SCRATCH}{uuid.uuid4().hex}")
    with courier or nullcontext():
        run_keeping_memory(partial(_take_jobs, config, courier))


def _take_jobs(config: dict[str, Any], courier: Courier | None) -> None:
    import torch
    from ray.train.torch import get_device

    from cifartune.training.workers import Workers
    from cifartune.tuning.jobs import give_back

    torch.set_num_threads(config["threads"])
    device = get_device() if config["device"] == "cuda" else torch.device("cpu")
    count = ray.train.get_context().get_world_size()
    workers = Workers.of_process_group() if count > 1 else Workers()
    # Each job is followed by a collection, which need not look at what was imported.
    gc.collect()
    gc.freeze()
    board, slot = config["board"], config["slot"]
    seat = Seat(ray.get_runtime_context().get_node_id(), os.getpid())

    def tell(job: Work, message: Message) -> None:
        ray.get(board.end.remote(slot, job.id, message), timeout=TELL_SECONDS)

    def ran_short(job: Work, told: str) -> None:
        tell(job, Failed("out_of_memory", told, crowded=True))

    while True:
        job: Work | None = workers.agree(lambda: ray.get(board.take.remote(slot, seat)))
        if job is None:
            return
        guard = MemoryGuard(partial(ran_short, job), config["memory_share"])
        guard.start()
        try:
            is_away = seat.node != config["home"]
            message = _do(job, board, slot, device, workers, is_away, courier)
        except torch.AcceleratorError:
            raise  # the device's state is lost, and this process with it
        except Exception as error:
            # When another worker dies, this one's sums over all fail, by a RuntimeError: that is
            # not told, so that the slot counts as lost. All have to go, in any case.
            if not isinstance(error, RuntimeError):
                tell(job, _failure(error))
            raise
        finally:
            guard.stop()
        if isinstance(message, Failed) and message.kind == "out_of_memory":
            message = replace(message, crowded=config["shares_device"])
        give_back(device)  # now that no traceback holds what a failed job had
        if workers.rank == 0:
            tell(job, message)
        if config["one_job"]:
            if workers.rank == 0:
                ray.get(board.leave.remote(slot), timeout=TELL_SECONDS)
            return


def _do(
    job: Work,
    board: Any,
    slot: int,
    device: "torch.device",
    workers: "Workers",
    is_away: bool,
    courier: Courier | None,
) -> Message:
    """Does a job, on the driver's machine or away from it, and returns how it ended.

    What one of several workers may fail of alone is raised, and so is what leaves the process unfit
    for another job.
    """
    import torch

    from cifartune.models.facts import UnfitNetwork
    from cifartune.training.failures import NonFiniteLoss
    from cifartune.tuning.jobs import run_job
    from cifartune.tuning.probe import run_probe

    def report(result: "EpochResult", is_last: bool) -> Verdict:
        message = Progress(result.epoch, result.metrics(), is_last)
        verdict: Verdict = workers.agree(
            lambda: ray.get(board.report.remote(slot, job.id, message))
        )
        return verdict

    try:
        if is_away:
            job = replace(job, data_root=root_here(job.data_root))
        with courier.carrying(job) if courier else nullcontext(job) as job:
            if isinstance(job, Probe):
                if workers.rank:
                    return Finished()
                return Finished({"probed": run_probe(job, device=device, workers=workers.count)})
            bring = courier.bring if courier else lambda: None
            facts = run_job(job, report, device=device, workers=workers, saved=bring)
            if workers.rank == 0:
                bring()
            return Finished(facts or {})
    except (NonFiniteLoss, UnfitNetwork) as failure:
        return _failure(failure)
    except torch.AcceleratorError:
        raise  # the device's state is lost, and this process with it
    except Undelivered:
        raise  # another machine may do better
    except Exception as error:  # a defect in one recipe's path must not take the slot with it
        if not workers.is_alone:
            raise
        return _failure(error)


def _failure(error: BaseException) -> Failed:
    """A failure by its kind."""
    from cifartune.models.errors import MissingWeights, UnfitNetwork
    from cifartune.training import TrainingFailure

    if isinstance(error, TrainingFailure):
        return Failed(error.kind, str(error), getattr(error, "epoch", None))
    if full := no_room(error):
        return Failed("disk_full", full)
    if isinstance(error, OSError | UserError | MissingWeights):
        return Failed("files", first_line(error))
    if isinstance(error, UnfitNetwork):
        return Failed("unfit_network", str(error))
    return Failed("error", f"{type(error).__name__}: {first_line(error)}")
