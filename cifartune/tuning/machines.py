"""The machines of a Ray cluster: whether each can take part, and what dead drivers left there."""

import logging
import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.state import list_jobs, list_placement_groups

from cifartune.data import root_here
from cifartune.errors import UserError, first_line
from cifartune.tuning.groups import only_on
from cifartune.tuning.slots import cause_of

logger = logging.getLogger(__name__)

PACKAGES = ("cifartune", "torch", "torchvision", "timm", "numpy")
"""What has to be of one version everywhere; that Python and Ray are, Ray sees to."""

SECONDS = 900.0
"""How long a machine may take to answer: it may have to fetch the images first."""

SHARED = ".machines-"
"""How the names of folders begin that machines look for in the folder of the runs."""

MARK = "mark"

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass
class Machine:
    """A machine of the cluster.

    Attributes:
        name: Its host name.
        cores: CPU cores that Ray may give.
        gpus: GPUs that Ray may give.
        memory_bytes: Memory that Ray may give.
        shares_runs: Whether it sees the folder of the runs; if not, files are sent there and back.
            None: it has not answered.
        problems: Why it cannot take part; empty where it can.
    """

    name: str
    cores: float
    gpus: float
    memory_bytes: float
    shares_runs: bool | None = None
    problems: list[str] = field(default_factory=list)


def survey(runs: Path, data_root: Path) -> list[Machine]:
    """Looks at every machine, all at once: versions, GPUs, images, and the folder of the runs.

    A machine without the images fetches them.

    Args:
        runs: The folder of all runs.
        data_root: The prepared images here.

    Raises:
        UserError: `runs` cannot be written here.
    """
    try:
        runs.mkdir(parents=True, exist_ok=True)
        _sweep(runs)
        folder = tempfile.TemporaryDirectory(dir=runs, prefix=SHARED)
    except OSError as error:
        raise UserError(f"{runs}: cannot be written: {error.strerror}") from None
    look = ray.remote(num_cpus=0)(_look)
    answers = []
    with folder as shared:
        (Path(shared) / MARK).touch()
        Path(shared).chmod(0o777)  # Ray may run there as another user
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            if node["Alive"]:
                has = (node["Resources"].get(name, 0.0) for name in ("CPU", "GPU", "memory"))
                machine = Machine(node["NodeManagerHostname"], *has)
                there = look.options(scheduling_strategy=only_on(node["NodeID"]))
                answer = there.remote(Path(shared), data_root, machine.gpus, _versions())
                answers.append((machine, answer))
        pending = [answer for _, answer in answers]
        ray.wait(pending, num_returns=len(pending), timeout=SECONDS)
        for machine, answer in answers:
            try:
                machine.shares_runs, machine.problems = ray.get(answer, timeout=0)
            except ray.exceptions.GetTimeoutError:
                machine.problems = [f"no answer in {SECONDS / 60:.0f} minutes"]
            except Exception as error:  # whatever is not there, first of all our own package
                machine.problems = [cause_of(error)]
    return [machine for machine, _ in answers]


def join(runs: Path, data_root: Path) -> int:
    """What comes before work on a cluster that others use, too; as `survey` and `free_leftovers`.

    Returns:
        How many placement groups were freed.

    Raises:
        UserError: A machine cannot take part, or `runs` cannot be written.
    """
    require_all(survey(runs, data_root))
    return free_leftovers()


def require_all(machines: list[Machine]) -> None:
    """Refuses a cluster on which a trial might come to a machine that cannot train it.

    Raises:
        UserError: Names each such machine and why.
    """
    unfit = [machine for machine in machines if machine.problems]
    if unfit:
        reasons = "".join(f"\n  {m.name}: {problem}" for m in unfit for problem in m.problems)
        raise UserError(f"{len(unfit)} of {len(machines)} machines cannot take part:{reasons}")


def free_leftovers() -> int:
    """Frees what our own drivers reserved that are gone, and returns how many groups that were.

    Ray frees a driver's placement groups when it ends, but for those of a Ray Train run that was
    just starting (https://github.com/ray-project/ray/pull/58515): their cores stay taken. What
    cannot be found out, as where the cluster's dashboard does not answer this machine, is left.
    """
    options: dict[str, Any] = {"limit": 10_000, "raise_on_missing_output": False}
    options["address"] = ray.get_runtime_context().gcs_address
    try:
        ended = {
            job.job_id
            for job in list_jobs(**options)
            if job.status in ENDED
            and job.type == "DRIVER"
            and "cifartune" in (job.entrypoint or "")
        }
        groups = [
            group
            for group in list_placement_groups(
                detail=True, filters=[("state", "!=", "REMOVED")], **options
            )
            if group.creator_job_id in ended and not group.is_detached
        ]
    except Exception as error:
        logger.warning("no placement groups can be listed: %s", first_line(error))
        return 0
    for group in groups:
        name = ray.PlacementGroupID(bytes.fromhex(group.placement_group_id))
        remove_placement_group(PlacementGroup(name))
    return len(groups)


def _sweep(runs: Path) -> None:
    """Deletes what processes left that were killed while they looked; others may be looking."""
    for folder in runs.glob(f"{SHARED}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > 2 * SECONDS:
                shutil.rmtree(folder)


def _look(
    shared: Path, data_root: Path, gpus: float, versions: dict[str, str]
) -> tuple[bool, list[str]]:
    """Whether this machine sees `shared`, and what keeps it from taking part."""
    problems = [
        f"{name} is {ours} there, {versions[name]} here"
        for name, ours in _versions().items()
        if ours != versions[name]
    ]
    shares_runs = os.path.exists(shared / MARK)  # also where it may not be looked for
    folder = shared if shares_runs else Path(tempfile.gettempdir())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        told = shared.parent if shares_runs else folder
        problems.append(f"{told} cannot be written there: {error.strerror}")
    try:
        root_here(data_root)
    except UserError as error:
        problems.append(first_line(error))
    if gpus:
        import torch

        if torch.cuda.device_count() < gpus:
            problems.append(f"Ray counts {gpus:g} GPUs, PyTorch {torch.cuda.device_count()}")
    return shares_runs, problems


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found
