"""MLflow, written by the driver alone."""

from cifartune.tracking.tracker import MlflowTracker, check_server, default_uri

__all__ = ["MlflowTracker", "check_server", "default_uri"]
