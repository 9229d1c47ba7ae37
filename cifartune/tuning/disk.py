"""What a search leaves on the disk: the weights of its best trials, and no more."""

import errno
import json
import shutil
from bisect import insort
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from cifartune.config.space import CheckpointSpec
from cifartune.errors import UserError
from cifartune.files import write_atomically
from cifartune.tuning.study import TrialStudy, kept_epoch

FREED = "freed.json"


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
        """Bytes that were freed since the search began."""
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name.isdigit() and study.trials[int(path.name)].state.is_finished():
                self.trial_ended(study.trials[int(path.name)])

    def trial_ended(self, trial: FrozenTrial) -> None:
        """A trial is over, in the study too: its folder goes, or that of one that it beats."""
        path = self._folder / str(trial.number)
        size = _bytes_in(path)
        if trial.state is not TrialState.COMPLETE or not size:
            self._delete(path, size)
            return
        value = trial.intermediate_values[kept_epoch(trial)]
        sign = -1 if self._study.space.target.mode == "max" else 1
        insort(self._best, (sign * value, trial.number, size))
        limit = self._spec.max_bytes
        while len(self._best) > self._spec.keep or (
            limit is not None and sum(bytes_ for _, _, bytes_ in self._best) > limit
        ):
            _, number, size = self._best.pop()
            self._delete(self._folder / str(number), size)

    def _delete(self, path: Path, size: int) -> None:
        shutil.rmtree(path, ignore_errors=True)
        self.freed += size

    def close(self) -> None:
        """Keeps how much was freed."""
        if self._folder.is_dir():
            write_atomically(self._folder / FREED, json.dumps(self.freed))


def freed_bytes(folder: Path) -> int:
    """How much was freed of the trials' folders in `folder`, all processes together."""
    path = folder / FREED
    return int(json.loads(path.read_text())) if path.exists() else 0


class DiskFull(UserError):
    """The search pauses: what was under way can go on when there is room."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a write failed, or what it caused, for the disk, or the user's share, is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "database or disk is full" in str(error):  # SQLite's words
            return True
        error = error.__cause__ or error.__context__
    return False


def _bytes_in(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
