"""What MLflow gets of a finished search: its headline numbers, its files and its model."""

import json
from collections.abc import Iterator
from pathlib import Path

from cifartune.runs import RunFolder
from cifartune.tracking.outbox import Event
from cifartune.tracking.told import Told


def outcome_of(run: RunFolder) -> tuple[dict[str, float], list[Path], Path]:
    """What `Observer.search_ended` is told, from the outcome as it stands in the run's folder.

    Raises:
        OSError, ValueError, KeyError: There is no outcome, or it cannot be read.
    """
    result = json.loads(run.result.read_text())
    is_real = result["test_set"] == "CIFAR-10 test"
    metrics = {
        "val_accuracy": result["validation_accuracy"],
        "cv_accuracy": result["cv_accuracy"]["value"],
        "test_accuracy" if is_real else "stand_in_accuracy": result["test_accuracy"]
        and result["test_accuracy"]["value"],
        "test_looks": result["test_looks"],
        "test_looks_of_all_searches": result["test_looks_of_all_searches"],
        "seconds": result["seconds"]["total"],
    }
    known = {name: value for name, value in metrics.items() if value is not None}
    files = [run.report, run.trials_csv, run.result, run.plan, run.model_card]
    files += sorted(run.mistakes.glob("*.*"))
    return known, [file for file in files if file.exists()], run.program


def file_events(run: RunFolder, files: list[Path]) -> Iterator[Event]:
    """The events, but for their time, that log files of a run, in the folders that they lie in."""
    for file in files:
        folder = "" if file.parent == run.path else file.parent.name
        about = {"folder": folder} if folder else {}
        yield {"do": "file", "key": "search", "path": str(file), **about}


def untold_outcome(run: RunFolder, told: Told) -> list[Event]:
    """The events, but for their time, of which a driver that died behind its outcome told no end.

    None where there is no outcome, where all was told, and where nothing was.
    """
    try:
        metrics, files, model = outcome_of(run)
    except (OSError, ValueError, KeyError):
        return []
    if told.outcome == metrics or "search" not in told.states:
        return []
    events: list[Event] = []
    if not told.knows("search", metrics, 0):
        events.append({"do": "log", "key": "search", "metrics": metrics, "step": 0})
    events += file_events(run, files)
    if model.exists():
        events.append({"do": "model", "key": "search", "program": str(model)})
    return events
