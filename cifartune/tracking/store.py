"""MLflow's side: makes events into runs, metrics, tags and files of a tracking store."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from cifartune.errors import UserError, first_line
from cifartune.passwords import hidden_in
from cifartune.runs import RunFolder
from cifartune.tracking.model import publish
from cifartune.tracking.outbox import Event
from cifartune.tracking.view import PREFIX
from cifartune.tuning.disk import no_room

if TYPE_CHECKING:  # a second to import
    from mlflow.entities import Run

EXPERIMENT = "cifartune"

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""The tag for which MLflow's pages show what is about training, and not about language models."""

# No telemetry, no minutes of retries before an error is told, nothing over our own table.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

PASSING = {
    "DEADLINE_EXCEEDED",
    "INTERNAL_ERROR",
    "REQUEST_LIMIT_EXCEEDED",
    "TEMPORARILY_UNAVAILABLE",
}
"""MLflow's names of errors that another try may not meet: a server that is away is the second."""


KEY = "cifartune.key"
"""The tag that says which of a search's runs it is: search, trial-3, refit-3, refit-3-fold-0."""


def runs_of(client: Any, experiment: str, search: str) -> list[Any]:
    """All runs of the search of that id in an experiment of a store, as MLflow has them."""
    found, token = [], None
    while token != "":
        mine = f"tags.`cifartune.search` = '{search}'"
        page = client.search_runs([experiment], mine, page_token=token)
        found += page
        token = page.token or ""
    return found


@dataclass(frozen=True)
class LoggedRun:
    """A run of a search as its tracking store has it.

    Attributes:
        key: Which one it is.
        status: MLflow's word for its state.
        values: The steps and values of the metric that was asked for; of trials only.
    """

    key: str
    status: str
    values: list[tuple[int, float]]


def read_runs(uri: str, run: RunFolder, metric: str) -> list[LoggedRun]:
    """The runs of a search in a store, which stays as it is.

    Raises:
        UserError: It cannot be read.
    """
    _set_environment()
    from mlflow import MlflowClient

    file = Path(uri.removeprefix("sqlite:///"))
    if not uri or (uri.startswith("sqlite:///") and not file.exists()):
        raise UserError(f"{uri or run.identity}: there is no such store")
    try:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        found = runs_of(client, experiment.experiment_id, run.id) if experiment else []
        logged = []
        for entry in found:
            key, values = entry.data.tags[KEY], []
            if key.startswith("trial-"):
                history = client.get_metric_history(entry.info.run_id, metric)
                values = [(point.step, point.value) for point in history]
            logged.append(LoggedRun(key, entry.info.status, values))
    except Exception as error:
        told = hidden_in(f"{uri}: cannot be read: {first_line(error)}", uri)
        raise UserError(told) from None
    return logged


class LoggedSearch:
    """A search as its tracking store has it; the store stays as it is.

    Args:
        uri: The store.
        search: The search's id, a `RunFolder`'s.

    Attributes:
        runs: MLflow's runs by our keys.
        experiment_tags: Those of the experiment that they are in.

    Raises:
        UserError: The store cannot be read, by the constructor and by all methods.
    """

    def __init__(self, uri: str, search: str) -> None:
        _set_environment()
        from mlflow import MlflowClient

        self.uri = uri
        self.runs: dict[str, Run] = {}
        self.experiment_tags: dict[str, str] = {}
        with self._reading():
            if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
                raise FileNotFoundError("there is no such file")
            self._client = MlflowClient(uri)
            if experiment := self._client.get_experiment_by_name(EXPERIMENT):
                found = runs_of(self._client, experiment.experiment_id, search)
                self.runs = {run.data.tags[KEY]: run for run in found}
                self.experiment_tags = experiment.tags

    def curve(self, key: str, metric: str) -> dict[int, float]:
        """A metric of a run by epoch."""
        with self._reading():
            points = self._client.get_metric_history(self.runs[key].info.run_id, metric)
        return {point.step: point.value for point in points}

    def text(self, name: str) -> str | None:
        """A file of the search's own run; None if it has none of that name."""
        run_id = self.runs["search"].info.run_id
        with self._reading(), TemporaryDirectory() as folder:
            if name not in [file.path for file in self._client.list_artifacts(run_id)]:
                return None
            path = self._client.download_artifacts(run_id, name, folder)
            return Path(path).read_text(encoding="utf-8")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the database, of the line or of the disk, as it comes
            told = f"the MLflow store {self.uri} cannot be read: {first_line(error)}"
            raise UserError(hidden_in(told, self.uri)) from None


class Trouble(str):
    """Why an event was not written, in one line.

    Attributes:
        is_final: Whether another try would fail, too.
    """

    is_final = False


class MlflowStore:
    """Writes events to a tracking store. An event that is written twice is there once.

    Args:
        uri: The store. A SQLite file is made here, by one process at a time.
        run: The search's folder. Its runs are found again by its id.
    """

    def __init__(self, uri: str, run: RunFolder) -> None:
        _set_environment()
        self.uri = uri
        self.ids: dict[str, str] = {}
        """MLflow's ids of the search's runs, by our keys."""
        self.is_open = False
        """Whether the store answered when it was last asked for the search's runs."""
        self.has_opened = False
        """Whether it ever did."""
        self._run = run
        self._client: Any = None

    def open(self) -> None:
        """Connects to the store, and finds the search's runs."""
        from mlflow import MlflowClient

        self.is_open = False

        # Two processes that make the same new SQLite store at once would destroy it.
        with FileLock(self._lock()):
            client = MlflowClient(self.uri)
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment:
                self._experiment = experiment.experiment_id
            else:
                artifacts = self._run.path.parent / "mlflow-artifacts"
                local = artifacts.as_uri() if self.uri.startswith("sqlite") else None
                self._experiment = client.create_experiment(EXPERIMENT, local, KIND)
        for run in runs_of(client, self._experiment, self._run.id):
            self.ids[run.data.tags[KEY]] = run.info.run_id
        self._client = client
        self.is_open = self.has_opened = True

    def try_to_send(self, event: Event) -> Trouble | None:
        """Writes an event, and connects first where that was not done, or the last try failed."""
        try:
            if self._client is None:
                self.open()
            self._write(event)
        except Exception as error:  # whatever it is, a search goes on without
            self._client = None  # what came of it is not known: look again
            if no_room(error):
                self.is_open = False  # as good as away, until there is room
            told = hidden_in(first_line(error), self.uri)
            trouble = Trouble(f"{type(error).__name__}: {told}")
            trouble.is_final = self.is_open and not _may_pass(error)
            return trouble
        return None

    def _write(self, event: Event) -> None:
        arguments = dict(event)
        getattr(self, f"_{arguments.pop('do')}")(**arguments)

    def _start(
        self,
        time: int,
        key: str,
        parent: str | None,
        tags: dict[str, str],
        params: dict[str, str],
        name: str = "",
        is_past: bool = False,
    ) -> None:
        """A run begins, or goes on; or it did so in the past, and its state is known better."""
        from mlflow.entities import Param

        if key not in self.ids:
            all_tags = {_tag_name(tag): value for tag, value in tags.items()}
            all_tags |= {"cifartune.search": self._run.id, KEY: key}
            if parent:
                all_tags["mlflow.parentRunId"] = self.ids[parent]
            run = self._client.create_run(self._experiment, time, all_tags, name or key)
            self.ids[key] = run.info.run_id
        elif not is_past:
            self._client.update_run(self.ids[key], status="RUNNING")
        if params:
            values = [Param(*pair) for pair in params.items()]
            self._client.log_batch(self.ids[key], params=values)

    def _log(self, time: int, key: str, metrics: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        batch = [Metric(name, value, time, step) for name, value in metrics.items()]
        self._client.log_batch(self.ids[key], metrics=batch)

    def _tag(self, time: int, key: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        values = [RunTag(_tag_name(name), value) for name, value in tags.items()]
        self._client.log_batch(self.ids[key], tags=values)

    def _inputs(self, time: int, key: str, datasets: list[dict[str, str]]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for told in datasets:
            facts = dict(told)
            context = InputTag("mlflow.data.context", facts.pop("context"))
            inputs.append(DatasetInput(Dataset(**facts), [context]))
        self._client.log_inputs(self.ids[key], inputs)

    def _view(self, time: int, key: str, view: str) -> None:
        """A view of the search's trials, for all who look at the experiment."""
        self._client.set_experiment_tag(self._experiment, PREFIX + self._run.id, view)

    def _end(self, time: int, key: str, status: str, is_final: bool = False) -> None:
        self._client.set_terminated(self.ids[key], status, time)

    def _file(self, time: int, key: str, path: str, folder: str | None = None) -> None:
        self._client.log_artifact(self.ids[key], path, folder)

    def _delete(self, time: int, key: str) -> None:
        if key in self.ids:
            self._client.delete_run(self.ids.pop(key))
        view = PREFIX + self._run.id
        if view in self._client.get_experiment(self._experiment).tags:
            self._client.delete_experiment_tag(self._experiment, view)

    def _model(self, time: int, key: str, program: str) -> None:
        publish(self._client, self.uri, self.ids[key], self._run, Path(program))

    def _lock(self) -> Path:
        """Lies beside a SQLite store, for all searches that share it."""
        if not self.uri.startswith("sqlite:///"):
            return self._run.path / ".mlflow.lock"
        store = Path(self.uri.removeprefix("sqlite:///"))
        store.parent.mkdir(parents=True, exist_ok=True)
        return store.with_name(f".{store.name}.lock")


def _tag_name(name: str) -> str:
    """Ours begin with our name; what MLflow's pages know, with MLflow's."""
    return name if name.startswith("mlflow.") else f"cifartune.{name}"


def _set_environment() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _may_pass(error: Exception) -> bool:
    """Whether an error may be of the moment."""
    from requests import RequestException
    from sqlalchemy.exc import OperationalError

    is_of_the_line = isinstance(
        error, ConnectionError | TimeoutError | RequestException | OperationalError
    )
    return is_of_the_line or getattr(error, "error_code", "") in PASSING
