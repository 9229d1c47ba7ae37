"""The look ahead before the first trial: does every parameter act, and what will it cost?"""

import json
import math
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from optuna.trial import FrozenTrial

from cifartune.config import SearchSpace
from cifartune.data import load_train
from cifartune.data.splits import splits_of
from cifartune.errors import UserError
from cifartune.logs import log_to
from cifartune.planning.memory import packing_file, probe_file, recall, remember
from cifartune.planning.plan import Plan, make_plan, recipes_to_measure
from cifartune.planning.rehearsal import rehearse
from cifartune.tuning.cluster import OWN, cluster, load_ray
from cifartune.tuning.machines import join
from cifartune.tuning.messages import Probe
from cifartune.tuning.packing import pack
from cifartune.tuning.shape import SlotShape
from cifartune.tuning.slots import SlotPool

PATIENCE = 30
"""How many times longer than planned an epoch may take before it is taken to hang."""

LEAST_PATIENCE = 600.0
"""Seconds that it may take at the least: compiling counts, and other work on the machine."""


def slots_for(
    space: SearchSpace, data_root: Path, *, stop: threading.Event | None = None
) -> tuple[SlotShape, str]:
    """The slots that a search gets, and where they share GPUs of themselves, what that brings.

    Where trials would have a GPU each because nothing else is asked for, it is tried whether they
    had better share it.

    Raises:
        Interrupted: `stop` was set meanwhile.
        UserError: No machine has what a trial wants.
    """
    resources, most = space.resources, space.search.max_concurrent
    shape = SlotShape.choose(resources, most)
    if resources.gpus != "auto" or shape.gpus != 1 or shape.workers != 1:
        return shape, ""
    packing = pack(
        space,
        recipes_to_measure(space),
        folder=data_root,
        file=packing_file(data_root, space),
        stop=stop,
    )
    shared = resources.model_copy(update={"gpus": 1 / packing.slots})
    return SlotShape.choose(shared, most), str(packing)


def look_ahead(
    space: SearchSpace,
    pool: SlotPool,
    *,
    folder: Path,
    data_root: Path,
    splits: Path,
    started: float,
    packing: str = "",
    warm_start: Sequence[FrozenTrial] = (),
    stop: threading.Event | None = None,
) -> Plan:
    """Rehearses the search while the slots start, then probes one of them.

    What a probe of the same space found here before counts, if the machine and the code are the
    same.

    Args:
        space: The search.
        pool: Its slots.
        folder: Where the probe may write.
        data_root: The prepared images.
        splits: The search's splits.
        started: When the command began, on the clock of `time.monotonic`.
        packing: What sharing GPUs brings, in words; see `slots_for`.
        warm_start: Trials of other searches that the sampler knows.
        stop: Set from elsewhere, ends the probe.

    Raises:
        Interrupted: `stop` was set.
        UserError: A searched parameter changes nothing, a network cannot be built, or the time
            budget is over before the first epoch.
    """
    shape = pool.shape
    recipes = recipes_to_measure(space)
    rehearsals = rehearse(space, slots=shape.count, warm_start=warm_start)
    file = probe_file(data_root, space, shape)
    probed = recall(file)
    if probed is None:
        probe = Probe("probe", space, recipes, folder, data_root, splits)
        probed = pool.probe(probe, stop=stop)
    if probed.idle:
        raise UserError(
            "\n".join(
                f"parameters.{name}: changes nothing: with {low} and with {high}, weights, rates, "
                "batches and losses are the same; take it out, or give it values that act"
                for name, (low, high) in probed.idle.items()
            )
        )
    remember(file, probed)
    plan = make_plan(
        space,
        rehearsals,
        recipes,
        probed,
        slots=shape.count,
        cpus=shape.cpus,
        gpus=shape.gpus,
        packing=packing,
        start=time.monotonic() - started,
    )
    if plan.time_budget is not None and plan.time_budget < plan.first_epoch:
        raise UserError(
            f"search.time_budget: {plan.time_budget:g} s is too short: the first epoch alone takes "
            f"about {plan.first_epoch:.0f} s here"
        )
    return plan


def plan_search(
    space: SearchSpace,
    *,
    data_root: Path,
    started: float,
    warm_start: Sequence[FrozenTrial] = (),
    address: str = OWN,
    runs: Path | None = None,
) -> Plan:
    """The plan of a search that is not begun: starts slots, probes one, and leaves nothing.

    Args:
        space: The search.
        data_root: The prepared images.
        started: When the command began, on the clock of `time.monotonic`.
        warm_start: Trials of other searches that the sampler knows.
        address: The Ray cluster; see `cluster`.
        runs: The folder of all runs. Default: this machine's for temporary files.

    Raises:
        UserError: As `look_ahead`, and where the machine has not what a trial wants.
    """
    load_ray(address)
    if runs is not None:
        try:
            runs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{runs}: cannot be written: {error.strerror}") from None
    with tempfile.TemporaryDirectory(prefix="cifartune-plan-", dir=runs) as temporary:
        folder = Path(temporary)
        with log_to(folder / "log"), cluster(address):
            if runs is not None:
                join(runs, data_root)
            shape, packing = slots_for(space, data_root)
            pool = SlotPool(
                shape,
                name=f"plan-{space.name}",
                storage=folder / "ray",
                owns_cluster=address == OWN,
            )
            with pool:
                splits = folder / "splits.npz"
                splits_of(space, load_train(data_root).labels).save(splits)
                return look_ahead(
                    space,
                    pool,
                    folder=folder,
                    data_root=data_root,
                    splits=splits,
                    started=started,
                    packing=packing,
                    warm_start=warm_start,
                )


def patience(space: SearchSpace, plan: Path) -> float:
    """Seconds after which an epoch that has not ended is taken to hang, by the plan in a file."""
    wanted = space.resources.epoch_timeout
    if wanted != "auto":
        return wanted
    longest = json.loads(plan.read_text()).get("longest_epoch", math.inf)
    return max(LEAST_PATIENCE, PATIENCE * float(longest))
