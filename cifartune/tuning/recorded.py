"""The trials of a search, read without disturbing whoever is at it."""

import shutil
import tempfile
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from cifartune.runs import RunFolder
from cifartune.tuning.study import sqlite_url


def recorded_trials(run: RunFolder) -> list[FrozenTrial]:
    """The trials in the run's study as they are now, in the order of their numbers.

    Raises:
        KeyError: There is no such study yet.
    """
    with tempfile.TemporaryDirectory() as folder:
        url = run.study_url
        if run.study.exists():
            # A copy: the search may be running, or its folder be read-only.
            for file in run.path.glob(f"{run.study.name}*"):
                shutil.copy(file, folder)
            url = sqlite_url(Path(folder) / run.study.name)
        database = RDBStorage(url)
        try:
            return optuna.load_study(study_name=run.study_name, storage=database).get_trials()
        finally:
            database.remove_session()
            database.engine.dispose()
