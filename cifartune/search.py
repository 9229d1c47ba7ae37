"""The whole job: search, refit, evaluate, report. Each stage goes on where it was interrupted."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from cifartune.config import SearchSpace
from cifartune.data import load_train
from cifartune.data.cifar10 import LabelledImages
from cifartune.data.splits import Splits, make_splits
from cifartune.errors import Interrupted, UserError
from cifartune.files import write_atomically
from cifartune.report.frames import trials_frame
from cifartune.report.summary import outcome, print_summary, to_json
from cifartune.report.terminal import Progress
from cifartune.runs import RunFolder
from cifartune.statistics import Accuracy
from cifartune.tracking import MlflowTracker
from cifartune.tuning.cluster import cluster
from cifartune.tuning.study import TrialStudy, sqlite_url


def run_search(
    space: SearchSpace,
    run: RunFolder,
    *,
    data_root: Path,
    tracking_uri: str,
    console: Console,
    command: str = "",
) -> dict[str, Any]:
    """Runs or resumes the search in `run` to its end.

    Args:
        space: The search, as it stands in the run's folder.
        run: Where everything is kept.
        data_root: The prepared images; of the test images, only the evaluation reads them.
        tracking_uri: The MLflow store.
        console: Where progress and summary are shown.
        command: The command line, for MLflow.

    Returns:
        What `result.json` holds.

    Raises:
        Interrupted: Ctrl-C; everything that is finished is kept.
        UserError: No trial succeeded, or a fold failed.
    """
    clock = _Clock(run.clock)
    study = TrialStudy(space, url=sqlite_url(run.study), name=run.name)
    tracker = MlflowTracker(tracking_uri, run, {"command": command, "space": space.name})
    train = load_train(data_root)
    progress = Progress(space, console)
    observers = [progress, tracker]
    status = "FAILED"
    try:
        with _ctrl_c(console) as stop, cluster(run.log) as dashboard:
            from cifartune.refit import run_refit
            from cifartune.tuning.search import run_trials
            from cifartune.tuning.slots import SlotPool, SlotShape

            shape = SlotShape.choose(space.resources, space.search.max_concurrent)
            _announce(console, run, space, shape, dashboard)
            with SlotPool(shape, name=run.name, storage=run.ray) as pool:
                splits = _splits(space, run, train)
                with progress.shown():
                    with clock.time("search") as spent:
                        run_trials(
                            study,
                            pool,
                            folder=run.trials,
                            data_root=data_root,
                            splits=run.splits,
                            observers=observers,
                            stop=stop,
                            seconds=_remaining(space, spent),
                        )
                    _check_trials(study, stop)
                    with clock.time("refit"):
                        candidates = run_refit(
                            study,
                            pool,
                            run=run,
                            splits=splits,
                            labels=train.labels,
                            data_root=data_root,
                            observers=observers,
                            stop=stop,
                        )
        with clock.time("evaluate"):
            from cifartune.evaluate import export_ensemble, load_ensemble

            ensemble = load_ensemble(candidates[0].weights)
            test = _evaluate_once(space, run, ensemble, train, splits, data_root)
            export_ensemble(ensemble, run.program)
        mlflow = {"uri": tracking_uri, "run_id": tracker.run_id}
        result = outcome(
            study, candidates, test, name=run.name, seconds=clock.totals(), mlflow=mlflow
        )
        trials_frame(study).to_csv(run.trials_csv, index=False)
        write_atomically(run.result, to_json(result))
        tracker.search_ended(_headline(result), [run.trials_csv, run.result], run.program)
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise Interrupted from None
    finally:
        tracker.close(status)
    print_summary(result, study, console)
    _print_ways_on(console, run, tracking_uri, tracker.failures)
    return result


def _announce(
    console: Console, run: RunFolder, space: SearchSpace, shape: Any, dashboard: str
) -> None:
    share = f"{shape.cpus:g} CPU cores" + (f" and {shape.gpus:g} GPU" if shape.gpus else "")
    console.print(
        f"[bold]{run.name}[/]: {space.search.num_trials} trials of up to {space.base.epochs} "
        f"epochs on {shape.count} slot{'s' * (shape.count > 1)} of {share}",
        highlight=False,
    )
    if dashboard:
        console.print(f"Ray dashboard: {dashboard} (token: `ray get-auth-token`)", soft_wrap=True)
    console.print(f"Ray's own messages: {run.log}", soft_wrap=True, highlight=False)


def _splits(space: SearchSpace, run: RunFolder, train: LabelledImages) -> Splits:
    """The search's splits; drawn once, then read, so that a resumed search sees the same."""
    if not run.splits.exists():
        make_splits(
            train.labels,
            validation=space.data.validation,
            train_subset=space.data.train_subset,
            folds=space.refit.folds,
            seed=space.search.seed,
            stand_in=space.stand_in,
        ).save(run.splits)
    return Splits.load(run.splits)


def _remaining(space: SearchSpace, spent: float) -> float | None:
    budget = space.search.time_budget
    return None if budget is None else max(0.0, budget - spent)


def _check_trials(study: TrialStudy, stop: threading.Event) -> None:
    if stop.is_set():
        raise Interrupted
    if not study.best():
        failures = [t.user_attrs.get("message") for t in study.trials]
        reason = next(filter(None, failures), "the time budget ended before the first epoch")
        raise UserError(f"no trial succeeded; the first failure: {reason}")


def _evaluate_once(
    space: SearchSpace,
    run: RunFolder,
    ensemble: Any,
    train: LabelledImages,
    splits: Splits,
    data_root: Path,
) -> Accuracy:
    """Evaluates on the test set, or its stand-in; a second time, reads what was found."""
    from cifartune.data.test_set import load_test
    from cifartune.evaluate import evaluate, stand_in

    if run.evaluation.exists():
        return Accuracy(**json.loads(run.evaluation.read_text()))
    images = stand_in(train, splits.stand_in) if space.stand_in else load_test(data_root)
    accuracy = evaluate(ensemble, images)
    write_atomically(run.evaluation, json.dumps(accuracy.as_dict()))
    return accuracy


def _headline(result: dict[str, Any]) -> dict[str, float]:
    """The numbers by which searches are compared in MLflow."""
    return {
        "val_accuracy": result["validation_accuracy"],
        "cv_accuracy": result["cv_accuracy"]["value"],
        "test_accuracy": result["test_accuracy"]["value"],
        "trials": result["trials"]["total"],
        "seconds": result["seconds"]["total"],
    }


def _print_ways_on(console: Console, run: RunFolder, uri: str, failures: list[str]) -> None:
    if failures:
        console.print(f"\n[red]MLflow: {len(failures)} writes failed[/]: {failures[0]}")
    compare = uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
    console.print("\n[bold]Look further[/]")
    for label, text in (
        ("compare trials", compare),
        ("outcome", str(run.result)),
        ("every trial", str(run.trials_csv)),
        ("notebook", "notebooks/compare_trials.ipynb"),
    ):
        console.print(f"  {label:15} {text}", highlight=False, soft_wrap=True)


class _Clock:
    """How long each stage took, over all interruptions."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def time(self, stage: str) -> Iterator[float]:
        """Adds the time of the `with` block to `stage`; gives what it took before."""
        start, before = time.monotonic(), self._seconds.get(stage, 0.0)
        try:
            yield before
        finally:
            self._seconds[stage] = before + time.monotonic() - start
            write_atomically(self._path, json.dumps(self._seconds))

    def totals(self) -> dict[str, float]:
        """Seconds by stage, and their `total`."""
        rounded = {stage: round(seconds, 1) for stage, seconds in self._seconds.items()}
        return rounded | {"total": round(sum(self._seconds.values()), 1)}


@contextmanager
def _ctrl_c(console: Console) -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into an event; the second ends the program at once."""
    stop = threading.Event()

    def heard(*_: Any) -> None:
        if stop.is_set():
            signal.signal(signal.SIGINT, before)
            raise KeyboardInterrupt
        stop.set()
        console.print("\nStopping; what is finished is kept. Ctrl-C again: at once.")

    before = signal.signal(signal.SIGINT, heard)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
