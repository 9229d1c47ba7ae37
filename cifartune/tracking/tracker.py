"""A search in MLflow: a parent run, a child for each trial and refit, a grandchild a fold."""

import getpass
import http.client
import logging
import os
import re
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from cifartune import __version__
from cifartune.commit import commit_of_source, is_code_known
from cifartune.config import Recipe
from cifartune.config.load import load_space
from cifartune.errors import UserError
from cifartune.events import Observer
from cifartune.passwords import without_login, without_password
from cifartune.runs import RunFolder
from cifartune.tracking.names import Names, part_name, refit_name
from cifartune.tracking.outbox import Event, Outbox
from cifartune.tracking.outcome import file_events
from cifartune.tracking.refused import Refused
from cifartune.tracking.store import MlflowStore, Trouble
from cifartune.tracking.system import SystemMetrics
from cifartune.tracking.told import Told
from cifartune.tracking.view import view_of
from cifartune.tuning.study import TrialStudy, attributes, is_feasible, last_metrics

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0

PAUSES = (1.0, 30.0)
"""Seconds until a store that does not answer is tried again: at first, and at the most."""

TRIES = 5
"""How often an event is sent that the store, which answers, cannot take."""

MOST_LETTERS = 8000
"""MLflow's limit for a description."""

CLOSE_SECONDS = 20.0
"""How long a store that does not answer is tried for at the end of a search."""


def default_uri(runs: Path) -> str:
    """`MLFLOW_TRACKING_URI` where it is set, else a SQLite file beside the runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(runs / 'mlflow.db').resolve()}"


def check_server(uri: str) -> None:
    """Makes sure that a tracking server answers; other stores are files, which need no asking.

    Raises:
        UserError: Nothing answers, or the URI is of an unknown kind.
    """
    kind, named = uri.partition(":")[0].partition("+")[0], without_password(uri)
    if kind not in ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks"):
        raise UserError(
            f"--tracking-uri {named}: neither a server (http://...) nor a database (sqlite:///...)"
        )
    if reason := _why_silent(uri):
        raise UserError(
            f"--tracking-uri {named}: the MLflow server does not answer ({reason}); start it with "
            "`mlflow server`, or keep runs in runs/mlflow.db: leave the option out, and "
            "MLFLOW_TRACKING_URI unset"
        )


def _why_silent(uri: str) -> str:
    """Why a server does not answer; empty where it does, and where there is none to ask."""
    if not re.match(r"https?\b", uri):
        return ""
    try:
        urllib.request.urlopen(
            f"{without_login(uri).rstrip('/')}/health", timeout=ANSWER_SECONDS
        ).close()
    except urllib.error.HTTPError:
        return ""  # it answers; whether it lets us in is seen when the store is opened
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error))
    return ""


COUNTS = ("resolved_micro_batch", "threads", "workers", "fold")
"""Facts of a run that say how it was computed, and are numbers."""


class MlflowTracker(Observer):
    """Writes a search to MLflow, in order, on a thread of its own: training never waits for it.

    What happens is first put into a file of the run. What cannot be sent stays there, and is sent
    later: when the store answers again, when the search is resumed, or by `send_rest`. What MLflow
    refuses holds up nothing: it is told in `failures`, and kept for `send_rest` to try again. The
    study holds everything all the same.

    While it is open, it logs how busy the machine is, too.

    Args:
        uri: The tracking store. A SQLite file is made here, by one process at a time.
        run: The search's folder. The parent run is found again by its id.
        tags: Facts about the search, for its parent run.
    """

    def __init__(self, uri: str, run: RunFolder, tags: dict[str, Any]) -> None:
        self.uri = uri
        self._run = run
        self._space = load_space(run.space_file)
        self._names = Names(self._space)
        self._datasets: list[dict[str, str]] = []
        self.failures: list[str] = []
        """What MLflow refused."""
        self.trouble = ""
        """Why nothing can be sent at present; empty where it can."""
        self._putting = threading.RLock()
        self._outbox = Outbox(run.tracking)
        self._refused = Refused(run.refused)
        self._told = Told(self._outbox.history())
        self._store = MlflowStore(uri, run)
        self._closing = threading.Event()
        self._tried = threading.Event()  # whether the store was asked for the first time
        self._source = _source()
        facts = {"kind": "search", "folder": run.path, "version": __version__}
        self._start("search", None, run.name, facts | tags, self._names.shared())
        self._put("file", "search", path=str(run.space_file))
        view = view_of(self._space, run.id, run.name, int(time.time() * 1000))
        self._put("view", "search", view=view)
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._thread.start()
        self._system = SystemMetrics(self._tell_system)

    def check(self) -> None:
        """Waits until the store is open.

        Raises:
            UserError: It could not be opened.
        """
        self._tried.wait()
        if not self._store.has_opened:
            told = f"--tracking-uri {without_password(self.uri)}: cannot be opened: {self.trouble}"
            raise UserError(told)

    def why_away(self) -> str:
        """Why the store cannot be opened at present; empty where it is open.

        Waits for what is seen of it, but not for a server that does not even answer.
        """
        if reason := _why_silent(self.uri):
            return reason
        self._tried.wait()
        return "" if self._store.has_opened else self.trouble

    @property
    def run_id(self) -> str:
        """The id of the search's parent run; waits until it is there. Empty if there is none."""
        self._tried.wait()
        return self._store.ids.get("search", "")

    @property
    def unsent(self) -> int:
        """Events that MLflow has not got yet."""
        return len(self._outbox)

    def catch_up(self, study: TrialStudy) -> None:
        """Tells what the study holds, and a driver that died could no more tell.

        Of a trial's last epoch that is all its metrics, of those before the objective.
        """
        for trial in study.trials:
            key, values = f"trial-{trial.number}", trial.intermediate_values
            if key not in self._told.steps:
                if not values:
                    continue  # it never began
                self.trial_started(trial.number, study.recipe(trial))
            for epoch in sorted(values):
                if epoch > self._told.steps[key]:
                    metrics: dict[str, float] = {study.space.target.metric: values[epoch]}
                    if epoch == max(values) and metrics.items() <= last_metrics(trial).items():
                        metrics = last_metrics(trial)
                        metrics.pop("seconds", None)  # there, those of all its epochs
                    self.epoch_ended(trial.number, epoch, metrics)
            if trial.state.is_finished() and key not in self._told.final:
                self.trial_ended(trial)

    def describe(self, text: str) -> None:
        """Puts a description, in Markdown, on the search's run, in place of the one before."""
        self._put("tag", "search", tags={"mlflow.note.content": text[:MOST_LETTERS]})

    def uses(self, datasets: list[dict[str, str]]) -> None:
        """Tells what the search and its trials are trained on; see `used_images`."""
        self._datasets = datasets
        self._put("inputs", "search", datasets=datasets)

    def close(self, status: str = "FINISHED") -> None:
        """Ends what is not ended yet with `status`, and waits until all is sent, or cannot be."""
        self._system.stop()
        with suppress(OSError):  # the disk is full, which is why all ends
            for event in self._told.ends_of_open(status):
                self._put(**event)
        self._stop()

    def discard(self) -> None:
        """Ends the tracking of a search that never began, and deletes its run."""
        self._system.stop()
        self._put("delete", "search")
        self._stop()

    def _stop(self) -> None:
        self._system.stop()
        self._closing.set()
        self._outbox.close()
        self._thread.join()

    def trial_started(self, number: int, recipe: Recipe) -> None:
        tags = {"kind": "trial", "trial": number, "state": "RUNNING", **_identity(recipe)}
        key, is_new = f"trial-{number}", f"trial-{number}" not in self._told.steps
        name = self._names.trial(number, recipe)
        self._start(key, "search", name, tags, self._names.own(recipe))
        if is_new and self._datasets:
            self._put("inputs", key, datasets=self._datasets)

    def epoch_ended(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        self._log(f"trial-{number}", _of_epoch(metrics), epoch)

    def trial_ended(self, trial: FrozenTrial) -> None:
        key = f"trial-{trial.number}"
        if key not in self._told.steps:
            return  # over before it began
        feasible = is_feasible(trial)
        known, epochs = attributes(trial), max(trial.intermediate_values, default=0)
        tags = {"state": trial.state.name, "feasible": feasible, **_told_of(known)}
        if rungs := self._space.rungs:
            tags["rung"] = sum(epochs >= rung for rung in rungs)
        self._put("tag", key, tags=_texts(tags))
        end = {k: v for k, v in known.items() if k in ("params", "kept_epoch", "seconds")}
        end["trained_epochs"] = epochs
        if trial.values:
            metrics = [target.metric for target in self._space.targets]
            end["objective"] = trial.values[metrics.index(self._space.target.metric)]
        self._log(key, end)
        self._put("end", key, status=final_status(trial), is_final=True)

    def refit_started(self, number: int, recipe: Recipe) -> None:
        tags = {"kind": "refit", "trial": number, **_identity(recipe)}
        self._start(f"refit-{number}", "search", refit_name(number), tags, self._names.own(recipe))

    def part_epoch_ended(
        self, number: int, part: str, epoch: int, metrics: dict[str, float]
    ) -> None:
        self._log(self._part(number, part), _of_epoch(metrics), epoch)

    def part_ended(
        self, number: int, part: str, accuracy: float | None, facts: dict[str, Any]
    ) -> None:
        key = self._part(number, part)
        if key in self._told.final:
            return  # an earlier process told of it
        self._put("tag", key, tags=_texts(_told_of(facts)))
        if accuracy is not None:
            self._log(key, {"held_out_accuracy": accuracy})
        status = "FAILED" if "failure" in facts else "FINISHED"
        self._put("end", key, status=status, is_final=status == "FINISHED")  # or tried again

    def refit_ended(self, number: int, metrics: dict[str, float], dropped: str = "") -> None:
        key = f"refit-{number}"
        for part in sorted(k for k in self._told.open if k.startswith(f"{key}-")):
            self._put("end", part, status="KILLED")
        if dropped:
            self._put("tag", key, tags={"dropped": dropped})
        self._log(key, metrics)
        status = "KILLED" if metrics else "FAILED"
        self._put("end", key, status=status if dropped else "FINISHED")

    def _part(self, number: int, part: str) -> str:
        """The key of a training run of a refit, which begins, or goes on, if it has not."""
        key = f"refit-{number}-{part}"
        if key not in self._told.open | self._told.final:
            words = part.split("-")
            kind = words[0] if words[0] == "fold" else part
            numbers = dict(zip(words[::2], words[1::2], strict=True)) if kind == "fold" else {}
            tags = {"kind": kind, "trial": number, **numbers}
            self._start(key, f"refit-{number}", part_name(part), tags, numbers)
        return key

    def search_ended(self, metrics: dict[str, float], files: list[Path], model: Path) -> None:
        self._log("search", metrics)
        for event in file_events(self._run, files):
            self._put(**event)
        self._put("model", "search", program=str(model))

    def _tell_system(self, metrics: dict[str, float]) -> None:
        with self._putting:
            step = self._told.steps.get("search", 0) + 1
            self._put("log", "search", metrics=metrics, step=step)

    def _start(
        self,
        key: str,
        parent: str | None,
        name: str,
        tags: dict[str, Any],
        parameters: dict[str, Any],
    ) -> None:
        tags = _texts(self._source | tags)
        self._put("start", key, parent=parent, tags=tags, params=_texts(parameters), name=name)

    def _log(self, key: str, metrics: dict[str, float], step: int = 0) -> None:
        """Metrics of an epoch or of the end, once: what is done again brings the same."""
        known = {name: value for name, value in metrics.items() if value is not None}
        if known and not self._told.knows(key, known, step):
            self._put("log", key, metrics=known, step=step)

    def _put(self, do: str, key: str, **about: Any) -> None:
        with self._putting:  # two threads do
            event = {"time": int(time.time() * 1000), "do": do, "key": key, **about}
            self._told.note(event)
            self._outbox.put(event)
        if do == "end":  # what belongs to the run, and was not sent yet, too
            self._outbox.sync()

    def _send(self) -> None:
        """The thread: sends event by event, for as long as it takes."""
        pause, deadline, tries = PAUSES[0], float("inf"), 0
        while (event := self._outbox.first()) is not None:
            trouble = self._store.try_to_send(event)
            # What the store answers with an error, time and again, holds up all that comes after.
            tries = tries + 1 if trouble and self._store.is_open else 0
            is_refused = trouble is not None and (trouble.is_final or tries >= TRIES)
            if trouble and not (is_refused and self._set_aside(event, trouble)):
                if not self.trouble:
                    logger.warning("MLflow: %s; it is tried again", trouble)
                self.trouble = str(trouble)
                self._tried.set()
                if self._closing.is_set():
                    if not self._store.has_opened:
                        return
                    deadline = min(deadline, time.monotonic() + CLOSE_SECONDS)
                    time.sleep(min(pause, CLOSE_SECONDS / 4))
                else:
                    self._closing.wait(pause)
                if time.monotonic() > deadline:
                    return
                pause = min(2 * pause, PAUSES[1])
                continue
            self.trouble, pause, tries, deadline = "", PAUSES[0], 0, float("inf")
            self._outbox.sent()
            self._tried.set()

    def _set_aside(self, event: Event, trouble: Trouble) -> bool:
        """Keeps what MLflow refuses for later; false where there is no room for it."""
        logger.warning("MLflow refuses %s of %s: %s", event["do"], event["key"], trouble)
        try:
            self._refused.add(event)
        except OSError:
            return False
        self.failures.append(str(trouble))
        return True


def final_status(trial: FrozenTrial) -> str:
    """MLflow's word for how a trial ended."""
    status = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED"}
    return status.get(trial.state, "FAILED") if is_feasible(trial) else "FAILED"


def _source() -> dict[str, str]:
    """Whose run it is, and of what code: in MLflow's words, which its pages show, and in ours."""
    commit = commit_of_source()
    known = {"mlflow.source.git.commit": commit} if is_code_known(commit) else {}
    with suppress(OSError, KeyError, ImportError):  # a container may know no name
        known["mlflow.user"] = getpass.getuser()
    return {"mlflow.source.name": "cifartune", "commit": commit, **known}


def _identity(recipe: Recipe) -> dict[str, str]:
    """All of a recipe; what is `auto` in it is known when the run is over."""
    return {"recipe_id": recipe.id, "recipe": recipe.model_dump_json()}


def _of_epoch(metrics: dict[str, float]) -> dict[str, float]:
    """An epoch's metrics as they are logged: `seconds` is the time of all a trial's epochs."""
    return {"epoch_seconds" if k == "seconds" else k: v for k, v in metrics.items()}


def _told_of(facts: dict[str, Any]) -> dict[str, Any]:
    """Those of a run's facts that say how it was computed, or why it failed."""
    return {k: v for k, v in facts.items() if isinstance(v, str) or k in COUNTS}


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}
