"""The study's database went away in the middle of a search."""

import re

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError

from cifartune.errors import first_line

_WRAPPED = re.compile(r"sqlalchemy\.exc\.\w+Error: \([\w.]+\) (.+)")


def database_gone(error: BaseException | None) -> str:
    """What was said of a database that cannot be used any more; empty if it was not that.

    Ray Tune wraps what goes wrong in a text.
    """
    told = ""
    while error is not None:
        if isinstance(error, DBAPIError):
            return first_line(error.orig or error)
        if isinstance(error, StorageInternalError):
            told = first_line(error)
        for line in str(error).splitlines():
            if wrapped := _WRAPPED.match(line):
                return wrapped[1]
        error = error.__cause__ or error.__context__
    return told
