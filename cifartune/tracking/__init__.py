"""MLflow, written by the driver alone."""

from cifartune.tracking.tracker import MlflowTracker, check_server, default_uri, send_rest

__all__ = ["MlflowTracker", "check_server", "default_uri", "send_rest"]
