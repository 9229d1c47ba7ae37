"""What a search ran on, or might run on, and with what."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich.table import Table

if TYPE_CHECKING:  # Ray
    from cifartune.tuning.machines import Machine

PACKAGES = ("ray", "torch", "torchvision", "optuna", "mlflow", "timm", "numpy")


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPUs of this machine."""
    import torch

    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """The versions of Python, of cifartune and of what it stands on."""
    from cifartune import __version__

    return {
        "python": platform.python_version(),
        "cifartune": __version__,
        **{name: version(name) for name in PACKAGES},
    }


def machines_table(machines: "Sequence[Machine]") -> Table:
    """A row a machine of a cluster, and whether it can take part."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("machine")
    for name in ("cores", "GPUs", "memory"):
        table.add_column(name, justify="right")
    table.add_column("runs folder")
    table.add_column("can take part")
    for machine in machines:
        table.add_row(
            machine.name,
            f"{machine.cores:g}",
            f"{machine.gpus:g}",
            f"{machine.memory_bytes / 2**30:.1f} GiB",
            {True: "shared", False: "sent", None: "?"}[machine.shares_runs],
            "no" if machine.problems else "yes",
        )
    return table


def processor() -> str:
    """The processor's name; platform.processor() is empty on most Linux systems."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or "unknown"
    return platform.processor() or "unknown"
