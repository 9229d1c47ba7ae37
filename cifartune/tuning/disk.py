"""What a search leaves on the disk: the weights of its best trials, and no more."""

import errno
import json
import os
import shutil
from bisect import insort
from contextlib import suppress
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from cifartune.config.specs import CheckpointSpec
from cifartune.files import write_atomically
from cifartune.outputs import LOGITS, PLAIN_LOGITS, WEIGHTS
from cifartune.tuning.checkpoints import Checkpoints
from cifartune.tuning.study import TrialStudy, kept_epoch

FREED = "freed.json"
KEPT = (WEIGHTS, LOGITS, PLAIN_LOGITS)
"""What is kept of a trial: its weights, and what they say of the validation images."""


FULL = (
    os.strerror(errno.ENOSPC),
    os.strerror(errno.EDQUOT),
    "database or disk is full",  # SQLite's words
)


class TrialFolders:
    """The folders of trials: those that are over go, but for the best complete ones.

    Args:
        folder: Has a folder for each trial, by its number.
        study: Says how trials ended. What it holds already is taken into account.
        spec: How many are kept, and how large they may be together.
    """

    def __init__(self, folder: Path, study: TrialStudy, spec: CheckpointSpec) -> None:
        self._folder = folder
        self._study = study
        self._spec = spec
        self._best: list[tuple[float, int, int]] = []  # rank, number, bytes; the best first
        self.freed = freed_bytes(folder)
        """Bytes that were freed since the search began, which a file in the folder has, too."""
        trials = study.trials
        for path in folder.iterdir() if folder.is_dir() else ():
            number = int(path.name) if path.name.isdigit() else -1
            if number >= len(trials):  # the study lost its last words in a power cut
                shutil.rmtree(path, ignore_errors=True)
            elif number >= 0 and trials[number].state.is_finished():
                self.trial_ended(trials[number])
            elif number >= 0:  # or it has lost the last epochs of a trial
                epochs = trials[number].intermediate_values
                Checkpoints(path).drop_after(max(epochs, default=0))

    def trial_ended(self, trial: FrozenTrial) -> None:
        """A trial is over, in the study too: its folder goes, or that of one that it beats."""
        before = self.freed
        self._make_room(trial)
        if self.freed != before:
            with suppress(OSError):  # a count is nothing to end for
                write_atomically(self._folder / FREED, json.dumps(self.freed))

    def _make_room(self, trial: FrozenTrial) -> None:
        path = self._folder / str(trial.number)
        weights = path / WEIGHTS
        if trial.state is not TrialState.COMPLETE or not weights.exists():
            self._delete(path)
            return
        for file in path.iterdir():
            if file.name not in KEPT:
                self._delete(file)
        size = weights.stat().st_size
        value = trial.intermediate_values[kept_epoch(trial)]
        sign = -1 if self._study.space.target.mode == "max" else 1
        insort(self._best, (sign * value, trial.number, size))
        limit = self._spec.max_bytes
        while len(self._best) > self._spec.keep or (
            limit is not None and sum(bytes_ for _, _, bytes_ in self._best) > limit
        ):
            _, number, _ = self._best.pop()
            self._delete(self._folder / str(number))

    def _delete(self, path: Path) -> None:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        self.freed += sum(file.stat().st_size for file in files)
        if path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)


def freed_bytes(folder: Path) -> int:
    """How much was freed of the trials' folders in `folder`, all processes together."""
    path = folder / FREED
    return int(json.loads(path.read_text())) if path.exists() else 0


def no_room(error: BaseException | None) -> str:
    """What was said of a disk, or a user's share of it, that is full; empty if it was not that.

    Ray Tune wraps what goes wrong in a text.
    """
    while error is not None:
        for line in str(error).splitlines():
            if any(words in line for words in FULL):
                return line.strip()
        error = error.__cause__ or error.__context__
    return ""
