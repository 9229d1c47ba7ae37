"""How busy the driver's machine is while a search runs, in MLflow's own terms."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

SECONDS = 10.0
"""Between two samples: MLflow's own interval."""


class SystemMetrics:
    """Samples processor, memory and GPUs on a thread of its own, until it is stopped.

    Under the names for which MLflow's pages have a tab. GPUs are asked where the package
    nvidia-ml-py is installed.

    Args:
        tell: Called with each sample, metrics by name.
    """

    def __init__(self, tell: Callable[[dict[str, float]], Any]) -> None:
        self._tell = tell
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No sample comes after this."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        psutil.cpu_percent()  # from now on, for this thread
        monitors = None
        while not self._over.wait(SECONDS):
            with suppress(Exception):  # a full disk, a GPU that is lost: no reason to say more
                monitors = _monitors() if monitors is None else monitors
                self._tell(_sample(monitors))


def _monitors() -> list[Any]:
    """MLflow's monitors that work here."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    found = []
    for monitor in (CPUMonitor, GPUMonitor):
        with suppress(Exception):  # no such GPU, or not the package that asks it
            found.append(monitor())
    return found


def _sample(monitors: list[Any]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        metrics |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return metrics
