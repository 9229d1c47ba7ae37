"""A search in MLflow: a parent run, a child for each trial and refit, a grandchild a fold."""

import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from cifartune import __version__
from cifartune.config import Recipe
from cifartune.errors import UserError, first_line
from cifartune.events import Observer
from cifartune.runs import RunFolder
from cifartune.tuning.study import (
    attributes,
    is_feasible,
)

logger = logging.getLogger(__name__)

EXPERIMENT = "cifartune"
ANSWER_SECONDS = 5.0
GIVE_UP = 5
"""After so many writes that failed in a row, no further one is tried."""

# No telemetry, no minutes of retries before an error is told, nothing over our own table.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def default_uri(runs: Path) -> str:
    """`MLFLOW_TRACKING_URI` where it is set, else a SQLite file beside the runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(runs / 'mlflow.db').resolve()}"


def check_server(uri: str) -> None:
    """Makes sure that a tracking server answers; other stores are files, which need no asking.

    Raises:
        UserError: Nothing answers, or the URI is of an unknown kind.
    """
    kind = uri.partition(":")[0].partition("+")[0]
    if kind in ("http", "https"):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS).close()
        except urllib.error.HTTPError:
            return  # it answers; whether it lets us in is seen when the store is opened
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise UserError(
                f"--tracking-uri {uri}: the MLflow server does not answer "
                f"({getattr(error, 'reason', error)}); start it with `mlflow server`, or keep runs "
                "in runs/mlflow.db: leave the option out, and MLFLOW_TRACKING_URI unset"
            ) from None
    elif kind not in ("sqlite", "postgresql", "mysql", "mssql", "databricks"):
        raise UserError(
            f"--tracking-uri {uri}: neither a server (http://...) nor a database (sqlite:///...)"
        )


class MlflowTracker(Observer):
    """Writes a search to MLflow, in order, on a thread of its own: training never waits for it.

    A write that fails is kept in `failures` and skipped; after some in a row, so are all others.
    The study holds everything all the same.

    Args:
        uri: The tracking store. A SQLite file is made here, by one process at a time.
        run: The search's folder. The parent run is found again by its name there.
        tags: Facts about the search, for its parent run.
    """

    def __init__(self, uri: str, run: RunFolder, tags: dict[str, Any]) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.uri = uri
        self.failures: list[str] = []
        self._in_a_row = 0
        self._run = run
        self._tags = {key: str(value) for key, value in tags.items()}
        self._search = run.id
        self._ids: dict[str, str] = {}
        self._unfinished: set[str] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._ready = self._do(self._open)

    def check(self) -> None:
        """Waits until the store is open.

        Raises:
            UserError: It could not be opened.
        """
        self._ready.result()
        if self.failures:
            raise UserError(f"--tracking-uri {self.uri}: cannot be opened: {self.failures[0]}")

    @property
    def run_id(self) -> str:
        """The id of the search's parent run; waits until it is there. Empty if there is none."""
        self._ready.result()
        return self._ids.get("search", "")

    def close(self, status: str = "FINISHED") -> None:
        """Ends what is not ended yet with `status`, and waits until all is written."""

        def end() -> None:
            for key in list(self._unfinished):
                self._end(key, status)

        self._do(end)
        self._thread.shutdown(wait=True)

    def discard(self) -> None:
        """Ends the tracking of a search that never began, and deletes its run."""

        def delete() -> None:
            if "search" in self._ids:
                self._client.delete_run(self._ids["search"])

        self._do(delete)
        self._thread.shutdown(wait=True)

    def trial_started(self, number: int, recipe: Recipe) -> None:
        def start() -> None:
            tags = {"kind": "trial", "trial": number, "state": "RUNNING", "recipe_id": recipe.id}
            self._start(f"trial-{number}", "search", tags, recipe.flat())

        self._do(start)

    def epoch_ended(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        self._do(lambda: self._log(f"trial-{number}", metrics, epoch))

    def trial_ended(self, trial: FrozenTrial) -> None:
        def end() -> None:
            key = f"trial-{trial.number}"
            if key not in self._ids:
                return  # over before it began
            facts = {k: v for k, v in attributes(trial).items() if isinstance(v, str)}
            feasible = is_feasible(trial)
            self._tag(key, {"state": trial.state.name, "feasible": feasible, **facts})
            end = {k: v for k, v in attributes(trial).items() if k in ("params", "kept_epoch")}
            if trial.value is not None:
                end["objective"] = trial.values[0]
            self._log(key, end, 0)
            status = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED"}
            ended = status.get(trial.state, "FAILED") if feasible else "FAILED"
            self._end(key, ended)

        self._do(end)

    def refit_started(self, number: int, recipe: Recipe, folds: int) -> None:
        def start() -> None:
            tags = {"kind": "refit", "trial": number, "recipe_id": recipe.id}
            self._start(f"refit-{number}", "search", tags, recipe.flat())
            for fold in range(folds):
                tags = {"kind": "fold", "trial": number, "fold": fold}
                name = f"refit-{number}-fold-{fold}"
                self._start(name, f"refit-{number}", tags, {"fold": fold})

        self._do(start)

    def fold_epoch_ended(
        self, number: int, fold: int, epoch: int, metrics: dict[str, float]
    ) -> None:
        self._do(lambda: self._log(f"refit-{number}-fold-{fold}", metrics, epoch))

    def fold_ended(self, number: int, fold: int, accuracy: float) -> None:
        def end() -> None:
            self._log(f"refit-{number}-fold-{fold}", {"held_out_accuracy": accuracy}, 0)
            self._end(f"refit-{number}-fold-{fold}", "FINISHED")

        self._do(end)

    def refit_ended(self, number: int, metrics: dict[str, float]) -> None:
        def end() -> None:
            self._log(f"refit-{number}", metrics, 0)
            self._end(f"refit-{number}", "FINISHED")

        self._do(end)

    def search_ended(self, metrics: dict[str, float], files: list[Path], model: Path) -> None:
        def end() -> None:
            self._log("search", metrics, 0)
            for file in files:
                self._client.log_artifact(self._ids["search"], str(file))
            self._log_model(model)

        self._do(end)

    def _do(self, call: Callable[[], None]) -> "Future[None]":
        def guarded() -> None:
            if self._in_a_row >= GIVE_UP:
                return
            try:
                call()
            except Exception as error:  # tracking must never end a search
                logger.exception("MLflow")
                self.failures.append(f"{type(error).__name__}: {first_line(error)}")
                self._in_a_row += 1
            else:
                self._in_a_row = 0

        return self._thread.submit(guarded)

    def _open(self) -> None:
        from mlflow import MlflowClient

        # Two processes that make the same new SQLite store at once would destroy it.
        with FileLock(self._lock()):
            self._client = MlflowClient(self.uri)
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
            if experiment:
                self._experiment = experiment.experiment_id
            else:
                artifacts = self._run.path.parent / "mlflow-artifacts"
                local = artifacts.as_uri() if self.uri.startswith("sqlite") else None
                self._experiment = self._client.create_experiment(EXPERIMENT, local)
        self._find_runs()
        tags = {"kind": "search", "folder": str(self._run.path), "version": __version__}
        self._start("search", None, tags | self._tags, {})
        self._client.log_artifact(self._ids["search"], str(self._run.space_file))

    def _lock(self) -> Path:
        """Lies beside a SQLite store, for all searches that share it."""
        if not self.uri.startswith("sqlite:///"):
            return self._run.path / ".mlflow.lock"
        store = Path(self.uri.removeprefix("sqlite:///"))
        store.parent.mkdir(parents=True, exist_ok=True)
        return store.with_name(f".{store.name}.lock")

    def _find_runs(self) -> None:
        """The runs of a search that goes on: each is continued, not doubled."""
        mine, token = f"tags.`cifartune.search` = '{self._search}'", None
        while token != "":
            page = self._client.search_runs([self._experiment], mine, page_token=token)
            self._ids |= {run.data.tags["cifartune.key"]: run.info.run_id for run in page}
            token = page.token or ""

    def _start(
        self, key: str, parent: str | None, tags: dict[str, Any], parameters: dict[str, Any]
    ) -> None:
        self._unfinished.add(key)
        if key in self._ids:
            self._client.update_run(self._ids[key], status="RUNNING")
            return
        name = self._run.name if parent is None else key
        tags = {f"cifartune.{tag}": str(value) for tag, value in tags.items()}
        tags |= {"cifartune.search": self._search, "cifartune.key": key}
        if parent:
            tags["mlflow.parentRunId"] = self._ids[parent]
        run = self._client.create_run(self._experiment, run_name=name, tags=tags)
        self._ids[key] = run.info.run_id
        if parameters:
            from mlflow.entities import Param

            values = [Param(name, str(value)) for name, value in parameters.items()]
            self._client.log_batch(run.info.run_id, params=values)

    def _end(self, key: str, status: str) -> None:
        self._client.set_terminated(self._ids[key], status)
        self._unfinished.discard(key)

    def _log(self, key: str, metrics: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [
            Metric(name, value, now, step) for name, value in metrics.items() if value is not None
        ]
        self._client.log_batch(self._ids[key], metrics=batch)

    def _tag(self, key: str, tags: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        values = [RunTag(f"cifartune.{name}", str(value)) for name, value in tags.items()]
        self._client.log_batch(self._ids[key], tags=values)

    def _log_model(self, program: Path) -> None:
        import mlflow
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        mlflow.set_tracking_uri(self.uri)
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, 32, 32, 3))]),
            outputs=Schema([TensorSpec(np.dtype("float32"), (-1, 10))]),
        )
        with mlflow.start_run(run_id=self._ids["search"]):
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"program": str(program)},
                signature=signature,
                input_example=np.zeros((1, 32, 32, 3), np.uint8),
                pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "torch")],
            )
