"""Ray: started for one command or joined, quietly, and left behind clean."""

import json
import logging
import os
import secrets
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from cifartune.errors import UserError, first_line

KNOCK_SECONDS = 10.0

ASK_SECONDS = 2.0
"""How long a dashboard may take to say whether its cluster asks for a token."""

OPEN = (
    "this cluster asks for no token: whoever reaches its ports may run code on its machines; "
    "deploy/README.md has the way to ask for one"
)
"""What is said where `lets_everyone_in` is true."""

OWN = "local"
"""The address of a cluster of our own, which is started on this machine."""

ENVIRONMENT = {
    # Ask for results often: Train's controllers look for them every two seconds by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Fewer processes and less work a slot, for what is not used here.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # The dashboard's API of Train runs, one for each slot.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    # Workers stay where they are, so that relative paths mean what they say.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # No log files a trial: the study and MLflow hold the results.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Nor Tune's own snapshots, which grow with the trials: the study is what is gone on from.
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",
    # Ctrl-C is ours; a trial that failed has no metrics, which is no mistake.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # All threads of a worker in the heap that can hold blocks of any size: training/memory.py.
    "MALLOC_ARENA_MAX": "1",
    # Accelerators stay visible to processes that ask for none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def load_ray(address: str = OWN) -> ModuleType:
    """Imports Ray with our environment variables, where the user has set no others.

    A cluster's token is asked for: whoever may use it runs code on it (CVE-2023-48022). Ray reads
    so when it is imported; for its own, and one that it finds on this machine, it does so itself.
    """
    if address not in (OWN, "auto"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.tune

    return ray


@contextmanager
def cluster(address: str = OWN, *, name: str = "cifartune") -> Iterator[str]:
    """A Ray cluster for the `with` block.

    Args:
        address: Of a cluster to join, as `host:port`, or `auto` for the one that `ray start` left
            on this machine. Default: a cluster of our own on this machine, with its dashboard.
        name: Of this process among the jobs of the cluster, as the dashboard shows it.

    Yields:
        The dashboard's address, or an empty string where there is none.

    Raises:
        UserError: There is no cluster at `address`, or it does not let us in.
    """
    options: dict[str, Any] = {"address": address}
    if address == OWN:
        options["include_dashboard"] = True
        _make_token()
    else:
        check_address(address)
        options["runtime_env"] = {"env_vars": ENVIRONMENT}
    ray = load_ray(address)
    from ray.job_config import JobConfig

    options["job_config"] = JobConfig(metadata={"job_name": name})
    try:
        with nullcontext() if address == OWN else _without_stderr():
            context = ray.init(**options, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:
        if address == OWN:
            raise
        if isinstance(error, ConnectionError) and address == "auto":
            raise UserError("--address auto: no Ray cluster that lets us in runs here") from None
        raise UserError(
            f"--address {address}: cannot join that cluster: {first_line(error).rstrip('.')}. This "
            "machine has to be one of its own. Is its token here, in RAY_AUTH_TOKEN or "
            "~/.ray/auth_token? On its head, ray get-auth-token prints it; where it asks for none, "
            "set RAY_AUTH_MODE=disabled"
        ) from None
    _protect_token()
    with _logged_not_printed():
        try:
            url = context.dashboard_url
            yield f"http://{url}" if url else ""
        finally:
            ray.shutdown()


@contextmanager
def _logged_not_printed() -> Iterator[None]:
    """Logs what the cluster tells a driver, such as that a process was killed, which Ray prints."""
    from ray._private import worker

    def log(data: dict[str, Any], *_: Any, **__: Any) -> None:
        for line in data.get("lines", ()):
            logging.getLogger("ray").warning("%s: %s", data.get("pid"), line)

    printing = worker.print_worker_logs
    worker.print_worker_logs = log
    try:
        yield
    finally:
        worker.print_worker_logs = printing


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drops what is written to the error stream, also by C++: each try to join, once a second."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def check_address(address: str) -> None:
    """Refuses an address where nothing answers; Ray would try for minutes.

    Raises:
        UserError: Says so.
    """
    if address in (OWN, "auto"):
        return
    host, _, port = address.rpartition(":")
    try:
        if not (host and port.isdigit()):
            raise OSError(None, "it has no host or no port")
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers there ({error.strerror or error}); it is "
            "host:port, as ray start --head prints it, or auto; RAY_ADDRESS says it, too"
        ) from None


def lets_everyone_in(dashboard: str) -> bool:
    """Whether a cluster asks for no token, as far as its dashboard answers here.

    Where RAY_AUTH_MODE=disabled says so already, it is no news: false.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return False
    try:
        asked = f"{dashboard}/api/authentication_mode"
        with urllib.request.urlopen(asked, timeout=ASK_SECONDS) as answer:
            return bool(json.load(answer)["authentication_mode"] == "disabled")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _make_token() -> None:
    """Makes Ray's token where there is none yet: nobody else can read it, not for a moment.

    Ray itself makes it as the umask allows. Where this cannot be done, Ray does.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    path = _token()
    if path.exists() or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # of mode 0600
            file.write(secrets.token_hex(32))  # as Ray's
            file.flush()
            os.link(file.name, path)  # whole, and in no other process's place


def _protect_token() -> None:
    """Makes Ray's token readable by its owner alone where Ray has written it."""
    with suppress(OSError):
        _token().chmod(0o600)


def _token() -> Path:
    """The file with Ray's token."""
    default = Path.home() / ".ray" / "auth_token"
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", default))
