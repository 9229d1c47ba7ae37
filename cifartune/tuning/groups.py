"""A slot's Ray Train run, without the processes that a slot has no use for."""

import os
from typing import Any

from ray.train import BackendConfig
from ray.train.constants import RAY_TRAIN_ENABLE_STATE_TRACKING
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.state.state_actor import get_or_create_state_actor
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class SlotTrainer(DataParallelTrainer):
    """Ray Train's trainer for a function, as TorchTrainer is, with fewer processes.

    Beside its controller and its workers, Ray Train starts a process that hands out Ray Datasets,
    of which a slot has none, and one that asks the autoscaler for machines, of which a cluster of
    our own gets no more. Each takes two seconds of a core before the first trial.

    Args:
        owns_cluster: Whether the cluster is the driver's own.
        **options: As DataParallelTrainer has them.
    """

    def __init__(self, *args: Any, owns_cluster: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self._owns_cluster = owns_cluster

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        if self._owns_cluster:
            policy: Any = _AsksNobody  # mypy sees the configuration of Train V1
            options["scaling_policy"] = policy(self.scaling_config)
        return super()._initialize_and_run_controller(**options)


class _AsksNobody(FixedScalingPolicy):
    """As many workers as are wanted, on machines that are there."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Asks no autoscaler."""

    def _maybe_send_resource_request(self) -> None:
        """Nor later."""


def start_what_runs_share() -> None:
    """Starts the actor that tells the dashboard of all runs: each of them would wait for it."""
    if os.environ.get(RAY_TRAIN_ENABLE_STATE_TRACKING) == "1":
        get_or_create_state_actor()


def backend(workers: int, gpus: float) -> BackendConfig | None:
    """How a slot's processes find each other and their GPUs; None: one process, without a GPU."""
    if workers == 1 and not gpus:
        return None
    from ray.train.torch import TorchConfig  # torch, which nothing waits for otherwise

    # NCCL wants a GPU for each worker.
    return TorchConfig(backend="gloo" if gpus < workers else "nccl")
