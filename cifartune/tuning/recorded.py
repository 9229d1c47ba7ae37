"""The trials of a search, read without disturbing whoever is at it."""

import re
import shutil
import tempfile
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from cifartune.errors import UserError, first_line
from cifartune.runs import RunFolder
from cifartune.tuning.study import close_storage, open_storage, sqlite_url


def recorded_trials(run: RunFolder) -> list[FrozenTrial]:
    """The trials in the run's study as they are now, in the order of their numbers.

    Raises:
        KeyError: There is no such study yet.
        UserError: Its database cannot be read.
    """
    if run.has_own_study and not run.study.exists():
        raise KeyError(run.study)
    with tempfile.TemporaryDirectory() as folder:
        url = run.study_url
        if run.has_own_study:
            # A copy: the search may be running, or its folder be read-only.
            for file in run.path.glob(f"{run.study.name}*"):
                shutil.copy(file, folder)
            url = sqlite_url(Path(folder) / run.study.name)
        database: BaseStorage | None = None
        try:
            database = open_storage(url)
            return optuna.load_study(study_name=run.study_name, storage=database).get_trials()
        except (UserError, SQLAlchemyError, StorageInternalError) as error:
            if isinstance(error, UserError) and not run.has_own_study:
                raise
            where = run.study if run.has_own_study else "--storage"
            reason = first_line(error.__cause__ or error).rpartition(": ")[2]
            reason = re.sub(r"^\(\S+\) ", "", reason)  # SQLAlchemy names the driver's class
            raise UserError(f"{where}: cannot be read: {reason}") from None
        finally:
            if database is not None:
                close_storage(database)
