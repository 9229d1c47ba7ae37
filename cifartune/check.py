"""Whether all that a search left behind fits together: its study, its files and its MLflow runs."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from cifartune.config import SearchSpace, load_space
from cifartune.config.specs import RefitSpec
from cifartune.data.splits import Splits
from cifartune.errors import UserError, first_line
from cifartune.files import leftovers
from cifartune.outputs import WEIGHTS
from cifartune.runs import RunFolder
from cifartune.tracking import LoggedRun, count_refused, final_status, is_sent, read_runs
from cifartune.tuning.checkpoints import Checkpoints
from cifartune.tuning.recorded import recorded_trials
from cifartune.tuning.study import REFUSED, TrialStudy, attributes, kept_epoch

CLOSE = 1e-9
"""How far apart two notes of one number may lie: stores may keep other formats of floats."""


@dataclass(frozen=True)
class Finding:
    """Something that does not fit.

    Attributes:
        where: What it is about: a trial, a file, a run of MLflow.
        what: What is wrong with it.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def check_run(run: RunFolder, data_root: Path) -> list[Finding]:
    """Reads a search that nobody is at, from end to end, and mends nothing.

    Of a search that is not finished, it looks neither at what is half-written nor at whether MLflow
    has the states and values of the study, which `resume` sees to.

    Args:
        run: The search's folder.
        data_root: The prepared images, for their labels; of a finished search alone.

    Raises:
        UserError: There is no trial yet, or the study cannot be read.
    """
    space = load_space(run.space_file)
    try:
        trials = recorded_trials(run)
    except KeyError:
        trials = []
    if not trials:
        raise UserError(f"{run.path}: there is no trial to check")
    findings = [*_of_study(run, space, trials), *_of_files(run, trials)]
    if run.space_was_edited:
        findings.append(Finding(run.space_file.name, "was edited by hand since the search began"))
    candidates: list[dict[str, Any]] = []
    if run.result.exists():
        try:
            result = json.loads(run.result.read_text())
            candidates = result["candidates"]
            findings += _of_outcome(run, space.refit, trials, result, data_root)
        except (ValueError, KeyError, TypeError) as error:
            findings.append(Finding(run.result.name, f"cannot be read: {first_line(error)}"))
    return [*findings, *_of_mlflow(run, space, trials, candidates)]


def _of_study(run: RunFolder, space: SearchSpace, trials: list[FrozenTrial]) -> Iterator[Finding]:
    """Each trial has the epochs, the value and the reasons that its state asks for."""
    study = TrialStudy(space)
    objective = [target.metric for target in space.targets].index(space.target.metric)
    for trial in trials:
        where, known, epochs = f"trial {trial.number}", attributes(trial), trial.intermediate_values
        if trial.state is TrialState.RUNNING and run.result.exists():
            yield Finding(where, "is RUNNING, and the search is finished")
        if sorted(epochs) != list(range(1, len(epochs) + 1)):
            yield Finding(where, f"has values of the epochs {sorted(epochs)}, with gaps")
        if trial.state is TrialState.FAIL and not known.get("failure"):
            yield Finding(where, "failed, and the kind of the failure is not recorded")
        if trial.state is not TrialState.COMPLETE:
            continue
        last = study.recipe(trial).last_epoch
        if not epochs or max(epochs) > last:
            yield Finding(where, f"is complete with {len(epochs)} epochs of {last}")
            continue
        value, found = epochs.get(kept_epoch(trial)), (trial.values or [None])[objective]
        if value != found:
            yield Finding(where, f"has the value {found}, and {value} at its epoch")


def _of_files(run: RunFolder, trials: list[FrozenTrial]) -> Iterator[Finding]:
    """Files are whole, and belong to something."""
    for path in sorted(run.trials.iterdir()) if run.trials.is_dir() else ():
        if not path.is_dir():
            continue
        if not path.name.isdigit() or int(path.name) >= len(trials):
            yield Finding(_short(run, path), "belongs to no trial of the study")
            continue
        yield from _of_trial_folder(run, path, trials[int(path.name)])
    if run.result.exists():
        for path in leftovers(run.path):
            yield Finding(_short(run, path), "was left half-written by a process that died")


def _of_trial_folder(run: RunFolder, path: Path, trial: FrozenTrial) -> Iterator[Finding]:
    checkpoints = Checkpoints(path)
    for file in checkpoints.damaged():
        yield Finding(_short(run, file), "is damaged; a resumed search takes the one before it")
    if run.result.exists() and checkpoints.epoch:
        yield Finding(_short(run, path), "has checkpoints, and the search is finished")
    if (path / WEIGHTS).exists():
        yield from _of_weights(run, path / WEIGHTS)


def _of_weights(run: RunFolder, path: Path) -> Iterator[Finding]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            list(file.keys())
    except (OSError, SafetensorError) as error:
        yield Finding(_short(run, path), f"cannot be read: {first_line(error)}")


def _of_outcome(
    run: RunFolder,
    spec: RefitSpec,
    trials: list[FrozenTrial],
    result: dict[str, Any],
    data_root: Path,
) -> Iterator[Finding]:
    """The outcome follows from the study and the folds' logits."""
    counted = [t for t in trials if attributes(t).get("failure") != REFUSED]
    if result["trials"]["total"] != len(counted):
        told = f"tells of {result['trials']['total']} trials, and the study of {len(counted)}"
        yield Finding(run.result.name, told)
    for candidate in result["candidates"]:
        yield from _of_refit(run, spec, candidate, data_root)


def _of_refit(
    run: RunFolder, spec: RefitSpec, candidate: dict[str, Any], data_root: Path
) -> Iterator[Finding]:
    from cifartune.data import load_train
    from cifartune.refit import OutOfFold, fold_folders
    from cifartune.statistics import Accuracy

    number, told = candidate["trial"], candidate["cv_accuracy"]["value"]
    dropped = candidate.get("dropped")
    folds = dropped["folds"] if dropped else spec.folds
    folders = fold_folders(run, number, folds, spec.seeds)
    for folder in chain.from_iterable(folders):
        yield from _of_weights(run, folder / WEIGHTS)
    try:
        gathered = OutOfFold.gather(Splits.load(run.splits), folders)
        kept = OutOfFold.load(run.out_of_fold(number))
    except (UserError, OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        yield Finding(f"refit of trial {number}", f"logits cannot be read: {first_line(error)}")
        return
    if not np.array_equal(gathered.logits, kept.logits):
        yield Finding(_short(run, run.out_of_fold(number)), "has other logits than the folds have")
    accuracy = Accuracy.of_runs(gathered.right(load_train(data_root).labels)).value
    if abs(accuracy - told) > CLOSE:
        yield Finding(
            run.result.name,
            f"has {told} for the refit of trial {number}, and its logits say {accuracy}",
        )


def _of_mlflow(
    run: RunFolder,
    space: SearchSpace,
    trials: list[FrozenTrial],
    candidates: list[dict[str, Any]],
) -> Iterator[Finding]:
    """Each trial that began has one run, with its state and its values, and nothing is RUNNING.

    So has each candidate of the outcome, and each of its folds.

    A refit that was interrupted, and is none of the outcome's, stays so.
    """
    if not is_sent(run.tracking):
        told = f"has not got all events of this search; send them with: {run.sync_command}"
        yield Finding("MLflow", told)
        return
    if count := count_refused(run):
        told = f"refused {count} events of this search; try them again with: {run.sync_command}"
        yield Finding("MLflow", told)
    try:
        runs = read_runs(run.tracking_uri, run, space.target.metric)
    except UserError as error:
        yield Finding("MLflow", str(error))
        return
    for key, count in Counter(found.key for found in runs).items():
        if count > 1:
            yield Finding(f"MLflow: {key}", f"is there {count} times")
    by_key = {found.key: found for found in runs}
    if "search" not in by_key:
        yield Finding("MLflow", "has no run of this search")
    for key, found in sorted(by_key.items()):
        number = key.removeprefix("trial-")
        if number.isdigit() and int(number) >= len(trials):
            yield Finding(f"MLflow: {key}", "is no trial of the study")
        if found.status == "RUNNING":
            told = f"is RUNNING, and no process is at it; set it right with: {run.sync_command}"
            yield Finding(f"MLflow: {key}", told)
    if not run.result.exists():
        return
    from cifartune.refit import fold_folders

    wanted = {"search": "FINISHED"}
    for candidate in candidates:
        refit, dropped = f"refit-{candidate['trial']}", candidate.get("dropped")
        wanted[refit] = "KILLED" if dropped else "FINISHED"
        folds = dropped["folds"] if dropped else space.refit.folds
        for folder in chain.from_iterable(
            fold_folders(run, candidate["trial"], folds, space.refit.seeds)
        ):
            wanted[f"{refit}-{folder.name}"] = "FINISHED"
    for key, status in wanted.items():
        if key not in by_key and key != "search":
            yield Finding(f"MLflow: {key}", "is missing")
        elif key in by_key and by_key[key].status not in (status, "RUNNING"):
            yield Finding(f"MLflow: {key}", f"is {by_key[key].status}, and the search is finished")
    for trial in trials:
        key = f"trial-{trial.number}"
        if key in by_key:
            yield from _of_logged(trial, by_key[key])
        elif trial.intermediate_values:
            yield Finding(f"MLflow: {key}", "is missing")


def _of_logged(trial: FrozenTrial, logged: LoggedRun) -> Iterator[Finding]:
    """A trial's run says what the study says."""
    where = f"MLflow: {logged.key}"
    if logged.status not in (final_status(trial), "RUNNING"):
        yield Finding(where, f"is {logged.status}, and the trial is {trial.state.name}")
    steps = Counter(step for step, _ in logged.values)
    if doubled := [step for step, count in steps.items() if count > 1]:
        yield Finding(where, f"has the epochs {doubled} more than once")
    epochs = trial.intermediate_values
    if missing := sorted(epochs.keys() - steps.keys()):
        yield Finding(where, f"lacks the epochs {missing}")
    for step, value in logged.values:
        if step not in epochs:
            yield Finding(where, f"has an epoch {step}, which the study does not know")
        elif abs(value - epochs[step]) > CLOSE:
            yield Finding(where, f"has {value} at epoch {step}, and the study {epochs[step]}")


def _short(run: RunFolder, path: Path) -> str:
    return str(path.relative_to(run.path))
