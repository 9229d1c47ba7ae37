"""What a search needs went away in the middle of it: the disk's room, the memory, the database."""

import re
import sys

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError

from cifartune.errors import UserError, first_line
from cifartune.runs import RunFolder
from cifartune.tuning.disk import no_room

_WRAPPED = re.compile(r"sqlalchemy\.exc\.\w+Error: \([\w.]+\) (.+)")


def what_can_be_mended(error: Exception, run: RunFolder) -> str:
    """What ended a search, where that is a machine's affair, and how to go on; else empty."""
    go_on = f"go on with: {run.resume_command}"
    if full := no_room(error):
        told = f"the disk of {run.path} is full: {full}"
        return f"{told}. All is kept; when there is room, {go_on}" if run.has_trials() else told
    if _is_out_of_memory(error):
        return f"the memory is full: {first_line(error)}. What was recorded is kept; {go_on}"
    if not isinstance(error, UserError) and (lost := database_gone(error)):
        told = f"the study's database is gone: {lost}. What was recorded is kept; when it is"
        return f"{told} back, {go_on}"
    return ""


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Ray ended a process that the driver cannot do without, for the room that it took."""
    ray = sys.modules.get("ray")  # whoever has not loaded it meets none of its errors
    return ray is not None and isinstance(error, ray.exceptions.OutOfMemoryError)


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
