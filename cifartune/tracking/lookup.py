"""From the id of an MLflow run back to what it is a run of."""

import os
from pathlib import Path

from cifartune.errors import UserError, first_line
from cifartune.passwords import hidden_in, without_password
from cifartune.tracking.store import ENVIRONMENT, KEY


def look_up(uri: str, run_id: str) -> tuple[str, str]:
    """The id of the search that an MLflow run belongs to, and its key: search, trial-3, refit-3.

    Args:
        uri: The tracking store, which stays as it is.
        run_id: MLflow's.

    Raises:
        UserError: The store cannot be read, has no such run, or it is none of cifartune's.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    shown = without_password(uri)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"{run_id}: there is no MLflow store {shown}; name one with --tracking-uri")
    try:
        tags = MlflowClient(uri).get_run(run_id).data.tags
    except Exception as error:  # of the database or of the line, whichever store it is
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            told = "has no such run; name it with --tracking-uri"
        else:
            told = f"cannot be read: {hidden_in(first_line(error), uri)}"
        raise UserError(f"{run_id}: the MLflow store {shown} {told}") from None
    if not {"cifartune.search", KEY} <= tags.keys():
        raise UserError(f"{run_id}: is no run of cifartune's in the MLflow store {shown}")
    return tags["cifartune.search"], tags[KEY]
