"""The trials of a search, read without disturbing whoever is at it."""

import re
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from cifartune.config import SearchSpace
from cifartune.errors import UserError, first_line
from cifartune.runs import RunFolder
from cifartune.tuning.study import TrialStudy, close_storage, open_storage, sqlite_url


def recorded_trials(run: RunFolder) -> list[FrozenTrial]:
    """The trials in the run's study as they are now, in the order of their numbers.

    Raises:
        KeyError: There is no such study yet.
        UserError: Its database cannot be read, or has it by another name.
    """
    if run.has_own_study and not run.study.exists():
        raise KeyError(run.study)
    with tempfile.TemporaryDirectory() as folder:
        url = run.study_url
        if run.has_own_study:
            url = sqlite_url(Path(folder) / run.study.name)
        database: BaseStorage | None = None
        try:
            if run.has_own_study:
                copy_database(run.study, Path(folder) / run.study.name)
            database = open_storage(url)
            return optuna.load_study(study_name=run.study_name, storage=database).get_trials()
        except KeyError:
            if run.has_own_study and run.has_trials():  # earlier versions did not keep the name
                raise UserError(
                    f"{run.study}: holds no study called {run.study_name}; was the folder renamed? "
                    "Its trials are known by its name of before"
                ) from None
            raise
        except (UserError, SQLAlchemyError, StorageInternalError, sqlite3.Error) as error:
            if isinstance(error, UserError) and not run.has_own_study:
                raise
            where = run.study if run.has_own_study else "--storage"
            reason = first_line(error.__cause__ or error).rpartition(": ")[2]
            reason = re.sub(r"^\(\S+\) ", "", reason)  # SQLAlchemy names the driver's class
            raise UserError(f"{where}: cannot be read: {reason}") from None
        finally:
            if database is not None:
                close_storage(database)


def recorded_study(run: RunFolder, space: SearchSpace) -> TrialStudy:
    """The run's study as it is now, in memory: nothing that is done with it reaches the run.

    Raises:
        UserError: Its database cannot be read, or has it by another name.
    """
    try:
        trials = recorded_trials(run)
    except KeyError:
        trials = []  # none yet
    return TrialStudy(space, recorded=trials)


def copy_database(path: Path, copy: Path) -> None:
    """Copies a SQLite file as of one moment: the search may be running, or its folder read-only."""
    # Without a log nobody is at it, and to ask for one would make one.
    mode = "mode=ro" if Path(f"{path}-wal").exists() else "immutable=1"
    try:
        with (
            closing(sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except sqlite3.OperationalError:  # the log of a process that died, where none can be at it
        for file in path.parent.glob(f"{path.name}*"):
            shutil.copy(file, copy.parent)
