"""Ray: started for one command, quietly, and left behind clean."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

ENVIRONMENT = {
    # Ask for results often: Train's controllers look for them every two seconds by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Fewer processes and less work a slot, for what is not used here.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # The dashboard's Train page.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    # Workers stay where they are, so that relative paths mean what they say.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # No log files a trial: the study and MLflow hold the results.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C is ours; a trial that failed has no metrics, which is no mistake.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # All threads of a worker in the heap that can hold blocks of any size: training/memory.py.
    "MALLOC_ARENA_MAX": "1",
    # Accelerators stay visible to processes that ask for none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def load_ray() -> ModuleType:
    """Imports Ray with our environment variables, where the user has set no others."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.tune

    return ray


@contextmanager
def cluster() -> Iterator[str]:
    """A Ray cluster on this machine for the `with` block, with its dashboard.

    Yields:
        The dashboard's address, or an empty string where it did not start.
    """
    ray = load_ray()
    context = ray.init(
        address="local", include_dashboard=True, log_to_driver=False, logging_level=logging.WARNING
    )
    _protect_token()
    try:
        url = context.dashboard_url
        yield f"http://{url}" if url else ""
    finally:
        ray.shutdown()


def _protect_token() -> None:
    """Makes Ray's token readable by its owner alone: Ray writes it as the umask allows."""
    default = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):
        Path(os.environ.get("RAY_AUTH_TOKEN_PATH", default)).chmod(0o600)
