"""MLflow, written by the driver alone."""

from cifartune.tracking.outbox import is_sent
from cifartune.tracking.outcome import outcome_of
from cifartune.tracking.refused import count_refused
from cifartune.tracking.rest import end_abandoned, send_rest
from cifartune.tracking.store import LoggedRun, read_runs
from cifartune.tracking.tracker import MlflowTracker, check_server, default_uri, final_status

__all__ = [
    "LoggedRun",
    "MlflowTracker",
    "check_server",
    "count_refused",
    "default_uri",
    "end_abandoned",
    "final_status",
    "is_sent",
    "outcome_of",
    "read_runs",
    "send_rest",
]
