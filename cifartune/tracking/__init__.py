"""MLflow, written by the driver alone."""

from cifartune.tracking.outbox import is_sent
from cifartune.tracking.store import LoggedRun, read_runs
from cifartune.tracking.tracker import (
    MlflowTracker,
    check_server,
    default_uri,
    end_abandoned,
    final_status,
    send_rest,
)

__all__ = [
    "LoggedRun",
    "MlflowTracker",
    "check_server",
    "default_uri",
    "end_abandoned",
    "final_status",
    "is_sent",
    "read_runs",
    "send_rest",
]
