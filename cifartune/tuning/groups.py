"""A slot's Ray Train run, without the processes that a slot has no use for."""

import os
import threading
from typing import Any

import ray
from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
from ray.train import BackendConfig
from ray.train.constants import RAY_TRAIN_ENABLE_STATE_TRACKING
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.constants import (
    DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.state.state_actor import get_or_create_state_actor
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


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
        self._controller: Any = None
        self._is_ended = False
        self._lock = threading.Lock()

    def end(self) -> None:
        """Ends the run wherever it is, also while it waits for room; `fit` raises."""
        with self._lock:
            self._is_ended = True
            if self._controller is not None:
                ray.kill(self._controller)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        if self._owns_cluster:
            policy: Any = _AsksNobody  # mypy sees the configuration of Train V1
            options["scaling_policy"] = policy(self.scaling_config)
        # As Ray Train does it, which keeps the controller to itself: nobody could end it.
        environment = get_env_vars_to_propagate()
        environment.setdefault(
            RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR,
            DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
        )
        controller: Any = ray.remote(TrainController)
        with self._lock:
            self._controller = controller.options(
                num_cpus=0,
                scheduling_strategy=only_on(this_machine()),
                runtime_env={"env_vars": environment},
            ).remote(**options)
            if self._is_ended:
                ray.kill(self._controller)
        ray.get(self._controller.run.remote())
        return ray.get(self._controller.get_result.remote())


def this_machine() -> str:
    """Ray's name of the machine that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def only_on(node: str) -> NodeAffinitySchedulingStrategy:
    """Makes Ray run something on one machine and on no other."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


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
