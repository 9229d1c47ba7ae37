"""MLflow's pages for a search: where they are, or a server of one's own that shows them."""

import errno
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from cifartune.config.load import load_space
from cifartune.errors import UserError
from cifartune.passwords import hidden_in, without_login, without_password
from cifartune.runs import RunFolder
from cifartune.tracking.store import ENVIRONMENT, LoggedSearch
from cifartune.tracking.tracker import check_server, default_uri
from cifartune.tracking.view import PREFIX, plain_address, view_address

PORTS = range(5000, 5020)
"""Where it listens by default: MLflow's own port, and those after it."""

START_SECONDS = 120.0
"""How long a server may take until it answers: it takes some seconds on a quiet machine."""

END_SECONDS = 10.0
"""How long it may take to end."""


@dataclass(frozen=True)
class Page:
    """A search in MLflow's pages.

    Attributes:
        uri: The tracking store.
        where: The page below the address of a server.
    """

    uri: str
    where: str

    @property
    def server(self) -> str:
        """The address of the server that has the runs, empty where they are in a database."""
        return self.uri if self.uri.startswith("http") else ""

    def address(self, server: str) -> str:
        """The page's address at a server; who looks at it brings a name and a password."""
        return f"{without_login(server).rstrip('/')}/{self.where}"


def find_page(runs: Path, name: str | None) -> Page:
    """The page with the trials of a search, or with all runs of the folder's store.

    Raises:
        UserError: There is no such search, or no store, or it has nothing of the search.
    """
    run = RunFolder.open(runs, name) if name else None
    uri = run.tracking_uri if run else default_uri(runs)
    file = uri.removeprefix("sqlite:///")
    if file != uri and not Path(file).exists():
        told = (
            f"{run.identity} says that it is there; if its folder was moved, make a link to it "
            "there: MLflow finds its files by that path, too"
            if run
            else "a search makes it, or name the folder of the runs with --runs"
        )
        raise UserError(f"{file}: there is no MLflow store; {told}")
    check_server(uri)
    if run is None:
        return Page(uri, "#/experiments")
    search = LoggedSearch(uri, run.id)
    if "search" not in search.runs:
        raise UserError(
            f"{run.name}: the MLflow store {without_password(uri)} has no run of it; send what is "
            f"left with: {run.sync_command}"
        )
    experiment = search.runs["search"].info.experiment_id
    if PREFIX + run.id in search.experiment_tags:
        return Page(uri, view_address(experiment, run.id))
    return Page(uri, plain_address(experiment, load_space(run.space_file), run.id))


def is_local(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def free_port(host: str, port: int | None) -> int:
    """The port, or by default the first of `PORTS` or any other that nobody listens on.

    Raises:
        UserError: It is taken, or `host` is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.getaddrinfo(host, None, family)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"--host {host}: {getattr(error, 'strerror', None) or error}") from None
    for wanted in [port] if port else chain(PORTS, [0]):
        try:
            with socket.create_server((host, wanted), family=family) as free:
                return int(free.getsockname()[1])
        except OSError as error:
            is_of_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
            if port or not is_of_port:
                option = f"--port {port}" if is_of_port else f"--host {host}"
                raise UserError(
                    f"{option}: cannot listen there: {os.strerror(error.errno or 0)}; "
                    "leave the option out, and one that is free is taken"
                ) from None
    raise AssertionError("some port is free")


@contextmanager
def serving(uri: str, host: str, port: int) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """A server of MLflow's for the `with` block, and its address; all of it ends with the block.

    Args:
        uri: The store, a database.
        host: The address to listen on. Behind others than this machine's own, MLflow answers those
            who call it by an address, this machine's name, or `host`.
        port: The port.

    Raises:
        UserError: It does not start.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--workers", "1"]
    if not is_local(host):
        command += ["--allowed-hosts", ",".join(_names(host, port))]
    # Its workers for jobs, of which this shows none, would be a dozen processes more. The store's
    # address may have a password, which others could read among the arguments.
    environment = {
        **os.environ,
        **ENVIRONMENT,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": uri,
    }
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
    with tempfile.TemporaryFile() as log:
        # In a group of its own, so that a Ctrl-C comes to this process alone, which ends it whole.
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            _wait(process, address)
            yield process, address
        except _DidNotStart:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            told = hidden_in(lines[-1] if lines else "it said nothing", uri)
            raise UserError(f"MLflow's server did not start: {told}") from None
        finally:
            _end(process)


class _DidNotStart(Exception):
    """The server is gone, or does not answer."""


def _wait(process: "subprocess.Popen[bytes]", address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise _DidNotStart
        try:
            check_server(address)
            return
        except UserError:
            time.sleep(0.1)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a server with all processes that it started."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
            process.wait(END_SECONDS)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _names(host: str, port: int) -> list[str]:
    """What browsers on other machines may call this one."""
    own = socket.gethostname()
    names = ["localhost", "127.0.0.1", own, socket.getfqdn(), host]
    private = ["10.*", "192.168.*", *(f"172.{second}.*" for second in range(16, 32))]
    return list(dict.fromkeys([*names, *(f"{name}:{port}" for name in names), *private]))
