"""How many slots there are, and what each of them holds."""

from dataclasses import dataclass
from typing import Literal

import ray

from cifartune.config.specs import ResourceSpec
from cifartune.errors import UserError


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


def _gpu_shares(there: float, share: float) -> int:
    """How many such shares some GPUs have: Ray takes one below 1 from a single GPU."""
    return int(there) * _shares(1.0, share) if share < 1 else _shares(there, share)


def _shares(there: float, share: float) -> int:
    """How often `share` fits into `there`: five times 0.2 into 1, which `//` denies."""
    return int(there / share + 1e-9)
